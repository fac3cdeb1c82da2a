// The one state of the page. Components read it with `useStore`, everybody changes it with `set`.
import { useEffect, useState } from './ui.js';

const listeners = new Set();

export const state = {
  model: null, // as /v1/models tells it
  jobs: [], // the service's list, the newest first
  loaded: false, // whether that list has arrived
  live: {}, // by job: rows and parts of what is being made
  tab: 'create',
  drawn: 0, // counts when a tab must be drawn from its draft anew
  selected: {}, // by tab: the job that it shows
  chosen: null, // ids of jobs that were chosen together; null while nobody chooses
  notice: null, // one sentence to the person
  undo: null, // takes back what the notice is about
  needsKey: false,
  reachable: true,
};

export function set(patch) {
  Object.assign(state, patch);
  for (const listener of [...listeners]) listener();
}

/** Be told of every change. */
export const listen = (listener) => listeners.add(listener);

/** A value of the state; the component is drawn anew when it becomes another one. */
export function useStore(select) {
  const [value, setValue] = useState(() => select(state));
  useEffect(() => {
    const look = () => setValue(() => select(state));
    listeners.add(look);
    look();
    return () => listeners.delete(look);
  }, []);
  return value;
}

export function say(problem) {
  set({ notice: typeof problem === 'string' ? problem : problem.message, undo: null });
}

/** Bring the picture into view: on a phone it lies below the controls, else its top may be away. */
export function reveal() {
  setTimeout(() => {
    const stage = document.querySelector('.stage');
    const away = stage?.getBoundingClientRect().top < 0;
    if (away || matchMedia('(max-width: 760px)').matches) stage?.scrollIntoView({ block: 'start' });
  }, 60);
}

export function show(tab, job = state.selected[tab]) {
  set({ tab, selected: { ...state.selected, [tab]: job } });
}
