// Jobs again: the same once more, or their settings and pictures back in a tab.
import { goOn, jobOf, submit, tabOf } from './jobs.js';
import { draftOf, keepDraft } from './kept.js';
import { layerOf, maskOf } from './mask.js';
import { dataOf } from './pictures.js';
import { draftOfRecord } from './record.js';
import { FRESH_CREATE, FRESH_EDIT, taken } from './settings.js';
import { set, show, state } from './state.js';

/** Whether a job's record says enough to make it again. */
export function canReplay(job) {
  if (!job.parent) return true;
  return job.parent.kind === 'fork' && Boolean(jobOf(job.parent.job));
}

/** The same request once more; it gives the same pictures. */
export async function replay(job) {
  if (job.parent) {
    const { picture, row } = job.parent;
    const from = { id: job.parent.job };
    return goOn(from, 'fork', { picture, row, prompt: job.prompt, seed: job.seed });
  }
  const body = { prompt: job.prompt, seed: job.seed, n: job.n, ...job.settings };
  if (job.size) body.size = job.size;
  if (job.sources.length) body.images = await Promise.all(job.sources.map(dataOf));
  if (job.mask) body.mask = await maskOf(await layerOf(await dataOf(job.mask)));
  return submit(body);
}

// A tab reads its draft when it is drawn, so it is put away and drawn anew.
function into(tab, draft) {
  keepDraft(tab, draft);
  set({ drawn: state.drawn + 1 });
  show(tab);
}

/** Prompt, settings and sources of a job back in the tab that made it. */
export async function reuse(job, line = job.prompt.split('\n')[1] || '') {
  const settings = { prompt: job.prompt.split('\n')[0], line, ...taken(job) };
  if (tabOf(job) === 'edit' && job.sources.length) {
    const picture = await dataOf(job.sources[0]);
    const layer = job.mask ? await layerOf(await dataOf(job.mask)) : null;
    into('edit', { ...draftOf('edit', FRESH_EDIT), ...settings, picture, layer });
  } else {
    into('create', { ...draftOf('create', FRESH_CREATE), ...settings });
  }
}

/** The settings inside a PNG of ours in the tab that made it. */
export function restore(record) {
  const tab = record.task === 'edit' ? 'edit' : 'create';
  const fresh = tab === 'edit' ? FRESH_EDIT : FRESH_CREATE;
  into(tab, { ...draftOf(tab, fresh), ...draftOfRecord(record) });
}

/** A picture of the service in another tab. */
export async function send(url, tab, patch = {}) {
  const picture = await dataOf(url);
  const fresh = {
    edit: { ...draftOf('edit', FRESH_EDIT), picture, layer: null, prompt: '' },
    read: { picture, said: [], question: '', job: null },
    world: { ...draftOf('world', {}), path: [{ picture }], at: 0, job: null },
    story: { ...draftOf('story', {}), parts: [{ picture }], job: null },
  };
  into(tab, { ...fresh[tab], ...patch });
}

/** Take up a story, a walk through a world or a question from the history. */
export async function reopen(job) {
  const given = await Promise.all(job.story.given.map(held));
  const made = await Promise.all(job.parts.map(held));
  const pictures = given.filter((part) => part.picture);
  const text = given.filter((part) => part.text).map((part) => part.text);
  const tab = tabOf(job);
  if (tab === 'story') {
    into('story', { ...draftOf('story', {}), parts: [...given, ...made], job: null });
  } else if (tab === 'read') {
    const said = [{ question: text.join(' '), answer: job.text, error: job.error }];
    into('read', { ...draftOf('read', {}), picture: pictures[0]?.picture || null, said, job: null });
  } else {
    const steps = made.filter((part) => part.picture)
      .map((part) => ({ ...part, action: text.at(-1) || '' }));
    const path = [...pictures.slice(-1), ...steps];
    into('world', { ...draftOf('world', {}), path, at: path.length - 1, job: null });
  }
}

async function held(part) {
  return part.type === 'text' ? { text: part.text } : { picture: await dataOf(part.url) };
}
