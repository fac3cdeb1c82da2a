// Pictures of the service and of the person: fetched with the key, kept, turned into data URIs.
import { ask, Problem } from './api.js';
import { useEffect, useState } from './ui.js';

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

/** { address, of }: the picture before stays until the next one, `of` that url, is there. */
export function usePicture(url) {
  const [found, setFound] = useState({ address: '', of: '' });
  useEffect(() => {
    let wanted = true;
    if (!url || url.startsWith('data:')) setFound({ address: url || '', of: url });
    else addressOf(url).then((address) => wanted && setFound({ address, of: url }), () => {});
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

export async function download(url, name) {
  const link = document.createElement('a');
  link.href = await addressOf(url);
  link.download = name;
  link.click();
}
