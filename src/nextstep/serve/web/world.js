// A picture as a state of a world: say what happens, see the next state.
import { Button, Text } from './controls.js';
import { PictureInput } from './dropzone.js';
import { useDraft } from './kept.js';
import { Coming } from './story.js';
import { say, useStore } from './state.js';
import { wordsFor } from './styles.js';
import { sent, useTurn } from './turns.js';
import { html } from './ui.js';

const FRESH = { path: [], at: 0, who: 'the cat', action: '', job: null, next: '' };
const WAYS = ['up', 'left', 'right', 'down'];
const KEYS = { ArrowUp: 'up', ArrowLeft: 'left', ArrowRight: 'right', ArrowDown: 'down' };

export function World() {
  const [draft, change] = useDraft('world', FRESH);
  const model = useStore((s) => s.model);
  const now = draft.path[draft.at];
  const turn = useTurn(draft, change, (made, job) => {
    const drawn = made.find((part) => part.picture);
    if (!drawn) {
      change({ job: null });
      if (job.state === 'done') say('No next state was drawn.');
      return;
    }
    const path = [...draft.path.slice(0, draft.at + 1), { picture: drawn.picture, action: draft.next }];
    change({ path, at: path.length - 1, job: null });
  });

  function happen(action) {
    if (!now) {
      say('Give a picture first: the state to begin with.');
      return;
    }
    if (!action.trim()) {
      say('Say what happens.');
      return;
    }
    if (turn.busy) return;
    const parts = sent([{ picture: now.picture }, { text: action.trim() }]);
    turn.ask({ parts, draw: true, max_images: 1 }, { next: action.trim(), action: '' });
  }

  const moves = (way) => `${draft.who.trim() || 'it'} moves ${way}`;
  const pressed = (event) => {
    if (!KEYS[event.key]) return;
    event.preventDefault();
    happen(moves(KEYS[event.key]));
  };
  return html`
    <section class="controls" aria-label="What happens">
      <${Text} label="Who moves" value=${draft.who} change=${(who) => change({ who })} />
      <div class="pad" role="group" aria-label="Move" onKeyDown=${pressed}>
        ${WAYS.map((way) => html`
          <${Button} key=${way} kind=${`pad-${way}`} icon=${way} hidden=${true} label=${`Move ${way}`}
            disabled=${turn.busy} onClick=${() => happen(moves(way))} />
        `)}
      </div>
      <${Text} label="Or something else" value=${draft.action} send=${() => happen(draft.action)}
        placeholder="the apple disappears" change=${(action) => change({ action })} />
      <${Button} kind="main" label="Next state" busy=${turn.busy} disabled=${turn.busy}
        onClick=${() => happen(draft.action)} />
      <p class="hint">The arrow keys work too, once an arrow button has the focus. Go back to any state
        and take another way from there.</p>
    </section>
    <section class="stage world" aria-label="World">
      ${now && !turn.job && html`
        <h2 class="stage-title">${now.action || 'The beginning'}</h2>
        <img class="world-now" src=${now.picture} alt=${now.action || 'The state at the beginning'} />
      `}
      ${turn.job && html`<h2 class="stage-title">${draft.next}</h2><${Coming} turn=${turn} model=${model} />`}
      ${!now && html`
        <${PictureInput} label="The state to begin with" picture=${null}
          change=${(picture) => picture && change({ path: [{ picture }], at: 0 })} />
        <p class="hint">Or open a picture from the history and press Next state.${' '}
          ${wordsFor(model).notes.world || 'A model does this as well as it was trained to.'}</p>
      `}
      ${draft.path.length > 0 && html`
        <div class="strip" role="group" aria-label="States so far">
          ${draft.path.map((step, place) => html`
            <button key=${place} type="button" class="strip-one" aria-pressed=${place === draft.at}
              aria-label=${step.action || 'The beginning'} title=${step.action || 'The beginning'}
              disabled=${turn.busy} onClick=${() => change({ at: place })}>
              <img src=${step.picture} alt="" />
            </button>
          `)}
        </div>
        <div class="row-of">
          <${Button} kind="quiet" icon="bin" label="Another beginning" disabled=${turn.busy}
            onClick=${() => change({ path: [], at: 0 })} />
        </div>
      `}
    </section>
  `;
}
