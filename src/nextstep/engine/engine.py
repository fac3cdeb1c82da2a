"""Engine: many requests for pictures at once, each with the bytes it would have alone.

Thin over `engine.scheduler`: requests become jobs, tokens become pictures with their settings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nextstep.engine import metadata as provenance
from nextstep.engine.backends.cpu_kernels import computed_by, number_format
from nextstep.engine.backends.torch import ROWS
from nextstep.engine.chat.reasoning import Edit, think
from nextstep.engine.image_sequence import Job
from nextstep.engine.request import (
    Request,
    SourceLimits,
    encode_source,
    masked_source,
    picture_grid,
)
from nextstep.engine.results import GeneratedPicture
from nextstep.engine.scheduler import ENDS, Kind, Limits, Scheduler
from nextstep.engine.session import ReadPicture
from nextstep.engine.settings import ModelDefaults
from nextstep.engine.state import Maker, PictureState
from nextstep.engine.text_sequence import TextJob
from nextstep.errors import NextStepError
from nextstep.image import masks, pictures
from nextstep.image.pictures import PictureLike
from nextstep.kernels.quantization import pack_for_sampling, quantised
from nextstep.model.nextstep import NextStepModel
from nextstep.model.pretrained import Parts, check_fit
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.tokenizer import ImageTokenizer

BLANK = (128, 128, 128)
"""Colour of rows that are not there."""


@dataclass(frozen=True)
class PictureEvent:
    """Something that happened to a picture.

    Attributes:
        kind: see `engine.scheduler.Event`.
        ticket: which.
        tokens: [k, D] so far, fp32; `Engine.preview` shows them.
        message: why it failed or is late, one sentence.
        picture: with `finished`, and with `stopped` the rows that are done; only of requests.
        ids, end: of a text, see `engine.scheduler.Event`.
    """

    kind: Kind
    ticket: int
    tokens: Tensor
    message: str = ""
    picture: GeneratedPicture | None = None
    ids: tuple[int, ...] = ()
    end: int | None = None


class Engine:
    """Makes pictures for many at once; one thread, nothing happens outside its calls.

    A picture's bytes depend on the model, its number format and the request alone: not on what
    else runs, nor on being set aside, stored and taken up in another process on a like machine.

    Args:
        model, text_tokenizer, image_tokenizer: that belong together.
        defaults: settings used where a request says nothing.
        limits: memory and order.
        model_hash: fingerprint of the weights, put into pictures and states.
        adapter: what pictures record about a merged adapter.
        clock: seconds that deadlines are measured on.
    """

    def __init__(
        self,
        model: NextStepModel,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        defaults: ModelDefaults | None = None,
        limits: Limits | None = None,
        *,
        model_hash: str = "",
        adapter: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_fit(model.config, image_tokenizer, text_tokenizer)
        self.model, self.text_tokenizer = model, text_tokenizer
        self.image_tokenizer, self.defaults = image_tokenizer, defaults or ModelDefaults()
        self.scheduler = Scheduler(model, limits, clock)
        threads = torch.get_num_threads()
        self.maker = Maker(model_hash, number_format(model), ROWS, adapter or {}, threads)
        self._requests: dict[int, Request] = {}

    @classmethod
    def of_parts(cls, parts: Parts, limits: Limits | None = None) -> Engine:
        """An engine from what `folders.load_parts` gives."""
        model, images, texts, defaults, fingerprint = parts
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
        base = defaults.edit if images else defaults.generate
        chosen = base.with_values(**settings)
        limits = SourceLimits.of(self.model.config, tokenizer, defaults)
        usual = defaults.height, defaults.width
        opened = [pictures.open_picture(image) for image in images]
        sources = tuple(ReadPicture(*encode_source(tokenizer, one, limits)) for one in opened)
        if mask is not None and not sources:
            raise NextStepError("a mask needs the picture that it belongs to")
        side = tokenizer.config.token_pixels
        if sources:
            usual = sources[0].grid[0] * side, sources[0].grid[1] * side
        grid = picture_grid(self.model.config, tokenizer, height, width, usual)
        kept = None
        if mask is not None:
            first = sources[0].tokens, sources[0].grid
            kept = masked_source(opened[0], first, grid, masks.read_mask(mask), side)
        asked = Edit([(source.tokens, source.grid) for source in sources], prompt)
        [prompt], chosen = think(self.model, self.text_tokenizer, [asked], chosen, grid)
        deadline = self.scheduler.clock() + seconds
        return Request(
            prompt, grid, chosen, seed, index, sources, priority, deadline, client, kept
        )  # fmt: skip

    def submit(self, request: Request) -> int:
        """Queue a picture; gives its ticket.

        Raises:
            NextStepError: when it could never run, or too many wait already.
        """
        return self._submit(request, None)

    def submit_job(self, job: Job | TextJob) -> int:
        """Queue a text, or a picture that no request describes; gives its ticket.

        Its events carry ids or tokens and no picture.

        Raises:
            NextStepError: as `submit`.
        """
        return self.scheduler.submit(job)

    def restore(self, state: PictureState) -> int:
        """Go on with a picture from its state; gives its ticket.

        Raises:
            NextStepError: when it was begun with another model or number format.
        """
        state.maker.check(self.maker)
        return self._submit(state.request, state.tokens, state.guesses)

    def snapshot(self, ticket: int) -> PictureState:
        """The state of a picture that waits, runs or is set aside."""
        tokens, guesses = self.scheduler.tokens(ticket), self.scheduler.guesses(ticket)
        return PictureState(self._requests[ticket], tokens, self.maker, guesses)

    def state(self, request: Request, tokens: Tensor) -> PictureState:
        """The state of a picture that has left the engine, from its last event's tokens."""
        return PictureState(request, tokens, self.maker)

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

    def step(self, decode: bool = True) -> list[PictureEvent]:
        """Admit what fits and advance every running picture by one image token.

        Args:
            decode: whether events of finished pictures carry them; without, `picture` makes them
                from the events' tokens, also in another thread.
        """
        events = []
        for event in self.scheduler.step():
            request, picture = self._requests.get(event.ticket), None
            if decode and request is not None and event.kind in ("finished", "stopped"):
                picture = self.picture(request, event.tokens)
            if event.kind in ENDS:
                self._requests.pop(event.ticket, None)
            events.append(
                PictureEvent(
                    event.kind,
                    event.ticket,
                    event.tokens,
                    event.message,
                    picture,
                    event.ids,
                    event.end,
                )
            )
        return events

    def run_until_idle(self) -> list[PictureEvent]:
        """Step until nothing is left to do."""
        events: list[PictureEvent] = []
        while not self.idle:
            events += self.step()
        return events

    def preview(self, request: Request, tokens: Tensor) -> Image.Image:
        """The whole rows of tokens [k, D] as a picture; the rest is grey."""
        return self._decoded(tokens, request.grid)

    def show(
        self, tokens: Tensor, grid: tuple[int, int], record: dict[str, Any]
    ) -> GeneratedPicture:
        """A picture of `submit_job` from its tokens [k, D], with what is recorded in it."""
        return GeneratedPicture(self._decoded(tokens, grid), record)

    def _decoded(self, tokens: Tensor, grid: tuple[int, int]) -> Image.Image:
        rows, columns = grid
        side = self.image_tokenizer.config.token_pixels
        done = len(tokens) // columns
        picture = Image.new("RGB", (columns * side, rows * side), BLANK)
        if done:
            whole = tokens[: done * columns][None]
            pixels = self.image_tokenizer.decode_tokens(whole, (done, columns))
            picture.paste(pictures.to_pictures(pixels)[0], (0, 0))
        return picture

    def _submit(
        self, request: Request, tokens: Tensor | None, guesses: Tensor | None = None
    ) -> int:
        if tokens is not None and tokens.shape[-1] != self.model.config.token_size:
            raise NextStepError(
                f"the state's tokens have {tokens.shape[-1]} values, this model's have "
                f"{self.model.config.token_size}"
            )
        limit = self.model.config.max_position_embeddings
        job = request.job(self.text_tokenizer, limit, tokens, guesses)
        ticket = self.scheduler.submit(job)
        self._requests[ticket] = request
        return ticket

    @torch.inference_mode()
    def picture(self, request: Request, tokens: Tensor) -> GeneratedPicture:
        """What a finished or stopped picture looks like, with its settings; from any thread."""
        rows, columns = request.grid
        side = self.image_tokenizer.config.token_pixels
        record = provenance.record(
            prompt=request.prompt,
            seed=request.seed,
            index=request.index,
            size=(rows * side, columns * side),
            task=request.task,
            settings=request.settings,
            model_hash=self.maker.model,
            dtype=str(self.model.embed_tokens.weight.dtype).removeprefix("torch."),
            computed_by=computed_by(self.model),
            sources=[provenance.tensor_hash(source.tokens) for source in request.sources],
            adapter=self.maker.adapter,
            quantize=quantised(self.model),
        )
        record |= {"block_rows": ROWS, "threads": torch.get_num_threads()}
        record |= request.kept.record() if request.kept else {}
        record |= {"origin": request.origin} if request.origin else {}
        if len(tokens) < rows * columns:
            record["rows_done"] = len(tokens) // columns
        picture = self.preview(request, tokens)
        return GeneratedPicture(request.kept.finish(picture) if request.kept else picture, record)
