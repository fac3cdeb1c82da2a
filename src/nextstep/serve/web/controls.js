// Small controls that several tabs share.
import { Icon } from './icons.js';
import { html, useId } from './ui.js';

/** A button; while its work runs it is busy. */
export const Button = ({ icon, label, kind = '', busy = false, hidden = false, ...rest }) => html`
  <button type="button" class="button ${kind} ${hidden ? 'bare' : ''}" aria-busy=${busy}
    ...${hidden ? { 'aria-label': label, title: label } : {}} ...${rest}>
    ${icon && html`<${Icon} name=${icon} />`}${!hidden && html`<span>${label}</span>`}
  </button>
`;

/** A number on a scale, with the model's own value to come back to. */
export function Scale({ label, value, own, min, max, step, change, say = String }) {
  const id = useId();
  const shown = value ?? own;
  return html`
    <div class="field">
      <div class="field-head">
        <label for=${id}>${label}</label>
        <output for=${id}>${say(shown)}</output>
      </div>
      <input id=${id} type="range" min=${min} max=${max} step=${step} value=${shown}
        onInput=${(event) => {
          const next = Number(event.currentTarget.value);
          change(next === own ? null : next);
        }} />
    </div>
  `;
}

export function Choice({ label, value, options, change }) {
  const id = useId();
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      <select id=${id} value=${value} onChange=${(event) => change(event.currentTarget.value)}>
        ${options.map(([name, text]) => html`<option key=${name} value=${name}
          selected=${name === value}>${text}</option>`)}
      </select>
    </div>
  `;
}

export function Text({ label, value, change, rows = 0, hint, send, hideLabel, ...rest }) {
  const id = useId();
  const more = {
    id,
    value,
    'aria-describedby': hint ? `${id}-hint` : null,
    onInput: (event) => change(event.currentTarget.value),
    onKeyDown: (event) => {
      const both = event.ctrlKey || event.metaKey;
      if (send && event.key === 'Enter' && (both || !rows)) send();
    },
    ...rest,
  };
  return html`
    <div class="field">
      <label for=${id} class=${hideLabel ? 'unseen' : ''}>${label}</label>
      ${rows ? html`<textarea rows=${rows} ...${more}></textarea>` : html`<input ...${more} />`}
      ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
    </div>
  `;
}

/** One of a few, side by side. */
export function Segments({ label, value, options, change }) {
  const name = useId();
  return html`
    <fieldset class="field segments">
      <legend>${label}</legend>
      <div class="segment-row">
        ${options.map(([option, text]) => html`
          <label key=${option} class="segment">
            <input type="radio" name=${name} value=${option} checked=${option === value}
              onChange=${() => change(option)} />
            <span>${text}</span>
          </label>
        `)}
      </div>
    </fieldset>
  `;
}

export const Chips = ({ label, options, pressed = () => null, pick }) => html`
  <div class="chips" role="group" aria-label=${label}>
    ${options.map((word) => html`
      <button key=${word} type="button" class="chip" aria-pressed=${pressed(word)}
        onClick=${() => pick(word)}>${word}</button>
    `)}
  </div>
`;

export const Swatches = ({ label, colours, pressed, pick }) => html`
  <div class="swatches" role="group" aria-label=${label}>
    ${Object.entries(colours).map(([word, colour]) => html`
      <button key=${word} type="button" class="swatch" aria-label=${`${word} background`}
        title=${`${word} background`} aria-pressed=${pressed(word)}
        style=${{ '--swatch': colour }} onClick=${() => pick(word)}></button>
    `)}
  </div>
`;
