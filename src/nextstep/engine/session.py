"""One sequence that grows: text and pictures are read and written in any order, with one cache.

What was read once is never read again: an edit of an edit, the next picture of a story, an answer
about a picture all go on from the same keys and values.

Legend: S new positions, E hidden size, D values per token, N tokens of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nextstep.engine.backends.cpu_kernels import RowPlace, core_of
from nextstep.engine.decode import DecodeSettings, TokenSampler, not_finite
from nextstep.engine.decode_ahead import grow_ahead
from nextstep.engine.image_sequence import Begun
from nextstep.engine.text_sequence import Choose
from nextstep.errors import NextStepError
from nextstep.flow.guidance import CONDITIONAL, IMAGE_ONLY
from nextstep.flow.noise import NoiseSource
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from nextstep.text.sequence import Picture, Text, build_sequence
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.latents import raster_coordinates

Grid = tuple[int, int]
OnToken = Callable[[int, Tensor], None]
ROOM = 256
"""Positions by which a full cache grows at least."""


@dataclass(frozen=True)
class ReadPicture:
    """A picture in the sequence: its tokens [N, D] and grid."""

    tokens: Tensor
    grid: Grid


@dataclass(frozen=True)
class TextEnd:
    """Why writing text stopped: at a `picture`, at the `end` of the text, or at the `limit`."""

    ids: list[int]
    reason: str


def greedy(logits: Tensor) -> int:
    """The likeliest id."""
    return int(logits.argmax())


TINY = 1e-30
"""Temperatures below are this one: in fp32 they would be 0."""


class NucleusChoice:
    """Draws ids from a stream of its own.

    Args:
        temperature: divides the logits; above 0.
        top_p: the smallest set of ids with this probability is drawn from.
        seed: of the stream.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p = temperature, top_p
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor) -> int:
        """logits [V] -> an id."""
        logits = logits.float().cpu()
        # The largest becomes 0, so that dividing by a tiny temperature overflows to minus infinity.
        scaled = (logits - logits.max()) / max(self.temperature, TINY)
        shares, ids = scaled.softmax(-1).sort(descending=True)
        # An id stays when those before it have not yet filled top_p; the first always stays.
        gone = (shares.cumsum(-1) - shares) >= self.top_p
        gone[0] = False
        shares[gone] = 0
        return int(ids[torch.multinomial(shares, 1, generator=self.generator)])


class Session:
    """A growing sequence of one row.

    Args:
        model: in eval mode.
        tokenizer: that belongs to it.
    """

    def __init__(self, model: NextStepModel, tokenizer: TextTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        weight = model.embed_tokens.weight
        self.cache = KVCache(model.config, 1, ROOM, weight.dtype, weight.device)
        self.hidden: Tensor | None = None
        self.ids: list[int] = []
        self.pictures: list[ReadPicture] = []
        forbidden = [tokenizer.ids.pad, tokenizer.ids.begin_of_image, tokenizer.ids.end_of_image]
        self._forbidden = [*forbidden, tokenizer.ids.image_placeholder]

    def __len__(self) -> int:
        return len(self.ids)

    def fork(self) -> Session:
        """A session of its own that goes on from here; this one stays as it is."""
        other = Session.__new__(Session)
        other.__dict__.update(self.__dict__)
        other.cache, other.ids, other.pictures = self.cache.copy(), [*self.ids], [*self.pictures]
        return other

    @torch.inference_mode()
    def read_text(self, text: str) -> None:
        """Take up text."""
        self._read(build_sequence([Text(text)], self.tokenizer, end=False).ids)

    @torch.inference_mode()
    def read_picture(self, picture: ReadPicture) -> None:
        """Take up a picture."""
        sequence = build_sequence([Picture(picture.grid)], self.tokenizer, end=False)
        self._read(sequence.ids, picture.tokens, raster_coordinates(picture.grid))
        self.pictures.append(picture)

    @torch.inference_mode()
    def write_text(self, limit: int, choose: Choose = greedy, pictures: bool = True) -> TextEnd:
        """Let the language-model head go on until a picture, the end, or `limit` ids.

        Args:
            limit: most ids to write.
            choose: logits [V] -> id.
            pictures: whether the text may stop for a picture; else it goes on to its end.

        Raises:
            NextStepError: when nothing was read before.
        """
        special, written = self.tokenizer.ids, list[int]()
        forbidden = self._forbidden + ([] if pictures else [special.image_area])
        while len(written) < limit:
            logits = self.model.text_logits(self._last())[0].clone()
            logits[forbidden] = -torch.inf
            chosen = choose(logits)
            if chosen == special.eos:
                return TextEnd(written, "end")
            if chosen == special.image_area:
                return TextEnd(written, "picture")
            self._read([chosen])
            written.append(chosen)
        return TextEnd(written, "limit")

    @torch.inference_mode()
    def draw(
        self,
        settings: DecodeSettings,
        noise: NoiseSource,
        negative: str = "",
        on_token: OnToken | None = None,
    ) -> ReadPicture:
        """Write one picture of the settings' grid; it is part of the sequence afterwards.

        Args:
            settings: `has_images` must say whether pictures were read or written before.
            noise: draws of one picture.
            negative: text of the branches without the text.
            on_token: called with (tokens done, tokens so far [1, done, D]).

        Raises:
            NextStepError: when a token is not finite; the session is then as it was before.
        """
        before, grid = len(self), settings.grid
        rows = {name: self._branch(name, negative) for name in settings.branches}
        whole = build_sequence([Picture(grid)], self.tokenizer, end=False)
        for row in rows.values():
            row._read(whole.ids[: whole.images[0].start])
        try:
            many = settings.lookahead.tokens > 1
            tokens = (self._sample_ahead if many else self._sample)(rows, settings, noise, on_token)
        except NextStepError:
            self.rewind(before)
            raise
        self._read([self.tokenizer.ids.end_of_image])
        picture = ReadPicture(tokens, grid)
        self.pictures.append(picture)
        return picture

    def _sample(
        self,
        rows: dict[str, Session],
        settings: DecodeSettings,
        noise: NoiseSource,
        on_token: OnToken | None,
    ) -> Tensor:
        """Tokens [N, D] one after another, read by this session too."""
        sampler = TokenSampler(self.model, settings, settings.branches)
        places, tokens = raster_coordinates(settings.grid), list[Tensor]()
        for index in range(settings.tokens):
            hidden = torch.cat([row._last() for row in rows.values()])
            token = sampler.sample(hidden, noise.token(index), index)
            if not bool(torch.isfinite(token).all()):
                raise NextStepError(not_finite(index))
            tokens.append(token)
            if on_token is not None:
                on_token(index + 1, torch.stack(tokens, dim=1))
            last = index + 1 == settings.tokens
            reading = [row for name, row in rows.items() if name == CONDITIONAL or not last]
            _read_token(reading, token, places[index : index + 1])
        return torch.cat(tokens)

    def _sample_ahead(
        self,
        rows: dict[str, Session],
        settings: DecodeSettings,
        noise: NoiseSource,
        on_token: OnToken | None,
    ) -> Tensor:
        """The same with several tokens a pass."""
        for row in rows.values():
            row._make_room(settings.tokens)
        begun = {n: Begun(row.cache, len(row.ids), row._last()[0]) for n, row in rows.items()}
        tokens = grow_ahead(self.model, begun, settings, noise, on_token)
        self.ids += [self.tokenizer.ids.image_placeholder] * (settings.tokens - 1)
        self.cache.rewind(len(self.ids))
        _read_token([self], tokens[-1:], raster_coordinates(settings.grid)[-1:])
        return tokens

    def rewind(self, length: int) -> None:
        """Forget everything from position `length` on; what comes next must be read or drawn.

        Raises:
            ValueError: when the sequence is shorter, or `length` lies inside a picture.
        """
        kept, special = self.ids[:length], self.tokenizer.ids
        begun = kept.count(special.begin_of_image)
        if begun != kept.count(special.end_of_image):
            raise ValueError(f"position {length} lies inside a picture")
        self.cache.rewind(length)
        self.ids, self.pictures, self.hidden = kept, self.pictures[:begun], None

    def _branch(self, name: str, negative: str) -> Session:
        """The session whose states give one branch's velocities."""
        if name == CONDITIONAL:
            return self
        other = Session(self.model, self.tokenizer)
        for picture in self.pictures if name == IMAGE_ONLY else ():
            other.read_picture(picture)
        if negative:
            other.read_text(negative)
        return other

    def _last(self) -> Tensor:
        """State of the last position, [1, E]; after a rewind it is worked out once more."""
        if self.hidden is None:
            if not self.ids:
                raise NextStepError(
                    "there is nothing to go on from: read a text or a picture first"
                )
            last = self.ids.pop()
            if last == self.tokenizer.ids.image_placeholder:
                raise NextStepError("a picture cannot be taken up in its middle")
            self.cache.rewind(len(self.ids))
            self._read([last])
            assert self.hidden is not None
        return self.hidden

    def _read(
        self, ids: list[int], tokens: Tensor | None = None, coordinates: Tensor | None = None
    ) -> None:
        """Extend the cache by ids, whose placeholders stand for `tokens`."""
        if not ids:
            return
        model = self.model
        self._make_room(len(ids))
        device = model.embed_tokens.weight.device
        places = None if coordinates is None else coordinates.to(device)
        given = None if tokens is None else tokens.to(device)
        embeddings = model.embed(torch.tensor([ids], device=device), given, places)
        self.hidden = model.hidden(embeddings, cache=self.cache)[:, -1]
        self.ids.extend(ids)

    def _make_room(self, positions: int) -> None:
        """Let so many more positions fit into the cache."""
        model, length = self.model, len(self.ids) + positions
        limit = model.config.max_position_embeddings
        if length > limit:
            raise NextStepError(
                f"text and pictures together take {length} tokens; this model reads at most {limit}"
            )
        if length > self.cache.capacity:
            self.cache.reserve(max(length, min(limit, self.cache.capacity + ROOM)))


def _read_token(rows: list[Session], token: Tensor, coordinates: Tensor) -> None:
    """Extend every session by the same image token [1, D], in one pass where kernels can."""
    model, placeholder = rows[0].model, rows[0].tokenizer.ids.image_placeholder
    core = core_of(model)
    if core is None:
        for row in rows:
            row._read([placeholder], token, coordinates)
        return
    for row in rows:
        row._make_room(1)
    embedded = model.embed_image(token, coordinates).expand(len(rows), -1)
    places = [RowPlace(row.cache, 0, 0, row.cache.length) for row in rows]
    for row, hidden in zip(rows, core.feed(embedded, places).split(1), strict=True):
        row.hidden = hidden
        row.ids.append(placeholder)
