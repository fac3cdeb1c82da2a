// The settings inside a PNG of ours, read in the browser.
const SIGNATURE = 0x89504e47;

function textOf(kind, body) {
  const end = body.indexOf(0);
  const latin = new TextDecoder('latin1');
  if (latin.decode(body.subarray(0, end)) !== 'nextstep') return null;
  if (kind === 'tEXt') return latin.decode(body.subarray(end + 1));
  if (body[end + 1] !== 0) return null; // compressed: not written by us
  let start = end + 3;
  for (let zeros = 0; zeros < 2; zeros += 1) start = body.indexOf(0, start) + 1;
  return new TextDecoder().decode(body.subarray(start));
}

/** What made a PNG; null when it does not say. */
export async function recordOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const view = new DataView(bytes.buffer);
  if (bytes.length < 8 || view.getUint32(0) !== SIGNATURE) return null;
  for (let at = 8; at + 12 <= bytes.length;) {
    const size = view.getUint32(at);
    const kind = new TextDecoder('latin1').decode(bytes.subarray(at + 4, at + 8));
    const text = ['iTXt', 'tEXt'].includes(kind) && textOf(kind, bytes.subarray(at + 8, at + 8 + size));
    if (text) {
      try {
        const record = JSON.parse(text);
        return typeof record?.prompt === 'string' ? record : null;
      } catch {
        return null;
      }
    }
    at += size + 12;
  }
  return null;
}

const number = (value) => (typeof value === 'number' && Number.isFinite(value) ? value : null);

/** A record as the form holds it. */
export function draftOfRecord(record) {
  const [prompt, line = ''] = record.prompt.split('\n');
  const seed = number(record.seed);
  return {
    prompt,
    line,
    size: number(record.width) && number(record.height) ? `${record.width}x${record.height}` : 'auto',
    seed: seed === null ? '' : String(seed),
    n: 1,
    guidance: number(record.guidance),
    imageGuidance: number(record.image_guidance),
    steps: record.solver === 'multistep' ? null : number(record.steps),
    solver: typeof record.solver === 'string' ? record.solver : '',
    feather: number(record.mask_feather) ?? 0,
    negative: typeof record.negative_prompt === 'string' ? record.negative_prompt : '',
  };
}
