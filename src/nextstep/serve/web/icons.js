// Drawn here: strokes on a 20 by 20 field, in the colour of the text beside them.
import { html } from './ui.js';

const PATHS = {
  dice: 'M5.5 3.5h9a2 2 0 0 1 2 2v9a2 2 0 0 1-2 2h-9a2 2 0 0 1-2-2v-9a2 2 0 0 1 2-2zM7 6.6a.4.4 0 1 0 .01 0M10 9.6a.4.4 0 1 0 .01 0M13 12.6a.4.4 0 1 0 .01 0',
  stop: 'M5.5 5.5h9v9h-9z',
  cross: 'M5 5l10 10M15 5L5 15',
  again: 'M15.5 8A6 6 0 1 0 16 11M16 4v4h-4',
  fork: 'M6 3v5c0 3 8 2 8 5v4M6 8v9M11.5 14.5L14 17l2.5-2.5M3.5 14.5L6 17l2.5-2.5',
  edit: 'M4 16l1-4 8.5-8.5 3 3L8 15z M11.5 5.5l3 3',
  eye: 'M2 10s3-5.5 8-5.5S18 10 18 10s-3 5.5-8 5.5S2 10 2 10zM10 12.2a2.2 2.2 0 1 0 0-4.4 2.2 2.2 0 0 0 0 4.4z',
  save: 'M10 3v9M6 8.5l4 4 4-4M4 16.5h12',
  bin: 'M4 6h12M8 6V4h4v2M5.5 6l.8 10.5h7.4L14.5 6',
  check: 'M4 10.5l4 4 8-9',
  choose: 'M3 4h5v5H3zM11 6.5h6M3 12h5v5H3zM11 14.5h6',
  compare: 'M3 4h6v12H3zM11 4h6v12h-6z',
  key: 'M12.5 11a4 4 0 1 0-3.8-2.8L3 14v3h3v-2h2v-2h1.5zM13.5 6.5h.01',
  star: 'M10 3l2.1 4.5 4.9.6-3.6 3.4.9 4.9L10 14l-4.3 2.4.9-4.9L3 8.1l4.9-.6z',
  sun: 'M10 13.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1.1 1.1M14.6 14.6l1.1 1.1M15.7 4.3l-1.1 1.1M5.4 14.6l-1.1 1.1',
  moon: 'M16 11.5A6.5 6.5 0 0 1 8.5 4 6.5 6.5 0 1 0 16 11.5z',
  auto: 'M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14',
  up: 'M10 16V4M5 9l5-5 5 5',
  down: 'M10 4v12M5 11l5 5 5-5',
  left: 'M16 10H4M9 5l-5 5 5 5',
  right: 'M4 10h12M11 5l5 5-5 5',
  picture: 'M3 4h14v12H3zM3 13l4-4 4 4 2-2 4 4M13 8h.01',
  move: 'M10 3v14M3 10h14M10 3L8 5M10 3l2 2M10 17l-2-2M10 17l2-2M3 10l2-2M3 10l2 2M17 10l-2-2M17 10l-2 2',
};

export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} />
  </svg>
`;

export const Mark = () => html`
  <svg class="mark" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
    ${[0, 1, 2, 3, 4, 5, 6, 7, 8].map((i) => html`
      <rect key=${i} x=${1 + 6.5 * (i % 3)} y=${1 + 6.5 * Math.floor(i / 3)} width="5" height="5"
        rx="1" class=${i > 4 ? 'later' : ''} />
    `)}
  </svg>
`;
