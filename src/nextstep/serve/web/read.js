// Questions about a picture.
import { Button, Chips, Text } from './controls.js';
import { PictureInput } from './dropzone.js';
import { useDraft } from './kept.js';
import { say, useStore } from './state.js';
import { wordsFor } from './styles.js';
import { sent, useTurn } from './turns.js';
import { html } from './ui.js';

const FRESH = { picture: null, question: '', said: [], job: null };
const QUESTIONS = ['What is in the picture?', 'What colour is the background?', 'How many things are there?'];

export function Read() {
  const [draft, change] = useDraft('read', FRESH);
  const model = useStore((s) => s.model);
  const turn = useTurn(draft, change, (made, job) => {
    const answer = made.map((part) => part.text || '').join(' ').trim();
    const said = draft.said.map((one, place) => (place === draft.said.length - 1
      ? { ...one, answer: answer || (job.error ? '' : 'The model had no answer.'), error: job.error }
      : one));
    change({ said, job: null });
  });

  function ask(question = draft.question.trim()) {
    if (!draft.picture) {
      say('Give a picture first: drop it, paste it, or choose a file.');
      return;
    }
    if (!question) {
      say('Ask something about the picture.');
      return;
    }
    const parts = sent([{ picture: draft.picture }, { text: question }]);
    turn.ask({ parts, max_images: 0 }, { said: [...draft.said, { question }], question: '' });
  }

  return html`
    <section class="controls" aria-label="What to read">
      <${PictureInput} label="Picture to read" picture=${draft.picture}
        change=${(picture) => change({ picture, said: [] })} />
      <${Text} label="Question" value=${draft.question} send=${() => ask()}
        placeholder=${QUESTIONS[0]} change=${(question) => change({ question })} />
      <${Button} kind="main" label="Ask" busy=${turn.busy} disabled=${turn.busy} onClick=${() => ask()} />
      <${Chips} label="Examples" options=${QUESTIONS} pick=${(question) => change({ question })} />
    </section>
    <section class="stage reading-stage" aria-label="Answers">
      ${!draft.said.length && html`
        <div class="growing empty" style=${{ '--rows': 8, '--columns': 8 }}>
          <div class="empty-words">
            <p class="empty-title">Answers appear here.</p>
            <p class="hint">The model reads the picture and your question as one sequence, and writes on.${' '}
              ${wordsFor(model).notes.read || 'A model does this as well as it was trained to.'}</p>
          </div>
        </div>
      `}
      <dl class="answers" aria-live="polite">
        ${draft.said.map(({ question, answer, error }, place) => html`
          <div key=${place}>
            <dt>${question}</dt>
            <dd class=${error ? 'failed' : ''}>${error || answer || 'Reading…'}</dd>
          </div>
        `)}
      </dl>
    </section>
  `;
}
