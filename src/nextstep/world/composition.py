"""Image tokens of scenes put together from encoded parts, so that training encodes little.

Every object adds what an encoded picture of it alone differs from one of the empty background: all
of it at its own image tokens and their neighbours, a part elsewhere, where it only shifts the
statistics of the whole picture. The sum is normalised per token again, where tokens are. A composed
picture differs slightly from an encoded one; `composition_error` measures by how much.

Legend: N image tokens of a picture, D values per token.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nextstep.data.documents import Document
from nextstep.vae.latents import token_norm
from nextstep.vae.tokenizer import ImageTokenizer
from nextstep.world.lines import block_of
from nextstep.world.scenes import Scene, SceneItem, Sign, render

REMEMBERED = 2**29
"""Bytes of blocks that are kept."""


class ComposedSource:
    """A source of world documents whose pictures come as composed image tokens.

    Args:
        source: draws samples of an edition on the grid.
        tokenizer: encodes the blocks.
        remembered: bytes of blocks that are kept.
    """

    def __init__(
        self, source: Any, tokenizer: ImageTokenizer, remembered: int = REMEMBERED
    ) -> None:
        self.source, self.name, self.kind = source, source.name, source.kind
        self.composer = Composer(tokenizer, source.pixels, source.grid, remembered)

    def __len__(self) -> int:
        return len(self.source)

    def __reduce__(self) -> tuple[type[ComposedSource], tuple[Any, ...]]:
        composer = self.composer
        return type(self), (self.source, composer.tokenizer, composer.remembered)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def document(self, index: int, seed: int) -> Document | None:
        """Sample `index` of the source."""
        found: Document | None = self.source.document(index, seed)
        return found

    def pictures(self, document: Document) -> list[Tensor]:
        """The document's pictures as image tokens [N, D]."""
        return [self.composer(scene) for scene in document.payload.scenes]


class Composer:
    """Image tokens of scenes, on the device of the tokenizer.

    Args:
        tokenizer: encodes blocks; they stay on its device.
        pixels: side of the pictures.
        grid: (rows, columns) of their image tokens.
        remembered: bytes of blocks that are kept; the oldest go first.
    """

    def __init__(
        self, tokenizer: ImageTokenizer, pixels: int, grid: tuple[int, int], remembered: int
    ) -> None:
        self.tokenizer, self.pixels, self.grid, self.remembered = (
            tokenizer,
            pixels,
            grid,
            remembered,
        )
        self.held, self.lock = 0, threading.Lock()
        self._blocks: OrderedDict[Scene, Tensor] = OrderedDict()

    def __call__(self, scene: Scene) -> Tensor:
        """Image tokens [N, D] of a scene, fp32."""
        parts: list[SceneItem | Sign] = [*scene.items, *([scene.sign] if scene.sign else [])]
        if scene.hole or scene.more_signs or len(parts) < 2:
            return self._encoded(scene).float()
        empty = self._encoded(replace(scene, items=(), sign=None)).float()
        tokens = empty.clone()
        for part in parts:
            alone = (
                replace(scene, items=(part,), sign=None)
                if isinstance(part, SceneItem)
                else replace(scene, items=(), sign=part)
            )
            share = tokens.new_full((len(tokens), 1), 1 / len(parts))
            share[block_of(part, self.grid).grown(1, self.grid).places(self.grid)] = 1
            tokens += share * (self._encoded(alone).float() - empty)
        return token_norm(tokens) if self.tokenizer.config.token_norm else tokens

    def __reduce__(self) -> tuple[type[Composer], tuple[Any, ...]]:
        # Sent to another process it begins without blocks; a lock cannot be sent.
        return type(self), (self.tokenizer, self.pixels, self.grid, self.remembered)

    @torch.no_grad()
    def _encoded(self, scene: Scene) -> Tensor:
        with self.lock:
            if scene in self._blocks:
                self._blocks.move_to_end(scene)
                return self._blocks[scene]
        pixels = torch.from_numpy(render(scene, self.pixels).copy())
        scaled = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
        tokens = self.tokenizer.encode_tokens(scaled)[0].to(torch.bfloat16)
        with self.lock:
            if not scene.hole and not scene.more_signs and scene not in self._blocks:
                self._blocks[scene] = tokens
                self.held += tokens.nbytes
                while self.held > self.remembered:
                    self.held -= self._blocks.popitem(last=False)[1].nbytes
        return tokens


def composition_error(composer: Composer, scenes: Sequence[Scene]) -> float:
    """Mean squared difference of composed and encoded tokens, as a share of their variance."""
    made = torch.stack([composer(scene).float() for scene in scenes])
    true = torch.stack([composer._encoded(replace(scene)).float() for scene in scenes])
    return float((made - true).square().mean() / true.var())
