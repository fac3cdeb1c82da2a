// Everything that was made, the newest first.
import { choose, ChosenBar, choosing } from './choose.js';
import { Button, Text } from './controls.js';
import { Icon } from './icons.js';
import { isOver, remove, tabOf, tried, useLive } from './jobs.js';
import { useDraft } from './kept.js';
import { usePicture } from './pictures.js';
import { reopen } from './replay.js';
import { reveal, set, show, useStore } from './state.js';
import { html, useState } from './ui.js';
import { count, day, endpointOf, rowsOf, titleOf } from './words.js';

const SHOWN = 40;
const KINDS = { create: '', edit: 'Edit', story: 'Story', world: 'World', read: 'Question' };
const STATES = { queued: 'waiting', running: 'being drawn', failed: 'failed', cancelled: 'cancelled' };

async function open(job) {
  const tab = tabOf(job);
  if (job.task === 'chat' && isOver(job)) await reopen(job);
  else show(tab, job.id);
  reveal();
}

/** How much of the first picture there is to see, from its top. */
function shownOf(job, live, unit) {
  const made = job.pictures[0]?.settings;
  if (made) return made.rows_done ? (unit * made.rows_done) / made.height : 1;
  return live.rows[0] ? live.rows[0].shown / live.rows[0].rows : 1;
}

function Card({ job, current, chosen, liked, mark }) {
  const live = useLive(job.id);
  const model = useStore((s) => s.model);
  const source = isOver(job) ? job.sources[0] : '';
  const { address, problem } = usePicture(
    job.pictures[0]?.url || live.rows[0]?.preview || source,
  );
  const rows = rowsOf(job, live);
  const share = shownOf(job, live, model?.token_pixels);
  const cut = share < 1 ? `inset(0 0 ${100 - 100 * share}% 0)` : 'none';
  const kind = KINDS[tabOf(job)];
  const title = titleOf(job);
  const foreign = endpointOf(job);
  const told = [kind, title, STATES[job.state], job.error, problem, foreign,
    job.n > 1 && count(job.n, 'variation')];
  const over = isOver(job);
  const forget = () => tried(() => remove(job));
  const pressed = (event) => {
    if (event.key === 'Delete' && over && !choosing()) forget();
    if (event.key.toLowerCase() === 'f' && over) mark(job.id);
  };
  return html`
    <div class="card-place">
      <button type="button" class="card ${job.state}" aria-current=${current ? 'true' : null}
        title=${[title, job.error || problem].filter(Boolean).join('\n')}
        aria-label=${told.filter(Boolean).join(', ')} aria-pressed=${chosen}
        onClick=${() => (choosing() ? choose(job.id) : tried(() => open(job)))} onKeyDown=${pressed}>
        ${address
          ? html`<img src=${address} alt="" loading="lazy" style=${{ clipPath: cut }} />`
          : html`<span class="card-word">${STATES[job.state] || title}</span>`}
        ${!isOver(job) && html`
          <span class="card-bar"><i style=${{ width: `${rows ? (100 * rows.done) / rows.of : 0}%` }}></i></span>
        `}
        ${(kind || job.n > 1) && html`
          <span class="badge" aria-hidden="true">${kind || job.n}</span>
        `}
        ${foreign && html`<span class="badge api" aria-hidden="true">API</span>`}
        ${chosen && html`<span class="card-chosen"><${Icon} name="check" /></span>`}
      </button>
      ${over && chosen === null && html`
        <button type="button" class="card-remove" tabindex="-1" aria-label=${`Remove ${title}`}
          title="Remove; the Delete key does it too" onClick=${forget}><${Icon} name="cross" /></button>
        <button type="button" class="card-like ${liked ? 'liked' : ''}" tabindex="-1" aria-pressed=${liked}
          aria-label=${`Favourite ${title}`} title="Favourite; the F key does it too"
          onClick=${() => mark(job.id)}><${Icon} name="star" /></button>
      `}
    </div>
  `;
}

export function History() {
  const jobs = useStore((s) => s.jobs);
  const loaded = useStore((s) => s.loaded);
  const tab = useStore((s) => s.tab);
  const selected = useStore((s) => s.selected);
  const chosen = useStore((s) => s.chosen);
  const [most, setMost] = useState(SHOWN);
  const [sought, setSought] = useState('');
  const [liked, like] = useDraft('liked', { ids: [], only: false });
  const shown = jobs.filter((job) => titleOf(job).toLowerCase().includes(sought.trim().toLowerCase())
    && (!liked.only || liked.ids.includes(job.id)));
  const mark = (id) => like({
    ids: liked.ids.includes(id) ? liked.ids.filter((one) => one !== id) : [...liked.ids, id],
  });
  const days = [];
  for (const job of shown.slice(0, most)) {
    const name = day(job.created);
    if (days.at(-1)?.name !== name) days.push({ name, jobs: [] });
    days.at(-1).jobs.push(job);
  }
  return html`
    <aside class="history" aria-label="History">
      <h2>History</h2>
      ${loaded && !jobs.length && html`<p class="hint">What you make is kept here.</p>`}
      ${jobs.length > 0 && html`
        <div class="sought">
          <${Text} label="Search the history" hideLabel=${true} placeholder="search" value=${sought}
            change=${setSought} />
          <${Button} icon="choose" label="Choose several" hidden=${true} kind="quiet"
            aria-pressed=${chosen !== null} onClick=${() => set({ chosen: chosen ? null : [] })} />
          <${Button} icon="star" label="Favourites only" hidden=${true} kind="quiet"
            aria-pressed=${liked.only} onClick=${() => like({ only: !liked.only })} />
        </div>
      `}
      ${jobs.length > 0 && !shown.length && html`<p class="hint">Nothing here is like that.</p>`}
      <div class="history-days" role="group" aria-label="What was made" tabindex="-1">
        ${days.map(({ name, jobs: made }) => html`
          <section key=${name}>
            <h3>${name}</h3>
            <div class="cards">
              ${made.map((job) => html`
                <${Card} key=${job.id} job=${job} current=${selected[tab] === job.id}
                  chosen=${chosen && chosen.includes(job.id)}
                  liked=${liked.ids.includes(job.id)} mark=${mark} />
              `)}
            </div>
          </section>
        `)}
      </div>
      ${shown.length > most && html`
        <button type="button" class="link" onClick=${() => setMost(most + SHOWN)}>Show more</button>
      `}
      <${ChosenBar} />
    </aside>
  `;
}
