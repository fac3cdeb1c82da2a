"""The `data` section of a recipe: which samples, in which shares, as which rows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nextstep.recipe.section import Count, Positive, Section, Share, Weight

Kind = Literal["text", "image_text", "image_to_image", "interleaved"]
EXPECTED_TEXT: dict[str, int] = {
    "text": 600, "image_text": 120, "image_to_image": 40, "interleaved": 240,
}  # fmt: skip
"""Text tokens a document that `plan` reckons with where a source does not say."""
EXPECTED_PICTURES: dict[str, float] = {
    "text": 0, "image_text": 1, "image_to_image": 2, "interleaved": 4,
}  # fmt: skip
"""The same for pictures."""


class FilterSettings(Section):
    """Which samples of a source are left out; sizes are those of the smallest of its pictures."""

    height: Weight = 0.0
    """Least height in pixels."""
    width: Weight = 0.0
    """Least width in pixels."""
    area: list[Weight] = Field(default=[0.0], min_length=1, max_length=2)
    """Least area in pixels, e.g. [65536], or least and largest one."""
    aspect_ratio: float | None = Field(default=None, ge=1)
    """Largest ratio of the longer to the shorter side."""
    keywords: dict[str, Share] = Field(default_factory=dict)
    """Word in the caption -> how often the sample is left out."""
    numbers: dict[str, float] = Field(default_factory=dict)
    """Numeric field of the sample -> least value; below 0, largest absolute value."""

    @model_validator(mode="after")
    def _area(self) -> FilterSettings:
        if len(self.area) == 2 and self.area[0] > self.area[1]:
            raise ValueError(f"area: nothing lies between {self.area[0]} and {self.area[1]}")
        return self


class Probabilities(Section):
    """Random choices made for every sample of shards."""

    caption_last_prob: Share = 0.3
    """Captions that come after their picture: captioning, and pictures without text before."""
    no_caption: Share = 0.0
    """Pictures whose caption is left out."""
    upper_first: Share = 0.0
    """Captions whose first letter is put in upper case."""
    tags_last: Share = 0.1
    """Edits whose pictures all stand after the instruction."""
    drop_source_prob: Share = 0.2
    """Edits of one source that lose the source, the text, or both, a third each."""
    drop_one_source_prob: Share = 0.3
    """Edits of two sources that lose one of them."""
    drop_first_source_prob: Share = 0.3
    """How often that one is the first."""
    images_only: Share = 0.1
    """Interleaved samples that keep only their pictures."""


class Live(Section):
    """A source that draws its samples when they are asked for."""

    name: str
    """One of the live sources: see `nextstep.recipe.live`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that source."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class SourceSettings(Section):
    """One source of samples: a folder of shards, or a live source."""

    name: str | None = None
    """In reports; default the folder's or the live source's name."""
    shards: str | None = None
    """Folder written by `nextstep data build`."""
    world: Live | None = None
    """A live source: its name, or {name: ..., options: {...}}."""
    pictures: str | None = None
    """Folder of pictures, searched through all folders in it; for the tokenizer stage alone."""
    rollouts: str | None = None
    """Folder of the model's own samples: written by `nextstep rollout`, or of an rl run. Pairs of
    them for dpo; the best of them for stages that learn from examples."""
    prompts: str | None = None
    """File of prompts, one a line or JSON Lines; for rl alone."""
    best: Positive = 1
    """Of rollouts: samples of a prompt that are learned, best first."""
    least_reward: float | None = None
    """Of rollouts: samples of a smaller reward are left out."""
    no_caption: Share = 0.0
    """Of rollouts: share of the uses that lose their text, for guidance."""
    kind: Kind | None = None
    """What the samples are; default what the shards say they are."""
    weight: Weight = 1.0
    """Its share of the mixture, relative to the other sources' weights."""
    captions: dict[str, Weight] = Field(default_factory=dict)
    """Caption field of the sample -> how often it is chosen; default the field `caption` alone."""
    templates: list[str] = Field(default_factory=list)
    """Texts with `{caption}` in them; one is chosen for every sample."""
    filters: FilterSettings = FilterSettings()
    """Which samples are left out."""
    latents: str | None = None
    """Folder of the latent cache, for shards and for live sources that repeat their samples (the
    world with `fresh: false`); without it pictures are encoded as they come."""
    compose_latents: bool = False
    """For the world's editions on the grid: put image tokens together from encoded parts instead
    of encoding every picture."""
    expected_text: Positive | None = None
    """Text tokens of a sample that `plan` reckons with; default by kind."""
    expected_pictures: float | None = Field(default=None, ge=0)
    """Pictures of a sample that `plan` reckons with; default by kind."""

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSettings:
        origins = self.shards, self.world, self.pictures, self.rollouts, self.prompts
        if sum(bool(origin) for origin in origins) != 1:
            raise ValueError(
                "a source is one of 'shards', 'world', 'pictures', 'rollouts' and 'prompts'; name "
                "just one"
            )
        if self.latents and (self.rollouts or self.prompts):
            raise ValueError("'latents' are for shards and live sources; rollouts hold tokens")
        if not self.shards and (self.captions or self.templates):
            raise ValueError("'captions' and 'templates' are for shards alone")
        if self.compose_latents and (self.latents or not self.world):
            raise ValueError("'compose_latents' is for live sources of the world without 'latents'")
        if self.pictures and self.latents:
            raise ValueError("'latents' are not for the tokenizer stage, which makes them")
        if self.captions and not any(self.captions.values()):
            raise ValueError("'captions' needs at least one weight above 0")
        for template in self.templates:
            if "{caption}" not in template:
                raise ValueError(f"the template '{template}' lacks {{caption}}")
        return self

    @property
    def title(self) -> str:
        """Its name in reports."""
        if self.name:
            return self.name
        if self.world:
            return self.world.name
        folder = self.shards or self.pictures or self.rollouts or self.prompts
        return str(folder).rstrip("/").rsplit("/", 1)[-1]


class Data(Section):
    """Which samples, in which shares, laid out as which rows."""

    sources: list[SourceSettings] = Field(min_length=1)
    """Where samples come from."""
    mix: Literal["samples", "tokens"] = "tokens"
    """What the weights are shares of."""
    row_length: Positive = 8192
    """Positions a row; samples are packed whole, each sees itself alone."""
    rows: Positive = 1
    """Rows of one optimizer step, over all ranks together."""
    micro_batch_rows: Positive = 1
    """Rows that go through the model at once, at most."""
    areas: list[Positive] = Field(default=[256], min_length=1)
    """Sides of the square areas, in pixels, that pictures are brought to; with several, the
    largest that a picture fills."""
    aspects: bool = True
    """Use the aspect buckets of every area; without them all pictures become squares."""
    crop: Literal["centre", "random"] = "centre"
    """Where a picture that covers its bucket is cut."""
    probabilities: Probabilities = Probabilities()
    """Random choices made for every sample."""
    window_rows: Positive = 64
    """Rows that are packed together; more leave less padding and take longer to plan."""
    max_broken_share: Share = 0.05
    """Training stops when more samples than this share are broken."""
    workers: Positive = 2
    """Threads that decode pictures ahead of training."""
    processes: Count = 0
    """Worker processes that make samples and batches in place of those threads, for devices that
    one process cannot feed; for pretrain, anneal and sft. 0 for none."""
    ahead: Count = 2
    """Steps that are made before they are asked for."""

    @model_validator(mode="after")
    def _sensible(self) -> Data:
        if not any(source.weight for source in self.sources):
            raise ValueError("every source has weight 0")
        titles = [source.title for source in self.sources]
        double = next((t for t in titles if titles.count(t) > 1), None)
        if double:
            raise ValueError(f"two sources are called '{double}'; give one of them another 'name'")
        if len(self.areas) > 1 and not self.aspects:
            raise ValueError("'aspects: false' makes squares of one area; keep one of 'areas'")
        for side in self.areas:
            if side % 16 or side**2 // 256 + 16 > self.row_length:
                raise ValueError(
                    f"a picture of {side}x{side} pixels is not a whole number of image tokens or "
                    f"does not fit into a row of {self.row_length}"
                )
        if self.rows % self.micro_batch_rows:
            raise ValueError(
                f"{self.rows} rows cannot be dealt out in micro-batches of {self.micro_batch_rows}"
            )
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Name -> share of the mixture."""
        total = sum(source.weight for source in self.sources)
        return {source.title: source.weight / total for source in self.sources}
