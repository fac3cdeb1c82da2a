// Go on from a row in another way.
import { Button, Scale, Text } from './controls.js';
import { goOn, tried } from './jobs.js';
import { newSeed } from './settings.js';
import { html, useState } from './ui.js';
import { count } from './words.js';

/** A line over the picture; a press chooses the row. */
export function ForkLayer({ rows, most, row, pick }) {
  const choose = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const near = Math.round((rows * (event.clientY - box.top)) / box.height);
    pick(Math.min(most, Math.max(0, near)));
  };
  return html`
    <div class="fork-layer" onPointerDown=${choose}
      onPointerMove=${(event) => event.buttons && choose(event)}>
      <div class="fork-rest" style=${{ top: `${(100 * row) / rows}%` }}></div>
    </div>
  `;
}

export function Fork({ job, index, picture, row, pick }) {
  const [prompt, setPrompt] = useState(job.prompt);
  const [fresh, setFresh] = useState(true);
  const [busy, setBusy] = useState(false);

  async function fork() {
    setBusy(true);
    const body = { picture: index, row };
    if (prompt.trim() !== job.prompt) body.prompt = prompt.trim();
    if (fresh) body.seed = newSeed();
    await tried(() => goOn(job, 'fork', body));
    setBusy(false);
  }

  return html`
    <div class="tool-body">
      <p class="hint">The rows above the line stay; what lies below is drawn anew. Press on the picture
        or use the scale.</p>
      <${Scale} label="Rows kept" value=${row} own=${null} min="0" max=${picture.done} step="1"
        say=${(value) => `${value} of ${picture.rows}`} change=${(value) => pick(value)} />
      <${Text} label="Prompt from there on" rows="2" value=${prompt} change=${setPrompt} send=${fork} />
      <label class="check">
        <input type="checkbox" checked=${fresh} onChange=${(event) => setFresh(event.currentTarget.checked)} />
        <span>With a new seed</span>
      </label>
      <${Button} icon="fork" kind="main" busy=${busy} disabled=${busy}
        label=${row ? `Go on after ${count(row, 'row')}` : 'Begin anew'} onClick=${fork} />
    </div>
  `;
}
