// Text and pictures in turn: written by the person, gone on with by the model.
import { Button, Scale, Segments, Text } from './controls.js';
import { PictureInput } from './dropzone.js';
import { end, tried } from './jobs.js';
import { useDraft } from './kept.js';
import { Growing, pictureOf } from './stage.js';
import { say, useStore } from './state.js';
import { wordsFor } from './styles.js';
import { sent, useTurn } from './turns.js';
import { html } from './ui.js';
import { standing } from './words.js';

const FRESH = { parts: [], text: '', picture: null, most: 2, temperature: 0, job: null };

function Part({ part, place, remove }) {
  return html`
    <div class="story-part ${part.picture ? 'of-picture' : 'of-text'}">
      ${part.picture
        ? html`<img src=${part.picture} alt=${`Picture ${place + 1} of the story`} />`
        : html`<p>${part.text}</p>`}
      ${remove && html`
        <${Button} kind="quiet" icon="cross" hidden=${true} label="Take this part back" onClick=${remove} />
      `}
    </div>
  `;
}

/** What is being written and drawn right now. */
export function Coming({ turn, model }) {
  const { job, live } = turn;
  if (!job) return null;
  return html`
    ${live.parts.map((part) => html`
      <${Part} key=${part.index} place=${part.index}
        part=${part.picture ? { picture: `data:image/png;base64,${part.picture}` } : { text: part.text }} />
    `)}
    ${Object.keys(live.rows).map((index) => html`
      <${Growing} key=${index} alt="Being drawn" picture=${{
        ...pictureOf({ ...job, pictures: [] }, live, Number(index), model) }} />
    `)}
    <div class="row-of coming">
      <p role="status">${standing(job, live)}</p>
      <${Button} kind="quiet" icon="stop" label="Stop and keep" onClick=${() => tried(() => end(job, 'stop'))} />
    </div>
  `;
}

export function Story() {
  const [draft, change] = useDraft('story', FRESH);
  const model = useStore((s) => s.model);
  const turn = useTurn(draft, change, (made, job) => {
    const told = made.filter((part) => part.picture || part.text.trim());
    change({ parts: [...draft.parts, ...told], job: null });
    if (!told.length && job.state === 'done') {
      say('The model had nothing to add. Write some more yourself, and go on.');
    }
  });

  const written = () => {
    const more = [];
    if (draft.picture) more.push({ picture: draft.picture });
    if (draft.text.trim()) more.push({ text: draft.text.trim() });
    return [...draft.parts, ...more];
  };

  function go() {
    const parts = written();
    if (!parts.length) {
      say('Begin the story: write a sentence or give a picture.');
      return;
    }
    const body = { parts: sent(parts), max_images: draft.most, temperature: draft.temperature };
    turn.ask(body, { parts, text: '', picture: null });
  }

  return html`
    <section class="controls" aria-label="Your turn">
      <${Text} label="Your words" rows="3" value=${draft.text} send=${go} class="prompt"
        placeholder="A cat finds an apple." change=${(text) => change({ text })} />
      <${PictureInput} label="A picture for the story" picture=${draft.picture}
        change=${(picture) => change({ picture })} />
      <${Button} kind="main" label="Go on" busy=${turn.busy} disabled=${turn.busy} onClick=${go} />
      <${Button} label="Add without going on" disabled=${!draft.text.trim() && !draft.picture}
        onClick=${() => change({ parts: written(), text: '', picture: null })} />
      <${Segments} label="Pictures at most" value=${draft.most} options=${[1, 2, 3, 4].map((n) => [n, n])}
        change=${(most) => change({ most })} />
      <${Scale} label="Freedom of the words" value=${draft.temperature} own=${0} min="0" max="1.5" step="0.1"
        say=${(value) => value.toFixed(1)} change=${(value) => change({ temperature: value ?? 0 })} />
    </section>
    <section class="stage story" aria-label="Story">
      ${!draft.parts.length && !draft.job && html`
        <div class="growing empty" style=${{ '--rows': 8, '--columns': 8 }}>
          <div class="empty-words">
            <p class="empty-title">A story of words and pictures.</p>
            <p class="hint">Write the beginning; the model writes and draws on. Then it is your turn again.${' '}
              ${wordsFor(model).notes.story || 'A model does this as well as it was trained to.'}</p>
          </div>
        </div>
      `}
      ${draft.parts.map((part, place) => html`
        <${Part} key=${place} part=${part} place=${place}
          remove=${place === draft.parts.length - 1 && !turn.busy
            && (() => change({ parts: draft.parts.slice(0, -1) }))} />
      `)}
      <${Coming} turn=${turn} model=${model} />
      ${draft.parts.length > 0 && !turn.busy && html`
        <div class="row-of">
          <${Button} kind="quiet" icon="bin" label="New story" onClick=${() => change({ parts: [] })} />
        </div>
      `}
    </section>
  `;
}
