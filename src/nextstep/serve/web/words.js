// Numbers and times as people say them.

export function seconds(value) {
  if (value < 0.95) return 'less than 1 s';
  if (value < 9.5) return `${value.toFixed(1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  return `${Math.round(value / 60)} min`;
}

export function day(time) {
  const then = new Date(time * 1000);
  const today = new Date();
  const apart = Math.round((midnight(today) - midnight(then)) / 864e5);
  if (apart === 0) return 'Today';
  if (apart === 1) return 'Yesterday';
  return then.toLocaleDateString('en', { day: 'numeric', month: 'long' });
}

const midnight = (date) => new Date(date).setHours(0, 0, 0, 0);

export function clock(time) {
  return new Date(time * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** What a job was about, in a few words. */
export function titleOf(job) {
  if (job.prompt) return job.prompt;
  const said = (job.story?.given || []).filter((part) => part.type === 'text');
  return said.at(-1)?.text || 'Untitled';
}

/** Said of a job that was not asked for in the studio. */
export function endpointOf(job) {
  return ['', 'studio'].includes(job.endpoint ?? '') ? '' : `through the API, /${job.endpoint}`;
}

/** Rows of all its pictures that are done, of how many; null before the first. */
export function rowsOf(job, live) {
  const rows = Object.values(live.rows);
  if (!rows.length) return null;
  const pictures = job.task === 'chat' ? 1 : job.n;
  const of = Math.max(...rows.map((one) => one.rows)) * pictures;
  return { done: rows.reduce((sum, one) => sum + one.row, 0), of };
}

/** How a job stands, as a sentence without a full stop. */
export function standing(job, live, now = Date.now()) {
  if (job.state === 'queued') {
    return job.position > 1 ? `Waiting, number ${job.position} in line` : 'Waiting, next in line';
  }
  if (job.state === 'running') {
    const rows = rowsOf(job, live);
    if (!rows) return job.task === 'chat' ? 'Reading and writing' : 'Reading the prompt';
    const spent = now / 1000 - job.started;
    // Rows that a fork was given took no time.
    const given = job.parent?.row || 0;
    const left = (spent * (rows.of - rows.done)) / Math.max(1, rows.done - given);
    const first = Object.values(live.rows)[0];
    const place = job.n > 1 ? `${rows.done} of ${rows.of} rows` : `Row ${first.row} of ${first.rows}`;
    return rows.done < rows.of ? `${place}, ${left < 0.95 ? '' : 'about '}${seconds(left)} left` : 'Finishing';
  }
  if (job.state === 'failed') return job.error || 'It failed';
  if (job.state === 'cancelled') return 'Cancelled';
  const stopped = job.pictures.some((picture) => picture.settings.rows_done);
  const took = job.finished && job.started ? ` after ${seconds(job.finished - job.started)}` : '';
  return stopped ? `Stopped${took}, rows kept` : `Done${took}`;
}
