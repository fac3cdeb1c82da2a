// Stories, next states and questions: jobs whose outcome goes on in the tab that asked.
import { isOver, submit, tried, useJob, useLive } from './jobs.js';
import { dataOf } from './pictures.js';
import { say, useStore } from './state.js';
import { useEffect, useState } from './ui.js';

/** Parts of a tab as the service wants them. */
export const sent = (parts) => parts.map((part) => (part.picture
  ? { type: 'image_url', image_url: { url: part.picture } }
  : { type: 'text', text: part.text }));

const outcomeOf = (job) => Promise.all(job.parts.map(async (part) => (part.type === 'text'
  ? { text: part.text }
  : { picture: await dataOf(part.url) })));

/** Ask for a turn, and take its outcome up once.
 *
 * `draft.job` names the turn under way, so that it is taken up after a reload as well; `take` gets
 * the parts that came out and the job.
 */
export function useTurn(draft, change, take) {
  const [busy, setBusy] = useState(false);
  const loaded = useStore((s) => s.loaded);
  const job = useJob(draft.job);
  const live = useLive(draft.job || '');
  const over = job && isOver(job);

  useEffect(() => {
    if (!draft.job || !loaded) return;
    if (!job) {
      change({ job: null });
      return;
    }
    if (!over) return;
    if (job.state === 'failed') say(job.error || 'It failed.');
    outcomeOf(job).then((parts) => take(parts, job), (problem) => {
      say(problem);
      change({ job: null });
    });
  }, [draft.job, loaded, over]);

  async function ask(body, patch = {}) {
    setBusy(true);
    const made = await tried(() => submit(body));
    if (made) change({ ...patch, job: made.id });
    setBusy(false);
    return made;
  }

  return { ask, busy: busy || Boolean(draft.job), job, live };
}
