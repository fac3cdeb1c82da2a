// Pictures changed by an instruction, inside a mask if there is one.
import { Button, Chips, Text } from './controls.js';
import { PictureInput } from './dropzone.js';
import { submit, tried, useJob } from './jobs.js';
import { useDraft } from './kept.js';
import { MaskLayer, maskOf, MaskTools } from './mask.js';
import { asked, FRESH_EDIT, Settings } from './settings.js';
import { Stage } from './stage.js';
import { say, useStore } from './state.js';
import { wordsFor } from './styles.js';
import { html, useState } from './ui.js';

export function Edit() {
  const [draft, change] = useDraft('edit', FRESH_EDIT);
  const model = useStore((s) => s.model);
  const job = useJob(useStore((s) => s.selected.edit));
  const [busy, setBusy] = useState(false);
  const words = wordsFor(model);

  async function edit() {
    if (!draft.picture) {
      say('Give a picture first: drop it, paste it, or choose a file.');
      return;
    }
    if (!draft.prompt.trim()) {
      say('Say what should change.');
      return;
    }
    setBusy(true);
    await tried(async () => {
      const line = draft.line.trim();
      const prompt = line ? `${draft.prompt.trim()}\n${line}` : draft.prompt.trim();
      const body = { prompt, images: [draft.picture], ...asked(draft) };
      delete body.size;
      // A line that is given stands for the one that the model would write.
      if (line) body.reasoning = false;
      else if (draft.reasoning !== null) body.reasoning = draft.reasoning;
      if (draft.imageGuidance !== null) body.image_guidance = draft.imageGuidance;
      if (draft.layer) {
        body.mask = await maskOf(draft.layer);
        body.mask_feather = draft.feather;
      }
      await submit(body);
    });
    setBusy(false);
  }

  return html`
    <section class="controls" aria-label="What to change">
      <${PictureInput} label="Picture to change" picture=${draft.picture}
        change=${(picture) => change({ picture, layer: null })}>
        <${MaskLayer} picture=${draft.picture} layer=${draft.layer} brush=${draft.brush}
          erase=${draft.erase} change=${(layer) => change({ layer })} />
      <//>
      ${draft.picture && html`
        <${MaskTools} brush=${draft.brush} erase=${draft.erase} layer=${draft.layer}
          feather=${draft.feather} change=${change} />
      `}
      <${Text} label="Instruction" rows="2" value=${draft.prompt} send=${edit} class="prompt"
        placeholder=${words.edits[0]} change=${(prompt) => change({ prompt })} />
      <${Chips} label="Examples" options=${words.edits} pick=${(prompt) => change({ prompt })} />
      <label class="check">
        <input type="checkbox" checked=${draft.reasoning ?? model.defaults.edit.reasoning}
          onChange=${(event) => change({ reasoning: event.currentTarget.checked })} />
        <span>Say first what the picture will show</span>
      </label>
      ${(draft.line || (draft.reasoning ?? model.defaults.edit.reasoning)) && html`
        <${Text} label="What it will show" value=${draft.line} change=${(line) => change({ line })}
          placeholder="empty: the model writes it" />
      `}
      <${Button} kind="main" label="Change it" busy=${busy} disabled=${busy} onClick=${edit} />
      <${Settings} draft=${draft} change=${change} model=${model} task="edit" />
    </section>
    <${Stage} job=${job} empty=${html`
      <p class="empty-title">The changed picture appears here.</p>
      <p class="hint">${words.notes.edit
        || 'Any picture from the history can be changed too: open it and press Edit.'}</p>
    `} />
  `;
}
