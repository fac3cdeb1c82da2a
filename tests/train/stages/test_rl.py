"""The rl stage: ratios of exactly 1, gradients along advantages, text and uncertain tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextstep.data.documents import Document
from nextstep.flow.noise import KeyedNoise
from nextstep.flow.solvers import SolverSettings
from nextstep.model.nextstep import NextStepModel
from nextstep.recipe.posttrain_schema import Policy
from nextstep.text.sequence import IGNORE, Sequence, build_sequence, text_to_image
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.config import TrainConfig
from nextstep.train.contracts import Step
from nextstep.train.ema import copied
from nextstep.train.parallel import Peers
from nextstep.train.stages.rl import Experience, PolicyRows, PolicySettings, PolicyStage
from nextstep.train.step import Stepper
from nextstep.vae.latents import token_norm
from tests.conftest import TINY, random_model

SOLVER = SolverSettings("cps", 5, noise_from=1, noise_steps=2)
TEXTS = ["two cats", "a red apple", "make it blue"]
ADVANTAGES = [1.0, -1.0, 0.5]


def sample(
    tokenizer: TextTokenizer, number: int, advantage: float
) -> tuple[Document, list[Tensor]]:
    sequence = build_sequence(text_to_image(TEXTS[number], (2, 3)), tokenizer)
    # Of the text the ids before the picture's area tag are what the policy wrote.
    written = sequence.ids.index(tokenizer.ids.image_area)
    labels = [*sequence.labels[:written], *[IGNORE] * (len(sequence) - written)]
    asked = Sequence(sequence.ids, labels, sequence.images)
    picture = token_norm(torch.randn(6, 64, generator=torch.Generator().manual_seed(number)))
    noise = KeyedNoise([(number, 0)], SOLVER.draws, 64)
    draws = torch.stack([noise.token(index)[:, 0] for index in range(6)], dim=1)
    asked_ids = sum(label != IGNORE for label in labels[1:])
    brought = Experience(torch.full((asked_ids,), advantage), advantage, draws)
    return Document(f"{number}", asked, (0,), 5 + number, brought), [picture]


def rows_of(
    made: PolicyStage, tokenizer: TextTokenizer, advantages: list[float] = ADVANTAGES, step: int = 1
) -> PolicyRows:
    rows = [[sample(tokenizer, n, a)] for n, a in enumerate(advantages)]
    return made.batch_of(rows, SOLVER, step)


def trainable() -> NextStepModel:
    return random_model(TINY).requires_grad_(True)


def stage(model: NextStepModel, **settings) -> PolicyStage:
    chosen = PolicySettings(levels=3, **settings)
    return PolicyStage(TINY, chosen, copied(model) if any(chosen.distances) else None)


def observed(made: PolicyStage, model: NextStepModel, rows: PolicyRows):
    batch = made.prepare(rows, "cpu")
    with torch.no_grad():
        for name in made.observed_weights(None):
            batch = made.observe(model, batch, name)
    return batch


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_ratio_on_policy_is_exactly_one(
    text_tokenizer: TextTokenizer, step: int, share: float
) -> None:
    model = trainable()
    made = stage(model, method="grpo", text=1.0, distances=(0.1, 0.1), token_share=share)
    batch = observed(made, model, rows_of(made, text_tokenizer, step=step))
    losses = made.losses(model, batch)
    counts = made.counts(batch)
    assert counts["ratio"] == 18 * share
    assert float(losses["ratio"]) == counts["ratio"]
    assert float(losses["kl"]) == float(losses["text_kl"]) == 0
    # With every ratio 1 the loss is minus the sum of the advantages.
    tokens = 6 * share
    assert float(losses["policy_loss"]) == pytest.approx(-tokens * sum(ADVANTAGES))


def test_a_trained_step_begins_where_the_path_leads(text_tokenizer: TextTokenizer) -> None:
    """The step's noise is the drawn one: after = mean + std * xi."""
    model = trainable()
    made = stage(model, method="grpo")
    batch = observed(made, model, rows_of(made, text_tokenizer, step=1))
    xi = batch.rows.draws[
        1
    ]  # the first draw is the start, the next that of the window's first step
    std = (1 - 2 / 5) * torch.sin(torch.tensor(SOLVER.noise_level * torch.pi / 2))
    assert torch.allclose(batch.seen["after"], batch.seen["old/mean"] + std * xi, atol=1e-5)


@pytest.mark.parametrize("method", ["nft", "grpo"])
def test_no_advantage_gives_no_gradient(text_tokenizer: TextTokenizer, method: str) -> None:
    model = trainable()
    made = stage(model, method=method, text=1.0)
    batch = observed(made, model, rows_of(made, text_tokenizer, [0.0, 0.0, 0.0]))
    losses = made.losses(model, batch)
    (losses["policy_loss"] + losses["text_policy_loss"]).backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert largest < 1e-6


@pytest.mark.parametrize("method", ["nft", "grpo"])
def test_a_step_makes_good_samples_likelier(text_tokenizer: TextTokenizer, method: str) -> None:
    model = trainable()
    made = stage(model, method=method, text=1.0)
    rows = rows_of(made, text_tokenizer)
    batch = observed(made, model, rows)
    with torch.no_grad():
        before = made.losses(model, batch)
    config = TrainConfig(1, 1e-3, schedule="constant", precision="fp32", weight_decay=0.0, ema=0.0)
    Stepper(model, made, config, Peers(None)).take(Step([rows]), 0)
    with torch.no_grad():
        after = made.losses(model, batch)
    assert float(after["policy_loss"]) < float(before["policy_loss"])
    assert float(after["text_policy_loss"]) < float(before["text_policy_loss"])


@pytest.mark.parametrize("method", ["nft", "grpo"])
def test_text_learns_alone_and_from_the_better_ids_alone(
    text_tokenizer: TextTokenizer, method: str
) -> None:
    model = trainable()

    def gradient(advantages: list[float], **settings: float) -> Tensor:
        made = stage(model, method=method, text=1.0, **settings)
        model.zero_grad()
        batch = observed(made, model, rows_of(made, text_tokenizer, advantages))
        losses = made.losses(model, batch)
        weighed = sum(weight * losses[name] for name, weight in made.loss_weights.items() if weight)
        assert isinstance(weighed, Tensor)
        weighed.backward()
        head = model.image_head.parameters()
        assert all(p.grad is None or not p.grad.any() for p in head) == (made.settings.image == 0)
        found = model.layers[0].mlp.up_proj.weight.grad
        assert found is not None
        return found.clone()

    better = gradient([1.0, 0.0, 0.5], image=0.0)
    assert torch.allclose(gradient([1.0, -1.0, 0.5], image=0.0, bad_text=0.0), better, atol=1e-7)
    assert not torch.allclose(gradient([1.0, -1.0, 0.5], image=0.0), better, atol=1e-4)
    gradient([1.0, -1.0, 0.5])


def test_the_reference_pulls_back(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    made = stage(model, distances=(1.0, 1.0), text=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    batch = made.prepare(rows_of(made, text_tokenizer), "cpu")
    stepper = Stepper(model, made, TrainConfig(1, 1e-3, precision="fp32", ema=0.0), Peers(None))
    (batch,) = stepper._observed([batch], 1)
    losses = made.losses(model, batch)
    assert float(losses["kl"]) > 0
    assert float(losses["text_kl"]) > 0
    text = batch.text_log_probs(model, _hidden(model, batch), made.settings.temperature)
    assert torch.equal(batch.seen["old/text"], text)


def test_text_may_be_held_by_another_weight_and_clip(text_tokenizer: TextTokenizer) -> None:
    assert Policy(kl=0.5, image=3.0, text=2.0).distances == (1.5, 1.0)
    assert Policy(kl=0.5, text_kl=0.0, image=3.0, text=2.0).distances == (1.5, 0.0)
    assert Policy(kl=0.5, image=0.0, text=1.0).needs_reference
    assert not Policy(kl=0.5, text_kl=0.0, image=0.0, text=1.0).needs_reference
    model = trainable()
    batches = []
    for clip in (0.2, 1e-6):
        made = stage(model, image=0.0, text=1.0, clip=9.0, text_clip=clip)
        batches.append((made, observed(made, model, rows_of(made, text_tokenizer, [-1.0]))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
        wide, narrow = (float(m.losses(model, b)["text_policy_loss"]) for m, b in batches)
    # All became less likely, as they should; how much of that counts is what the clip says.
    assert wide < narrow


def _hidden(model: NextStepModel, batch) -> Tensor:
    from nextstep.train.stages.pretrain import states

    with torch.no_grad():
        return states(model, batch.prepared)


def test_the_average_is_the_old_policy_of_nft(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    made = stage(model)
    stepper = Stepper(model, made, TrainConfig(1, 1e-3, precision="fp32", ema=0.9), Peers(None))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    (batch,) = stepper._observed([made.prepare(rows_of(made, text_tokenizer), "cpu")], 1)
    assert all(torch.equal(kept[name], p) for name, p in model.named_parameters())
    present = made.observe(model, batch, "present").seen["present/velocity"]
    assert not torch.allclose(batch.seen["old/velocity"], present, atol=1e-3)
