"""Groups of samples through the engine: all pictures and texts of a call share its batches.

A sample depends on weights, prompt, settings, seed and index alone, so it does not matter how many
are drawn together, nor by which process. `make_rollouts` writes them into a folder, whole shards at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nextstep.data.documents import derived_seed
from nextstep.engine.backends.base import Prompt
from nextstep.engine.chat.reasoning import LONGEST, reasoning_sequence, with_reasoning
from nextstep.engine.engine import Engine
from nextstep.engine.events import Event
from nextstep.engine.request import Request
from nextstep.engine.sequence import TextSequence
from nextstep.engine.text_sampling import NucleusChoice
from nextstep.rollout.prompts import PromptStream, RolloutPrompt
from nextstep.rollout.rewards import Rewards
from nextstep.rollout.samples import RolloutGroup, RolloutSample, before_line
from nextstep.rollout.store import RolloutStore
from nextstep.text import sequence as grammar

MOST_WORDS = 64
"""Ids of an answer at most, without the line before it."""


@dataclass(frozen=True)
class SamplingOptions:
    """How groups are drawn.

    Attributes:
        samples: of a prompt.
        height, width: of pictures in pixels; None for the model's own.
        settings: generation settings that differ from the model's own; drawings do without
            `image_guidance`.
        reasoning: let the model write a line before it draws, and before it answers where it was
            trained to do so.
        temperature: of what it writes.
    """

    samples: int = 8
    height: int | None = None
    width: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    reasoning: bool = False
    temperature: float = 1.0


@dataclass
class _Draft:
    """A sample that is being drawn: its group without samples, and its request."""

    group: RolloutGroup
    request: Request
    sample: RolloutSample


class Sampler:
    """Draws groups with one engine.

    Args:
        engine: with the weights that sample.
        options: see `SamplingOptions`.
    """

    def __init__(self, engine: Engine, options: SamplingOptions) -> None:
        self.engine, self.options = engine, options

    def draw(self, asked: Sequence[tuple[RolloutPrompt, int]]) -> list[RolloutGroup]:
        """Groups for prompts, each with the seed of its noise, in order.

        Raises:
            NextStepError: when a sample cannot be drawn.
        """
        groups = [self._drafts(prompt, seed) for prompt, seed in asked]
        drafts = [draft for group in groups for draft in group]
        self._write(drafts)
        self._paint([draft for draft in drafts if draft.group.draws])
        return [
            replace(group[0].group, samples=tuple(draft.sample for draft in group))
            for group in groups
        ]

    def _drafts(self, prompt: RolloutPrompt, seed: int) -> list[_Draft]:
        options, settings = self.options, {**self.options.settings, "reasoning": False}
        if not prompt.images:
            settings.pop("image_guidance", None)
        text = self._asked(prompt)
        request = self.engine.request(
            text, prompt.images, height=options.height, width=options.width, seed=seed,
            **settings,
        )  # fmt: skip
        given = tuple((source.tokens, source.grid) for source in request.sources)
        empty = RolloutGroup(
            prompt.key, text, seed, request.grid, request.settings, (), given, prompt.draws,
            prompt.facts,
        )  # fmt: skip
        return [
            _Draft(empty, replace(request, index=index), RolloutSample(index))
            for index in range(options.samples)
        ]

    def _asked(self, prompt: RolloutPrompt) -> str:
        """The text of a prompt; a line about the pictures follows where the model writes one.

        Before a description that nobody asked for it writes none.
        """
        lined = self.options.reasoning and self.engine.defaults.reasoning_before_answers
        asks = grammar.IMAGE_TAG.split(prompt.text)[-1].strip()
        if lined and prompt.images and not prompt.draws and asks:
            return grammar.with_reasoning(prompt.text, "")
        return prompt.text

    def _write(self, drafts: Sequence[_Draft]) -> None:
        """Let the model write lines and answers, all side by side."""
        jobs: list[TextSequence] = []
        writing: list[_Draft] = []
        for draft in drafts:
            job = self._line(draft) if draft.group.draws else self._answer(draft)
            if job is not None:
                seed = derived_seed("line", draft.group.seed, draft.sample.index)
                choose = NucleusChoice(self.options.temperature, 1.0, seed)
                jobs.append(replace(job, choose=choose))
                writing.append(draft)
        for draft, event in zip(writing, self.engine.run(jobs), strict=True):
            self._take_text(draft, event)

    def _line(self, draft: _Draft) -> TextSequence | None:
        """What writes a line before a picture; its picture follows, never the end of the text."""
        if not self.options.reasoning:
            return None
        tokenizer, limit = self.engine.text_tokenizer, self._limit
        job = reasoning_sequence(tokenizer, draft.request, limit)
        if job is None:
            return None
        special = tokenizer.ids
        return replace(job, ends=(special.image_area,), forbidden=(*job.forbidden, special.eos))

    def _answer(self, draft: _Draft) -> TextSequence:
        tokenizer, group = self.engine.text_tokenizer, draft.group
        order = grammar.picture_order(group.text, len(group.sources)) if group.sources else []
        given = [group.sources[place] for place in order]
        prompt = Prompt(
            before_line(group, tokenizer), [tokens for tokens, _ in given],
            [grid for _, grid in given],
        )  # fmt: skip
        special = tokenizer.ids
        forbidden = (
            special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder,
            special.image_area,
        )  # fmt: skip
        longest = MOST_WORDS + (LONGEST if group.text.endswith("\n") else 0)
        return TextSequence(prompt, longest, _none, forbidden, (special.eos,))

    def _take_text(self, draft: _Draft, event: Event) -> None:
        tokenizer, ended = self.engine.text_tokenizer, event.end is not None
        if not draft.group.draws:
            answer = tokenizer.decode(list(event.ids))
            draft.sample = replace(draft.sample, written=event.ids, ended=ended, line=answer)
            return
        request = with_reasoning(tokenizer, draft.request, event.ids, self._limit)
        line = request.prompt.removeprefix(draft.group.text).removeprefix("\n")
        draft.request = request
        draft.sample = replace(draft.sample, written=event.ids, ended=ended, line=line)

    def _paint(self, drafts: Sequence[_Draft]) -> None:
        tickets = [self.engine.submit(draft.request) for draft in drafts]
        for draft, event in zip(drafts, self.engine.wait(tickets), strict=True):
            made = self.engine.picture(draft.request, event.tokens)
            draft.sample = replace(draft.sample, tokens=event.tokens.clone(), image=made.image)

    @property
    def _limit(self) -> int:
        return self.engine.model.config.max_position_embeddings


def _none(logits: object) -> int:
    """Stands for a choice that is put in later."""
    raise AssertionError("no choice was put in")


def make_rollouts(
    store: RolloutStore,
    prompts: PromptStream,
    sampler: Sampler,
    rewards: Rewards,
    count: int,
    seed: int = 0,
    per_shard: int = 8,
    on_shard: Callable[[list[RolloutGroup]], None] | None = None,
) -> None:
    """Draw and judge samples of the first `count` prompts; shards that are there are left alone.

    Args:
        store: where they go.
        prompts, sampler, rewards: what is drawn, how, and what it is worth.
        count: of prompts.
        seed: of the noise.
        per_shard: prompts of a shard, whose samples are drawn together.
        on_shard: told the groups of every shard, new or there already.

    Raises:
        NextStepError: when a sample cannot be drawn or judged.
    """
    policy = sampler.engine.fingerprint.model
    for shard, first in enumerate(range(0, count, per_shard)):
        if not store.has(shard):
            numbers = range(first, min(first + per_shard, count))
            asked = [
                (prompts.prompt(number), derived_seed(seed, "rollout", number))
                for number in numbers
            ]
            groups = rewards.judge([prompt for prompt, _ in asked], sampler.draw(asked))
            store.write(shard, [replace(group, policy=policy) for group in groups])
        if on_shard is not None:
            on_shard(store.read(shard))
