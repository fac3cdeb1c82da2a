// What the browser keeps for itself: drafts of every tab, with their pictures, over reloads.
import { useState } from './ui.js';

const BASE = 'nextstep-studio';
const SHELF = 'drafts';
const WAIT = 150;
const drafts = new Map();
const waiting = new Map();
let opened = null;

function open() {
  opened ||= new Promise((resolve, reject) => {
    const request = indexedDB.open(BASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(SHELF);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/** Read all drafts once, before the page is drawn. Without a database nothing is kept. */
export async function loadDrafts() {
  try {
    const shelf = (await open()).transaction(SHELF).objectStore(SHELF);
    const [names, values] = await Promise.all([all(shelf.getAllKeys()), all(shelf.getAll())]);
    names.forEach((name, place) => drafts.set(name, values[place]));
  } catch {
    opened = null;
  }
}

function all(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function write(name) {
  waiting.delete(name);
  try {
    (await open()).transaction(SHELF, 'readwrite').objectStore(SHELF).put(drafts.get(name), name);
  } catch {
    opened = null;
  }
}

export function draftOf(name, fresh) {
  return { ...fresh, ...drafts.get(name) };
}

export function keepDraft(name, draft) {
  drafts.set(name, draft);
  clearTimeout(waiting.get(name));
  waiting.set(name, setTimeout(write, WAIT, name));
}

addEventListener('pagehide', () => {
  for (const [name, timer] of waiting) {
    clearTimeout(timer);
    write(name);
  }
});

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
