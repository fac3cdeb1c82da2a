"""Winners and losers of rollouts, for the stage `dpo`; and winners alone, for `sft`.

Legend: D values per token; a picture has rows*columns tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nextstep.data.documents import Document, derived_seed
from nextstep.errors import NextStepError
from nextstep.flow.guidance import CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL
from nextstep.rollout.batches import Row, shuffled
from nextstep.rollout.samples import (
    RolloutGroup,
    RolloutSample,
    supervised_document,
    weighed_document,
)
from nextstep.rollout.store import read_rollouts
from nextstep.text.tokenizer import TextTokenizer


class Pairs:
    """A winner from the best samples of a prompt and a loser from the rest, drawn at random.

    As published (arXiv 2508.10711 section 4.3): 16 samples, winners among the top 4. A loser is
    always worth less than its winner; a prompt whose samples are all worth the same is left out.

    Args:
        groups: of rollouts.
        tokenizer: of the text.
        winners: samples of a prompt that may win.
        draws: a prompt's pairs meet so many different draws of times and noise; then they come
            again.
        seed: of all choices.

    Attributes:
        reference: [draws, G, 2, 2] what the reference says of winner and loser: see
            `rollout.reference`; None leaves it out.

    Raises:
        NextStepError: when no prompt has samples of different worth.
    """

    def __init__(
        self,
        groups: Sequence[RolloutGroup],
        tokenizer: TextTokenizer,
        winners: int = 4,
        draws: int = 4,
        seed: int = 0,
    ) -> None:
        self.tokenizer, self.winners, self.draws, self.seed = tokenizer, winners, draws, seed
        self.reference: Tensor | None = None
        self.groups = [group for group in groups if len({s.reward for s in group.samples}) > 1]
        if not self.groups:
            raise NextStepError(
                "no prompt of the rollouts has samples of different worth, so none is preferred; "
                "draw more samples, or reward them more finely"
            )

    def __len__(self) -> int:
        return len(self.groups)

    def row(self, number: int) -> Row:
        """Winner and loser of pair `number` of the run, each with what the reference says of it."""
        epoch, place = shuffled(len(self.groups), number, self.seed, "pairs")
        draw = epoch % self.draws
        pair = self.pair(place, draw)
        if self.reference is None:
            return pair
        told = self.reference[draw, place].tolist()
        return [
            (replace(document, payload=figures), pictures)
            for (document, pictures), figures in zip(pair, told, strict=True)
        ]

    def pair(self, place: int, draw: int) -> Row:
        """Winner and loser of a group, with one seed; every draw has its own."""
        group = self.groups[place]
        rng = random.Random(derived_seed(self.seed, "pair", group.key, draw))
        ranked = sorted(group.samples, key=lambda one: (-one.reward, one.index))
        lowest = ranked[-1].reward
        winner = rng.choice([one for one in ranked[: self.winners] if one.reward > lowest])
        rest = [one for one in ranked[self.winners :] if one.reward < winner.reward]
        loser = rng.choice(rest or [one for one in ranked if one.reward < winner.reward])
        seed = derived_seed(self.seed, "draws", group.key, draw)
        return [self._side(group, one, seed) for one in (winner, loser)]

    def _side(
        self, group: RolloutGroup, sample: RolloutSample, seed: int
    ) -> tuple[Document, list[Tensor]]:
        document = weighed_document(group, sample, self.tokenizer, seed)
        return document, group.pictures(sample)


class Winners:
    """The best samples of every prompt as a `Source` of documents: best-of-n fine-tuning.

    Pictures and what was written before them are learned, prompts are not.

    Args:
        folder: of rollouts.
        tokenizer: of the text.
        best: samples of a prompt that are kept.
        least: reward below which a sample is left out.
        no_caption: share of uses whose text is left out, for guidance; half of those of edits lose
            their sources too.
        name: in mixes and reports.

    Raises:
        NextStepError: when nothing is left.
    """

    kind = "interleaved"

    def __init__(
        self,
        folder: Path,
        tokenizer: TextTokenizer,
        best: int = 1,
        least: float | None = None,
        no_caption: float = 0.0,
        name: str = "winners",
    ) -> None:
        self.tokenizer, self.name, self.no_caption = tokenizer, name, no_caption
        self.kept: list[tuple[RolloutGroup, RolloutSample]] = []
        for group in read_rollouts(folder):
            ranked = sorted(group.samples, key=lambda one: (-one.reward, one.index))
            good = [one for one in ranked[:best] if least is None or one.reward >= least]
            self.kept += [(group, one) for one in good]
        if not self.kept:
            raise NextStepError(f"no sample in {folder} is worth {least}; lower 'least_reward'")

    def __len__(self) -> int:
        return len(self.kept)

    def document(self, index: int, seed: int) -> Document:
        """Sample `index` as a sequence."""
        group, sample = self.kept[index]
        rng = random.Random(derived_seed("no caption", seed))
        branch = CONDITIONAL
        if group.draws and rng.random() < self.no_caption:
            branch = IMAGE_ONLY if group.sources and rng.random() < 0.5 else UNCONDITIONAL
        if branch == CONDITIONAL:
            document = weighed_document(group, sample, self.tokenizer, seed)
        else:
            document = supervised_document(group, sample, self.tokenizer, seed, branch)
        return replace(document, payload=index)

    def pictures(self, document: Document) -> list[Tensor]:
        """The document's image tokens in reading order."""
        group, sample = self.kept[document.payload]
        every = group.pictures(sample)
        return [every[place] for place in document.images]
