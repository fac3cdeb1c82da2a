// A place for a picture: dropped, pasted, or chosen.
import { Button } from './controls.js';
import { Icon } from './icons.js';
import { dataOfFile } from './pictures.js';
import { say } from './state.js';
import { html, useEffect, useRef, useState } from './ui.js';

function fileOf(transfer) {
  return [...(transfer?.files || [])].find((file) => file.type.startsWith('image/'));
}

/** Shows the picture, or asks for one. `children` may lie over it. */
export function PictureInput({ label, picture, change, children }) {
  const input = useRef(null);
  const [over, setOver] = useState(false);

  async function take(file) {
    if (!file) {
      say('That is not a picture: drop or paste a picture file, such as PNG or JPEG.');
      return;
    }
    try {
      change(await dataOfFile(file));
    } catch (problem) {
      say(problem);
    }
  }

  useEffect(() => {
    const pasted = (event) => {
      const file = fileOf(event.clipboardData);
      if (!file) return;
      event.preventDefault();
      take(file);
    };
    document.addEventListener('paste', pasted);
    return () => document.removeEventListener('paste', pasted);
  });

  const drops = {
    onDragOver: (event) => {
      event.preventDefault();
      setOver(true);
    },
    onDragLeave: () => setOver(false),
    onDrop: (event) => {
      event.preventDefault();
      setOver(false);
      take(fileOf(event.dataTransfer));
    },
  };
  return html`
    <div class="picture-input ${over ? 'over' : ''}" ...${drops}>
      <input ref=${input} type="file" accept="image/*" class="unseen"
        tabindex="-1" aria-label=${label} onChange=${(event) => {
          if (event.currentTarget.files.length) take(event.currentTarget.files[0]);
          event.currentTarget.value = '';
        }} />
      ${picture
        ? html`
          <div class="given">
            <img src=${picture} alt=${label} />
            ${children}
          </div>
          <div class="row-of">
            <${Button} kind="quiet" icon="picture" label="Another picture"
              onClick=${() => input.current.click()} />
            <${Button} kind="quiet" icon="cross" label="Remove" onClick=${() => change(null)} />
          </div>
        `
        : html`
          <button type="button" class="drop" onClick=${() => input.current.click()}>
            <${Icon} name="picture" />
            <span class="drop-title">${label}</span>
            <span class="hint">Drop it here, paste it, or press to choose a file.</span>
          </button>
        `}
    </div>
  `;
}
