// Pictures of the service and of the person: fetched with the key, kept, turned into data URIs.
import { ask, Problem } from './api.js';
import { useEffect, useState } from './ui.js';
import { titleOf } from './words.js';

const KEPT = 150;
const MOST_SIDE = 1536;
const cache = new Map();

/** An address for <img>: pictures need the key, which <img> cannot send. */
export function addressOf(url) {
  if (!cache.has(url)) {
    const found = ask(url)
      .then((answer) => answer.blob())
      .then((blob) => URL.createObjectURL(blob));
    found.catch(() => cache.delete(url));
    cache.set(url, found);
    if (cache.size > KEPT) {
      const [oldest, address] = cache.entries().next().value;
      cache.delete(oldest);
      address.then(URL.revokeObjectURL, () => {});
    }
  }
  return cache.get(url);
}

/** { address, of, problem }: the picture before stays until the next one, `of` that url, is there;
 *  `problem` says why it will not come. */
export function usePicture(url) {
  const [found, setFound] = useState({ address: '', of: '' });
  useEffect(() => {
    let wanted = true;
    if (!url || url.startsWith('data:')) setFound({ address: url || '', of: url });
    else {
      addressOf(url).then(
        (address) => wanted && setFound({ address, of: url }),
        (problem) => wanted && setFound((before) => ({ ...before, problem: problem.message })),
      );
    }
    return () => {
      wanted = false;
    };
  }, [url]);
  return found;
}

function uriOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** A picture of the service as a data URI. */
export async function dataOf(url) {
  if (url.startsWith('data:')) return url;
  return uriOf(await (await ask(url)).blob());
}

/** A file of the person as a PNG data URI, made smaller if it is large. */
export async function dataOfFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Problem('This file is not a picture that the browser can read.');
  }
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext('2d');
  // What is transparent would become black.
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/png');
}

export async function imageOf(data) {
  const image = new Image();
  image.src = data;
  await image.decode();
  return image;
}

/** What a picture of a job is called as a file. */
export function fileNameOf(job, index) {
  const words = titleOf(job).replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '').slice(0, 40);
  const number = job.pictures.length > 1 ? `-${index + 1}` : '';
  return `${words || 'picture'}${number}.png`;
}

function saveAs(address, name) {
  const link = document.createElement('a');
  link.href = address;
  link.download = name;
  link.click();
}

export async function download(url, name) {
  saveAs(await addressOf(url), name);
}

export function saveBlob(blob, name) {
  const address = URL.createObjectURL(blob);
  saveAs(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
