// Several files as one ZIP file. PNG and WebP are compressed already, so they are stored as they are.
const UTF8_NAMES = 0x0800;
const NEWEST = 0x0021; // 1 January 1980: the same files make the same bytes
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

export function checksum(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** Fields of two and four bytes, lowest byte first. */
function packed(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((size, [width]) => size + width, 0)));
  let place = 0;
  for (const [width, value] of fields) {
    if (width === 2) view.setUint16(place, value, true);
    else view.setUint32(place, value, true);
    place += width;
  }
  return new Uint8Array(view.buffer);
}

/** Names that are given twice get a number. */
export function distinct(names) {
  const seen = new Map();
  return names.map((name) => {
    const times = seen.get(name) || 0;
    seen.set(name, times + 1);
    const dot = name.lastIndexOf('.');
    return times ? `${name.slice(0, dot)}-${times + 1}${name.slice(dot)}` : name;
  });
}

/** A ZIP of { name, bytes }. */
export function zipOf(files) {
  const names = distinct(files.map((file) => file.name));
  const parts = [];
  const entries = [];
  let place = 0;
  files.forEach(({ bytes }, index) => {
    const name = new TextEncoder().encode(names[index]);
    const common = [
      [2, 20], [2, UTF8_NAMES], [2, 0], [2, 0], [2, NEWEST], [4, checksum(bytes)],
      [4, bytes.length], [4, bytes.length], [2, name.length], [2, 0],
    ];
    const head = packed([[4, 0x04034b50], ...common]);
    const rest = [[2, 0], [2, 0], [2, 0], [4, 0], [4, place]];
    entries.push(packed([[4, 0x02014b50], [2, 20], ...common, ...rest]), name);
    parts.push(head, name, bytes);
    place += head.length + name.length + bytes.length;
  });
  const size = entries.reduce((sum, entry) => sum + entry.length, 0);
  const count = files.length;
  const end = packed([
    [4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, place], [2, 0],
  ]);
  return new Blob([...parts, ...entries, end], { type: 'application/zip' });
}
