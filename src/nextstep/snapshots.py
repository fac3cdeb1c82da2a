"""A picture as a state: what was asked for and the tokens so far, to go on from anywhere.

The keys and values are not stored. They are rebuilt from the tokens in passes that give the same
bytes, so a state of a finished 512 px picture is 256 kB, and any row of it can be gone on from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextstep import provenance
from nextstep.engine.session import ReadPicture
from nextstep.errors import NextStepError
from nextstep.requests import Request
from nextstep.settings import GenerationSettings

FORMAT = "nextstep-picture-state"
VERSION = 1


@dataclass(frozen=True)
class Maker:
    """What a picture's bytes depend on beside its request.

    Attributes:
        model: fingerprint of the weights.
        dtype: number format of the weights.
        block_rows: rows of the engine's blocks.
        adapter: hash and scale of a merged adapter; empty without one.
    """

    model: str
    dtype: str
    block_rows: int
    adapter: dict[str, Any] = field(default_factory=dict)

    def check(self, other: Maker) -> None:
        """Make sure that `other` gives the bytes that this one gave.

        Raises:
            NextStepError: saying what differs.
        """
        for name, label in (
            ("model", "model"),
            ("dtype", "number format"),
            ("block_rows", "rows of a block"),
            ("adapter", "adapter"),
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
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
        maker: who began it.

    Raises:
        NextStepError: when there are more tokens than the picture has.
    """

    request: Request
    tokens: Tensor
    maker: Maker

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
        return replace(self, tokens=self.tokens[: row * self.request.grid[1]].clone())

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
        new = {"prompt": prompt, "seed": seed, "index": index}
        changes: dict[str, Any] = {k: v for k, v in new.items() if v is not None}
        changes["settings"] = self.request.settings.with_values(**settings)
        return replace(self.rewind(row), request=replace(self.request, **changes))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, beside its name and then renamed.

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
            "maker": asdict(self.maker),
        }
        tensors = {"tokens": self.tokens.float().cpu().contiguous()}
        for place, source in enumerate(request.sources):
            tensors[f"source.{place}"] = source.tokens.float().cpu().contiguous()
        header = {FORMAT: json.dumps(told, ensure_ascii=False)}
        provenance.write_file(Path(path), save(tensors, header))

    @classmethod
    def load(cls, path: str | Path) -> PictureState:
        """Read what `save` wrote.

        Raises:
            NextStepError: when the file is something else, damaged, or of a newer version.
            FileNotFoundError: when there is none.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            with safe_open(str(path), "pt") as file:
                text = (file.metadata() or {}).get(FORMAT)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise NextStepError(f"{path} is no picture state: {error}") from None
        if text is None:
            raise NextStepError(f"{path} is no picture state")
        try:
            return cls._read(json.loads(text), tensors)
        except NextStepError as error:
            raise NextStepError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise NextStepError(f"{path} is damaged: {error}") from None

    @classmethod
    def _read(cls, told: dict[str, Any], tensors: dict[str, Tensor]) -> PictureState:
        if told["version"] != VERSION:
            raise NextStepError(
                f"the state has version {told['version']}, this program reads {VERSION}"
            )
        sources = []
        for place, grid in enumerate(told["sources"]):
            tokens = tensors[f"source.{place}"]
            if len(tokens) != grid[0] * grid[1]:
                raise NextStepError("a source picture and its grid do not fit")
            sources.append(ReadPicture(tokens, (grid[0], grid[1])))
        rows, columns = told["grid"]
        request = Request(
            told["prompt"],
            (rows, columns),
            GenerationSettings(**told["settings"]),
            told["seed"],
            told["index"],
            tuple(sources),
        )
        tokens = tensors["tokens"]
        if tokens.ndim != 2 or tokens.dtype != torch.float32:
            raise NextStepError("the tokens are not rows of fp32 values")
        return cls(request, tokens, Maker(**told["maker"]))
