"""Hidden states and guided paths of a fixed model over its rollouts, for the stage `distill`.

    RUN/teacher/part-00000.safetensors    hidden [M, b, E], weights [M, b], path [M, P + 1, D],
                                          guidance [M]

A part belongs to one group of rollouts and is written whole, so that a killed run goes on. Tokens
that an edit kept from its source were not drawn by the head and are left out.

Legend: M tokens, b branches of guidance, E hidden size, D values per token, P stretches of a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextstep.data.documents import derived_seed
from nextstep.data.steps import Step
from nextstep.errors import NextStepError
from nextstep.flow.guidance import CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL, GuidanceSettings
from nextstep.model.flow_head import FlowHead
from nextstep.model.nextstep import NextStepModel
from nextstep.rollout.batches import Row
from nextstep.rollout.samples import RolloutGroup, supervised_document
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.stages.distill import as_batch, teacher_path
from nextstep.train.stages.pretrain import PretrainStage, states

FOLDER, PART = "teacher", "part-{:05d}.safetensors"
TOKENS_AT_ONCE = 4096
"""Tokens whose paths are walked together."""


@dataclass(frozen=True)
class TeacherOptions:
    """How paths are made.

    Attributes:
        guidance: scales; every sample of a prompt takes the next one.
        image_guidance: of edits, whose source pictures make a third branch; None leaves edits out.
        steps: midpoint steps of a path.
        seed: of the noise.
    """

    guidance: Sequence[float] = (2.5,)
    image_guidance: float | None = None
    steps: int = 24
    seed: int = 0


@torch.no_grad()
def make_parts(
    model: NextStepModel,
    teacher: FlowHead,
    groups: Sequence[RolloutGroup],
    tokenizer: TextTokenizer,
    options: TeacherOptions,
    folder: Path,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Write the parts that are missing.

    Args:
        model: whose hidden states; whole, on its device.
        teacher: its head.
        groups: drawings, and edits where `options` says so; others are left out.
        tokenizer: of the text.
        options: see `TeacherOptions`.
        folder: of the run.
        share: (rank, ranks) of this process.

    Raises:
        NextStepError: when there are no drawings.
    """
    from safetensors.torch import save_file

    edits = options.image_guidance is not None
    drawn = [group for group in groups if group.draws and (edits or not group.sources)]
    if not drawn:
        raise NextStepError("distilling needs rollouts of drawings; these hold none")
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    for number, group in list(enumerate(drawn))[share[0] :: share[1]]:
        path = place / PART.format(number)
        if path.exists():
            continue
        made = _part(model, teacher, group, tokenizer, options)
        scratch = path.with_name(path.name + ".part")
        save_file({name: tensor.contiguous() for name, tensor in made.items()}, scratch)
        scratch.replace(path)


def _part(
    model: NextStepModel,
    teacher: FlowHead,
    group: RolloutGroup,
    tokenizer: TextTokenizer,
    options: TeacherOptions,
) -> dict[str, Tensor]:
    device = model.embed_tokens.weight.device
    names = branches_of(options)
    hidden = torch.stack(
        [_states(model, _documents(group, tokenizer, options, name)) for name in names], dim=1
    )
    counts = [
        len(document.sequence.images[-1].learned)
        for document, _ in _documents(group, tokenizer, options, names[0])
    ]
    scales = [options.guidance[n % len(options.guidance)] for n in range(len(group.samples))]
    settings = [GuidanceSettings(scale, options.image_guidance or 1.0) for scale in scales]
    mixed = [told.weights(0, 1, bool(group.sources)) for told in settings]
    weights = torch.tensor([[one.get(name, 0.0) for name in names] for one in mixed])
    each = torch.tensor(counts)
    weights = weights.repeat_interleave(each, 0).to(device)
    guidance = torch.tensor(scales).repeat_interleave(each).to(device)
    generator = torch.Generator().manual_seed(derived_seed(options.seed, "paths", group.key))
    noise = torch.randn(len(hidden), model.config.token_size, generator=generator).to(device)
    condition = model.image_condition(hidden)
    split = (tensor.split(TOKENS_AT_ONCE) for tensor in (condition, weights, noise))
    path = torch.cat(
        [
            teacher_path(teacher, some, mix, start, options.steps)
            for some, mix, start in zip(*split, strict=True)
        ]
    )
    made = {"hidden": hidden.half(), "weights": weights, "path": path, "guidance": guidance}
    return {name: tensor.cpu() for name, tensor in made.items()}


def branches_of(options: TeacherOptions) -> list[str]:
    """The branches that paths are guided by, in the order of their states."""
    if options.image_guidance is None:
        return [CONDITIONAL, UNCONDITIONAL]
    return [CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL]


def _documents(
    group: RolloutGroup, tokenizer: TextTokenizer, options: TeacherOptions, branch: str
) -> Row:
    """A group's samples as a branch of guidance reads them."""
    found: Row = []
    for sample in group.samples:
        seed = derived_seed(options.seed, "teacher", group.key, sample.index)
        document = supervised_document(group, sample, tokenizer, seed, branch)
        every = group.pictures(sample)
        found.append((document, [every[place] for place in document.images]))
    return found


def _states(model: NextStepModel, rows: Row) -> Tensor:
    """States that condition every token of documents, one a row, [M, E]."""
    longest = max(len(document) for document, _ in rows)
    stage = PretrainStage(model.config, row_length=-(-longest // 16) * 16, head_batch_mul=1)
    batch = stage.batch_of([[row] for row in rows])
    prepared = stage.prepare(batch, model.embed_tokens.weight.device)
    return states(model, prepared)[prepared.batch.condition_places].float()


class TeacherTokens:
    """A `BatchSource` of tokens drawn at random from the parts.

    Args:
        folder: of the run, whose parts are all there.
        batch: tokens of a step over all ranks.
        micro: tokens of a micro-batch at most.
        seed: of all draws.
        rank, world: which part of every step this process gets.

    Raises:
        NextStepError: when tokens cannot be dealt out to the ranks alike.
    """

    def __init__(
        self, folder: Path, batch: int, micro: int, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        from safetensors.torch import load_file

        if batch % world:
            raise NextStepError(f"{batch} tokens cannot be dealt out to {world} ranks alike")
        parts = [load_file(path) for path in sorted((folder / FOLDER).glob("part-*.safetensors"))]
        self.tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.batch, self.micro, self.seed = batch, max(1, micro), seed
        self.rank, self.world, self.step = rank, world, 0

    def __len__(self) -> int:
        return len(self.tensors["path"])

    def next_step(self) -> Step:
        """The next step of this rank."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "tokens", self.step))
        places = torch.randint(len(self), (self.batch,), generator=generator)
        draws = torch.rand(self.batch, 3, generator=generator)
        places, draws = places[self.rank :: self.world], draws[self.rank :: self.world]
        batches = [
            as_batch(self.tensors, some, chosen)
            for some, chosen in zip(places.split(self.micro), draws.split(self.micro), strict=True)
        ]
        self.step += 1
        return Step(batches, [], len(places), self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The number of the next step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved step."""
        self.step = int(state["step"])

    def close(self) -> None:
        """Nothing runs beside it."""
