"""The dpo stage: pairs in packed rows, errors by document, equal pairs, what the log shows."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from nextstep.data.documents import Document
from nextstep.model.nextstep import NextStepModel
from nextstep.text.sequence import build_sequence, text_to_image
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.config import TrainConfig
from nextstep.train.contracts import Step
from nextstep.train.ema import copied, swapped
from nextstep.train.parallel import Peers
from nextstep.train.stages.dpo import DpoStage, PairBatch, PreferenceSettings
from nextstep.train.step import Stepper
from nextstep.vae.latents import token_norm
from tests.conftest import TINY, random_model

Pair = list[tuple[Document, list[Tensor]]]
TEXTS = [("two cats", "a red apple"), ("make it blue", "make it blue"), ("a", "two")]


def pair(tokenizer: TextTokenizer, number: int, alike: bool = False) -> Pair:
    made: Pair = []
    for side, text in enumerate(TEXTS[number]):
        generator = torch.Generator().manual_seed(10 * number + (0 if alike else side))
        sequence = build_sequence(
            text_to_image(TEXTS[number][0] if alike else text, (2, 3)), tokenizer
        )
        picture = token_norm(torch.randn(6, 64, generator=generator))
        made.append((Document(f"{number}/{side}", sequence, (0,), 77 + number), [picture]))
    return made


def stage(model: NextStepModel, **settings) -> DpoStage:
    return DpoStage(TINY, PreferenceSettings(levels=3, **settings), copied(model))


def observed(made: DpoStage, model: NextStepModel, rows: list[Pair]) -> PairBatch:
    batch = made.prepare(made.batch_of(rows), "cpu")
    assert made.reference is not None
    with swapped(model, made.reference), torch.no_grad():
        return made.observe(model, batch, "reference")


def trainable() -> NextStepModel:
    return random_model(TINY).requires_grad_(True)


def test_figures_of_a_document_do_not_depend_on_its_row(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    made = stage(model, text=1.0)
    pairs = [pair(text_tokenizer, number) for number in range(3)]
    together = made.prepare(made.batch_of([[*pairs[0], *pairs[1]], [], pairs[2]]), "cpu")
    with torch.no_grad():
        found = made.figures(model, together)
        alone = [made.figures(model, made.prepare(made.batch_of([p]), "cpu")) for p in pairs]
    assert together.pairs == 3
    assert torch.allclose(found, torch.cat(alone, dim=1), atol=1e-4)


def test_pairs_share_times_and_noise(text_tokenizer: TextTokenizer) -> None:
    made = stage(trainable())
    batch = made.batch_of([pair(text_tokenizer, 0)])
    assert batch.u is not None and batch.noise is not None
    assert torch.equal(batch.u[:, :6], batch.u[:, 6:])
    assert torch.equal(batch.noise[:, :6], batch.noise[:, 6:])


def test_at_the_reference_the_loss_is_log_two(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    made = stage(model, text=0.5, sft=0.1)
    batch = observed(made, model, [pair(text_tokenizer, 0), pair(text_tokenizer, 2)])
    losses = {name: float(value.detach()) for name, value in made.losses(model, batch).items()}
    assert math.isclose(losses["dpo_loss"], 2 * math.log(2), rel_tol=1e-6)
    assert math.isclose(losses["text_dpo_loss"], 2 * math.log(2), rel_tol=1e-6)
    assert losses["winner_change"] == losses["loser_change"] == losses["accuracy"] == 0
    assert set(losses) == set(made.loss_weights) == set(made.counts(batch))


def test_equal_pairs_move_nothing(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    made = stage(model, text=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    batch = observed(made, model, [pair(text_tokenizer, 0, alike=True)])
    losses = made.losses(model, batch)
    (losses["dpo_loss"] + losses["text_dpo_loss"]).backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    # Winner and loser lie at different places of the batch, so their sums may round apart.
    assert largest < 1e-4


def test_steps_of_the_loop_prefer_the_winner(text_tokenizer: TextTokenizer) -> None:
    """After some steps winners gained on losers, and the safe scale holds the winners' error."""
    changes = {}
    for safety in (0.0, 1.0):
        model = trainable()
        made = stage(model, beta=100.0, safety=safety)
        config = TrainConfig(12, 3e-3, precision="fp32", weight_decay=0.0, ema=0.0)
        stepper = Stepper(model, made, config, Peers(None))
        rows = [pair(text_tokenizer, number) for number in range(3)]
        for number in range(12):
            report = stepper.take(Step([made.batch_of(rows)]), number)
        parts = report.parts()
        assert parts["dpo_loss"] < math.log(2)
        assert parts["accuracy"] == 1.0
        assert parts["loser_change"] > parts["winner_change"]
        changes[safety] = parts["winner_change"]
    assert changes[1.0] <= changes[0.0] + 1e-4


def test_reference_figures_may_come_with_the_batch(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    with_weights = stage(model, text=1.0)
    batch = observed(with_weights, model, [pair(text_tokenizer, 0)])
    without = DpoStage(TINY, with_weights.settings)
    assert without.observed_weights(None) == {}
    again = replace(
        without.prepare(without.batch_of([pair(text_tokenizer, 0)]), "cpu"),
        reference=batch.reference,
    )
    one, other = (s.losses(model, b) for s, b in ((with_weights, batch), (without, again)))
    assert all(torch.equal(one[name], other[name]) for name in one)
