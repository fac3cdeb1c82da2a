// Jobs: the list, what is being made right now, and what can be asked of a job.
import { ask, events, json, post } from './api.js';
import { reveal, say, set, show, state, useStore } from './state.js';
import { useEffect } from './ui.js';

// Browsers open six connections to one address; some must stay free for other requests.
const STREAMS = 3;
const LISTED = 120;
const POLL = 1500;
const streams = new Map();
const added = new Map();
const UNDO = 6000;
const leaving = new Set();
let timer = 0;

export const isOver = (job) => ['done', 'failed', 'cancelled'].includes(job.state);

/** The tab that a job belongs to. */
export function tabOf(job) {
  if (job.task !== 'chat') return job.task === 'edit' ? 'edit' : 'create';
  if (job.story?.draw) return 'world';
  const reads = job.story?.given.some((part) => part.type === 'picture');
  return job.story?.max_images === 0 && reads ? 'read' : 'story';
}

export async function refresh() {
  const asked = Date.now();
  const { data } = await json(`/jobs?limit=${LISTED}`);
  const listed = new Set(data.map((job) => job.id));
  // A job that was added after the question is not in its answer.
  const newer = state.jobs.filter((job) => !listed.has(job.id) && added.get(job.id) > asked);
  // An end that was heard of meanwhile is newer than the answer.
  const ended = new Map(state.jobs.filter(isOver).map((job) => [job.id, job]));
  const jobs = data.filter((job) => !leaving.has(job.id)).map((job) => (isOver(job) ? job : ended.get(job.id) || job));
  set({ jobs: [...newer, ...jobs], loaded: true });
  pollWhileBusy();
}

function pollWhileBusy() {
  clearTimeout(timer);
  if (state.jobs.every(isOver)) return;
  timer = setTimeout(() => refresh().catch(pollWhileBusy), POLL);
}

export function jobOf(id) {
  return state.jobs.find((job) => job.id === id);
}

function put(job) {
  const known = state.jobs.some((one) => one.id === job.id);
  set({
    jobs: known
      ? state.jobs.map((one) => (one.id === job.id ? job : one))
      : [job, ...state.jobs],
  });
}

/** Ask for a job; it is shown and watched. */
async function begin(path, body) {
  const job = await post(path, body);
  added.set(job.id, Date.now());
  put(job);
  const open = Object.entries(state.live).filter(([id]) => jobOf(id) && !isOver(jobOf(id)));
  set({ notice: null, live: Object.fromEntries(open) });
  watch(job.id);
  pollWhileBusy();
  reveal();
  return job;
}

export async function submit(body) {
  const job = await begin('/jobs', body);
  if (job.task !== 'chat') show(tabOf(job), job.id);
  return job;
}

export async function goOn(job, kind, body) {
  const made = await begin(`/jobs/${job.id}/${kind}`, body);
  show(tabOf(made), made.id);
  return made;
}

export async function end(job, how) {
  put(await post(`/jobs/${job.id}/${how}`));
}

/** Out of the list at once, and out of the service unless they are taken back in time. */
export function remove(...jobs) {
  const before = state.jobs;
  const gone = new Set(jobs.map((job) => job.id));
  for (const id of gone) leaving.add(id);
  set({ jobs: before.filter((one) => !gone.has(one.id)) });
  const timer = setTimeout(async () => {
    if (state.undo === undo) set({ notice: null, undo: null });
    for (const id of gone) {
      await tried(() => ask(`/jobs/${id}`, { method: 'DELETE' }));
      leaving.delete(id);
    }
  }, UNDO);
  function undo() {
    clearTimeout(timer);
    for (const id of gone) leaving.delete(id);
    const newer = state.jobs.filter((one) => !before.some((old) => old.id === one.id));
    const now = new Map(state.jobs.map((job) => [job.id, job]));
    const kept = before.filter((job) => now.has(job.id) || gone.has(job.id));
    set({ jobs: [...newer, ...kept.map((job) => now.get(job.id) || job)], notice: null, undo: null });
  }
  const many = jobs.length > 1 ? `${jobs.length} removed` : 'Removed';
  set({ notice: `${many} from the history.`, undo });
}

/** Follow a job until it is over. */
export async function watch(id) {
  if (streams.has(id)) return;
  while (streams.size >= STREAMS) {
    const [oldest] = streams.keys();
    streams.get(oldest).abort();
    streams.delete(oldest);
  }
  const control = new AbortController();
  streams.set(id, control);
  try {
    for await (const { name, data } of events(`/jobs/${id}/events`, control.signal)) {
      note(id, name, data);
    }
    // A service that stops ends the stream before the job is over.
    setTimeout(() => again(id), 2000);
  } catch (problem) {
    if (!control.signal.aborted && problem.status !== 404) setTimeout(() => again(id), 2000);
  } finally {
    if (streams.get(id) === control) streams.delete(id);
  }
}

function again(id) {
  const job = jobOf(id);
  if (job && !isOver(job)) watch(id);
}

function note(id, name, data) {
  const job = jobOf(id);
  if (!job) return;
  const live = state.live[id] || { rows: {}, parts: [] };
  if (name === 'queued') put({ ...job, state: 'queued', position: data.position });
  if (name === 'started') {
    put({ ...job, state: 'running', position: null, started: job.started || Date.now() / 1000 });
  }
  if (name === 'row') keepRow(id, live, data);
  if (name === 'part') {
    set({ live: { ...state.live, [id]: { rows: {}, parts: [...live.parts, data] } } });
  }
  if (name === 'done') put(data);
  if (name === 'failed' || name === 'cancelled') {
    put({ ...job, state: name, error: data.error || null });
  }
}

function keepRow(id, live, data) {
  const before = live.rows[data.index] || { preview: null, shown: 0 };
  const preview = data.preview ? `data:image/png;base64,${data.preview}` : before.preview;
  const shown = data.preview ? data.row : before.shown;
  const row = { row: data.row, rows: data.rows, preview, shown };
  const rows = { ...live.rows, [data.index]: row };
  set({ live: { ...state.live, [id]: { ...live, rows } } });
}

/** The job that a tab shows, followed while it is being made. */
export function useJob(id) {
  const job = useStore(() => state.jobs);
  const found = id ? job.find((one) => one.id === id) : undefined;
  const open = found && !isOver(found);
  useEffect(() => {
    if (open) watch(id);
  }, [id, open]);
  return found;
}

export function useLive(id) {
  const all = useStore((s) => s.live);
  return all[id] || { rows: {}, parts: [] };
}

/** Run something that may fail; a failure is told. */
export async function tried(work) {
  try {
    return await work();
  } catch (problem) {
    say(problem);
    return undefined;
  }
}
