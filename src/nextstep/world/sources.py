"""The emoji drawings: fetching the pinned packages and reading one drawing from them.

Every set is an ordinary npm package, fetched with the npm client and unpacked under the cache
folder. A drawing comes out as an RGBA image cut to its outline, because sets fill their frame
differently and a scene needs one scale.
"""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

NAMES_PACKAGE = ("emojibase-data", "17.0.0")


@dataclass(frozen=True)
class StyleSource:
    """One drawing style: the package it comes from, its licence and its author."""

    package: str
    version: str
    licence: str
    author: str


STYLE_PACKAGES: dict[str, StyleSource] = {
    "noto": StyleSource("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google"),
    "twemoji": StyleSource("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twitter"),
    "flat": StyleSource("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft"),
    "3d": StyleSource("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Microsoft"),
    "blob": StyleSource("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google"),
    "mono": StyleSource("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft"),
    "openmoji": StyleSource("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji"),
    "emojione-v1": StyleSource("@iconify-json/emojione-v1", "1.2.3", "CC-BY-SA-4.0", "EmojiOne"),
}


def cache_dir() -> Path:
    """Where fetched packages are kept: $NEXTSTEP_CACHE, else ~/.cache/open-nextstep."""
    return Path(os.environ.get("NEXTSTEP_CACHE") or Path.home() / ".cache" / "open-nextstep")


def fetch_package(name: str, version: str) -> Path:
    """Folder with the unpacked npm package `name@version`, fetched on first use.

    Raises:
        RuntimeError: when npm is absent or cannot get the package.
    """
    target = cache_dir() / "npm" / f"{name.replace('/', '__')}-{version}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = ["npm", "pack", f"{name}@{version}", "--pack-destination", scratch, "--silent"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError("the emoji sets are fetched with npm, which is not installed")
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"npm could not fetch {name}@{version}: {error.stderr.strip()}")
        archive = next(Path(scratch).glob("*.tgz"))
        with tarfile.open(archive) as tar:
            tar.extractall(Path(scratch) / "out", filter="data")
        try:
            (Path(scratch) / "out" / "package").rename(target)
        except OSError:
            if not target.exists():  # else another process was first, with the same files
                raise
    return target


def normalise_code(code: str) -> str:
    """Code points as every set can spell them: lower case, without the variation selector."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


@functools.cache
def emoji_names() -> dict[str, str]:
    """English label -> normalised code points, for every emoji without skin tone or flag."""
    folder = fetch_package(*NAMES_PACKAGE)
    entries = json.loads((folder / "en" / "data.json").read_text(encoding="utf-8"))
    named = {}
    for entry in entries:
        if entry.get("group") is not None and not entry["label"].startswith("flag"):
            named[entry["label"]] = normalise_code(entry["hexcode"])
    named.setdefault("sheep", named["ewe"])
    return named


@functools.cache
def toned_codes() -> dict[str, tuple[str, ...]]:
    """English label -> normalised code points of its five skin tones, light first."""
    folder = fetch_package(*NAMES_PACKAGE)
    entries = json.loads((folder / "en" / "data.json").read_text(encoding="utf-8"))
    found = {}
    for entry in entries:
        skins = {
            s["tone"]: s["hexcode"] for s in entry.get("skins", ()) if isinstance(s["tone"], int)
        }
        if len(skins) == 5:
            found[entry["label"]] = tuple(normalise_code(skins[tone]) for tone in range(1, 6))
    return found


@functools.cache
def _icon_names_by_code() -> dict[str, list[str]]:
    """Code points -> names that the iconify sets use for it; sets without a table share them."""
    found: dict[str, list[str]] = {}
    for style in ("noto", "twemoji", "openmoji"):
        source = STYLE_PACKAGES[style]
        table = json.loads(
            (fetch_package(source.package, source.version) / "chars.json").read_text("utf-8")
        )
        for code, name in table.items():
            found.setdefault(normalise_code(code), []).append(name)
    return found


class EmojiSet:
    """All drawings of one style."""

    def __init__(self, style: str) -> None:
        self.style = style
        source = STYLE_PACKAGES[style]
        self.folder = fetch_package(source.package, source.version)
        self.icons: dict[str, Any] = {}
        self.codes: dict[str, str] = {}
        if (self.folder / "icons.json").exists():
            self.icons = json.loads((self.folder / "icons.json").read_text(encoding="utf-8"))
            table = self.folder / "chars.json"
            if table.exists():
                chars = json.loads(table.read_text(encoding="utf-8"))
                self.codes = {normalise_code(code): name for code, name in chars.items()}
        else:
            files = (self.folder / "assets").glob("*.webp")
            self.codes = {normalise_code(file.stem): file.name for file in files}

    def _find(self, code: str) -> str | None:
        if code in self.codes:
            return self.codes[code]
        known = (self.icons.get("icons", {}), self.icons.get("aliases", {}))
        for name in _icon_names_by_code().get(code, []):
            if any(name in table for table in known):
                return name
        return None

    def __contains__(self, code: str) -> bool:
        return self._find(code) is not None

    def draw(self, code: str, size: int) -> Image.Image:
        """The drawing cut to its outline, RGBA, longest side `size` pixels.

        Raises:
            KeyError: when the set has no such emoji.
        """
        name = self._find(code)
        if name is None:
            raise KeyError(f"style {self.style} has no emoji {code}")
        if self.icons:
            picture = _render_svg(self._svg(name), max(256, 2 * size))
        else:
            picture = Image.open(self.folder / "assets" / name).convert("RGBA")
        picture = picture.crop(picture.getchannel("A").getbbox())
        scale = size / max(picture.size)
        shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        premultiplied = picture.convert("RGBa").resize(shape, Image.Resampling.LANCZOS)
        return premultiplied.convert("RGBA")

    def _svg(self, name: str) -> str:
        icon = self.icons["icons"].get(name)
        while icon is None:
            name = self.icons["aliases"][name]["parent"]
            icon = self.icons["icons"].get(name)
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", self.icons.get("width", 16))
        height = icon.get("height", self.icons.get("height", 16))
        body = icon["body"].replace("currentColor", "#1b1b1b")
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{body}</svg>'
        )


def _render_svg(svg: str, size: int) -> Image.Image:
    import resvg_py

    data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def all_drawings(style: str, size: int) -> Iterator[tuple[str, Image.Image]]:
    """Every untoned emoji this style draws, as (label, RGBA drawing)."""
    emoji_set = EmojiSet(style)
    for label, code in emoji_names().items():
        if code in emoji_set:
            yield label, emoji_set.draw(code, size)
