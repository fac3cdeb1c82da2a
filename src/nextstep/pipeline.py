"""NextStepPipeline: a prompt becomes a picture, a picture and an instruction another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from nextstep.engine import metadata as provenance
from nextstep.engine.backends.cpu_kernels import computed_by
from nextstep.engine.chat.conversation import Turns
from nextstep.engine.chat.reasoning import Edit, think
from nextstep.engine.decode import DecodeSettings, Prompt, decode_tokens
from nextstep.engine.decode_ahead import decode_ahead
from nextstep.engine.request import (
    Kept,
    SourceLimits,
    branch_prompt,
    check_seed,
    encode_source,
    masked_source,
    picture_grid,
    with_positive,
)
from nextstep.engine.results import GeneratedPicture, Progress
from nextstep.engine.settings import GenerationSettings, ModelDefaults
from nextstep.errors import NextStepError
from nextstep.flow.noise import KeyedNoise, NoiseSource
from nextstep.image import masks, pictures
from nextstep.image.pictures import PictureLike
from nextstep.kernels import quantization as quantising
from nextstep.model import pretrained as folders
from nextstep.text import sequence as grammar

if TYPE_CHECKING:
    from nextstep.model.nextstep import NextStepModel
    from nextstep.text.tokenizer import TextTokenizer
    from nextstep.vae.tokenizer import ImageTokenizer

Grid = tuple[int, int]
MAX_IMAGES = 100_000


@dataclass(frozen=True)
class _Job:
    """One picture of a request."""

    prompt: str
    seed: int
    index: int
    parts: list[grammar.Part]
    sources: list[Tensor]


class NextStepPipeline(Turns):
    """Model, image tokenizer and text tokenizer, ready to make pictures.

    Args:
        model, image_tokenizer, text_tokenizer: that belong together.
        defaults: settings used where a call says nothing.
        model_hash: fingerprint of the weights, put into pictures.

    Attributes:
        adapter: what pictures record about a merged adapter; empty without one.
    """

    def __init__(
        self,
        model: NextStepModel,
        image_tokenizer: ImageTokenizer,
        text_tokenizer: TextTokenizer,
        defaults: ModelDefaults | None = None,
        model_hash: str = "",
    ) -> None:
        folders.check_fit(model.config, image_tokenizer, text_tokenizer)
        self.model = model
        self.image_tokenizer = image_tokenizer
        self.text_tokenizer = text_tokenizer
        self.defaults = defaults or ModelDefaults()
        self.model_hash = model_hash
        self.adapter: dict[str, Any] = {}

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
            dtype: of the weights; default fp32 on the CPU, else as stored.
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
        if quantize is None:
            quantising.pack_for_sampling(parts.model)
        elif early is None:
            quantising.pack_model(parts.model, *quantising.formats(quantize))
        return pipeline

    def save_pretrained(self, folder: str | Path, released: bool = False) -> None:
        """Write a model folder, in the released v1 layout if asked for.

        Raises:
            NextStepError: when the folder exists or cannot be written.
        """
        parts = folders.Parts(
            self.model, self.image_tokenizer, self.text_tokenizer, self.defaults, self.model_hash
        )
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
            noise: recorded draws instead of the seed's, for comparisons; without lookahead then.
            **settings: fields of `GenerationSettings`.

        Returns:
            Pictures in order of prompt, then index.

        Raises:
            ValueError: for a setting that is out of range or a prompt that is too long.
        """
        chosen = self.defaults.generate.with_values(**settings)
        grid = self.grid(height, width, (self.defaults.height, self.defaults.width))
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = _seeds(seed, len(prompts))
        asked = [Edit([], text) for text in prompts]
        prompts, chosen = think(self.model, self.text_tokenizer, asked, chosen, grid)
        jobs = [
            _Job(text, s, i, grammar.text_to_image(with_positive(text, chosen), grid), [])
            for text, s in zip(prompts, seeds, strict=True)
            for i in range(_count(num_images))
        ]
        return self._run(jobs, grid, chosen, batch_size, on_progress, noise)

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
        noise: NoiseSource | None = None,
        **settings: Any,
    ) -> list[GeneratedPicture]:
        """Pictures from pictures and an instruction.

        Args:
            image: one source, or several, as `image.pictures.open_picture` takes them; all
                instructions share them. They are resized so that
                their area is at most the model's own, and their sides reach no further than its
                learned positions, keeping the shape; see `source_limits`.
            instruction: one or several; may place the sources with `<image>` or `<image_n>` tags,
                which otherwise come first.
            mask: where the first source may change: the transparent pixels of a picture of its
                size, or the light ones of one without transparency. Image tokens that it does not
                touch are kept, and pixels outside it stay what they are.
            height, width: of the result; default the first source's size after resizing.
            num_images, seed, batch_size, on_progress, noise, **settings: as in `generate`.

        Raises:
            ValueError: for a setting out of range, a bad picture or mask, or tags that do not
                match.
        """
        chosen = self.defaults.edit.with_values(**settings)
        opened = [pictures.open_picture(source) for source in pictures.listed(image)]
        sources = self._sources(opened)
        side = self.image_tokenizer.config.token_pixels
        rows, columns = sources[0][1]
        grid = self.grid(height, width, (rows * side, columns * side))
        texts = [instruction] if isinstance(instruction, str) else list(instruction)
        seeds = _seeds(seed, len(texts))
        asked = [Edit(sources, text) for text in texts]
        jobs, chosen = self._edits(asked, seeds, _count(num_images), grid, chosen)
        kept = None
        if mask is not None:
            kept = masked_source(opened[0], sources[0], grid, masks.read_mask(mask), side)
        return self._run(jobs, grid, chosen, batch_size, on_progress, noise, kept)

    def edit_each(
        self,
        images: Sequence[Sequence[PictureLike]],
        instructions: Sequence[str],
        *,
        height: int,
        width: int,
        seed: int | Sequence[int] = 0,
        batch_size: int = 8,
        **settings: Any,
    ) -> list[GeneratedPicture]:
        """Several edits, each of its own pictures, made together; the same as one after another.

        Args:
            images: the sources of each edit.
            instructions: one for each.
            height, width: of all results.
            seed, batch_size, **settings: as in `edit`.

        Raises:
            ValueError: as in `edit`, or when their numbers differ.
        """
        chosen = self.defaults.edit.with_values(**settings)
        if len(images) != len(instructions):
            raise NextStepError(f"{len(instructions)} instructions for {len(images)} edits")
        grid = self.grid(height, width, (height, width))
        asked = [
            Edit(self._sources(given), t) for given, t in zip(images, instructions, strict=True)
        ]
        seeds = _seeds(seed, len(instructions))
        jobs, chosen = self._edits(asked, seeds, 1, grid, chosen)
        return self._run(jobs, grid, chosen, batch_size, None, None)

    def _sources(self, images: Sequence[PictureLike]) -> list[tuple[Tensor, Grid]]:
        if not images:
            raise NextStepError("an edit needs at least one source picture")
        return [self.encode_picture(pictures.open_picture(source)) for source in images]

    def _edits(
        self, asked: list[Edit], seeds: list[int], each: int, grid: Grid,
        settings: GenerationSettings,
    ) -> tuple[list[_Job], GenerationSettings]:  # fmt: skip
        texts, settings = think(self.model, self.text_tokenizer, asked, settings, grid)
        jobs = []
        for (sources, _), text, seed in zip(asked, texts, seeds, strict=True):
            written = with_positive(text, settings)
            parts = grammar.editing(written, [g for _, g in sources], grid)
            tokens = [sources[k][0] for k in grammar.picture_order(written, len(sources))]
            jobs += [_Job(text, seed, index, parts, tokens) for index in range(each)]
        return jobs, settings

    def grid(self, height: int | None, width: int | None, default: tuple[int, int]) -> Grid:
        """Rows and columns of a picture's image tokens, its pixels given or by default.

        Raises:
            NextStepError: when it is too large for the model, or no multiple of a token.
        """
        return picture_grid(self.model.config, self.image_tokenizer, height, width, default)

    def encode_picture(self, picture: Image.Image) -> tuple[Tensor, Grid]:
        """A picture's image tokens [n, D] and its grid, resized to what the model reads."""
        return encode_source(self.image_tokenizer, picture, self.source_limits)

    @property
    def source_limits(self) -> SourceLimits:
        """What source pictures are resized to."""
        return SourceLimits.of(self.model.config, self.image_tokenizer, self.defaults)

    def _run(
        self,
        jobs: list[_Job],
        grid: Grid,
        settings: GenerationSettings,
        batch_size: int,
        on_progress: Callable[[Progress], None] | None,
        noise: NoiseSource | None,
        kept: Kept | None = None,
    ) -> list[GeneratedPicture]:
        if batch_size < 1:
            raise NextStepError(f"batch size must be at least 1, not {batch_size}")
        decode = settings.decoding(grid, bool(jobs and jobs[0].sources))
        prompts = {
            name: [self._prompt(job, name, settings) for job in jobs] for name in decode.branches
        }
        done: list[GeneratedPicture] = []
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            rows = {name: row[start : start + batch_size] for name, row in prompts.items()}
            tokens = self._decode(batch, rows, decode, on_progress, start, noise, kept)
            images = pictures.to_pictures(self.image_tokenizer.decode_tokens(tokens, grid))
            more = kept.record() if kept else {}
            done += [
                GeneratedPicture(
                    kept.finish(image) if kept else image,
                    self._record(job, grid, settings) | more,
                )
                for job, image in zip(batch, images, strict=True)
            ]
        return done

    def _decode(
        self,
        batch: list[_Job],
        rows: dict[str, list[Prompt]],
        decode: DecodeSettings,
        on_progress: Callable[[Progress], None] | None,
        finished: int,
        noise: NoiseSource | None,
        kept: Kept | None,
    ) -> Tensor:
        keys = [(job.seed, job.index) for job in batch]

        def told(count: int, tokens: Tensor) -> None:
            if on_progress is not None:
                preview = lambda: self.preview(tokens, decode)  # noqa: E731
                on_progress(Progress(count, decode.tokens, len(batch), finished, preview))

        given = kept.given(decode.grid) if kept else None
        if decode.lookahead.tokens > 1 and noise is None:
            return decode_ahead(self.model, rows, decode, keys, told, given)
        stream = noise or KeyedNoise(keys, decode.solver.draws, self.model.config.token_size)
        return decode_tokens(self.model, rows, decode, stream, told, given)

    def preview(self, tokens: Tensor, decode: DecodeSettings) -> list[Image.Image]:
        """Pictures of which only the first tokens [B, done, D] are there; the rest is grey."""
        B, done, D = tokens.shape
        rest = tokens.new_zeros(B, decode.tokens - done, D)
        filled = torch.cat((tokens, rest), dim=1)
        return pictures.to_pictures(self.image_tokenizer.decode_tokens(filled, decode.grid))

    def _prompt(self, job: _Job, branch: str, settings: GenerationSettings) -> Prompt:
        """The row of one picture in one branch."""
        return branch_prompt(
            job.parts,
            job.sources,
            branch,
            settings.negative_prompt,
            self.text_tokenizer,
            self.model.config.max_position_embeddings,
        )

    def _record(self, job: _Job, grid: Grid, settings: GenerationSettings) -> dict[str, Any]:
        side = self.image_tokenizer.config.token_pixels
        return provenance.record(
            prompt=job.prompt,
            seed=job.seed,
            index=job.index,
            size=(grid[0] * side, grid[1] * side),
            task="edit" if job.sources else "generate",
            settings=settings,
            model_hash=self.model_hash,
            dtype=str(self.model.embed_tokens.weight.dtype).removeprefix("torch."),
            computed_by=computed_by(self.model),
            sources=[provenance.tensor_hash(tokens) for tokens in job.sources],
            adapter=self.adapter,
            quantize=quantising.quantised(self.model),
        )


def _seeds(seed: int | Sequence[int], prompts: int) -> list[int]:
    seeds = [seed] * prompts if isinstance(seed, int) else list(seed)
    if len(seeds) != prompts:
        raise NextStepError(f"{len(seeds)} seeds were given for {prompts} prompts")
    for value in seeds:
        check_seed(value)
    return seeds


def _count(num_images: int) -> int:
    if not 1 <= num_images <= MAX_IMAGES:
        raise NextStepError(
            f"the number of pictures must be at least 1 and at most {MAX_IMAGES}, not {num_images}"
        )
    return num_images
