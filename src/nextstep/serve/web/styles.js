// Words that a press on a chip puts into the prompt. Small models speak of the emoji world only.

const WORLD = {
  styles: ['noto', 'twemoji', 'flat', '3d', 'mono'],
  colours: {
    white: '#ffffff', black: '#181818', gray: '#969696', red: '#d63031', orange: '#f39237',
    yellow: '#fad350', green: '#4caf50', blue: '#4285f4', purple: '#8e44ad', pink: '#f8a5c2',
  },
  examples: ['red apple, noto style, white background', 'fox, 3d style, blue background',
    'castle, flat style, yellow background'],
  edits: ['make the background blue', 'make it flat style', 'make it mono style'],
};

const GENERAL = {
  styles: ['photograph', 'oil painting', 'watercolour', 'pencil', 'isometric', 'pixel art'],
  colours: {},
  examples: ['a lighthouse in morning fog, watercolour style',
    'a red bicycle against a white wall, photograph style', 'a fox reading a map, pencil style'],
  edits: ['make it evening', 'change the background to a beach', 'turn it into a pencil drawing'],
};

const hex = (rgb) => `#${rgb.map((value) => value.toString(16).padStart(2, '0')).join('')}`;

/** The model's own words where it has a list; else small models speak of the emoji world. */
export function wordsFor(model) {
  const own = model?.vocabulary;
  if (!own) return { names: {}, notes: {}, ...(model && model.width < 256 ? WORLD : GENERAL) };
  const colours = Object.fromEntries(Object.entries(own.colours).map(([name, one]) => [name, hex(one.rgb)]));
  return { ...own, styles: Object.keys(own.styles), colours };
}

const escaped = (words) => words.join('|').replace(/ /g, '\\s+');

/** The prompt with one of `words` before `noun`, or without it when it stood there already. */
export function toggled(prompt, word, words, noun) {
  const pattern = new RegExp(`,?\\s*\\b(?:${escaped(words)})\\s+${noun}\\b`, 'gi');
  const had = includesWord(prompt, word, noun);
  const rest = prompt.replace(pattern, '').replace(/^[,\s]+/, '');
  if (had) return rest;
  const said = `${word} ${noun}`;
  return rest.trim() ? `${rest.trimEnd()}, ${said}` : said;
}

export function includesWord(prompt, word, noun) {
  return new RegExp(`\\b${escaped([word])}\\s+${noun}\\b`, 'i').test(prompt);
}
