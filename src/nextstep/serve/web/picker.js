// What the model draws by name, with pictures: a press puts a name into the prompt.
import { Text } from './controls.js';
import { usePicture } from './pictures.js';
import { html, useState } from './ui.js';

/** The prompt with another object at its beginning; style and background stay. */
export const withName = (prompt, name) => prompt.replace(/^[^,]*/, name);

function Cell({ name, place, sheet, address, others, pressed, pick }) {
  const look = address && {
    backgroundImage: `url(${address})`,
    backgroundPosition: `-${(place % sheet.columns) * sheet.side}px -${Math.floor(place / sheet.columns) * sheet.side}px`,
    width: `${sheet.side}px`,
    height: `${sheet.side}px`,
  };
  return html`
    <button type="button" class="name" title=${[name, ...others].join(', ')} aria-pressed=${pressed}
      onClick=${() => pick(name)}>
      ${look && html`<i style=${look} aria-hidden="true"></i>`}<span>${name}</span>
    </button>
  `;
}

export function NamePicker({ words, prompt, pick }) {
  const [sought, setSought] = useState('');
  const { address } = usePicture(words.sheet?.url);
  const names = Object.entries(words.names);
  const wanted = sought.trim().toLowerCase();
  const found = names.map(([name, others], place) => ({ name, others, place }))
    .filter(({ name, others }) => [name, ...others].some((word) => word.toLowerCase().includes(wanted)));
  const now = prompt.split(',')[0].trim();
  return html`
    <details class="more">
      <summary>What it draws<span class="hint">${names.length} objects by name</span></summary>
      <div class="more-body">
        <${Text} label="Search" hideLabel=${true} placeholder="search for an object" value=${sought}
          change=${setSought} />
        <div class="names" role="group" aria-label="Objects by name" tabindex="0">
          ${found.map((one) => html`
            <${Cell} key=${one.name} ...${one} sheet=${words.sheet} address=${address}
              pressed=${one.name === now} pick=${pick} />
          `)}
          ${!found.length && html`<p class="hint">It was not taught this.</p>`}
        </div>
      </div>
    </details>
  `;
}
