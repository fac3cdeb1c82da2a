"""The different requests that `serve_load.py` asks a service for."""

from __future__ import annotations

import base64
import io
import random
from typing import Any

from PIL import Image, ImageDraw

THINGS = ("red apple", "blue house", "fox", "owl", "castle", "green car", "two cats")
STYLES = ("noto", "flat", "3d", "mono")
MALFORMED: tuple[dict[str, Any], ...] = (
    {"content": b"{", "headers": {"content-type": "application/json"}},
    {"json": {"prompt": "a", "colour": 1}},
    {"json": {"prompt": "a", "size": "33x32"}},
    {"json": {"prompt": "a", "n": 0}},
    {"json": {"prompt": "a", "images": ["data:image/png;base64,PHN2Zy8+"]}},
    {"json": {"prompt": "word " * 2000}},
)


def data_uri(picture: Image.Image) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def drawing(dice: random.Random, side: int) -> Image.Image:
    """Something to edit."""
    picture = Image.new("RGB", (side, side), "white")
    box = [side // 4, side // 4, 3 * side // 4, 3 * side // 4]
    ImageDraw.Draw(picture).ellipse(box, tuple(dice.randrange(256) for _ in range(3)))
    return picture


def request(number: int, steps: int | None = None) -> dict[str, Any]:
    """A different body of `POST /jobs` for every number: drawn, edited, inside a mask, read."""
    dice = random.Random(number)
    side, kind = dice.choice((64, 64, 96, 128)), number % 10
    more = {"steps": steps} if steps else {}
    if kind == 9:
        parts = [{"type": "image_url", "image_url": {"url": data_uri(drawing(dice, 128))}}]
        return {"parts": parts, "max_images": 0, "max_tokens": 16, "seed": number}
    prompt = f"{dice.choice(THINGS)}, {dice.choice(STYLES)} style, white background"
    body: dict[str, Any] = {"prompt": prompt, "seed": number, **more}
    if kind in (6, 7, 8):
        body |= {"prompt": "make the background blue", "images": [data_uri(drawing(dice, side))]}
    if kind == 8:
        mask = Image.new("RGBA", (side, side), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (0, 0, side, side // 2))
        body["mask"] = data_uri(mask)
    if kind < 6:
        body |= {"size": f"{side}x{side}", "n": 1 + (kind == 5)}
        body |= {"guidance": dice.choice((1.0, 2.5, 4.0))}
    return body
