// What every part of the page is written with: Preact, its hooks, and templates by htm.
import { h, render, Fragment } from './vendor/preact.js';
import htm from './vendor/htm.js';

export * from './vendor/hooks.js';
export { render, Fragment };
export const html = htm.bind(h);
