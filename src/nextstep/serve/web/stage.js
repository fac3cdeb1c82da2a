// The picture itself: growing row by row, then finished, with what can be done with it.
import { Button } from './controls.js';
import { Details } from './details.js';
import { Fork, ForkLayer } from './fork.js';
import { end, isOver, jobOf, remove, tried, useLive } from './jobs.js';
import { Microscope, MicroscopeLayer, useMicroscope } from './microscope.js';
import { download, fileNameOf, usePicture } from './pictures.js';
import { canReplay, replay, send } from './replay.js';
import { state, useStore } from './state.js';
import { html, useEffect, useRef, useState } from './ui.js';
import { capital, rowsOf, standing } from './words.js';

const TOOLS = [['details', 'Details'], ['fork', 'Go on from a row'], ['tokens', 'Token uncertainty']];

/** The rows that a fork begins with, as its parent shows them. */
function givenTo(job) {
  if (job.parent?.kind !== 'fork' || isOver(job)) return { url: '', row: 0 };
  const { job: from, picture, row } = job.parent;
  const url = jobOf(from)?.pictures[picture]?.url || state.live[from]?.rows[picture]?.preview;
  return url ? { url, row } : { url: '', row: 0 };
}

/** What is known of one picture of a job: its address or preview, its rows, its shape. */
export function pictureOf(job, live, index, model) {
  const made = job.pictures[index];
  const given = givenTo(job);
  const row = live.rows[index];
  const settings = made?.settings;
  const [width, height] = settings?.width
    ? [settings.width, settings.height]
    : (job.size || `${model.width}x${model.height}`).split('x').map(Number);
  const rows = row?.rows || Math.round(height / model.token_pixels);
  const done = made ? (settings.rows_done ?? rows) : row?.row || given.row;
  return {
    url: made?.url || row?.preview || given.url,
    shown: made ? done : row?.shown || given.row,
    done, rows, width, height,
    made: Boolean(made),
  };
}

/** The picture so far; below it the image tokens that are still to come. */
export function Growing({ picture, alt, children }) {
  const { address, of, problem } = usePicture(picture.url);
  const [shape, setShape] = useState(null);
  const clipped = useRef(0);
  // Until the finished picture is there, the last preview stays cut where it ends.
  if (of === picture.url) clipped.current = picture.shown;
  const { rows, done } = picture;
  const shown = clipped.current;
  const [width, height] = shape || [picture.width, picture.height];
  const grid = {
    '--rows': rows, '--columns': Math.round((rows * width) / height), '--done': done,
    aspectRatio: `${width} / ${height}`,
  };
  const clip = { clipPath: shown < rows ? `inset(0 0 ${100 - (100 * shown) / rows}% 0)` : 'none' };
  const loaded = ({ currentTarget: { naturalWidth: w, naturalHeight: h } }) => {
    if (w * height !== h * width) setShape([w, h]);
  };
  return html`
    <div class="growing ${picture.made ? 'made' : ''}" style=${grid} data-row=${done} data-rows=${rows}>
      ${address && html`<img src=${address} alt=${alt} style=${clip} draggable=${false}
        onLoad=${loaded} />`}
      ${problem && html`<p class="gone">${problem}</p>`}
      ${!picture.made && done < rows && html`<div class="next-row"></div>`}
      ${children}
    </div>
  `;
}

function Standing({ job, live }) {
  const [now, setNow] = useState(Date.now());
  const running = !isOver(job);
  useEffect(() => {
    if (!running) return undefined;
    const timer = setInterval(() => setNow(Date.now()), 500);
    return () => clearInterval(timer);
  }, [running]);
  const rows = rowsOf(job, live);
  return html`
    <div class="standing ${job.state}">
      <p>${standing(job, live, now)}</p>
      <p class="unseen" role="status">${job.state === 'running' ? 'Being drawn' : standing(job, live, now)}</p>
      ${running
        ? html`<progress aria-label="Rows drawn" max=${rows?.of || 1} value=${rows ? rows.done : 0}></progress>`
        : html`<div class="progress-place"></div>`}
    </div>
  `;
}

function Strip({ job, live, model, index, pick }) {
  return html`
    <div class="strip" role="group" aria-label="Variations">
      ${Array.from({ length: Math.max(job.n, job.pictures.length) }, (_, i) => html`
        <button key=${i} type="button" class="strip-one" aria-pressed=${i === index}
          aria-label=${`Variation ${i + 1}`} onClick=${() => pick(i)}>
          <${Growing} picture=${pictureOf(job, live, i, model)} alt="" />
        </button>
      `)}
    </div>
  `;
}

function Actions({ job, picture, index }) {
  const can = (work) => () => tried(work);
  if (!isOver(job)) {
    return html`
      <div class="row-of actions">
        <${Button} icon="stop" label="Stop and keep" onClick=${can(() => end(job, 'stop'))} />
        <${Button} kind="quiet" icon="cross" label="Cancel" onClick=${can(() => end(job, 'cancel'))} />
      </div>
    `;
  }
  return html`
    <div class="row-of actions">
      ${picture.made && html`
        <${Button} icon="save" label="Save" onClick=${can(() => download(picture.url, fileNameOf(job, index)))} />
        <${Button} icon="edit" label="Edit" onClick=${can(() => send(picture.url, 'edit'))} />
        <${Button} icon="eye" label="Ask" onClick=${can(() => send(picture.url, 'read'))} />
        <${Button} icon="move" label="Next state" onClick=${can(() => send(picture.url, 'world'))} />
      `}
      ${canReplay(job) && html`
        <${Button} kind="quiet last" icon="again" hidden=${true} label="Run again"
          onClick=${can(() => replay(job))} />
      `}
      <${Button} kind="quiet" icon="bin" hidden=${true} label="Remove from the history"
        onClick=${can(() => remove(job))} />
    </div>
  `;
}

/** A job of pictures; `empty` stands there without one. */
export function Stage({ job, empty }) {
  const model = useStore((s) => s.model);
  if (!job) {
    const shape = { '--rows': 8, '--columns': 8, aspectRatio: '1' };
    return html`
      <section class="stage" aria-label="Picture">
        <div class="growing empty" style=${shape}><div class="empty-words">${empty}</div></div>
      </section>
    `;
  }
  return html`<${Shown} key=${job.id} job=${job} model=${model} />`;
}

function Shown({ job, model }) {
  const live = useLive(job.id);
  const [index, setIndex] = useState(0);
  const [tool, setTool] = useState('details');
  const [row, setRow] = useState(null);
  const picture = pictureOf(job, live, index, model);
  const scope = useMicroscope(job, index, picture, tool === 'tokens');
  const kept = Math.min(row ?? Math.floor(picture.rows / 2), picture.done);
  const has = picture.done > 0;
  const several = Math.max(job.n, job.pictures.length) > 1;
  return html`
    <section class="stage" aria-label="Picture" data-job=${job.id} data-state=${job.state}>
      <h2 class="stage-title">${job.prompt.split('\n')[0]}</h2>
      <${Standing} job=${job} live=${live} />
      ${job.prompt_given && html`<p class="hint">You asked for “${job.prompt_given}”.</p>`}
      ${job.warnings?.length > 0 && html`
        <ul class="warnings" aria-label="Warnings">
          ${job.warnings.map((said) => html`<li key=${said}>${capital(said)}.</li>`)}
        </ul>
      `}
      <${Growing} picture=${picture} alt=${job.prompt}>
        ${tool === 'fork' && has && html`
          <${ForkLayer} rows=${picture.rows} most=${picture.done} row=${kept} pick=${setRow} />
        `}
        ${tool === 'tokens' && html`<${MicroscopeLayer} scope=${scope} />`}
      <//>
      ${several && html`
        <${Strip} job=${job} live=${live} model=${model} index=${index} pick=${setIndex} />
      `}
      <${Actions} job=${job} picture=${picture} index=${index} />
      ${has && html`
        <div class="tools">
          <div class="tool-row" role="group" aria-label="Tools">
            ${TOOLS.map(([name, label]) => html`
              <button key=${name} type="button" class="tool" aria-pressed=${tool === name}
                onClick=${() => setTool(name)}>${label}</button>
            `)}
          </div>
          ${tool === 'details' && html`<${Details} job=${job} index=${index} />`}
          ${tool === 'fork' && html`
            <${Fork} job=${job} index=${index} picture=${picture} row=${kept} pick=${setRow} />
          `}
          ${tool === 'tokens' && html`
            <${Microscope} job=${job} index=${index} scope=${scope} />
          `}
        </div>
      `}
    </section>
  `;
}
