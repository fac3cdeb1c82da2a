// Several jobs of the history at once: compared side by side, saved together, removed.
import { ask } from './api.js';
import { Button, Scale } from './controls.js';
import { isOver, jobOf, remove, tried } from './jobs.js';
import { fileNameOf, saveBlob, usePicture } from './pictures.js';
import { say, set, state, useStore } from './state.js';
import { html, useEffect, useRef, useState } from './ui.js';
import { count, titleOf } from './words.js';
import { zipOf } from './zip.js';

const MOST = 24;
const NAMES = {
  seed: 'Seed', index: 'Picture', solver: 'Solver', steps: 'Steps', guidance: 'Guidance',
  image_guidance: 'Image guidance', reasoning: 'Line first', negative_prompt: 'Negative',
  mask_feather: 'Soft edge', model: 'Model',
};

export const choosing = () => state.chosen !== null;

/** A job joins those that are chosen, or leaves them. */
export function choose(id) {
  const chosen = state.chosen || [];
  set({ chosen: chosen.includes(id) ? chosen.filter((one) => one !== id) : [...chosen, id] });
}

/** The finished pictures of the chosen jobs, in the order in which they were chosen. */
export function picturesOf(ids) {
  return ids.map(jobOf).filter(Boolean).flatMap((job) => job.pictures.map((picture, index) => ({
    ...picture, title: titleOf(job).split('\n')[0], name: fileNameOf(job, index),
  })));
}

/** Names of settings that are not the same in all pictures. */
export function differing(pictures) {
  return Object.keys(NAMES).filter((name) => new Set(
    pictures.map((one) => JSON.stringify(one.settings[name] ?? null)),
  ).size > 1);
}

async function save(pictures) {
  const files = [];
  for (const { url, name } of pictures) {
    const answer = await ask(url);
    files.push({ name, bytes: new Uint8Array(await answer.arrayBuffer()) });
  }
  if (files.length === 1) saveBlob(new Blob([files[0].bytes], { type: 'image/png' }), files[0].name);
  else saveBlob(zipOf(files), `${count(files.length, 'picture').replace(' ', '-')}.zip`);
}

function Compared({ picture, names }) {
  const { address, problem } = usePicture(picture.url);
  return html`
    <figure class="compared">
      ${address && html`<img src=${address} alt=${picture.title} />`}
      ${problem && html`<p class="gone">${problem}</p>`}
      <figcaption>
        <strong>${picture.title}</strong>
        ${names.map((name) => html`
          <span key=${name}>${NAMES[name]} ${String(picture.settings[name] ?? 'none')}</span>
        `)}
      </figcaption>
    </figure>
  `;
}

/** Two pictures of one size over each other, with a border that can be moved. */
function Swipe({ pictures }) {
  const [place, setPlace] = useState(50);
  const [one, other] = pictures.map((picture) => usePicture(picture.url).address);
  return html`
    <div class="swipe-place">
      <div class="swipe" style=${{ '--place': `${place}%` }}>
        ${one && html`<img src=${one} alt="" />`}
        ${other && html`<img src=${other} alt="" class="swipe-over" />`}
      </div>
      <${Scale} label="Border between the first and the second" value=${place} own=${50}
        min="0" max="100" step="1" say=${(value) => `${value} %`}
        change=${(value) => setPlace(value ?? 50)} />
    </div>
  `;
}

function Compare({ pictures, close }) {
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  const names = differing(pictures);
  const [first, second] = pictures.map(({ settings }) => `${settings.width}x${settings.height}`);
  return html`
    <dialog ref=${dialog} class="dialog compare" aria-labelledby="compare-title" onClose=${close}>
      <div class="compare-head">
        <h2 id="compare-title">${count(pictures.length, 'picture')} side by side</h2>
        <${Button} kind="quiet" icon="cross" hidden=${true} label="Close"
          onClick=${() => dialog.current.close()} />
      </div>
      <div class="compare-row">
        ${pictures.map((picture) => html`
          <${Compared} key=${picture.url} picture=${picture} names=${names} />
        `)}
        ${pictures.length === 2 && first === second && html`<${Swipe} pictures=${pictures} />`}
      </div>
    </dialog>
  `;
}

/** What can be done with the chosen ones. */
export function ChosenBar() {
  const chosen = useStore((s) => s.chosen);
  useStore((s) => s.jobs);
  const [compared, setCompared] = useState(null);
  const [busy, setBusy] = useState(false);
  if (chosen === null) return null;
  const pictures = picturesOf(chosen);
  async function download() {
    setBusy(true);
    await tried(() => save(pictures));
    setBusy(false);
  }
  function compare() {
    if (pictures.length > MOST) say(`At most ${MOST} pictures are compared at once.`);
    else setCompared(pictures);
  }
  function removeAll() {
    const over = chosen.map(jobOf).filter((job) => job && isOver(job));
    set({ chosen: null });
    remove(...over);
  }
  return html`
    <div class="chosen-bar" role="group" aria-label="Chosen pictures">
      <div class="chosen-head">
        <p role="status">${chosen.length
          ? `${chosen.length} chosen, ${count(pictures.length, 'picture')}`
          : 'Press the ones that you mean.'}</p>
        <${Button} kind="quiet" icon="bin" hidden=${true} label="Remove the chosen ones"
          disabled=${!chosen.length} onClick=${removeAll} />
        <${Button} kind="quiet" icon="cross" hidden=${true} label="Choose no longer"
          onClick=${() => set({ chosen: null })} />
      </div>
      <div class="chosen-row">
        <${Button} icon="compare" label="Compare" disabled=${pictures.length < 2} onClick=${compare} />
        <${Button} icon="save" label="Save" disabled=${!pictures.length || busy} busy=${busy}
          onClick=${download} />
      </div>
    </div>
    ${compared && html`<${Compare} pictures=${compared} close=${() => setCompared(null)} />`}
  `;
}
