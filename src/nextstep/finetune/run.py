"""Fine-tuning for people: a folder of captioned pictures and a model in, an adapter out.

    OUT/adapter/          LoRA adapter, for `nextstep generate --adapter`
    OUT/model/            whole model folder, after full training or with `merge`
    OUT/before-after.png  the prompts drawn by the model before and after
    OUT/samples/          the same on the way
    OUT/loss.png          the loss as a curve
    OUT/run/              shards, latents, log and checkpoints; not needed afterwards

    folder -> shards -> latents -> Loader -> PretrainStage -> Trainer -> adapter

The same command goes on where a killed run left off.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from nextstep.data.loader import Loader, LoaderConfig
from nextstep.data.planning import one_per_row
from nextstep.data.prepare.contact_sheet import comparison
from nextstep.engine import pretrained as folders
from nextstep.engine.metadata import write_file
from nextstep.errors import NextStepError
from nextstep.finetune.data import (
    FinetuneSamples,
    build_samples,
    captioned,
    count_cut,
    data_digest,
    open_samples,
    shapes,
    that_fit,
)
from nextstep.finetune.settings import Finetuned, FinetuneSettings
from nextstep.image.encode import encode
from nextstep.model.checkpoints import read_tensors
from nextstep.model.folder import find_folder
from nextstep.model.lora import (
    ADAPTER_FOLDER,
    add_adapter,
    fold_adapter,
    merged,
    save_adapter,
    taken_adapter,
)
from nextstep.model.precision import explained
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.run_folder import move_aside
from nextstep.train.config import TrainConfig
from nextstep.train.loss_plot import save_loss_plot
from nextstep.train.stages.pretrain import PretrainStage
from nextstep.train.trainer import Trainer
from nextstep.utils.files import lock_folder, read_json, write_json

if TYPE_CHECKING:
    from nextstep.engine.pretrained import Parts

__all__ = ["FinetuneSettings", "Finetuned", "Finetuning", "finetune"]

ADAPTER, MODEL, SHEET, RUN = ADAPTER_FOLDER, "model", "before-after.png", "run"
SETTINGS_FILE, PLANNED, DATA_DIGEST = "finetune.json", "steps planned", "data digest"
SHOWN = 8
"""Samples whose captions are drawn when there are no prompts."""

ROUND_UP = 16
"""Row lengths are multiples of this, so that compiled code meets few shapes."""

LARGE = 10**9
"""Parameters from which on samples go through one by one and activations are made twice."""

KEEP_WHOLE = "--fit aspect keeps them whole"
EXTREME = "they are wider or taller than its shapes"

PROBE_STEPS = 4
"""Steps that are timed to see how many fit into the minutes; the first one does not count."""


@dataclass(frozen=True)
class PreviewRequest:
    """What is drawn to see how far training is: a prompt, and the sources of an edit."""

    prompt: str
    sources: tuple[Image.Image, ...] = ()


def finetune(
    settings: FinetuneSettings,
    device: str = "cpu",
    vae: Path | None = None,
    tell: Callable[[str], None] = print,
    progress: bool = False,
) -> Finetuned:
    """Fine-tune a model on a folder of pictures; see the top of this file for what is written.

    Args:
        settings: what is asked for.
        device: to train on.
        vae: folder of the image tokenizer when it is not the model's own.
        tell: is told what happens, in sentences.
        progress: show a progress line on a terminal.

    Raises:
        NextStepError: when the data or the model cannot be used, or the output holds another run.
        TrainingError: when the loss stays no number.
    """
    stored = _begin(settings)
    dtype = torch.float32 if settings.full else None
    # What is taught has words that the model's own list lacks.
    parts = folders.load_parts(settings.model, dtype, device, vae)._replace(vocabulary=None)
    return Finetuning(settings, parts, stored, tell, progress).result()


def _begin(settings: FinetuneSettings) -> dict[str, Any]:
    """What an earlier start of the same run noted down, or nothing.

    Raises:
        NextStepError: when the output is finished, another run's or somebody's folder.
    """
    output, path = settings.output, settings.output / RUN / SETTINGS_FILE
    if not path.exists():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise NextStepError(f"{output} exists already; choose another folder")
        return {}
    if (output / SHEET).exists():
        raise NextStepError(f"{output} is finished already; choose another folder")
    stored = read_json(path)
    # A run that has its shards needs no folder any more; an old one has noted no digest.
    known = DATA_DIGEST in stored and settings.data.exists()
    given = {DATA_DIGEST: data_digest(settings.data)} if known else {}
    for name, value in (settings.to_dict() | given).items():
        if stored.get(name) != value:
            if not stored.get(PLANNED):
                # No step was noted down; kept all the same, should the note be damaged.
                with lock_folder(output / RUN, "training"):
                    move_aside(output / RUN)
                return {}
            if name == DATA_DIGEST:
                raise NextStepError(
                    f"pictures or captions in {settings.data} have changed since {output} was "
                    "begun; choose another folder, or put them back to go on"
                )
            raise NextStepError(
                f"{output} holds a fine-tuning with {name} = {stored.get(name)}, and now it is "
                f"{value}; choose another folder, or the same settings to go on"
            )
    return stored


class Finetuning:
    """One fine-tuning.

    Args:
        settings: what is asked for.
        parts: the model to start from, on its device; changed in place.
        stored: what an earlier start noted down.
        tell: is told what happens.
        progress: show a progress line on a terminal.

    Raises:
        NextStepError: when the data cannot be used.
    """

    def __init__(
        self,
        settings: FinetuneSettings,
        parts: Parts,
        stored: dict[str, Any],
        tell: Callable[[str], None] = print,
        progress: bool = False,
    ) -> None:
        self.settings, self.parts, self.tell, self.progress = settings, parts, tell, progress
        self.output, self.run = settings.output, settings.output / RUN
        if stored.get("base", parts.model_hash) != parts.model_hash:
            raise NextStepError(f"{self.output} was begun on another model; choose another folder")
        digest = stored.get(DATA_DIGEST) or data_digest(settings.data)
        notes = settings.to_dict() | {"base": parts.model_hash, DATA_DIGEST: digest}
        self.run.mkdir(parents=True, exist_ok=True)
        self.lock = lock_folder(self.run, "training")
        write_json(self.run / SETTINGS_FILE, notes | {PLANNED: stored.get(PLANNED)})
        self.samples = self._open()
        self.requests = self._requests()
        self.before = self._drawn_before()
        self.after: list[Image.Image] = []
        self._make_trainable()
        self.planned: int = stored.get(PLANNED) or self._plan()
        write_json(self.run / SETTINGS_FILE, notes | {PLANNED: self.planned})

    def result(self) -> Finetuned:
        """Train to the end, write what was asked for, and give the folder free."""
        with self.lock:
            return self._result()

    def _result(self) -> Finetuned:
        begun = time.monotonic()
        with self._trainer(self.planned, self.run, self._sample) as trainer:
            self.tell(
                f"computes in {trainer.config.precision}: {explained(trainer.stepper.device)}"
            )
            if trainer.resume():
                self.tell(f"goes on after step {trainer.step}")
            finished = trainer.run()
        seconds = time.monotonic() - begun
        save_loss_plot(self.run / "log.jsonl", self.output / "loss.png")
        if not finished:
            return Finetuned(None, None, None, trainer.step, self.planned, seconds, False)
        after = self.after or self.draw()
        adapter, model = self._write()
        self._save_sheet(self.output / SHEET, [("before", self.before), ("after", after)])
        return Finetuned(
            adapter, model, self.output / SHEET, trainer.step, self.planned, seconds, True
        )

    def draw(self) -> list[Image.Image]:
        """The requests as the model draws them now."""
        model = self.parts.model.eval()
        with contextlib.ExitStack() as stack:
            if self._has_adapter:
                stack.enter_context(merged(model))
            pipeline = NextStepPipeline(*self.parts)
            seed = self.settings.seed
            if self.settings.edits:
                return [
                    pipeline.edit(list(asked.sources), asked.prompt, seed=seed)[0].image
                    for asked in self.requests
                ]
            prompts = [asked.prompt for asked in self.requests]
            return [made.image for made in pipeline.generate(prompts, seed=seed)]

    def _open(self) -> FinetuneSamples:
        settings = self.settings
        options = shapes(self.parts, settings.fit, settings.edits)
        if not (self.run / "data").exists():
            items = captioned(settings.data, settings.caption, settings.edits, settings.encoding)
            report = build_samples(that_fit(items, self.parts, options), self.run, settings.edits)
            self.tell(f"{report.samples} samples in {settings.data}")
            for place, count in report.captions.items():
                self.tell(f"captions: {count} from {place}")
            for error in report.broken:
                self.tell(f"left out: {error}")
        samples = open_samples(self.run, self.parts, settings.drop_text, options)
        if cut := count_cut(samples.shards, options):
            self.tell(
                f"{cut} of {len(samples.shards)} samples are cut at the centre to a shape of the "
                f"model; {KEEP_WHOLE if options.grids and len(options.grids) == 1 else EXTREME}"
            )
        return samples

    def _requests(self) -> list[PreviewRequest]:
        if self.settings.prompts:
            return [PreviewRequest(prompt) for prompt in self.settings.prompts]
        shards, found = self.samples.shards, []
        for index in range(min(SHOWN, len(shards))):
            text = str(shards.entry(index).captions["caption"])
            if not self.settings.edits:
                found.append(PreviewRequest(text))
                continue
            # The target is what is to be drawn; its tag stands last.
            instruction = text.rsplit("<image", 1)[0]
            found.append(PreviewRequest(instruction, tuple(shards.pictures(index)[:-1])))
        return found

    def _drawn_before(self) -> list[Image.Image]:
        """Drawn before the first step, and kept for a run that goes on."""
        folder = self.run / "before"
        files = [folder / f"{number}.png" for number in range(len(self.requests))]
        if not all(file.exists() for file in files):
            folder.mkdir(exist_ok=True)
            for file, picture in zip(files, self.draw(), strict=True):
                write_file(file, encode(picture))
        return [Image.open(file).convert("RGB") for file in files]

    def _make_trainable(self) -> None:
        model = self.parts.model
        if self.settings.full:
            model.requires_grad_(True)
        else:
            add_adapter(model, self.settings.adapter, self.settings.seed)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.tell(f"{trained:,} parameters are trained")

    @property
    def _has_adapter(self) -> bool:
        return any("lora_" in name for name, _ in self.parts.model.named_parameters())

    @property
    def _is_large(self) -> bool:
        return sum(p.numel() for p in self.parts.model.parameters()) >= LARGE

    def _plan(self) -> int:
        """How many steps are taken."""
        if self.settings.minutes is None:
            return self.settings.steps_of(len(self.samples.source))
        seconds = self._step_seconds()
        steps = max(1, int(60 * self.settings.minutes / seconds))
        self.tell(f"{steps} steps of {seconds:.2f} s fit into {self.settings.minutes:g} minutes")
        return steps

    def _step_seconds(self) -> float:
        """Time of one step, by taking a few and undoing them."""
        trained = [p for p in self.parts.model.parameters() if p.requires_grad]
        kept = [p.detach().clone() for p in trained]
        with (
            tempfile.TemporaryDirectory() as scratch,
            self._trainer(PROBE_STEPS, Path(scratch)) as trainer,
        ):
            trainer.train_step(trainer.stream.take())
            begun = time.monotonic()
            for number in range(1, PROBE_STEPS):
                trainer.train_step(trainer.stream.take(number + 1 < PROBE_STEPS))
            seconds = time.monotonic() - begun
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
        return seconds / (PROBE_STEPS - 1)

    @contextlib.contextmanager
    def _trainer(
        self, steps: int, folder: Path, on_sample: Callable[[Trainer], None] | None = None
    ) -> Iterator[Trainer]:
        settings, source = self.settings, self.samples.source
        batch = settings.batch_of(len(source))
        row_length = -(-self.samples.longest // ROUND_UP) * ROUND_UP
        stage = PretrainStage(
            self.parts.model.config, row_length=row_length, context_noise=settings.context_noise
        )
        loader = Loader(
            [source],
            [1.0],
            stage.batch_of,
            LoaderConfig(
                row_length=row_length,
                rows_per_step=batch,
                micro_batch_rows=1 if self._is_large else batch,
                window_rows=batch,
                seed=settings.seed,
            ),
            pack=one_per_row,
        )
        config = TrainConfig(
            steps=steps,
            learning_rate=settings.rate_of(self.parts.model.config.hidden_size),
            schedule="cosine",
            warmup=min(10, steps // 10),
            weight_decay=0.01 if settings.full else 0.0,
            ema=0.0,
            gradient_checkpointing=self._is_large,
            precision=settings.precision,
            seed=settings.seed,
            save_minutes=2.0,
            save_frozen=settings.full,
            sample_every=-(-steps // (settings.sheets + 1)),
            progress=self.progress,
            tensorboard=settings.tensorboard and folder == self.run,
            measure_peak=False,
        )
        try:
            yield Trainer(self.parts.model, stage, loader, config, folder, on_sample=on_sample)
        finally:
            loader.close()

    def _sample(self, trainer: Trainer) -> None:
        self.after = self.draw()
        label = f"step {trainer.step}"
        path = self.output / "samples" / f"step-{trainer.step:08d}.png"
        self._save_sheet(path, [("before", self.before), (label, self.after)])

    def _save_sheet(self, path: Path, rows: Sequence[tuple[str, list[Image.Image]]]) -> None:
        if self.settings.edits:
            rows = [("source", [asked.sources[0] for asked in self.requests]), *rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet = comparison(rows, [asked.prompt for asked in self.requests])
        write_file(path, encode(sheet))

    def _write(self) -> tuple[Path | None, Path | None]:
        """Write the adapter, the model, or both."""
        settings, parts = self.settings, self.parts
        adapter = None if settings.full else self.output / ADAPTER
        model = self.output / MODEL if settings.full or settings.merge else None
        if adapter is not None and not adapter.exists():
            save_adapter(taken_adapter(parts.model), adapter, parts.model_hash, settings.model)
        if model is not None and not model.exists():
            if not settings.full:
                fold_adapter(parts.model)
            stored = next(read_tensors(find_folder(settings.model)))[1].dtype
            parts.model.to(stored)
            parts.image_tokenizer.to(stored)
            folders.save_parts(parts, model)
        return adapter, model
