"""Running a recipe: build the parts, train, write model folders and sample sheets.

    RUN/nextstep-run.json says that the folder is a run's; `lock` beside it keeps others out
    RUN/recipe.yaml       the whole recipe as it was run
    RUN/log.jsonl         figures and events
    RUN/loss.png          the loss as a curve, when the run ends or stops
    RUN/checkpoints/      see `nextstep.train.checkpoint`
    RUN/samples/          sheets of pictures
    RUN/step-N/           model folder of a milestone
    RUN/model/            model folder at the end

A run that was stopped goes on from its newest checkpoint when it is run again.

Legend: weights of any shape by their names.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from nextstep.recipe import build
from nextstep.recipe.run_folder import open_run_folder, put_in_place
from nextstep.recipe.samples import defaults_of, draw_sheet
from nextstep.train.parallel import Ranks, agreed_precision, joined
from nextstep.utils.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nextstep.data.steps import BatchSource
    from nextstep.recipe.run_schema import Probes
    from nextstep.recipe.schema import Recipe
    from nextstep.train.trainer import Trainer

MODEL, SAMPLES, SHEETS = "model", "samples", "step-{:08d}.png"
RECIPE = "recipe.yaml"


class RunParts(Protocol):
    """What a run of any stage is made of."""

    stage: Any
    mesh: Any

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def batches(self) -> BatchSource:
        """The stream of steps."""

    def save(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write a model folder with these whole weights."""

    def draw(self, weights: dict[str, Tensor], path: Path) -> None:
        """Write a sheet of pictures drawn with these whole weights."""

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Figures of the emoji world of this model."""

    def attach(self, trainer: Trainer) -> None:
        """Take notice of the trainer before its first step."""

    def close(self) -> None:
        """Stop what runs beside the training."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: of the run.
        step: optimizer steps taken.
        finished: whether that is the last one.
        model: folder of the trained model, if it is finished.
    """

    folder: Path
    step: int
    finished: bool
    model: Path | None


MakeParts = Callable[["Recipe", Path, Ranks, str], RunParts]
"""(recipe, folder of the run, this process among all, name of the recipe) -> what is trained."""


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    where: str = "recipe",
    resume: bool = True,
    device: str | None = None,
    progress: bool = False,
    make_parts: MakeParts | None = None,
) -> Outcome:
    """Train a recipe in a folder, alone or as one of the processes that torchrun started.

    Args:
        recipe: checked.
        folder: of the run; all processes must see the same one.
        where: name of the recipe file, for complaints.
        resume: go on from the newest checkpoint in the folder; otherwise a run that is there is
            moved aside first.
        device: "cpu" or "cuda"; default CUDA where there is one.
        progress: show a progress line on a terminal.
        make_parts: makes what is trained; default what the recipe's stage says.

    Raises:
        NextStepError: when a part cannot be had or does not fit, the folder is not a run's, or
            another training uses it.
        TrainingError: when the loss stays no number.
    """
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(device))
        with rank_0_first(ranks) as leads:
            if leads:
                stack.enter_context(open_run_folder(folder, fresh=not resume))
                _prepare(recipe, folder, where)
        precision = agreed_precision(recipe.precision, ranks.device, ranks.world)
        chosen = recipe.model_copy(update={"precision": precision})
        with barrier(ranks):
            if recipe.stage != "tokenizer":
                build.make_latents(chosen, folder, ranks)
        parts = (make_parts or _parts)(chosen, folder, ranks, where)
        try:
            return _train(recipe, parts, folder, ranks, progress)
        finally:
            parts.close()


@contextmanager
def rank_0_first(ranks: Ranks) -> Iterator[bool]:
    """Inside, the first rank works; the others pass, and all meet at the end."""
    with barrier(ranks):
        yield ranks.rank == 0


@contextmanager
def barrier(ranks: Ranks) -> Iterator[None]:
    """All ranks meet at the end."""
    try:
        yield
    finally:
        if ranks.world > 1:
            import torch.distributed as dist

            dist.barrier()


def _prepare(recipe: Recipe, folder: Path, where: str) -> None:
    """What one rank does for all: recipe, text tokenizer."""
    if not (folder / RECIPE).exists():  # a run that is there keeps its own until this one goes on
        write_recipe(recipe, folder / RECIPE)
    if recipe.stage != "tokenizer":
        build.make_text_tokenizer(recipe, folder, where)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a whole recipe, defaults included, beside its name and rename it."""
    import yaml

    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_whole(path, text.encode())


def _changes(recipe: Recipe, path: Path) -> list[str]:
    """How a recipe differs from the one in a file, key by key; nothing of a damaged file."""
    from nextstep.recipe.load import RecipeError, read_yaml

    def flat(value: Any, place: str) -> Iterator[tuple[str, Any]]:
        """Values by their places; lists are taken whole."""
        if not isinstance(value, dict):
            yield place, value
            return
        for name, one in value.items():
            yield from flat(one, f"{place}.{name}" if place else str(name))

    try:
        before = dict(flat(read_yaml(path), ""))
    except RecipeError:
        return []
    now = dict(flat(recipe.model_dump(mode="json"), ""))
    names = [name for name in now | before if before.get(name) != now.get(name)]
    return [f"{name} {before.get(name)} -> {now.get(name)}" for name in names]


def _parts(recipe: Recipe, folder: Path, ranks: Ranks, where: str) -> RunParts:
    if recipe.stage == "tokenizer":
        from nextstep.recipe.tokenizer_parts import TokenizerParts

        return TokenizerParts(recipe, ranks, where)
    from nextstep.recipe import posttrain_parts, sequence_parts

    kinds: dict[str, type[sequence_parts.SequenceParts]] = {
        "dpo": posttrain_parts.DpoParts,
        "rl": posttrain_parts.RlParts,
        "distill": posttrain_parts.DistillParts,
    }
    kind = kinds.get(recipe.stage, sequence_parts.SequenceParts)
    return kind(recipe, folder, ranks, where)


def _train(recipe: Recipe, parts: RunParts, folder: Path, ranks: Ranks, progress: bool) -> Outcome:
    from nextstep.train.loss_plot import save_loss_plot
    from nextstep.train.trainer import Trainer

    config = build.train_config(recipe, progress and ranks.rank == 0)
    trainer = Trainer(
        parts.model, parts.stage, parts.batches, config, folder,
        mesh=parts.mesh, on_sample=_callback(recipe, parts, folder),
    )  # fmt: skip
    parts.attach(trainer)
    resumed = trainer.resume()
    if trainer.finished and (folder / MODEL).is_dir():
        return Outcome(folder, trainer.step, True, folder / MODEL)
    if trainer.peers.leads:
        if resumed and (changed := _changes(recipe, folder / RECIPE)):
            trainer.report("recipe", detail="; ".join(changed))
        write_recipe(recipe, folder / RECIPE)
    finished = trainer.run()
    if trainer.peers.leads:
        save_loss_plot(folder / "log.jsonl", folder / "loss.png")
    if finished:
        _write_model(trainer, parts, folder / MODEL)
        trainer.peers.any(False)  # nobody leaves before the folder is written
    return Outcome(folder, trainer.step, finished, folder / MODEL if finished else None)


def _callback(recipe: Recipe, parts: RunParts, folder: Path) -> Callable[[Trainer], None]:
    """Called every `build.callback_steps`: sheet, figures and milestone when they are due."""

    def look(trainer: Trainer) -> None:
        asked, step = recipe.samples, trainer.step
        probes = recipe.probes
        if probes and (step % probes.every == 0 or trainer.finished):
            _measure(trainer, parts, probes)
        if asked and (step % asked.every == 0 or trainer.finished):
            weights = trainer.weights()
            if trainer.peers.leads:
                _draw(parts, weights, folder / SAMPLES / SHEETS.format(step))
        if step in recipe.saving.milestones:
            _write_model(trainer, parts, folder / f"step-{step:08d}")

    return look


def _measure(trainer: Trainer, parts: RunParts, probes: Probes) -> None:
    """Log figures of the averaged weights; every rank works them out."""
    from nextstep.recipe.probes import held
    from nextstep.train.parallel import run_gathered

    with trainer.averaged() as model:
        figures = run_gathered(model, parts.measure)
    gate = {"gate": "held" if held(figures, probes.gate) else "open"} if probes.gate else {}
    trainer.report("probe", **figures, **gate)


def _draw(parts: RunParts, weights: dict[str, Tensor], path: Path) -> None:
    """Draw a sheet; days of training do not end because one cannot be drawn."""
    try:
        parts.draw(weights, path)
    except Exception as error:
        warnings.warn(f"{path.name} was not drawn: {type(error).__name__}: {error}", stacklevel=2)


def _write_model(trainer: Trainer, parts: RunParts, folder: Path) -> None:
    """Put a model folder with averaged weights in its place."""
    weights = trainer.weights()
    if not trainer.peers.leads:
        return
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with torch.no_grad():
            parts.save(weights, scratch)
        put_in_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


__all__ = ["Outcome", "defaults_of", "draw_sheet", "run_recipe", "write_recipe"]
