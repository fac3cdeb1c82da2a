// Pictures from text.
import { Button, Chips, Swatches, Text } from './controls.js';
import { submit, tried, useJob } from './jobs.js';
import { useDraft } from './kept.js';
import { NamePicker, withName } from './picker.js';
import { asked, FRESH_CREATE, Settings } from './settings.js';
import { Stage } from './stage.js';
import { set, useStore } from './state.js';
import { includesWord, toggled, wordsFor } from './styles.js';
import { html, useState } from './ui.js';

export function Create() {
  const [draft, change] = useDraft('create', FRESH_CREATE);
  const model = useStore((s) => s.model);
  const job = useJob(useStore((s) => s.selected.create));
  const [busy, setBusy] = useState(false);
  const words = wordsFor(model);
  const colours = Object.keys(words.colours);

  async function generate() {
    if (!draft.prompt.trim()) {
      set({ notice: 'Say first what the picture should show.' });
      return;
    }
    setBusy(true);
    await tried(() => submit({ prompt: draft.prompt.trim(), ...asked(draft) }));
    setBusy(false);
  }

  return html`
    <section class="controls" aria-label="What to draw">
      <${Text} label="Prompt" rows="3" value=${draft.prompt} send=${generate} class="prompt"
        placeholder=${words.examples[0]} change=${(prompt) => change({ prompt })} />
      <div class="chip-block">
        <${Chips} label="Styles" options=${words.styles}
          pressed=${(word) => includesWord(draft.prompt, word, 'style')}
          pick=${(word) => change({ prompt: toggled(draft.prompt, word, words.styles, 'style') })} />
        ${colours.length > 0 && html`
          <${Swatches} label="Backgrounds" colours=${words.colours}
            pressed=${(word) => includesWord(draft.prompt, word, 'background')}
            pick=${(word) => change({ prompt: toggled(draft.prompt, word, colours, 'background') })} />
        `}
      </div>
      ${Object.keys(words.names).length > 0 && html`
        <${NamePicker} words=${words} prompt=${draft.prompt}
          pick=${(name) => change({ prompt: withName(draft.prompt, name) })} />
      `}
      <${Button} kind="main" label="Generate" busy=${busy} disabled=${busy} onClick=${generate} />
      <${Settings} draft=${draft} change=${change} model=${model} task="generate" />
    </section>
    <${Stage} job=${job} empty=${html`
      <p class="empty-title">Your picture appears here, row by row.</p>
      <p class="hint">${words.notes.create
        || 'Stop it when you have seen enough, or go on from any row in another way.'}</p>
      <${Chips} label="Examples" options=${words.examples} pick=${(prompt) => change({ prompt })} />
    `} />
  `;
}
