"""Stage `rl`: the model's own samples, weighed by their rewards, in pictures and text together.

    nft     DiffusionNFT: no log-probabilities, so any solver may draw the samples; the policy that
            drew them is the loop's running average, or the present weights without one
    grpo    policy gradient on one stochastic step of every token's path (Flow-GRPO, Flow-CPS with
            the window of MixGRPO); the path is walked again from its keyed noise, all tokens in
            parallel, so the ratio on policy is exactly 1

Text that the model wrote is trained by policy gradient in both. Every id and every picture answers
for itself alone: it is compared with what others of the same prompt did after the same beginning,
so that a picture is not blamed for what it was told to draw. Formulas and their sources stand in
`objectives.policy`.

Legend: n documents, K noise levels, T trained image tokens, P asked text ids, D values per token,
S solver steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from nextstep.config import NextStepConfig
from nextstep.data.batch import Picture, SequenceBatch
from nextstep.data.documents import Document
from nextstep.flow.path import uniform_grid
from nextstep.flow.solvers import STEP_RULES, SolverSettings, solve
from nextstep.model.nextstep import NextStepModel
from nextstep.train.objectives.policy import (
    clipped_policy_loss,
    most_uncertain,
    nft_loss,
    optimality,
    step_log_prob,
    text_divergence,
    trained_count,
)
from nextstep.train.stages.by_document import DocumentRows, OwnedBatch
from nextstep.train.stages.pretrain import states

Method = Literal["nft", "grpo"]
OLD, REFERENCE = "old", "reference"
SPREAD_SOLVER = SolverSettings("ode", 4)
"""How the head's spread over trajectories is found; few steps tell sure tokens from unsure ones."""


@dataclass(frozen=True)
class PolicySettings:
    """What the loss is made of.

    Attributes:
        method: see the top of this file.
        beta: of `nft`.
        advantage_limit: advantages of this size make r of `nft` 0 or 1.
        clip: how far the ratios of `grpo` may move from 1.
        text_clip: how far those of text may.
        image: weight of the image part; 0 leaves it out.
        text: weight of the text part; 0 leaves it out.
        bad_text: share of that weight which ids with an advantage below 0 have.
        temperature: at which the text was written.
        distances: weights of the distances to the reference, of pictures and of text; with both 0
            there is no reference.
        token_share: of a picture's tokens that `grpo` trains, the most uncertain ones first.
        levels: noise levels per image token of `nft`, and trajectories that tell uncertainty.
    """

    method: Method = "nft"
    beta: float = 1.0
    advantage_limit: float = 5.0
    clip: float = 1e-3
    text_clip: float = 0.2
    image: float = 1.0
    text: float = 0.0
    bad_text: float = 1.0
    temperature: float = 1.0
    distances: tuple[float, float] = (0.0, 0.0)
    token_share: float = 1.0
    levels: int = 4


@dataclass(frozen=True)
class Experience:
    """What a sample brings beside its document; its payload.

    Attributes:
        text: [P] advantages of its asked ids, each against the samples that began alike.
        picture: how much better its picture was than those before which the same was written.
        draws: [draws, T, D] noise of every learned token's path, as the solver takes it; for
            `grpo`.
    """

    text: Tensor
    picture: float
    draws: Tensor | None = None


@dataclass(frozen=True)
class PolicyRows:
    """A micro-batch before it is moved.

    Attributes:
        batch: the documents.
        text: [P] advantages.
        pictures: [n] advantages.
        draws: [draws, T, D], None for `nft`.
        solver: that drew them.
        step: of the solver, that is trained now.
        counts: False where the rows only keep a rank without any of its own in step.
    """

    batch: SequenceBatch
    text: Tensor
    pictures: Tensor
    draws: Tensor | None = None
    solver: SolverSettings | None = None
    step: int = 0
    counts: bool = True


@dataclass(frozen=True)
class PolicyBatch(OwnedBatch):
    """A micro-batch on its device.

    Attributes:
        rows: where it came from, their tensors moved too.
        seen: what old policy and reference say, by "NAME/FIGURE".
    """

    rows: PolicyRows = field(kw_only=True)
    seen: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)


class PolicyStage:
    """Losses of weighed samples; satisfies `nextstep.train.contracts.Observer`.

    Args:
        config: of the model.
        settings: see `PolicySettings`.
        reference: weights to stay near, see `train.ema.copied`; None without distances.

    Attributes:
        old: weights that drew the samples, where these serve several updates; None where they serve
            one, so that the average or the present weights drew them.
    """

    def __init__(
        self,
        config: NextStepConfig,
        settings: PolicySettings,
        reference: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings, self.reference = settings, reference
        self.old: Mapping[str, Tensor] | None = None
        self.rows = DocumentRows(config, settings.levels)
        pictures, text = settings.distances
        self.loss_weights = {
            "policy_loss": settings.image, "text_policy_loss": settings.text,
            "kl": pictures, "text_kl": text, "ratio": 0.0,
        }  # fmt: skip

    @property
    def samples_with_average(self) -> bool:
        """Whether the running average draws the samples; a policy gradient needs the model."""
        return self.settings.method == "nft"

    def batch_of(
        self,
        rows: Seq[Seq[tuple[Document, Seq[Picture]]]],
        solver: SolverSettings | None = None,
        step: int = 0,
        counts: bool = True,
    ) -> PolicyRows:
        """Pack rows of documents whose payload is an `Experience`.

        Args:
            rows: of documents.
            solver: of `grpo`, that drew the samples.
            step: of it, that is trained now.
            counts: see `PolicyRows`.
        """
        brought = [document.payload for row in rows for document, _ in row]
        draws = [one.draws for one in brought if one.draws is not None]
        return PolicyRows(
            self.rows.pack(rows),
            torch.cat([one.text for one in brought]),
            torch.tensor([one.picture for one in brought]),
            torch.cat(draws, dim=1) if self.settings.method == "grpo" and draws else None,
            solver,
            step,
            counts,
        )

    def prepare(self, rows: PolicyRows, device: torch.device | str) -> PolicyBatch:
        """Move samples to the device."""
        owned = self.rows.prepare(rows.batch, device)
        draws = None if rows.draws is None else rows.draws.to(device)
        text, pictures = rows.text.to(device), rows.pictures.to(device)
        moved = replace(rows, text=text, pictures=pictures, draws=draws)
        return PolicyBatch(owned.prepared, owned.token_owners, owned.text_owners, rows=moved)

    def counts(self, batch: PolicyBatch) -> dict[str, float]:
        """Trained image tokens and text ids."""
        if not batch.rows.counts:
            return dict.fromkeys(self.loss_weights, 0.0)
        tokens, texts = float(len(batch.token_owners)), float(len(batch.text_owners))
        if self.settings.method == "grpo" and self.settings.token_share < 1:
            sizes = batch.token_owners.bincount().tolist()
            tokens = float(
                sum(trained_count(size, self.settings.token_share) for size in sizes if size)
            )
        found = {"policy_loss": tokens, "text_policy_loss": texts, "kl": tokens, "text_kl": texts}
        return found | {"ratio": tokens}

    def observed_weights(
        self, average: Mapping[str, Tensor] | None
    ) -> Mapping[str, Mapping[str, Tensor] | None]:
        """The policy that drew the samples, and the reference."""
        drew = average if self.samples_with_average else None
        found = {OLD: drew if self.old is None else self.old}
        return found if self.reference is None else {**found, REFERENCE: self.reference}

    def observe(self, model: nn.Module, batch: PolicyBatch, name: str) -> PolicyBatch:
        """The batch with velocities or steps, and log-probabilities, of other weights."""
        assert isinstance(model, NextStepModel)
        seen = dict(batch.seen)
        hidden = states(model, batch.prepared)
        drawn = bool(self.settings.image) and len(batch.token_owners) > 0
        if drawn and self.settings.method == "nft":
            seen[f"{name}/velocity"], _ = batch.velocities(model, hidden)
        elif drawn:
            if name == OLD:
                seen |= self._path(model, batch, hidden)
            mean = self._step_mean(model, replace(batch, seen=seen), hidden)
            seen[f"{name}/mean"] = mean
        if self.settings.text and len(batch.text_owners):
            seen[f"{name}/text"] = batch.text_log_probs(model, hidden, self.settings.temperature)
        return replace(batch, seen=seen)

    def losses(self, model: nn.Module, batch: PolicyBatch) -> dict[str, Tensor]:
        """Sums over image tokens and text ids."""
        assert isinstance(model, NextStepModel)
        hidden = states(model, batch.prepared)
        # A batch may have nothing that was sampled: an answer that reads otherwise than written.
        out = {"policy_loss": 0.0 * hidden.sum()}
        if self.settings.image and len(batch.token_owners):
            image = self._nft if self.settings.method == "nft" else self._grpo
            out |= image(model, batch, hidden)
        if self.settings.text and len(batch.text_owners):
            out |= self._text_losses(model, batch, hidden)
        return out if batch.rows.counts else {name: 0.0 * loss for name, loss in out.items()}

    def _nft(self, model: NextStepModel, batch: PolicyBatch, hidden: Tensor) -> dict[str, Tensor]:
        velocity, target = batch.velocities(model, hidden)
        levels = len(velocity) // len(batch.token_owners)
        advantage = batch.rows.pictures[batch.token_owners].repeat(levels)
        r = optimality(advantage, self.settings.advantage_limit)
        old = batch.seen[f"{OLD}/velocity"]
        loss = nft_loss(velocity, old, target, r, self.settings.beta)
        out = {"policy_loss": loss.sum() / levels}
        if self.reference is not None:
            away = velocity - batch.seen[f"{REFERENCE}/velocity"]
            out["kl"] = away.square().mean(-1).sum() / levels
        return out

    def _grpo(self, model: NextStepModel, batch: PolicyBatch, hidden: Tensor) -> dict[str, Tensor]:
        kept = batch.seen["kept"]
        mean, after = self._step_mean(model, batch, hidden), batch.seen["after"]
        log_prob = step_log_prob(after, mean)
        old = step_log_prob(after, batch.seen[f"{OLD}/mean"])
        advantage = batch.rows.pictures[batch.token_owners]
        loss = clipped_policy_loss(log_prob, old, advantage, self.settings.clip)
        ratio = (log_prob - old).detach().exp()
        out = {"policy_loss": loss[kept].sum(), "ratio": ratio[kept].sum()}
        if self.reference is not None:
            away = (mean - batch.seen[f"{REFERENCE}/mean"]).square().mean(-1)
            out["kl"] = away[kept].sum()
        return out

    def _text_losses(
        self, model: NextStepModel, batch: PolicyBatch, hidden: Tensor
    ) -> dict[str, Tensor]:
        log_prob = batch.text_log_probs(model, hidden, self.settings.temperature)
        old = batch.seen[f"{OLD}/text"]
        worth = batch.rows.text
        worth = torch.where(worth < 0, self.settings.bad_text * worth, worth)
        loss = clipped_policy_loss(log_prob, old, worth, self.settings.text_clip)
        out = {"text_policy_loss": loss.sum()}
        if self.reference is not None:
            out["text_kl"] = text_divergence(batch.seen[f"{REFERENCE}/text"], log_prob).sum()
        return out

    def _path(self, model: NextStepModel, batch: PolicyBatch, hidden: Tensor) -> dict[str, Tensor]:
        """Every token's path once more: where its trained step began and ended, [T, D]."""
        rows = batch.rows
        assert rows.solver is not None and rows.draws is not None
        velocity = _Velocity(model, batch, hidden)
        visited: list[Tensor] = []

        def seen(x: Tensor, t: float) -> Tensor:
            visited.append(x)
            return velocity(x, t)

        stream = iter(rows.draws)
        visited.append(solve(seen, lambda: next(stream), rows.solver))
        kept = torch.ones_like(batch.token_owners, dtype=torch.bool)
        if self.settings.token_share < 1:
            kept = self._uncertain(batch, velocity)
        return {"before": visited[rows.step], "after": visited[rows.step + 1], "kept": kept}

    def _uncertain(self, batch: PolicyBatch, velocity: _Velocity) -> Tensor:
        """The tokens that are trained, [T] bool."""
        noise = batch.prepared.batch.noise
        assert noise is not None
        ends = [solve(velocity, partial(torch.clone, start), SPREAD_SOLVER) for start in noise]
        spread = torch.stack(ends).std(0).mean(-1)
        return most_uncertain(spread, batch.token_owners, self.settings.token_share)

    def _step_mean(self, model: NextStepModel, batch: PolicyBatch, hidden: Tensor) -> Tensor:
        """Mean of the trained step from where it began, [T, D]."""
        solver, number = batch.rows.solver, batch.rows.step
        assert solver is not None
        t, after = list(pairwise(uniform_grid(solver.steps, solver.shift)))[number]
        x = batch.seen["before"]
        velocity = _Velocity(model, batch, hidden)(x, t)
        mean, _ = STEP_RULES[solver.name](x, velocity, t, after, solver)
        return mean


class _Velocity:
    """Velocities of all trained tokens at one time, without guidance."""

    def __init__(self, model: NextStepModel, batch: PolicyBatch, hidden: Tensor) -> None:
        self.head = model.image_head
        condition = model.image_condition(hidden[batch.prepared.batch.condition_places])
        self.embedded = self.head.embed_condition(condition)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """x [T, D] -> [T, D], fp32."""
        times = torch.full((1,), t, device=x.device)
        time = self.head.embed_time(times).expand(len(x), -1)
        return self.head.velocity(x.to(self.embedded.dtype), time, self.embedded).float()
