"""A picture as a state: what was asked for and the tokens so far, to go on from anywhere.

The keys and values are not stored. They are rebuilt from the tokens in passes that give the same
bytes, so a state of a finished 512 px picture is 256 kB, and any row of it can be gone on from.

Legend: N tokens of a picture, k of them known, g guessed, D values per token, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextstep.engine import metadata as provenance
from nextstep.engine.request import EncodedImage, InpaintingSource, Request
from nextstep.engine.settings import generation_settings
from nextstep.errors import NextStepError
from nextstep.utils import old_names

FORMAT = "nextstep-picture-state"
VERSION = 7
READ = (1, 2, 3, 4, 5, 6, 7)
"""Versions that are read; the first had no masks and no origin, the second no threads, the third
no guesses, the fourth no table of a solver, the fifth no digest."""
DIGEST = "digest"
"""Name of the checksum beside the description."""


@dataclass(frozen=True)
class ModelFingerprint:
    """What a picture's bytes depend on beside its request.

    Attributes:
        model: fingerprint of the weights.
        dtype: number format of the weights, and the kernels where they compute.
        block_rows: rows of the engine's blocks.
        adapter: hash and scale of a merged adapter; empty without one.
        threads: of one operation; 0 is not known.
    """

    model: str
    dtype: str
    block_rows: int
    adapter: dict[str, Any] = field(default_factory=dict)
    threads: int = 0

    def check(self, other: ModelFingerprint, threads: bool = False) -> None:
        """Make sure that `other` gives the bytes that this one gave.

        Args:
            other: who goes on.
            threads: whether their number must be the same too; it moves the last bits alone, so
                people may go on with another one.

        Raises:
            NextStepError: saying what differs.
        """
        for name, label in (
            ("model", "model"),
            ("dtype", "number format"),
            ("block_rows", "rows of a block"),
            ("adapter", "adapter"),
            ("threads", "number of threads"),
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "threads" and not (threads and mine and theirs):
                continue
            if mine != theirs:
                raise NextStepError(
                    f"the picture was begun with another {label} ({mine or 'none'}, here "
                    f"{theirs or 'none'}); go on with the one it was begun with"
                )


@dataclass(frozen=True)
class PictureState:
    """A picture at some image token.

    Attributes:
        request: what was asked for.
        tokens: [k, D] so far, fp32.
        fingerprint: who began it.
        guesses: [g, D] of the tokens behind those, of a picture with Jacobi decoding.

    Raises:
        NextStepError: when there are more tokens than the picture has.
    """

    request: Request
    tokens: Tensor
    fingerprint: ModelFingerprint
    guesses: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) > self.request.decode.tokens:
            raise NextStepError(
                f"the state holds {len(self.tokens)} tokens of a picture of "
                f"{self.request.decode.tokens}"
            )

    @property
    def rows(self) -> int:
        """Whole rows that are there."""
        return len(self.tokens) // self.request.grid[1]

    def rewind(self, row: int) -> PictureState:
        """The state in which the first `row` rows were done.

        Raises:
            NextStepError: when they are not all there.
        """
        if not 0 <= row <= self.rows:
            raise NextStepError(f"the state has {self.rows} whole rows, not {row}")
        tokens = self.tokens[: row * self.request.grid[1]].clone()
        return replace(self, tokens=tokens, guesses=None)

    def fork(
        self,
        row: int,
        prompt: str | None = None,
        seed: int | None = None,
        index: int | None = None,
        **settings: Any,
    ) -> PictureState:
        """A picture that has the first `row` rows and goes on in its own way.

        Args:
            row: rows kept.
            prompt, seed, index: new ones; None keeps what was.
            **settings: fields of `GenerationSettings`.

        Raises:
            ValueError: for rows that are not there, or a value out of range.
        """
        changed = self._changed(prompt, seed, index, settings)
        if row and changed is not self.request:
            origin = f"fork from row {row} of the picture {provenance.tensor_hash(self.tokens)}"
            changed = replace(changed, origin=origin)
        return replace(self.rewind(row), request=changed)

    def resample(
        self,
        picture: Image.Image,
        mask: np.ndarray,
        prompt: str | None = None,
        seed: int | None = None,
        index: int | None = None,
        **settings: Any,
    ) -> PictureState:
        """A picture that is sampled anew inside a mask and keeps everything else.

        Args:
            picture: what this state's tokens look like; its pixels outside the mask are kept.
            mask: [H, W] bool, True where the picture may change; what was never drawn changes too.
            prompt, seed, index, **settings: as in `fork`.

        Raises:
            ValueError: when the mask does not fit or marks nothing, or a value is out of range.
        """
        rows = self.request.grid[0]
        if mask.shape != (picture.height, picture.width) or picture.height % rows:
            raise NextStepError("picture, mask and state differ in size")
        if not mask.any():
            raise NextStepError("the region to sample anew is empty; mark at least one pixel")
        mask = mask.copy()
        mask[self.rows * (picture.height // rows) :] = True
        missing = self.request.decode.tokens - len(self.tokens)
        tokens = torch.cat((self.tokens, self.tokens.new_zeros(missing, self.tokens.shape[-1])))
        changed = self._changed(prompt, seed, index, settings)
        origin = f"part sampled anew of the picture {provenance.tensor_hash(self.tokens)}"
        kept = InpaintingSource(tokens, picture.convert("RGB"), mask)
        return replace(
            self,
            tokens=self.tokens[:0].clone(),
            guesses=None,
            request=replace(changed, kept=kept, origin=origin),
        )

    def _changed(
        self, prompt: str | None, seed: int | None, index: int | None, settings: dict[str, Any]
    ) -> Request:
        """The request with what is given; the very same one when nothing changes."""
        chosen = self.request.settings.with_values(**settings)
        new = {"prompt": prompt, "seed": seed, "index": index, "settings": chosen}
        changes: dict[str, Any] = {
            name: value
            for name, value in new.items()
            if value is not None and value != getattr(self.request, name)
        }
        return replace(self.request, **changes) if changes else self.request

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, beside its name and then renamed; see `to_bytes`."""
        provenance.write_file(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """Contents of a safetensors file.

        Priority, deadline and client belong to an engine's queue and are not kept.
        """
        from safetensors.torch import save

        request = self.request
        told = {
            "format": FORMAT,
            "version": VERSION,
            "prompt": request.prompt,
            "grid": request.grid,
            "settings": asdict(request.settings),
            "seed": request.seed,
            "index": request.index,
            "sources": [source.grid for source in request.sources],
            "fingerprint": asdict(self.fingerprint),
            "origin": request.origin,
        }
        tensors = {"tokens": self.tokens}
        if self.guesses is not None:
            tensors["guesses"] = self.guesses
        for place, source in enumerate(request.sources):
            tensors[f"source.{place}"] = source.tokens
        if (kept := request.kept) is not None:
            tensors["kept.tokens"] = kept.tokens
            tensors["kept.picture"] = torch.from_numpy(np.asarray(kept.picture).copy())
            tensors["kept.mask"] = torch.from_numpy(kept.mask.copy())
        for name, tensor in tensors.items():
            # Copies, because the format refuses tensors that share memory.
            plain = tensor.cpu().contiguous().clone()
            tensors[name] = plain.float() if plain.is_floating_point() else plain
        text = json.dumps(told, ensure_ascii=False)
        return _in_order(save(tensors, {FORMAT: text, DIGEST: _digest(text, tensors)}))

    @classmethod
    def load(cls, path: str | Path) -> PictureState:
        """Read what `save` wrote.

        Raises:
            NextStepError: when the file is something else, damaged, or of a newer version.
            FileNotFoundError: when there is none.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise NextStepError(f"{path} cannot be read: {error.strerror}") from None
        return cls.from_bytes(data, str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the state") -> PictureState:
        """Read what `to_bytes` gave; `name` is what errors call it.

        Raises:
            NextStepError: when it is something else, damaged, or of a newer version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(data)
            size = int.from_bytes(data[:8], "little")
            told = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
        except (SafetensorError, ValueError, RuntimeError, RecursionError) as error:
            raise NextStepError(f"{name} is no picture state: {error}") from None
        text = told.get(FORMAT)
        if text is None:
            raise NextStepError(f"{name} is no picture state")
        try:
            loaded = old_names.renamed(json.loads(text), old_names.STATE)
            if loaded["version"] not in READ:
                raise NextStepError(
                    f"the state has version {loaded['version']}, this program reads {VERSION}"
                )
            if loaded["version"] >= 6 and told.get(DIGEST) != _digest(text, tensors):
                raise ValueError("its checksum is wrong")
            return cls._read(loaded, tensors)
        except NextStepError as error:
            raise NextStepError(f"{name}: {error}") from None
        except _DAMAGED as error:
            raise NextStepError(f"{name} is damaged: {error}") from None

    @classmethod
    def _read(cls, told: dict[str, Any], tensors: dict[str, Tensor]) -> PictureState:
        sources = []
        for place, grid in enumerate(told["sources"]):
            tokens = tensors[f"source.{place}"]
            if len(tokens) != grid[0] * grid[1]:
                raise NextStepError("a source picture and its grid do not fit")
            sources.append(EncodedImage(tokens, (grid[0], grid[1])))
        rows, columns = told["grid"]
        kept = None
        if "kept.mask" in tensors:
            values = tensors["kept.picture"].numpy()
            base = Image.fromarray(values, "RGB")
            kept = InpaintingSource(tensors["kept.tokens"], base, tensors["kept.mask"].numpy())
            if kept.mask.shape != values.shape[:2] or len(kept.tokens) != rows * columns:
                raise NextStepError("the kept picture and its mask do not fit")
        request = Request(
            told["prompt"],
            (rows, columns),
            generation_settings(told["settings"], "its settings"),
            told["seed"],
            told["index"],
            tuple(sources),
            kept=kept,
            origin=told.get("origin", ""),
        )
        tokens, guesses = tensors["tokens"], tensors.get("guesses")
        for given in (tokens, tokens if guesses is None else guesses):
            if given.ndim != 2 or given.dtype != torch.float32:
                raise NextStepError("the tokens are not rows of fp32 values")
        return cls(request, tokens, ModelFingerprint(**told["fingerprint"]), guesses)


_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
"""What reading a description of the wrong shape raises."""


def _in_order(data: bytes) -> bytes:
    """A safetensors file with a sorted header: safetensors writes metadata in random order."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(
        json.loads(data[8 : 8 + size]), ensure_ascii=False, sort_keys=True, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """A checksum of a description and all values; a flipped bit would be another picture."""
    made = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        values = tensors[name]
        made.update(f"{name} {values.dtype} {list(values.shape)} ".encode())
        made.update(values.numpy().tobytes())
    return made.hexdigest()
