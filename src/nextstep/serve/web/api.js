// The service over HTTP: requests, streams of events, errors as sentences.
import { set } from './state.js';

const KEY = 'nextstep-key';

/** Something went wrong; the message is a sentence for the person. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) || '',
  keep: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

function headers(more) {
  const given = key.get();
  // Jobs say where they were asked for.
  const own = { ...more, 'X-Client': 'studio' };
  return given ? { ...own, Authorization: `Bearer ${given}` } : own;
}

async function problemOf(answer) {
  let message;
  try {
    message = (await answer.json()).error.message;
  } catch {
    message = `The service answered ${answer.status} without a reason.`;
  }
  message = message.charAt(0).toUpperCase() + message.slice(1);
  if (!/[.!?]$/.test(message)) message += '.';
  const wait = answer.headers.get('retry-after');
  if (answer.status === 429 && wait) {
    message = message.replace('; try again in a moment', '') + ` Try again in ${wait} s.`;
  }
  return new Problem(message, answer.status);
}

/** One request. Raises Problem. */
export async function ask(path, { method = 'GET', body, signal } = {}) {
  let answer;
  try {
    // Relative, so that a proxy may show the service under a path.
    answer = await fetch(path.replace(/^\//, ''), {
      method,
      signal,
      headers: headers(body === undefined ? {} : { 'Content-Type': 'application/json' }),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    set({ reachable: false });
    throw new Problem('The service does not answer. Is nextstep serve still running?');
  }
  set({ reachable: true });
  if (answer.status === 401) set({ needsKey: true });
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

export async function json(path, options) {
  return (await ask(path, options)).json();
}

export function post(path, body = {}) {
  return json(path, { method: 'POST', body });
}

/** Server-sent events as { name, data }. EventSource cannot send a key, so they are read here. */
export async function* events(path, signal) {
  const answer = await ask(path, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (left + value).split('\n\n');
    left = blocks.pop();
    for (const block of blocks) {
      const event = parsed(block);
      if (event) yield event;
    }
  }
}

function parsed(block) {
  let name = 'message';
  const data = [];
  for (const line of block.split('\n')) {
    if (line.startsWith('event:')) name = line.slice(6).trim();
    if (line.startsWith('data:')) data.push(line.slice(5).trim());
  }
  return data.length ? { name, data: JSON.parse(data.join('\n')) } : null;
}
