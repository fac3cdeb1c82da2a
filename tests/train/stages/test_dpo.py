"""The dpo stage: pairs in packed rows, errors by document, equal pairs, what the log shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nextstep.data.documents import Document
from nextstep.engine.settings import GenerationSettings
from nextstep.model.nextstep import NextStepModel
from nextstep.rollout.batches import Row
from nextstep.rollout.pairs import Pairs
from nextstep.rollout.reference import reference_figures, reference_folder
from nextstep.rollout.samples import RolloutGroup, RolloutSample
from nextstep.text.reasoning import Region
from nextstep.text.sequence import build_sequence, editing, text_to_image
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.config import TrainConfig
from nextstep.train.contracts import Step
from nextstep.train.parallel import Peers
from nextstep.train.stages.by_document import mean_by
from nextstep.train.stages.dpo import DpoStage, PairBatch, PreferenceSettings, _Look
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


def stage(**settings) -> DpoStage:
    return DpoStage(TINY, PreferenceSettings(levels=3, **settings))


@torch.no_grad()
def compared(made: DpoStage, model: NextStepModel, rows: list[Pair]) -> list[Pair]:
    """Rows with what the model says now as what the reference says."""
    told = iter(made.figures(model, made.prepare(made.batch_of(rows), "cpu")).tolist())
    return [[(replace(d, payload=next(told)), pictures) for d, pictures in row] for row in rows]


def batch_of(made: DpoStage, rows: list[Pair]) -> PairBatch:
    return made.prepare(made.batch_of(rows), "cpu")


def trainable() -> NextStepModel:
    return random_model(TINY).requires_grad_(True)


def test_figures_of_a_document_do_not_depend_on_its_row(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    made = stage(text=1.0)
    pairs = [pair(text_tokenizer, number) for number in range(3)]
    together = batch_of(made, [[*pairs[0], *pairs[1]], [], pairs[2]])
    with torch.no_grad():
        found = made.figures(model, together)
        alone = [made.figures(model, batch_of(made, [p])) for p in pairs]
    assert together.pairs == 3
    assert torch.allclose(found, torch.cat(alone), atol=1e-4)


def test_pairs_share_times_and_noise(text_tokenizer: TextTokenizer) -> None:
    made = stage()
    batch = made.batch_of([pair(text_tokenizer, 0)]).batch
    assert batch.u is not None and batch.noise is not None
    assert torch.equal(batch.u[:, :6], batch.u[:, 6:])
    assert torch.equal(batch.noise[:, :6], batch.noise[:, 6:])


def test_at_the_reference_the_loss_is_log_two(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    made = stage(text=0.5, sft=0.1)
    rows = [pair(text_tokenizer, 0), pair(text_tokenizer, 2)]
    batch = batch_of(made, compared(made, model, rows))
    losses = {name: float(value.detach()) for name, value in made.losses(model, batch).items()}
    assert math.isclose(losses["dpo_loss"], 2 * math.log(2), rel_tol=1e-6)
    assert math.isclose(losses["text_dpo_loss"], 2 * math.log(2), rel_tol=1e-6)
    assert losses["winner_change"] == losses["loser_change"] == losses["accuracy"] == 0
    assert set(losses) == set(made.loss_weights) == set(made.counts(batch))


def test_equal_pairs_move_nothing(text_tokenizer: TextTokenizer) -> None:
    model = trainable()
    made = stage(text=1.0)
    rows = compared(made, model, [pair(text_tokenizer, 0, alike=True)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    batch = batch_of(made, rows)
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
        made = stage(beta=100.0, safety=safety)
        config = TrainConfig(12, 3e-3, precision="fp32", weight_decay=0.0, ema=0.0)
        stepper = Stepper(model, made, config, Peers(None))
        rows = compared(made, model, [pair(text_tokenizer, number) for number in range(3)])
        for number in range(12):
            report = stepper.take(Step([made.batch_of(rows)]), number)
        parts = report.parts()
        assert parts["dpo_loss"] < math.log(2)
        assert parts["accuracy"] == 1.0
        assert parts["loser_change"] > parts["winner_change"]
        changes[safety] = parts["winner_change"]
    assert changes[1.0] <= changes[0.0] + 1e-4


EDIT = "<image>make it blue\n{}"


def edit_pair(tokenizer: TextTokenizer, *regions: Region | None) -> Pair:
    """Two results of one edit, each with its own tokens kept."""
    made: Pair = []
    source = token_norm(torch.randn(6, 64, generator=torch.Generator().manual_seed(1)))
    for side, region in enumerate(regions):
        sequence = build_sequence(editing(EDIT.format("two"), [(2, 3)], (2, 3), region), tokenizer)
        new = token_norm(torch.randn(6, 64, generator=torch.Generator().manual_seed(5 + side)))
        picture = source.clone()
        places = range(6) if region is None else region.places((2, 3))
        picture[list(places)] = new[list(places)]
        made.append((Document(f"e/{side}", sequence, (0, 1), 7), [source, picture]))
    return made


def test_given_tokens_do_not_count(text_tokenizer: TextTokenizer) -> None:
    """Errors are means over sampled tokens, which meet the draws of their places."""
    model, made = trainable(), stage()
    part = Region(0, 1, 2, 3)
    whole, cut = (
        batch_of(made, [edit_pair(text_tokenizer, *regions)])
        for regions in ((None, part), (part, part))
    )
    assert whole.token_owners.tolist() == [0] * 6 + [1] * 4
    assert cut.token_owners.tolist() == [0] * 4 + [1] * 4
    rows, less = whole.prepared.batch, cut.prepared.batch
    assert rows.noise is not None and less.noise is not None
    # The second result is the same in both pairs, and meets what the first one meets there.
    assert torch.equal(rows.noise[:, 6:], less.noise[:, 4:])
    assert torch.equal(rows.noise[:, [1, 2, 4, 5]], rows.noise[:, 6:])
    with torch.no_grad():
        found = [made.figures(model, batch)[1, 0] for batch in (whole, cut)]
    assert torch.allclose(*found, atol=1e-5)


def test_the_safe_share_follows_from_gradients(text_tokenizer: TextTokenizer) -> None:
    """|g_w|^2 and g_w.g_l are those of autograd, also where other tokens were given."""
    model = trainable()
    made = stage(safety=1.0)
    pairs = [
        edit_pair(text_tokenizer, None, Region(0, 1, 2, 3)),
        edit_pair(text_tokenizer, Region(0, 0, 1, 3), Region(0, 1, 2, 3)),
    ]
    batch = batch_of(made, pairs)
    look = _Look.at(model, batch, False)
    found = look.differences.detach().requires_grad_()
    errors = mean_by(found.square().mean((0, 2)), batch.token_owners, batch.documents)
    rows = batch.prepared.batch
    row, column = rows.coordinates[rows.target_rows].unbind(1)
    places = (row * 3 + column).tolist()
    for pair_number in range(2):
        sides = []
        for document in (2 * pair_number, 2 * pair_number + 1):
            (gradient,) = torch.autograd.grad(errors[document], found, retain_graph=True)
            mine = (batch.token_owners == document).nonzero().flatten().tolist()
            spread = torch.zeros(gradient.shape[0], 6, gradient.shape[2])
            spread[:, [places[n] for n in mine]] = gradient[:, mine]
            sides.append(spread.flatten())
        square, along = (value[pair_number] for value in look.products(batch))
        expected = (sides[0] @ sides[1]) / (sides[0] @ sides[0])
        assert torch.allclose(along / square, expected, atol=1e-4)


def test_a_reference_is_worked_out_once(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Missing parts are made, whole ones read; other weights or samples have another folder."""
    groups = [
        RolloutGroup(
            f"g{number}", "two cats", number, (1, 2), GenerationSettings(),
            tuple(
                RolloutSample(n, tokens=torch.full((2, 64), float(n)), rewards={"reward": n})
                for n in range(4)
            ),
        )
        for number in range(40)
    ]  # fmt: skip
    pairs, calls = Pairs(groups, text_tokenizer, winners=2), list[int]()

    def figures(rows: Sequence[Row]) -> Tensor:
        calls.append(len(rows))
        told = [(document.seed % 97, n) for row in rows for n, (document, _) in enumerate(row)]
        return torch.tensor(told, dtype=torch.float32)

    model = trainable()
    place = reference_folder(tmp_path, model, pairs, 4)
    found = reference_figures(figures, pairs, 2, place)
    assert found.shape == (2, 40, 2, 2) and calls == [32, 8, 32, 8]
    pairs.reference = found
    for number in (0, 39, 41):
        for side, (document, _) in enumerate(pairs.row(number)):
            assert document.payload == [document.seed % 97, side]
    next(iter(sorted(place.iterdir()))).unlink()
    assert torch.equal(reference_figures(figures, pairs, 2, place), found)
    assert calls[4:] == [32]
    assert reference_folder(tmp_path, model, pairs, 4) == place
    assert reference_folder(tmp_path, model, pairs, 3) != place
    assert reference_folder(tmp_path, model, Pairs(groups[:9], text_tokenizer, 2), 4) != place
    with torch.no_grad():
        next(iter(model.parameters())).add_(0.1)
    assert reference_folder(tmp_path, model, pairs, 4) != place
