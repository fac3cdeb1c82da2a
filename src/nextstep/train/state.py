"""What a checkpoint holds of a run, and how a run takes it up again.

Tensors: `model/NAME`, `ema/NAME`, `optimizer/NAME/FIELD`. Learning rate, decay and the like are not
state: they come from the config of the run that goes on.

Legend: parameters and optimizer moments have any shape and are stored whole, by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextstep.errors import NextStepError
from nextstep.train.checkpoint import must_match, read_record, read_tensors, stored_shapes
from nextstep.train.ema import EMA, local
from nextstep.train.step import Stepper
from nextstep.version import __version__


def model_tensors(model: nn.Module, frozen: bool = True) -> dict[str, Tensor]:
    """Parameters and lasting buffers by name, tied ones once.

    Args:
        model: whole or sharded.
        frozen: with parameters that are not trained.
    """
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        left_out = isinstance(tensor, nn.Parameter) and not (frozen or tensor.requires_grad)
        if id(tensor) not in seen and not left_out:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def weights(stepper: Stepper, average: bool) -> dict[str, Tensor]:
    """The model's tensors, averaged where an average is asked for and kept."""
    shadow = stepper.ema.shadow if stepper.ema and average else {}
    return {**model_tensors(stepper.model), **shadow}


def tensors(stepper: Stepper) -> dict[str, Tensor]:
    """Everything with numbers in it that a run needs to go on."""
    found = {
        f"model/{name}": tensor
        for name, tensor in model_tensors(stepper.model, stepper.config.save_frozen).items()
    }
    if stepper.ema:
        found |= {f"ema/{name}": tensor for name, tensor in stepper.ema.shadow.items()}
    names = {id(p): name for name, p in stepper.model.named_parameters()}
    for optimizer in stepper.optimizers:
        for parameter, fields in optimizer.state.items():
            for field, value in fields.items():
                found[f"optimizer/{names[id(parameter)]}/{field}"] = value
    return found


def record(
    stepper: Stepper, batch_state: dict[str, Any], skipped: int, world: int, seconds: float
) -> dict[str, Any]:
    """Everything else, as JSON holds it."""
    return {
        "skipped": skipped,
        "seconds": seconds,
        "ema_updates": stepper.ema.updates if stepper.ema else 0,
        "batches": batch_state,
        "world": world,
        "config": stepper.config.to_dict(),
        "version": __version__,
    }


def restore(stepper: Stepper, path: Path, group: Any = None) -> dict[str, Any]:
    """Put a checkpoint into a run, whatever number of ranks wrote it.

    Args:
        stepper: whose model, optimizers and average are filled.
        path: of a whole checkpoint.
        group: process group of all ranks; None for one process.

    Returns:
        The checkpoint's record.

    Raises:
        DamagedCheckpointError: when it is damaged.
        ModelFileError: when it is of another model.
        NextStepError: when it was made with another optimizer.
    """
    kept = read_record(path)
    then, now = kept["config"].get("optimizer"), stepper.config.optimizer
    if then != now:
        raise NextStepError(
            f"{path} was made with the optimizer {then}, not {now}; go on with {then}, or begin "
            "another run from its weights"
        )
    stored, frozen = stored_shapes(path), kept["config"].get("save_frozen", True)
    wanted: dict[str, Tensor] = {
        f"model/{name}": tensor.detach()
        for name, tensor in model_tensors(stepper.model, frozen).items()
    }
    must_match(path, stored, wanted)
    averages = _averages(stepper.ema, stored)
    fields = _optimizer_fields(stepper, stored)
    flat = {key: value for key, (_, _, _, value) in fields.items()}
    read_tensors(path, {**wanted, **averages, **flat}, group)
    for optimizer, parameter, field, value in fields.values():
        optimizer.state[parameter][field] = value
    if stepper.ema:
        stepper.ema.updates = kept["ema_updates"]
        _begin_averages(stepper, averages)
    return kept


def _averages(ema: EMA | None, stored: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The parts of the average that the checkpoint holds."""
    shadow = ema.shadow if ema else {}
    return {f"ema/{name}": value for name, value in shadow.items() if f"ema/{name}" in stored}


def _begin_averages(stepper: Stepper, read: dict[str, Tensor]) -> None:
    """An average that the checkpoint lacks begins with the weights just read."""
    assert stepper.ema is not None
    present = dict(stepper.model.named_parameters())
    with torch.no_grad():
        for name, value in stepper.ema.shadow.items():
            if f"ema/{name}" not in read:
                local(value).copy_(local(present[name]))


Field = tuple[torch.optim.Optimizer, Tensor, str, Tensor]


def _optimizer_fields(stepper: Stepper, stored: dict[str, tuple[int, ...]]) -> dict[str, Field]:
    """Room for the stored optimizer state of every parameter that is trained.

    A parameter without any, because it was frozen before, begins afresh.
    """
    by_name: dict[str, list[str]] = {}
    for key in stored:
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            name, _, field = rest.rpartition("/")
            by_name.setdefault(name, []).append(field)
    names = {id(p): name for name, p in stepper.model.named_parameters()}
    room: dict[str, Field] = {}
    for optimizer in stepper.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                for field in by_name.get(name, []):
                    key = f"optimizer/{name}/{field}"
                    room[key] = (optimizer, parameter, field, _room(parameter, stored[key]))
    return room


def _room(parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory for a field: laid out as the parameter, or one number beside it."""
    if shape == tuple(parameter.shape):
        return torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()
    return torch.zeros(shape, dtype=torch.float32, device=parameter.device)
