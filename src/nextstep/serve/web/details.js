// What made a picture, and where it comes from.
import { Button } from './controls.js';
import { jobOf, tried } from './jobs.js';
import { reuse } from './replay.js';
import { show } from './state.js';
import { html } from './ui.js';
import { clock, day, endpointOf } from './words.js';

export function Details({ job, index }) {
  const settings = { ...job.settings, ...job.pictures[index]?.settings };
  const [, line] = (settings.prompt || job.prompt).split('\n');
  const parent = job.parent && jobOf(job.parent.job);
  const rows = [
    ['Size', settings.width ? `${settings.width} × ${settings.height}` : job.size?.replace('x', ' × ')],
    ['Seed', job.n > 1 ? `${job.seed}, picture ${index + 1}` : job.seed],
    ['Guidance', settings.guidance],
    ['Steps', settings.steps && `${settings.steps}, ${settings.solver || 'the model\'s solver'}`],
    ['Image guidance', job.task === 'edit' ? settings.image_guidance : null],
    ['Negative', settings.negative_prompt],
    ['It said first', line],
    ['Rows', settings.rows_done && `${settings.rows_done}, then stopped`],
    ['Soft edge', settings.mask_feather && `${settings.mask_feather} pixels`],
    ['Asked for', endpointOf(job)],
    ['Made', `${day(job.created)}, ${clock(job.created)}`],
  ].filter(([, value]) => value !== undefined && value !== '' && value !== null);
  return html`
    <div class="tool-body">
      <dl class="facts">
        ${rows.map(([name, value]) => html`
          <div key=${name}><dt>${name}</dt><dd>${value}</dd></div>
        `)}
        ${job.parent && html`
          <div>
            <dt>From</dt>
            <dd>
              ${job.parent.kind === 'fork' ? `row ${job.parent.row} of ` : 'a region of '}
              ${parent
                ? html`<button type="button" class="link"
                    onClick=${() => show(parent.task === 'edit' ? 'edit' : 'create', parent.id)}>
                    ${parent.prompt}</button>`
                : 'a picture that was removed'}
            </dd>
          </div>
        `}
      </dl>
      <${Button} kind="quiet" icon="edit" label="Put these settings back into the form"
        onClick=${() => tried(() => reuse(job))} />
      ${line && html`
        <${Button} kind="quiet" icon="edit" label="Change what it said first"
          onClick=${() => tried(() => reuse(job, line))} />
      `}
    </div>
  `;
}
