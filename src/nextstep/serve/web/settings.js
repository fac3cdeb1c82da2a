// Size, seed, guidance, steps, variations: what is asked for beside the prompt.
import { Button, Choice, Scale, Segments, Text } from './controls.js';
import { html, useId } from './ui.js';

const FRESH = {
  size: 'auto', seed: '', n: 1, guidance: null, steps: null, solver: '', negative: '',
};
export const FRESH_CREATE = { prompt: '', ...FRESH };
export const FRESH_EDIT = {
  picture: null, layer: null, brush: 24, erase: false, prompt: '', ...FRESH,
  imageGuidance: null, reasoning: null, line: '', feather: 4,
};
const SOLVERS = [
  ['ab2', 'ab2, two steps back'], ['heun', 'heun, two looks a step'], ['midpoint', 'midpoint'],
  ['ode', 'ode, plain Euler'], ['v1', 'v1, released'], ['v1.1', 'v1.1, released'],
  ['sde', 'sde, noisy'], ['cps', 'cps, noise kept'],
];
const SEEDS = 2 ** 31;

export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS;

/** The part of a request that these settings make. */
export function asked(draft) {
  const body = {};
  if (draft.size !== 'auto') body.size = draft.size;
  if (draft.seed !== '') body.seed = Number(draft.seed);
  if (draft.n > 1) body.n = draft.n;
  if (draft.guidance !== null) body.guidance = draft.guidance;
  if (draft.steps !== null) body.steps = draft.steps;
  if (draft.solver) body.solver = draft.solver;
  if (draft.negative.trim()) body.negative_prompt = draft.negative.trim();
  return body;
}

/** The settings of a job as they would stand here. */
export function taken(job) {
  const given = job.settings;
  return {
    size: job.size || 'auto',
    seed: String(job.seed),
    n: job.n,
    guidance: given.guidance ?? null,
    imageGuidance: given.image_guidance ?? null,
    steps: given.steps ?? null,
    solver: given.solver ?? '',
    negative: given.negative_prompt ?? '',
    feather: given.mask_feather ?? 0,
  };
}

export function sizesOf(model) {
  const { width, height, token_pixels: unit, most_side: most } = model;
  const fit = (side) => Math.max(unit, Math.round(side / unit) * unit);
  const sizes = [['auto', `${width} × ${height}, the model's own`]];
  const add = (w, h, name) => {
    if (!most || Math.max(w, h) <= most) sizes.push([`${w}x${h}`, `${w} × ${h}, ${name}`]);
  };
  const [wide, tall] = most ? [width, height] : [fit(width * 1.25), fit(height * 1.25)];
  add(wide, fit(height * 0.7), 'wide');
  add(fit(width * 0.7), tall, 'tall');
  add(fit(width / 2), fit(height / 2), 'small and quick');
  return sizes;
}

/** Seed with a die; empty is a new one each time. */
export function Seed({ value, change }) {
  const id = useId();
  return html`
    <div class="field">
      <label for=${id}>Seed</label>
      <div class="joined">
        <input id=${id} inputmode="numeric" autocomplete="off" placeholder="new each time" value=${value}
          onInput=${(event) => change(event.currentTarget.value.replace(/\D/g, '').slice(0, 15))} />
        <${Button} icon="dice" label="Draw a seed" hidden=${true} kind="quiet"
          onClick=${() => change(String(newSeed()))} />
      </div>
    </div>
  `;
}

/** All settings; `task` names the defaults. */
export function Settings({ draft, change, model, task }) {
  const own = model.defaults[task];
  const sizes = sizesOf(model);
  if (!sizes.some(([name]) => name === draft.size)) {
    sizes.push([draft.size, draft.size.replace('x', ' × ')]);
  }
  const changed = ['guidance', 'imageGuidance', 'steps'].some((name) => (draft[name] ?? null) !== null)
    || draft.solver || draft.negative;
  // A fitted solver has its own number of steps.
  const fitted = (own.table || []).length > 0;
  const binds = (solver) => fitted && (solver || own.solver) === 'multistep';
  const solvers = fitted && own.solver !== 'multistep'
    ? [['multistep', 'multistep, fitted to the model'], ...SOLVERS] : SOLVERS;
  return html`
    <div class="settings">
      ${task === 'generate' && html`
        <${Choice} label="Size" value=${draft.size} options=${sizes}
          change=${(size) => change({ size })} />
      `}
      <${Segments} label="Variations" value=${draft.n} options=${[1, 2, 4, 8].map((n) => [n, n])}
        change=${(n) => change({ n })} />
      <${Seed} value=${draft.seed} change=${(seed) => change({ seed })} />
      <details class="more" open=${Boolean(draft.open)}
        onToggle=${(event) => change({ open: event.currentTarget.open })}>
        <summary>Guidance and steps${changed ? html`<span class="dot">changed</span>` : ''}</summary>
        <div class="more-body">
          <${Scale} label="Guidance" value=${draft.guidance} own=${own.guidance} min="1" max="8"
            step="0.25" say=${(value) => value.toFixed(2)} change=${(guidance) => change({ guidance })} />
          ${task === 'edit' && html`
            <${Scale} label="Image guidance" value=${draft.imageGuidance} own=${own.image_guidance}
              min="1" max="5" step="0.25" say=${(value) => value.toFixed(2)}
              change=${(imageGuidance) => change({ imageGuidance })} />
          `}
          ${!binds(draft.solver) && html`
            <${Scale} label="Steps a token" value=${draft.steps} own=${own.steps} min="2"
              max=${Math.min(60, model.most_steps)} step="1"
              change=${(steps) => change({ steps })} />
          `}
          <${Choice} label="Solver" value=${draft.solver}
            options=${[['', `${own.solver}, the model's own`], ...solvers]}
            change=${(solver) => change(binds(solver) ? { solver, steps: null } : { solver })} />
          <${Text} label="Negative prompt" value=${draft.negative}
            change=${(negative) => change({ negative })} placeholder="what to steer away from" />
          ${changed && html`
            <${Button} kind="quiet" label="Back to the model's own"
              onClick=${() => change({ guidance: null, imageGuidance: null, steps: null, solver: '', negative: '' })} />
          `}
        </div>
      </details>
    </div>
  `;
}
