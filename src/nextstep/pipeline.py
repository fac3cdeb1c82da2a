"""NextStepPipeline: a prompt becomes a picture, a picture and an instruction another one.

Legend: n tokens of a picture, D values per token; t text ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nextstep.engine import pretrained as folders
from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import ROWS, Backend
from nextstep.engine.backends.cpu_kernels import core_of
from nextstep.engine.batches import run_part
from nextstep.engine.chat.conversation import Conversation, Part
from nextstep.engine.chat.conversations import Conversations
from nextstep.engine.engine import Engine
from nextstep.engine.request import Request, SourceLimits, series
from nextstep.engine.results import GeneratedPicture, OnPicture, Progress
from nextstep.engine.scheduler import EngineLimits
from nextstep.engine.settings import ModelDefaults, check_count, check_used
from nextstep.errors import NextStepError
from nextstep.flow.noise import NoiseSource
from nextstep.image import pictures
from nextstep.image.pictures import PictureLike
from nextstep.kernels import formats
from nextstep.model import quantization as quantising
from nextstep.text.introduction import check_conversation
from nextstep.text.vocabulary import CheckedPrompt, Vocabulary, checked_prompts

if TYPE_CHECKING:
    from nextstep.model.nextstep import NextStepModel
    from nextstep.text.tokenizer import TextTokenizer
    from nextstep.vae.tokenizer import ImageTokenizer

UNLIMITED = 2**62
AT_ONCE = 256
"""Requests that are queued at a time."""


class NextStepPipeline:
    """Model, image tokenizer and text tokenizer, ready to make pictures.

    Args:
        model, image_tokenizer, text_tokenizer: that belong together.
        defaults: settings used where a call says nothing.
        model_hash: fingerprint of the weights, put into pictures.
        vocabulary: words that prompts are put into and checked against; None takes any prompt.

    Attributes:
        adapter: what pictures record about a merged adapter; empty without one.
        batch_invariant: whether a picture's bytes must not depend on its batch. The kernels always
            keep that; elsewhere it costs time.
    """

    batch_invariant = False

    def __init__(
        self,
        model: NextStepModel,
        image_tokenizer: ImageTokenizer,
        text_tokenizer: TextTokenizer,
        defaults: ModelDefaults | None = None,
        model_hash: str = "",
        vocabulary: Vocabulary | None = None,
    ) -> None:
        folders.check_fit(model.config, image_tokenizer, text_tokenizer)
        self.model = model
        self.image_tokenizer = image_tokenizer
        self.text_tokenizer = text_tokenizer
        self.defaults = defaults or ModelDefaults()
        self.model_hash, self.vocabulary = model_hash, vocabulary
        self.adapter: dict[str, Any] = {}
        self._backend: tuple[object, Backend] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "nano",
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        vae: str | Path | None = None,
        adapter: str | Path | None = None,
        adapter_scale: float = 1.0,
        quantize: str | None = None,
    ) -> NextStepPipeline:
        """Load a model folder, the shipped "nano", or a hub id.

        Args:
            model: folder, "nano" or "organisation/name".
            dtype: of the weights; default see `engine.pretrained.automatic_dtype`.
            device: such as "cpu" or "cuda".
            vae: folder of the image tokenizer when it is not the model's own.
            adapter: folder of a LoRA adapter, merged into the weights.
            adapter_scale: how strongly; 0 is the model without it.
            quantize: "int8", "int4" or "bf16" for the weights of backbone and flow head, or both
                apart as in "int4/int8"; on the CPU alone.

        Raises:
            ModelFileError: naming what is missing or does not fit.
            NextStepError: for an unknown format.
        """
        # An adapter is merged into whole weights, so those are rounded afterwards.
        early = quantize if adapter is None else None
        parts = folders.load_parts(model, dtype, device, vae, quantize=early)
        pipeline = cls(*parts)
        if adapter is not None:
            pipeline.adapter = folders.merge_adapter_folder(parts, adapter, adapter_scale)
            pipeline.vocabulary = None  # an adapter teaches words that the model's list lacks
        if quantize is None:
            quantising.pack_for_sampling(parts.model)
        elif early is None:
            quantising.pack_model(parts.model, *formats(quantize))
        if quantize is not None:
            quantising.warn_without_kernels(parts.model, quantize)
        return pipeline

    def save_pretrained(self, folder: str | Path, released: bool = False) -> None:
        """Write a model folder, in the released v1 layout if asked for.

        Raises:
            NextStepError: when the folder exists or cannot be written.
        """
        parts = folders.Parts(
            self.model, self.image_tokenizer, self.text_tokenizer, self.defaults, self.model_hash,
            self.vocabulary,
        )  # fmt: skip
        folders.save_parts(parts, Path(folder), released)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] = 0,
        batch_size: int = 8,
        on_progress: Callable[[Progress], None] | None = None,
        on_picture: OnPicture | None = None,
        noise: NoiseSource | None = None,
        **settings: Any,
    ) -> list[GeneratedPicture]:
        """Pictures from text.

        Args:
            prompt: one or several.
            height, width: pixels, multiples of an image token's 16; default the model's own.
            num_images: pictures per prompt.
            seed: one for all, or one per prompt. Picture i of a prompt uses (seed, i), so it does
                not depend on what else is asked for.
            batch_size: pictures made together; does not change them.
            on_progress: told after every image token.
            on_picture: told the place in the result and a picture as soon as it is done.
            noise: recorded draws instead of the seed's, for comparisons; without Jacobi decoding.
            **settings: fields of `GenerationSettings`.

        Returns:
            Pictures in order of prompt, then index.

        Raises:
            ValueError: for a setting that is out of range or a prompt that is too long.
        """
        check_count(num_images, batch_size)
        worded = checked_prompts(self.vocabulary, prompt, Vocabulary.prompt)
        first = self.engine().request("", height=height, width=width, **settings)
        requests, records = _series(first, worded, seed, num_images)
        return self.run(requests, batch_size, on_progress, noise, on_picture, records)

    def edit(
        self,
        image: PictureLike | Sequence[PictureLike],
        instruction: str | Sequence[str],
        *,
        mask: PictureLike | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] = 0,
        batch_size: int = 8,
        on_progress: Callable[[Progress], None] | None = None,
        on_picture: OnPicture | None = None,
        noise: NoiseSource | None = None,
        **settings: Any,
    ) -> list[GeneratedPicture]:
        """Pictures from pictures and an instruction.

        Args:
            image: one source, or several, as `image.pictures.open_picture` takes them; all
                instructions share them. They are resized, keeping the shape, see `source_limits`.
            instruction: one or several; may place the sources with `<image>` or `<image_n>` tags,
                which otherwise come first.
            mask: where the first source may change, see `image.masks.read_mask`. Image tokens that
                it does not touch are kept, and pixels outside it stay what they are.
            height, width: of the result; default the first source's size after resizing.
            num_images, seed, batch_size, on_progress, on_picture, noise, **settings: as in
                `generate`.

        Raises:
            ValueError: for a setting out of range, a bad picture or mask, or tags that do not
                match.
        """
        opened = [pictures.open_picture(source) for source in pictures.listed(image)]
        if not opened:
            raise NextStepError("an edit needs at least one source picture")
        check_count(num_images, batch_size)
        worded = checked_prompts(self.vocabulary, instruction, Vocabulary.instruction)
        # Its tags must fit the sources, so it is the first one that is asked for.
        first = self.engine().request(
            worded[0].text if worded else "", opened, mask=mask, height=height, width=width,
            **settings,
        )  # fmt: skip
        requests, records = _series(first, worded, seed, num_images)
        return self.run(requests, batch_size, on_progress, noise, on_picture, records)

    def run(
        self,
        requests: Sequence[Request],
        batch_size: int = 8,
        on_progress: Callable[[Progress], None] | None = None,
        noise: NoiseSource | None = None,
        on_picture: OnPicture | None = None,
        records: Sequence[dict[str, Any]] = (),
    ) -> list[GeneratedPicture]:
        """The pictures of requests, see `Engine.request`; in order.

        Args:
            requests: what is asked for.
            batch_size, on_progress, noise, on_picture: as in `generate`.
            records: of each request, what its picture records besides its settings.

        Raises:
            ValueError: before any work is done when one of them could never run.
        """
        if batch_size < 1:
            raise NextStepError(f"batch size must be at least 1, not {batch_size}")
        for one in {(id(r.sources), r.prompt): r for r in requests}.values():
            one.sequence(self.text_tokenizer, self.model.config.max_position_embeddings)
        done: dict[int, GeneratedPicture] = {}

        def keep(place: int, made: GeneratedPicture) -> None:
            more = records[place] if records else {}
            done[place] = replace(made, settings=made.settings | more)
            if on_picture is not None:
                on_picture(place, done[place])

        for start in range(0, len(requests), max(AT_ONCE, batch_size)):
            part = requests[start : start + max(AT_ONCE, batch_size)]
            run_part(self.engine(batch_size), part, start, keep, on_progress, noise)
        return [done[place] for place in range(len(requests))]

    def engine(self, running: int = EngineLimits.running, block_rows: int | None = None) -> Engine:
        """An engine of this model for one caller.

        Args:
            running: pictures and texts that are made at once.
            block_rows: see `backend_of`; default by `batch_invariant`.
        """
        made_for = id(self.model), id(core_of(self.model)), block_rows, self.batch_invariant
        if self._backend is None or self._backend[0] != made_for:
            rows = (ROWS if self.batch_invariant else 0) if block_rows is None else block_rows
            backend = backend_of(self.model, rows)
            if block_rows is None:
                backend.check()
            self._backend = made_for, backend
        limits = EngineLimits(UNLIMITED, running, UNLIMITED)
        return Engine(
            self.model, self.text_tokenizer, self.image_tokenizer, self.defaults, limits,
            model_hash=self.model_hash, adapter=self.adapter, backend=self._backend[1], check=False,
        )  # fmt: skip

    def request(self, prompt: str, images: Sequence[PictureLike] = (), **settings: Any) -> Request:
        """A request for `run`; see `Engine.request`."""
        return self.engine().request(prompt, images, **settings)

    @property
    def source_limits(self) -> SourceLimits:
        """What source pictures are resized to: the model's own area, its learned positions."""
        return SourceLimits.of(self.model.config, self.image_tokenizer, self.defaults)

    def conversation(self, seed: int = 0, **settings: Any) -> Conversation:
        """A sequence of text and pictures to be continued turn by turn; see `Conversation`."""
        return Conversation(self.engine(), seed, **settings)

    def conversations(self, seeds: Sequence[int]) -> Conversations:
        """As many of them as there are seeds, whose turns are made together."""
        return Conversations(self.engine(), seeds)

    def story(
        self,
        *parts: Part,
        max_pictures: int = 4,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        on_progress: Callable[[Progress], None] | None = None,
        on_picture: OnPicture | None = None,
        **settings: Any,
    ) -> list[str | GeneratedPicture]:
        """Go on from text (`str`) and pictures (images or paths) in any order.

        Args:
            *parts: what the story begins with.
            max_pictures: most pictures to draw.
            max_tokens: most ids of one stretch of text.
            temperature: of the text; 0 takes the likeliest ids.
            seed: of the pictures and of drawn text.
            on_progress, on_picture: as in `generate`.
            **settings: fields of `GenerationSettings`.

        Returns:
            The continuation: texts and pictures in order, until the model ends it.
        """
        check_used("story", settings)
        check_conversation(self.vocabulary, parts)
        told = self.conversation(seed, **settings)
        told.read(*parts)
        made: list[str | GeneratedPicture] = []
        for part in told.go_on(max_pictures, max_tokens, temperature, on_progress=on_progress):
            made.append(part)
            if on_picture is not None and not isinstance(part, str):
                on_picture(told.drawn - 1, part)
        return made

    def read(
        self,
        image: PictureLike | Sequence[PictureLike],
        question: str = "",
        max_tokens: int = 64,
    ) -> str:
        """What the model says about one or several pictures: an answer, or a caption.

        A model that was trained so first writes what the pictures show, which is left out here, see
        `text.reasoning`.

        Args:
            image: one or several pictures, as `image.pictures.open_picture` takes them.
            question: asked after the pictures; without one the model describes.
            max_tokens: most ids of the answer.
        """
        told = self.conversation()
        told.read(*map(pictures.not_text, pictures.listed(image)))
        check_conversation(self.vocabulary, [image, question])
        if question.strip():
            told.read_question(question)
        return told.write(max_tokens).strip()

    def next_state(
        self,
        image: PictureLike,
        action: str,
        seed: int = 0,
        on_progress: Callable[[Progress], None] | None = None,
        **settings: Any,
    ) -> GeneratedPicture:
        """The picture after an action; several steps are turns of one `conversation`."""
        told = self.conversation(seed, **settings)
        told.read(pictures.not_text(image))
        return told.draw_from(action, on_progress=on_progress)


def _series(
    first: Request, worded: Sequence[CheckedPrompt], seed: int | Sequence[int], count: int
) -> tuple[list[Request], list[dict[str, Any]]]:
    """Requests for `count` pictures of each prompt, and what was changed in its words."""
    requests = series(first, [one.text for one in worded], seed, count)
    return requests, [one.record() for one in worded for _ in range(count)]
