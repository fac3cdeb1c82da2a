"""A trained model in files of less than 16 MiB, and whole again, with hashes on both sides.

python scripts/split_weights.py split runs/mine/model sent/
python scripts/split_weights.py join sent/ runs/mine-again

A folder of parts holds:

    weights-1-of-2.safetensors ...   some of the tensors each, each a file of its own
    rest.zip                         the model folder's other small files
    manifest.json                    sha256 of these files, of the whole weights, and of the image
                                     tokenizer, which is not sent: it is that of a shipped model
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from nextstep.errors import NextStepError
from nextstep.model.folder import find_folder

MOST = 15 * 2**20
"""Bytes of tensors in a part."""
WEIGHTS, REST, MANIFEST, VAE = "model.safetensors", "rest.zip", "manifest.json", "vae"


def split(model: Path, out: Path, most: int = MOST) -> list[str]:
    """Write a model folder in parts.

    Args:
        model: folder with its weights in one file.
        out: folder for the parts.
        most: bytes of tensors in a part.

    Returns:
        Names of the files.

    Raises:
        NextStepError: when a tensor alone is larger than a part, or the folder is none.
    """
    if not (model / WEIGHTS).is_file():
        raise NextStepError(f"{model} has no {WEIGHTS}")
    out.mkdir(parents=True, exist_ok=True)
    tensors, told = _read(model / WEIGHTS)
    parts: list[dict[str, Any]] = [{}]
    for name, tensor in tensors.items():
        if tensor.nbytes > most:
            raise NextStepError(f"{name} has {tensor.nbytes} bytes, more than a part of {most}")
        if sum(one.nbytes for one in parts[-1].values()) + tensor.nbytes > most:
            parts.append({})
        parts[-1][name] = tensor
    names = [f"weights-{n}-of-{len(parts)}.safetensors" for n in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, out / name)
    with zipfile.ZipFile(out / REST, "w", zipfile.ZIP_DEFLATED) as rest:
        for path in sorted(model.iterdir()):
            if path.is_file() and path.name != WEIGHTS:
                rest.write(path, path.name)
    vae = sorted((model / VAE).iterdir()) if (model / VAE).is_dir() else []
    manifest = {
        "parts": {name: sha256(out / name) for name in (*names, REST)},
        "weights": sha256(model / WEIGHTS),
        "metadata": told,
        "vae": {path.name: sha256(path) for path in vae},
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return [*names, REST, MANIFEST]


def join(parts: Path, model: Path, shipped: str = "nano") -> None:
    """Put a model folder together from its parts.

    Args:
        parts: folder that `split` wrote.
        model: folder to make; it must not exist.
        shipped: model whose image tokenizer it has.

    Raises:
        NextStepError: when a file is missing, damaged, or another one than was split.
    """
    manifest = json.loads((parts / MANIFEST).read_text("utf-8"))
    if model.exists():
        raise NextStepError(f"{model} is there already; name another folder")
    for name, expected in manifest["parts"].items():
        _check(parts / name, expected)
    vae = find_folder(shipped) / VAE
    for name, expected in manifest["vae"].items():
        _check(vae / name, expected)
    tensors: dict[str, Any] = {}
    for name in manifest["parts"]:
        if name != REST:
            tensors |= _read(parts / name)[0]
    scratch = model.with_name(f".{model.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        save_file(tensors, scratch / WEIGHTS, manifest["metadata"] or None)
        _check(scratch / WEIGHTS, manifest["weights"])
        with zipfile.ZipFile(parts / REST) as rest:
            rest.extractall(scratch)
        if manifest["vae"]:
            shutil.copytree(vae, scratch / VAE)
        scratch.rename(model)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check(path: Path, expected: str) -> None:
    if not path.is_file():
        raise NextStepError(f"{path} is missing")
    if sha256(path) != expected:
        raise NextStepError(f"{path} is not the file that was split: its hash differs")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors in the order of their names, and the metadata."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, first, second in (("split", "model", "parts"), ("join", "parts", "model")):
        own = verbs.add_parser(verb)
        own.add_argument("source", type=Path, metavar=first.upper())
        own.add_argument("target", type=Path, metavar=second.upper())
    asked = parser.parse_args()
    try:
        (split if asked.verb == "split" else join)(asked.source, asked.target)
    except (NextStepError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
