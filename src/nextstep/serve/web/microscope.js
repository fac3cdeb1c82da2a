// What each image token tells about itself, as a heat map; chosen tokens are drawn anew.
import { json } from './api.js';
import { Button, Segments } from './controls.js';
import { goOn, isOver, tried } from './jobs.js';
import { newSeed } from './settings.js';
import { say } from './state.js';
import { html, useEffect, useRef, useState } from './ui.js';
import { count } from './words.js';

const MEASURES = {
  token_std: ['Uncertainty', 'Standard deviation over samples with other noise: 0 is certain, 1.4 is anything.'],
  guidance_delta: ['Guidance effect', 'How far guidance moved each token.'],
  guidance: ['Guidance', 'The guidance scale at each token.'],
  head_calls: ['Head steps', 'Evaluations of the flow head for each token.'],
};
// Dark to light, so that it reads without colours too.
const HEAT = [[22, 16, 64], [92, 28, 108], [176, 52, 94], [236, 112, 62], [250, 206, 106]];
const KEYS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 'up', ArrowDown: 'down' };

function heat(share) {
  const place = Math.min(0.9999, Math.max(0, share)) * (HEAT.length - 1);
  const low = Math.floor(place);
  return HEAT[low].map((from, i) => Math.round(from + (HEAT[low + 1][i] - from) * (place - low)));
}

/** Measures of a picture, fetched when the microscope is opened. */
export function useMicroscope(job, index, picture, open) {
  const [told, setTold] = useState(null);
  const [failed, setFailed] = useState(false);
  const [measure, setMeasure] = useState('token_std');
  const [chosen, setChosen] = useState(new Set());
  const [cursor, setCursor] = useState(null);
  const ready = picture.done > 0;
  const load = () => {
    const control = new AbortController();
    setFailed(false);
    json(`/jobs/${job.id}/pictures/${index}/tokens?noise_samples=4`, { signal: control.signal })
      .then(setTold, (problem) => {
        if (control.signal.aborted) return;
        setFailed(true);
        say(problem);
      });
    return () => control.abort();
  };
  useEffect(() => {
    setTold(null);
    setChosen(new Set());
    setCursor(null);
  }, [job.id, index]);
  useEffect(() => (open && ready ? load() : undefined), [job.id, index, open, ready, picture.made]);
  const values = told ? told[measure] : [];
  const low = Math.min(...values);
  const high = Math.max(...values);
  return { told, failed, load, measure, setMeasure, chosen, setChosen, cursor, setCursor, values, low, high };
}

function paint(canvas, { told, values, low, high, chosen, cursor }) {
  const cell = Math.max(6, Math.round(640 / told.columns));
  canvas.width = cell * told.columns;
  canvas.height = cell * told.rows;
  const pen = canvas.getContext('2d');
  values.forEach((value, token) => {
    const [x, y] = [cell * (token % told.columns), cell * Math.floor(token / told.columns)];
    const share = high > low ? (value - low) / (high - low) : 0.5;
    pen.fillStyle = `rgb(${heat(share).join(' ')} / ${told.fixed[token] ? 0.15 : 0.72})`;
    pen.fillRect(x, y, cell, cell);
  });
  for (const token of chosen) frame(pen, token, told.columns, cell, '#fff', cell / 20);
  if (cursor !== null) frame(pen, cursor, told.columns, cell, '#fff', cell / 30);
}

function frame(pen, token, columns, cell, colour, line) {
  const [x, y] = [cell * (token % columns), cell * Math.floor(token / columns)];
  for (const [style, width] of [['#000', line + 2], [colour, line]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.strokeRect(x + line / 2 + 1, y + line / 2 + 1, cell - line - 2, cell - line - 2);
  }
}

/** Lies over the picture: the heat map, and the choice of tokens by pointer or keys. */
export function MicroscopeLayer({ scope }) {
  const canvas = useRef(null);
  const mode = useRef(null);
  const { told, chosen, setChosen, cursor, setCursor } = scope;
  useEffect(() => {
    if (told && canvas.current) paint(canvas.current, scope);
  });
  if (!told) return html`<div class="measuring">${scope.failed ? '' : 'Measuring…'}</div>`;

  const tokenAt = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const column = Math.floor((told.columns * (event.clientX - box.left)) / box.width);
    const row = Math.floor((told.rows * (event.clientY - box.top)) / box.height);
    if (column < 0 || row < 0 || column >= told.columns || row >= told.rows) return null;
    return row * told.columns + column;
  };
  const put = (token, add) => {
    const next = new Set(chosen);
    if (add) next.add(token);
    else next.delete(token);
    setChosen(next);
  };
  const down = (event) => {
    const token = tokenAt(event);
    if (token === null) return;
    canvas.current.setPointerCapture(event.pointerId);
    mode.current = !chosen.has(token);
    put(token, mode.current);
  };
  const move = (event) => {
    const token = tokenAt(event);
    if (token !== cursor) setCursor(token);
    if (mode.current !== null && token !== null && chosen.has(token) !== mode.current) {
      put(token, mode.current);
    }
  };
  const pressed = (event) => {
    if (event.key === ' ' && cursor !== null) {
      event.preventDefault();
      put(cursor, !chosen.has(cursor));
    } else if (KEYS[event.key]) {
      event.preventDefault();
      const step = { up: -told.columns, down: told.columns }[KEYS[event.key]] ?? KEYS[event.key];
      const next = cursor === null ? 0 : cursor + step;
      if (next >= 0 && next < told.rows * told.columns) setCursor(next);
    }
  };
  return html`
    <canvas ref=${canvas} class="heat" tabindex="0" role="application"
      aria-label="Image tokens: arrow keys move, space chooses" onPointerDown=${down}
      onPointerMove=${move} onPointerUp=${() => { mode.current = null; }}
      onPointerLeave=${() => setCursor(null)} onKeyDown=${pressed}></canvas>
  `;
}

export function Microscope({ job, index, scope }) {
  const [busy, setBusy] = useState(false);
  const { told, measure, values, cursor, chosen, low, high } = scope;
  const over = isOver(job);

  async function resample() {
    setBusy(true);
    const body = { picture: index, tokens: [...chosen].sort((a, b) => a - b), seed: newSeed() };
    await tried(() => goOn(job, 'resample', body));
    setBusy(false);
  }

  const say = (value) => (measure === 'head_calls' ? String(value) : value.toFixed(2));
  const read = cursor !== null && cursor < values.length
    ? `Row ${Math.floor(cursor / told.columns) + 1}, column ${(cursor % told.columns) + 1}: ${
      told.fixed[cursor] ? 'kept, not drawn' : say(values[cursor])}`
    : 'Point at a token to read its value; press to choose it.';
  return html`
    <div class="tool-body">
      <${Segments} label="Shown" value=${measure} change=${scope.setMeasure}
        options=${Object.entries(MEASURES).map(([name, [label]]) => [name, label])} />
      <p class="hint">${MEASURES[measure][1]}</p>
      ${told && html`
        <div class="legend">
          <span>${say(low)}</span><i class="ramp" aria-hidden="true"></i><span>${say(high)}</span>
        </div>
        <p class="reading" aria-live="polite">${read}</p>
      `}
      <div class="row-of">
        <${Button} kind="main" icon="dice" busy=${busy} disabled=${busy || !chosen.size || !over}
          label=${chosen.size ? `Draw ${count(chosen.size, 'token')} anew` : 'Draw chosen tokens anew'}
          onClick=${resample} />
        ${chosen.size > 0 && html`
          <${Button} kind="quiet" label="Choose none" onClick=${() => scope.setChosen(new Set())} />
        `}
        ${!over && told && html`
          <${Button} kind="quiet" icon="again" label="Measure again" onClick=${scope.load} />
        `}
      </div>
      ${!over && html`<p class="hint">Tokens can be drawn anew once the picture is done or stopped.</p>`}
    </div>
  `;
}
