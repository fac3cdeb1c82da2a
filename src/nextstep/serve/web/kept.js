// What the browser keeps for itself: drafts of every tab, with their pictures, over reloads.
import { useState } from './ui.js';

const BASE = 'nextstep-studio';
const SHELF = 'drafts';
const drafts = new Map();
const writing = new Set();
const changed = new Set();
let base = null;

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Read all drafts once, before the page is drawn. Without a database nothing is kept. */
export async function loadDrafts() {
  try {
    const request = indexedDB.open(BASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(SHELF);
    base = await done(request);
    const shelf = base.transaction(SHELF).objectStore(SHELF);
    const [names, values] = await Promise.all([done(shelf.getAllKeys()), done(shelf.getAll())]);
    names.forEach((name, place) => drafts.set(name, values[place]));
  } catch {
    base = null;
  }
}

/** Written at once, since a reload may come at any time; one writing at a time for each draft. */
function write(name) {
  if (!base) return;
  if (writing.has(name)) {
    changed.add(name);
    return;
  }
  writing.add(name);
  const transaction = base.transaction(SHELF, 'readwrite', { durability: 'relaxed' });
  const over = () => {
    writing.delete(name);
    if (changed.delete(name)) write(name);
  };
  transaction.oncomplete = over;
  transaction.onabort = over;
  transaction.objectStore(SHELF).put(drafts.get(name), name);
  transaction.commit();
}

export function draftOf(name, fresh) {
  return { ...fresh, ...drafts.get(name) };
}

export function keepDraft(name, draft) {
  drafts.set(name, draft);
  write(name);
}

/** A draft and a way to change some of it. */
export function useDraft(name, fresh) {
  const [draft, setDraft] = useState(() => draftOf(name, fresh));
  const change = (patch) => {
    // Two changes in one go must both count.
    const next = { ...draftOf(name, fresh), ...patch };
    keepDraft(name, next);
    setDraft(next);
  };
  return [draft, change];
}
