"""What is asked for, before any work is done: one picture, its sources, and its rows of ids.

Legend: N tokens of a picture, n of a source, k known, g guessed, D values per token, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextstep.config import NextStepConfig
from nextstep.engine.backends.base import Prompt
from nextstep.engine.decode import DecodeSettings, FixedTokens
from nextstep.engine.sequence import ImageSequence
from nextstep.engine.settings import GenerationSettings, ModelDefaults, check_seed
from nextstep.errors import NextStepError
from nextstep.flow import guidance as branches
from nextstep.flow.noise import NoiseSource
from nextstep.image import masks, pictures
from nextstep.image.sizes import fitting_size
from nextstep.model.folder import limits_of
from nextstep.text import sequence as grammar
from nextstep.text.reasoning import Region, region_in

if TYPE_CHECKING:
    from nextstep.text.tokenizer import TextTokenizer
    from nextstep.vae.tokenizer import ImageTokenizer

Grid = tuple[int, int]


def series(
    first: Request, prompts: Sequence[str], seed: int | Sequence[int], count: int
) -> list[Request]:
    """A request as often as asked for: every prompt with its seed, and `count` pictures of each.

    Raises:
        NextStepError: for a seed out of range, or another number of seeds than prompts.
    """
    # NumPy's whole numbers count as such, too.
    if isinstance(seed, str) or not isinstance(seed, Iterable):
        seeds = [seed] * len(prompts)
    else:
        seeds = list(seed)
    seeds = [int(one) if isinstance(one, Integral) else one for one in seeds]
    if len(seeds) != len(prompts):
        raise NextStepError(f"{len(seeds)} seeds were given for {len(prompts)} prompts")
    for value in seeds:
        check_seed(value)
    return [
        replace(first, prompt=text, seed=own, index=index)
        for text, own in zip(prompts, seeds, strict=True)
        for index in range(count)
    ]


@dataclass(frozen=True)
class EncodedImage:
    """A picture as a sequence holds it: its image tokens [n, D] and grid."""

    tokens: Tensor
    grid: Grid


@dataclass(frozen=True, eq=False)
class InpaintingSource:
    """What a picture keeps of another one of its size, where a mask does not let it change.

    Attributes:
        tokens: [N, D], image tokens of the other one; those that the mask touches are not read.
        picture: its pixels.
        mask: [H, W] bool, True where the picture may change.
    """

    tokens: Tensor
    picture: Image.Image
    mask: np.ndarray

    def given(self, grid: Grid) -> FixedTokens:
        """Which tokens are taken as they are."""
        return FixedTokens(self.tokens, masks.touched(self.mask, self.mask.shape[0] // grid[0]))

    def finish(self, made: Image.Image, feather: int = 0) -> Image.Image:
        """The finished picture: pixels outside the mask are those of the kept one.

        Args:
            made: RGB of the same size.
            feather: see `masks.paste`.
        """
        return masks.paste(made, self.picture, self.mask, feather)

    def record(self) -> dict[str, str]:
        """What a picture's settings say about it."""
        return {"mask": masks.mask_hash(self.mask)}


@dataclass(frozen=True)
class Request:
    """One picture that is asked for.

    Attributes:
        prompt: what to draw, or with sources how to change them; may hold `<image>` tags then.
        grid: (rows, columns) of image tokens.
        settings: everything else that decides what it looks like.
        seed, index: key of its noise.
        sources: pictures to be changed, in order; empty when drawing from text.
        priority: higher goes first.
        deadline: on the engine's clock; later than this it is given up.
        client: whose picture it is; clients of one priority take turns.
        kept: what it keeps of another picture; None is nothing.
        origin: what it goes on from when settings alone do not tell, put into its record.

    Raises:
        ValueError: for a seed out of range, or tags that do not match the sources.
    """

    prompt: str
    grid: Grid
    settings: GenerationSettings
    seed: int = 0
    index: int = 0
    sources: tuple[EncodedImage, ...] = ()
    priority: int = 0
    deadline: float = math.inf
    client: str = ""
    kept: InpaintingSource | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.index < 0:
            raise NextStepError(f"a picture's index must be at least 0, not {self.index}")
        self.parts()

    def finish(self, made: Image.Image) -> Image.Image:
        """A decoded picture with what it keeps of another one."""
        if self.kept is None:
            return made
        return self.kept.finish(made, self.settings.mask_feather)

    @property
    def task(self) -> str:
        """`generate` or `edit`."""
        return "edit" if self.sources else "generate"

    @property
    def decode(self) -> DecodeSettings:
        """The part of the decoding loop."""
        return self.settings.decoding(self.grid, bool(self.sources))

    @property
    def given(self) -> FixedTokens | None:
        """Tokens that are not sampled: those outside of a mask, or of an edit's region."""
        if self.kept is not None:
            return self.kept.given(self.grid)
        if len(self.sources) != 1:
            return None
        return given_outside_region(self.prompt, self.sources[0], self.grid)

    def without_reasoning(self) -> Request:
        """The same, drawn at once."""
        if not self.settings.reasoning:
            return self
        return replace(self, settings=replace(self.settings, reasoning=False))

    def parts(self) -> list[grammar.Part]:
        """The sequence with the picture at its end."""
        written = with_positive(self.prompt, self.settings)
        if not self.sources:
            return grammar.text_to_image(written, self.grid)
        return grammar.editing(written, [source.grid for source in self.sources], self.grid)

    def sequence(
        self,
        text_tokenizer: TextTokenizer,
        limit: int,
        tokens: Tensor | None = None,
        guesses: Tensor | None = None,
        noise: NoiseSource | None = None,
    ) -> ImageSequence:
        """The same for the scheduler.

        Args:
            text_tokenizer: gives ids.
            limit: most positions the model reads.
            tokens: [k, D] of the picture that are there already.
            guesses: [g, D] of those behind them.
            noise: recorded draws in place of the key's.

        Raises:
            NextStepError: when prompt and picture are too long together.
        """
        decode, parts = self.decode, self.parts()
        written, count = with_positive(self.prompt, self.settings), len(self.sources)
        # Without sources a tag is plain text.
        order = grammar.picture_order(written, count) if count else []
        given = [self.sources[place].tokens for place in order]
        prompts = {
            name: branch_prompt(
                parts, given, name, self.settings.negative_prompt, text_tokenizer, limit
            )
            for name in decode.branches
        }
        return ImageSequence(
            prompts, decode, (self.seed, self.index), tokens, self.given, guesses, noise,
            priority=self.priority, deadline=self.deadline, client=self.client,
        )  # fmt: skip


def given_outside_region(text: str, source: EncodedImage, grid: Grid) -> FixedTokens | None:
    """The tokens of a source that the line behind an edit's instruction leaves as they are.

    Args:
        text: the instruction, its line behind the last line break; see `text.reasoning`.
        source: the picture that is changed.
        grid: of the result.

    Returns:
        None where there is no line, it names no region, or the result has another size.
    """
    region = region_of_edit(text, [source.grid], grid)
    if region is None:
        return None
    sampled = torch.zeros(len(source.tokens), dtype=torch.bool)
    sampled[region.places(grid)] = True
    return FixedTokens(source.tokens, sampled)


def region_of_edit(text: str, sources: Sequence[Grid], grid: Grid) -> Region | None:
    """The tokens that are sampled in the result of an edit; the others are the source's.

    Args:
        text: the instruction, its line behind the last line break; see `text.reasoning`.
        sources: grids of the source pictures.
        grid: of the result.

    Returns:
        None where all are sampled: without one source of the result's size, without a line, or
        where it names no region.
    """
    _, found, line = text.rpartition("\n")
    return region_in(line, grid) if found and list(sources) == [grid] else None


def with_positive(text: str, settings: GenerationSettings) -> str:
    """A prompt with the settings' own words behind it.

    Raises:
        NextStepError: when it is no text.
    """
    if text.encode("utf-8", "replace").decode() != text:
        raise NextStepError("the prompt holds bytes that are not UTF-8 text")
    return f"{text} {settings.positive_prompt}" if settings.positive_prompt else text


def branch_prompt(
    parts: Sequence[grammar.Part],
    sources: Sequence[Tensor],
    branch: str,
    negative: str,
    text_tokenizer: TextTokenizer,
    limit: int,
) -> Prompt:
    """The row of one picture in one branch.

    Args:
        parts: of the conditional branch, the picture last.
        sources: image tokens [n, D] of the pictures before it, in reading order.
        branch: which.
        negative: text of the branches without the prompt.
        text_tokenizer: gives ids.
        limit: most positions the model reads.

    Raises:
        NextStepError: when prompt and picture are too long together.
    """
    if branch == branches.IMAGE_ONLY:
        parts = grammar.without_text(parts, negative)
    elif branch == branches.UNCONDITIONAL:
        parts, sources = grammar.without_text_and_pictures(parts, negative), []
    whole = grammar.build_sequence(parts, text_tokenizer)
    if len(whole) > limit:
        raise NextStepError(
            f"prompt and picture together take {len(whole)} tokens; this model reads at most "
            f"{limit}, so shorten the prompt or ask for a smaller picture"
        )
    prompt = whole.prompt()
    return Prompt(prompt.ids, sources, [span.grid for span in prompt.images])


def picture_grid(
    config: NextStepConfig,
    image_tokenizer: ImageTokenizer,
    height: int | None,
    width: int | None,
    default: tuple[int, int],
) -> Grid:
    """Rows and columns of a picture's image tokens, its pixels given or by default.

    Raises:
        NextStepError: when it is too large for the model, or no multiple of a token.
    """
    limits = limits_of(config, image_tokenizer.config.token_pixels)
    return limits.grid(
        default[0] if height is None else height, default[1] if width is None else width
    )


@dataclass(frozen=True)
class SourceLimits:
    """What a model reads of source pictures; larger ones are shrunk, keeping their shape.

    Attributes:
        token_pixels: side of an image token.
        area: most pixels.
        side: most pixels of a side, where learned positions end; None has no such end.
    """

    token_pixels: int
    area: int
    side: int | None

    @classmethod
    def of(
        cls, config: NextStepConfig, image_tokenizer: ImageTokenizer, defaults: ModelDefaults
    ) -> SourceLimits:
        """Those of a model."""
        pixels = image_tokenizer.config.token_pixels
        side = config.image_position_side * pixels or None
        return cls(pixels, defaults.height * defaults.width, side)

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture is read at.

        Shapes more extreme than the aspect buckets are cropped to 4 to 1 or 1 to 4.
        """
        tall, wide = min(height, 4 * width), min(width, 4 * height)
        return fitting_size(tall, wide, self.token_pixels, self.area, self.side)


def encode_source(
    image_tokenizer: ImageTokenizer, picture: Image.Image, limits: SourceLimits
) -> tuple[Tensor, Grid]:
    """A picture's image tokens [n, D] and its grid, resized to what the model reads."""
    height, width = limits.fitted(picture.height, picture.width)
    pixels = pictures.to_pixels([pictures.resize_and_crop(picture, height, width)])
    tokens = image_tokenizer.encode_tokens(pixels)[0].float()
    return tokens, image_tokenizer.grid(height, width)


def masked_source(
    picture: Image.Image, source: tuple[Tensor, Grid], grid: Grid, mask: Image.Image, side: int
) -> InpaintingSource:
    """What an edit inside a mask keeps of its first source.

    Args:
        picture: the source as it was given.
        source: its tokens and grid as `encode_source` makes them.
        grid: of the result.
        mask: as `masks.read_mask` gives it, of the picture's size.
        side: pixels of an image token.

    Raises:
        ValueError: when the mask does not fit or marks nothing, or the result has another size.
    """
    tokens, own = source
    if grid != own:
        raise NextStepError(
            f"with a mask the picture keeps its source's size of {own[1] * side}x{own[0] * side}; "
            "leave out the size"
        )
    height, width = own[0] * side, own[1] * side
    fitted = masks.fit_mask(mask, pictures.original_size(picture), height, width)
    return InpaintingSource(tokens, pictures.resize_and_crop(picture, height, width), fitted)
