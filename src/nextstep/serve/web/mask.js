// The mask brush: what may change is painted over the picture.
import { Button, Scale } from './controls.js';
import { imageOf } from './pictures.js';
import { html, useEffect, useRef, useState } from './ui.js';

const COLOUR = '#d6246e';
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A painted layer as the service wants its mask: transparent where it was painted. */
export async function maskOf(layer) {
  const painted = await imageOf(layer);
  const canvas = document.createElement('canvas');
  canvas.width = painted.naturalWidth;
  canvas.height = painted.naturalHeight;
  const pen = canvas.getContext('2d');
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.globalCompositeOperation = 'destination-out';
  pen.drawImage(painted, 0, 0);
  return canvas.toDataURL('image/png');
}

/** A mask of the service (white may change) as a painted layer. */
export async function layerOf(mask) {
  const given = await imageOf(mask);
  const canvas = document.createElement('canvas');
  canvas.width = given.naturalWidth;
  canvas.height = given.naturalHeight;
  const pen = canvas.getContext('2d');
  pen.drawImage(given, 0, 0);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data[i + 3] = pixels.data[i];
  }
  pen.putImageData(pixels, 0, 0);
  pen.globalCompositeOperation = 'source-in';
  pen.fillStyle = COLOUR;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/png');
}

const penOf = (canvas) => canvas.getContext('2d', { willReadFrequently: true });

function painted(canvas) {
  const { data } = penOf(canvas).getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 3; i < data.length; i += 4) if (data[i] > 127) return true;
  return false;
}

function stroke(canvas, from, to, radius, erase) {
  const pen = penOf(canvas);
  pen.globalCompositeOperation = erase ? 'destination-out' : 'source-over';
  pen.strokeStyle = COLOUR;
  pen.fillStyle = COLOUR;
  pen.lineWidth = radius * 2;
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
  // Round ends; a line without a length would draw nothing at all.
  pen.beginPath();
  pen.arc(...to, radius, 0, 2 * Math.PI);
  pen.arc(...from, radius, 0, 2 * Math.PI);
  pen.fill();
}

/** Lies over the picture; `layer` is a data URI of what is painted, or null. */
export function MaskLayer({ picture, layer, brush, erase, change }) {
  const canvas = useRef(null);
  const last = useRef(null);
  const own = useRef([]); // layers that were painted here, and need not be drawn again
  const [at, setAt] = useState(null);

  useEffect(() => {
    let wanted = true;
    (async () => {
      const image = await imageOf(picture);
      const old = layer && !own.current.includes(layer) ? await imageOf(layer) : null;
      const field = canvas.current;
      if (!wanted || !field) return;
      if (field.width !== image.naturalWidth || field.height !== image.naturalHeight || !layer) {
        field.width = image.naturalWidth;
        field.height = image.naturalHeight;
      }
      if (!old) return;
      const pen = penOf(field);
      pen.clearRect(0, 0, field.width, field.height);
      pen.globalCompositeOperation = 'source-over';
      pen.drawImage(old, 0, 0);
    })();
    return () => {
      wanted = false;
    };
  }, [picture, layer]);

  const radius = () => (canvas.current.width * brush) / 200;
  const place = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * canvas.current.width,
      ((event.clientY - box.top) / box.height) * canvas.current.height,
    ];
  };
  const keep = () => {
    const made = painted(canvas.current) ? canvas.current.toDataURL('image/png') : null;
    own.current = [...own.current.slice(-8), made];
    change(made);
  };

  function down(event) {
    event.preventDefault();
    canvas.current.setPointerCapture(event.pointerId);
    last.current = place(event);
    stroke(canvas.current, last.current, last.current, radius(), erase);
  }

  function move(event) {
    if (!last.current) return;
    const next = place(event);
    stroke(canvas.current, last.current, next, radius(), erase);
    last.current = next;
  }

  function up() {
    if (!last.current) return;
    last.current = null;
    keep();
  }

  function pressed(event) {
    const { width, height } = canvas.current;
    const [x, y] = at || [width / 2, height / 2];
    if (KEYS[event.key]) {
      event.preventDefault();
      const [dx, dy] = KEYS[event.key];
      const far = width / 16;
      setAt([clamp(x + dx * far, width), clamp(y + dy * far, height)]);
    } else if (event.key === ' ') {
      event.preventDefault();
      setAt([x, y]);
      stroke(canvas.current, [x, y], [x, y], radius(), erase);
      keep();
    }
  }

  const ring = at && canvas.current && {
    left: `${(100 * at[0]) / canvas.current.width}%`,
    top: `${(100 * at[1]) / canvas.current.height}%`,
    width: `${brush}%`,
  };
  return html`
    <canvas ref=${canvas} class="mask-layer" tabindex="0" role="application"
      aria-label="Mask: arrow keys move the brush, space paints" onPointerDown=${down}
      onPointerMove=${move} onPointerUp=${up} onPointerCancel=${up} onKeyDown=${pressed}
      onBlur=${() => setAt(null)}></canvas>
    ${ring && html`<div class="brush-ring" style=${ring}></div>`}
  `;
}

const clamp = (value, most) => Math.min(most, Math.max(0, value));

export const MaskTools = ({ brush, erase, layer, feather, change }) => html`
  <div class="mask-tools">
    <${Scale} label="Brush" value=${brush} own=${24} min="4" max="60" step="2"
      say=${(value) => `${value} %`}
      change=${(value) => change({ brush: value ?? 24 })} />
    ${layer && html`
      <${Scale} label="Soft edge" value=${feather} own=${4} min="0" max="16" step="1"
        say=${(value) => (value ? `${value} pixels inside` : 'none')}
        change=${(value) => change({ feather: value ?? 4 })} />
    `}
    <div class="row-of">
      <${Button} kind="quiet" label="Erase" aria-pressed=${erase} onClick=${() => change({ erase: !erase })} />
      <${Button} kind="quiet" label="Clear mask" disabled=${!layer} onClick=${() => change({ layer: null })} />
    </div>
    <p class="hint">${layer
      ? 'Only what is painted may change; every other pixel stays as it is.'
      : 'Paint over what may change, or leave it: then all of it may.'}</p>
  </div>
`;
