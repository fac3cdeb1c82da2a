// The page: header, tabs, the tab that is open, the history, and what stands over them.
import { json, key } from './api.js';
import { Button, Text } from './controls.js';
import { Create } from './create.js';
import { Edit } from './edit.js';
import { History } from './history.js';
import { Mark } from './icons.js';
import { refresh } from './jobs.js';
import { draftOf, keepDraft, loadDrafts } from './kept.js';
import { Read } from './read.js';
import { recordOf } from './record.js';
import { restore } from './replay.js';
import { listen, say, set, show, state, useStore } from './state.js';
import { Story } from './story.js';
import { html, render, useEffect, useRef, useState } from './ui.js';
import { World } from './world.js';

const TABS = {
  create: ['Create', Create],
  edit: ['Edit', Edit],
  story: ['Story', Story],
  world: ['World', World],
  read: ['Read', Read],
};
const THEMES = { auto: 'light and dark as the system', light: 'light', dark: 'dark' };
const ICONS = { auto: 'auto', light: 'sun', dark: 'moon' };

function dress(theme) {
  document.documentElement.dataset.theme = theme;
}

function Theme() {
  const [theme, setTheme] = useState(localStorage.getItem('nextstep-theme') || 'auto');
  const next = { auto: 'light', light: 'dark', dark: 'auto' }[theme];
  return html`
    <${Button} kind="quiet" icon=${ICONS[theme]} hidden=${true}
      label=${`Theme: ${THEMES[theme]}. Change to ${next}`}
      onClick=${() => {
        localStorage.setItem('nextstep-theme', next);
        dress(next);
        setTheme(next);
      }} />
  `;
}

function Tabs() {
  const tab = useStore((s) => s.tab);
  const names = Object.keys(TABS);
  const pressed = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = names[(names.indexOf(tab) + step + names.length) % names.length];
    show(next);
    document.getElementById(`tab-${next}`).focus();
  };
  return html`
    <div class="tabs" role="tablist" aria-label="What to do" onKeyDown=${pressed}>
      ${names.map((name) => html`
        <button key=${name} type="button" role="tab" id=${`tab-${name}`} class="tab" aria-controls="panel"
          aria-selected=${tab === name} tabindex=${tab === name ? 0 : -1} onClick=${() => show(name)}>
          ${TABS[name][0]}
        </button>
      `)}
    </div>
  `;
}

function Header() {
  const model = useStore((s) => s.model);
  const reachable = useStore((s) => s.reachable);
  return html`
    <header class="header">
      <h1 class="brand"><${Mark} /><span>OpenNextStep</span></h1>
      <${Tabs} />
      <div class="header-end">
        ${model && html`
          <span class="model ${reachable ? '' : 'away'}">
            <span class="unseen">Model </span>${model.id}${reachable ? '' : ', not answering'}
          </span>
        `}
        ${key.get() && html`
          <${Button} kind="quiet" icon="key" hidden=${true} label="Forget the API key"
            onClick=${() => { key.forget(); location.reload(); }} />
        `}
        <a class="link docs-link" href="docs">API</a>
        <${Theme} />
      </div>
    </header>
  `;
}

function Notice() {
  const notice = useStore((s) => s.notice);
  const undo = useStore((s) => s.undo);
  return html`
    <div class="notice-place" role="alert">
      ${notice && html`
        <div class="notice">
          <p>${notice}</p>
          ${undo && html`<${Button} kind="quiet" label="Undo" onClick=${undo} />`}
          <${Button} kind="quiet" icon="cross" hidden=${true} label="Dismiss"
            onClick=${() => set({ notice: null })} />
        </div>
      `}
    </div>
  `;
}

function KeyDialog() {
  const needed = useStore((s) => s.needsKey);
  const dialog = useRef(null);
  const [value, setValue] = useState('');
  const [wrong, setWrong] = useState(false);
  useEffect(() => {
    if (needed && !dialog.current.open) dialog.current.showModal();
  }, [needed]);
  const keep = async (event) => {
    event.preventDefault();
    key.keep(value.trim());
    set({ needsKey: false, notice: null });
    await begin();
    setWrong(state.needsKey);
    if (!state.needsKey) dialog.current.close();
  };
  return html`
    <dialog ref=${dialog} class="dialog" aria-labelledby="key-title"
      onCancel=${(event) => event.preventDefault()}>
      <h2 id="key-title">An API key, please</h2>
      <p class="hint">This service answers to people with a key only. It is kept in this browser tab and
        forgotten when you close it.</p>
      <form class="key-form" onSubmit=${keep}>
        <${Text} label="API key" type="password" autocomplete="off" value=${value} change=${setValue}
          hint=${wrong && 'This key is not known here.'} />
        <${Button} kind="main" type="submit" label="Use this key" disabled=${!value.trim()} />
      </form>
    </dialog>
  `;
}

function Studio() {
  const tab = useStore((s) => s.tab);
  const model = useStore((s) => s.model);
  const drawn = useStore((s) => s.drawn);
  const Open = TABS[tab]?.[1];
  return html`
    <a class="skip" href="#panel">Skip to the work</a>
    <${Header} />
    <main class="work">
      <div class="panel" id="panel" role="tabpanel" aria-labelledby=${`tab-${tab}`} tabindex="-1">
        ${model && Open && html`<${Open} key=${`${tab}-${drawn}`} />`}
      </div>
      <${History} />
    </main>
    <${Notice} />
    <${KeyDialog} />
  `;
}

/** Which tab and which job were open outlives the page. */
function rememberView() {
  const { tab, selected } = draftOf('view', { tab: 'create', selected: {} });
  set({ tab: TABS[tab] ? tab : 'create', selected });
  let kept = '';
  listen(() => {
    const view = { tab: state.tab, selected: state.selected };
    const now = JSON.stringify(view);
    if (now === kept || !TABS[view.tab]) return;
    kept = now;
    keepDraft('view', view);
  });
}

/** Meet the service; again when it was away or wanted a key. */
async function begin() {
  try {
    const { data } = await json('/v1/models');
    set({ model: data[0] });
    await refresh();
  } catch (problem) {
    if (problem.status !== 401) say(problem);
  }
}

/** A picture of ours that is dropped beside everything gives its settings back. */
async function dropped(event) {
  const file = [...(event.dataTransfer?.files || [])].find((one) => one.type === 'image/png');
  if (!file || event.target.closest?.('.picture-input')) return;
  const record = await recordOf(file);
  if (record) restore(record);
  else say('This picture does not say what made it.');
}

async function main() {
  dress(localStorage.getItem('nextstep-theme') || 'auto');
  await loadDrafts();
  rememberView();
  render(html`<${Studio} />`, document.getElementById('studio'));
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) (state.model ? refresh() : begin()).catch(() => {});
  });
  // A file that misses its place would take the whole page away.
  for (const name of ['dragover', 'drop']) addEventListener(name, (event) => event.preventDefault());
  addEventListener('drop', dropped);
  await begin();
}

main();
