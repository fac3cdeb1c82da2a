"""Engine: many requests for pictures at once, each with the bytes it would have alone.

Thin over `engine.scheduler`: requests become sequences, tokens become pictures with their settings.

Legend: k tokens that are known, D values per token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nextstep.engine import metadata as provenance
from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import Backend
from nextstep.engine.backends.cpu_kernels import number_format
from nextstep.engine.chat.reasoning import reasoning_sequence, with_reasoning
from nextstep.engine.events import ENDS, Event
from nextstep.engine.pretrained import Parts, check_fit
from nextstep.engine.request import (
    EncodedImage,
    Request,
    SourceLimits,
    encode_source,
    masked_source,
    picture_grid,
)
from nextstep.engine.results import GeneratedPicture
from nextstep.engine.scheduler import EngineLimits, Scheduler
from nextstep.engine.sequence import ImageSequence, SequenceState
from nextstep.engine.settings import GenerationSettings, ModelDefaults, check_used
from nextstep.engine.state import ModelFingerprint, PictureState
from nextstep.errors import NextStepError
from nextstep.flow.noise import NoiseSource
from nextstep.image import masks, pictures
from nextstep.image.pictures import PictureLike
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import pack_for_sampling, quantised
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.tokenizer import ImageTokenizer

OnStep = Callable[[Sequence[Event]], None]
BLANK = (128, 128, 128)
"""Colour of rows that are not there."""


class Engine:
    """Makes pictures for many at once; one thread, nothing happens outside its calls.

    With a batch-invariant backend a picture's bytes depend on the model, its number format and the
    request alone: not on what else runs, nor on being set aside, stored and taken up in another
    process on a like machine.

    Args:
        model, text_tokenizer, image_tokenizer: that belong together.
        defaults: settings used where a request says nothing.
        limits: memory and order.
        model_hash: fingerprint of the weights, put into pictures and states.
        adapter: what pictures record about a merged adapter.
        clock: seconds that deadlines are measured on.
        backend: that computes the steps; default see `backend_of`.
        check: whether to make sure that this machine keeps pictures apart.
    """

    def __init__(
        self,
        model: NextStepModel,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        defaults: ModelDefaults | None = None,
        limits: EngineLimits | None = None,
        *,
        model_hash: str = "",
        adapter: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        backend: Backend | None = None,
        check: bool = True,
    ) -> None:
        check_fit(model.config, image_tokenizer, text_tokenizer)
        self.model, self.text_tokenizer = model, text_tokenizer
        self.image_tokenizer, self.defaults = image_tokenizer, defaults or ModelDefaults()
        self.backend = backend or backend_of(model)
        self.scheduler = Scheduler(model, limits, clock, self.backend, check)
        threads, block = torch.get_num_threads(), self.backend.block_rows
        self.fingerprint = ModelFingerprint(
            model_hash, number_format(model), block, adapter or {}, threads
        )
        self._requests: dict[int, Request] = {}

    @classmethod
    def of_parts(cls, parts: Parts, limits: EngineLimits | None = None) -> Engine:
        """An engine from what `folders.load_parts` gives."""
        model, images, texts, defaults, fingerprint, _ = parts
        pack_for_sampling(model)
        return cls(model, texts, images, defaults, limits, model_hash=fingerprint)

    def request(
        self,
        prompt: str,
        images: Sequence[PictureLike] = (),
        *,
        mask: PictureLike | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        index: int = 0,
        priority: int = 0,
        seconds: float = math.inf,
        client: str = "",
        **settings: Any,
    ) -> Request:
        """A request in the words of `NextStepPipeline.generate` and `edit`.

        Args:
            prompt: what to draw, or how to change the images.
            images: source pictures of an edit.
            mask: where the first source may change, see `masks.read_mask`; None is everywhere.
            height, width: pixels; default the first source's size, else the model's own.
            seed, index: of the noise.
            priority, client: see `Request`.
            seconds: from now to the deadline.
            **settings: fields of `GenerationSettings`.

        Raises:
            ValueError: for a value out of range or a bad picture.
        """
        defaults, tokenizer = self.defaults, self.image_tokenizer
        if not images or mask is None:
            check_used("edit" if images else "generate", settings)
        base = defaults.edit if images else defaults.generate
        chosen = base.with_values(**settings)
        usual = defaults.height, defaults.width
        opened = [pictures.open_picture(image) for image in images]
        sources = tuple(self.encode(one) for one in opened)
        if mask is not None and not sources:
            raise NextStepError("a mask needs the picture that it belongs to")
        side = tokenizer.config.token_pixels
        if sources:
            usual = sources[0].grid[0] * side, sources[0].grid[1] * side
        grid = self.grid(height, width, usual)
        kept = None
        if mask is not None:
            first = sources[0].tokens, sources[0].grid
            kept = masked_source(opened[0], first, grid, masks.read_mask(mask), side)
        deadline = self.scheduler.clock() + seconds
        return Request(
            prompt, grid, chosen, seed, index, sources, priority, deadline, client, kept
        )  # fmt: skip

    @torch.inference_mode()
    def encode(self, picture: Image.Image) -> EncodedImage:
        """A source picture as the model reads it, resized to what it can read."""
        tokenizer = self.image_tokenizer
        limits = SourceLimits.of(self.model.config, tokenizer, self.defaults)
        return EncodedImage(*encode_source(tokenizer, picture, limits))

    def grid(
        self, height: int | None, width: int | None, default: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Rows and columns of a picture's image tokens; the default is the model's own size.

        Raises:
            NextStepError: when it is too large for the model, or no multiple of a token.
        """
        usual = default or (self.defaults.height, self.defaults.width)
        return picture_grid(self.model.config, self.image_tokenizer, height, width, usual)

    def submit(
        self, request: Request, state: PictureState | None = None, noise: NoiseSource | None = None
    ) -> int:
        """Queue a picture; gives its ticket.

        An edit with the setting `reasoning` lets the model write first what the picture will show.

        Args:
            request: what is asked for.
            state: of this request, to go on from.
            noise: recorded draws of this picture in place of its key's, for comparisons.

        Raises:
            NextStepError: when it could never run, too many wait already, or the state was begun
                with another model or number format.
        """
        if state is not None:
            state.fingerprint.check(self.fingerprint)
        known = None if state is None or not len(state.tokens) else state.tokens
        if known is not None and known.shape[-1] != self.model.config.token_size:
            raise NextStepError(
                f"the state's tokens have {known.shape[-1]} values, this model's have "
                f"{self.model.config.token_size}"
            )
        limit = self.model.config.max_position_embeddings
        writes = None
        if request.settings.reasoning and known is None:
            writes = reasoning_sequence(self.text_tokenizer, request, limit)
        if writes is None:
            request = request.without_reasoning()
            guesses = None if state is None else state.guesses
            ticket = self.scheduler.submit(
                request.sequence(self.text_tokenizer, limit, known, guesses, noise)
            )
        else:
            # What can never be drawn is refused before anything is written.
            request.sequence(self.text_tokenizer, limit).check(
                self.model, self.scheduler.limits.cache_bytes
            )
            ticket = self.scheduler.submit(
                replace(writes, then=lambda ids: self._reasoned(ticket, ids, noise))
            )
        self._requests[ticket] = request
        return ticket

    def submit_sequence(self, sequence: SequenceState) -> int:
        """Queue a text, or a picture that no request describes; gives its ticket.

        Its events carry ids or tokens and no picture.

        Raises:
            NextStepError: as `submit`.
        """
        return self.scheduler.submit(sequence)

    def _reasoned(
        self, ticket: int, ids: Sequence[int], noise: NoiseSource | None
    ) -> ImageSequence:
        """The picture of a request whose model has written what it will show."""
        limit, tokenizer = self.model.config.max_position_embeddings, self.text_tokenizer
        request = with_reasoning(tokenizer, self._requests[ticket], ids, limit)
        self._requests[ticket] = request
        return request.sequence(tokenizer, limit, noise=noise)

    def snapshot(self, ticket: int) -> PictureState:
        """The state of a picture that waits, runs or is set aside."""
        tokens, guesses = self.scheduler.tokens(ticket), self.scheduler.guesses(ticket)
        return PictureState(self._requests[ticket], tokens, self.fingerprint, guesses)

    def state(self, request: Request, tokens: Tensor) -> PictureState:
        """The state of a picture that has left the engine, from its last event's tokens."""
        return PictureState(request, tokens, self.fingerprint)

    def cancel(self, ticket: int) -> None:
        """Give a picture up; the next step says so."""
        self.scheduler.cancel(ticket)

    def stop(self, ticket: int) -> None:
        """End a picture with the rows it has; the next step gives it."""
        self.scheduler.stop(ticket)

    def preempt(self, ticket: int) -> None:
        """Set a picture aside and free its memory, until `resume`."""
        self.scheduler.preempt(ticket)

    def resume(self, ticket: int) -> None:
        """Let a picture that was set aside wait for its turn again."""
        self.scheduler.resume(ticket)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing; pictures set aside do not count."""
        return self.scheduler.idle

    def step(self, decode: bool = True) -> list[Event]:
        """Admit what fits and advance every running picture by one image token.

        Args:
            decode: whether events of finished pictures carry them; without, `picture` makes them
                from the events' tokens, also in another thread.
        """
        return [self._completed(event, decode) for event in self.scheduler.step()]

    def _completed(self, event: Event, decode: bool) -> Event:
        """An event with what only requests have."""
        request = self._requests.get(event.ticket)
        if request is None or event.kind not in ENDS:
            return event
        del self._requests[event.ticket]
        picture = None
        if decode and event.kind in ("finished", "stopped"):
            picture = self.picture(request, event.tokens)
        return replace(event, request=request, picture=picture)

    def run_until_idle(self) -> list[Event]:
        """Step until nothing is left to do."""
        events: list[Event] = []
        while not self.idle:
            events += self.step()
        return events

    def run(self, sequences: Sequence[SequenceState], on_step: OnStep | None = None) -> list[Event]:
        """Run what `submit_sequence` takes to its end, side by side; see `wait`."""
        tickets: list[int] = []
        try:
            for sequence in sequences:
                tickets.append(self.submit_sequence(sequence))
        except NextStepError:
            self._give_up(tickets)
            raise
        return self.wait(tickets, on_step)

    def wait(self, tickets: Sequence[int], on_step: OnStep | None = None) -> list[Event]:
        """Step until these have ended.

        Args:
            tickets: of what is queued.
            on_step: told after every step what happened to them.

        Returns:
            The last event of each, in order, without pictures.

        Raises:
            NextStepError: when one fails; the others are given up then.
        """
        ends: dict[int, Event] = {}
        wanted = set(tickets)
        try:
            while len(ends) < len(wanted):
                events = [one for one in self.step(decode=False) if one.ticket in wanted]
                for event in events:
                    if event.kind in ENDS:
                        ends[event.ticket] = event
                    if event.kind == "failed":
                        raise event.error or NextStepError(event.message)
                if on_step is not None:
                    on_step(events)
        except BaseException:
            self._give_up([ticket for ticket in tickets if ticket not in ends])
            raise
        return [ends[ticket] for ticket in tickets]

    def _give_up(self, tickets: Sequence[int]) -> None:
        for ticket in tickets:
            if self.scheduler.knows(ticket):
                self.cancel(ticket)

    @torch.inference_mode()
    def preview(self, tokens: Tensor, grid: tuple[int, int]) -> Image.Image:
        """The whole rows of tokens [k, D] as a picture; the rest is grey."""
        rows, columns = grid
        side = self.image_tokenizer.config.token_pixels
        done = len(tokens) // columns
        picture = Image.new("RGB", (columns * side, rows * side), BLANK)
        if done:
            whole = tokens[: done * columns][None]
            pixels = self.image_tokenizer.decode_tokens(whole, (done, columns))
            picture.paste(pictures.to_pictures(pixels)[0], (0, 0))
        return picture

    def show(
        self, tokens: Tensor, grid: tuple[int, int], record: dict[str, Any]
    ) -> GeneratedPicture:
        """A picture of `submit_sequence` from its tokens [k, D], with what is recorded in it."""
        return GeneratedPicture(self.preview(tokens, grid), record)

    @torch.inference_mode()
    def picture(self, request: Request, tokens: Tensor) -> GeneratedPicture:
        """What a finished or stopped picture looks like, with its settings; from any thread."""
        record = self.record(
            request.prompt, (request.seed, request.index), request.grid, request.task,
            request.settings, request.sources,
        )  # fmt: skip
        record |= request.kept.record() if request.kept else {}
        record |= {"origin": request.origin} if request.origin else {}
        rows, columns = request.grid
        if len(tokens) < rows * columns:
            record["rows_done"] = len(tokens) // columns
        picture = self.preview(tokens, request.grid)
        return GeneratedPicture(request.finish(picture), record)

    def record(
        self,
        prompt: str,
        key: tuple[int, int],
        grid: tuple[int, int],
        task: str,
        settings: GenerationSettings,
        sources: Sequence[EncodedImage],
    ) -> dict[str, Any]:
        """What a picture's file says about how it was made."""
        side = self.image_tokenizer.config.token_pixels
        return provenance.record(
            prompt=prompt,
            seed=key[0],
            index=key[1],
            size=(grid[0] * side, grid[1] * side),
            task=task,
            settings=settings,
            model_hash=self.fingerprint.model,
            dtype=str(self.model.embed_tokens.weight.dtype).removeprefix("torch."),
            backend=self.backend.name,
            sources=[provenance.tensor_hash(source.tokens) for source in sources],
            adapter=self.fingerprint.adapter,
            quantize=quantised(self.model),
        ) | {"block_rows": self.fingerprint.block_rows, "threads": torch.get_num_threads()}
