"""Many processes, one run: who is who, FSDP2 sharding, whole tensors from their shards.

One process needs nothing of this. Many are started by torchrun, SLURM or `nextstep.train.launch`;
each reads its place from the environment, every rank holds its rows of every parameter
(`fully_shard`, FSDP2), and with `replicas` the model is sharded inside groups of ranks and copied
between them (HSDP), so that the heavy traffic stays inside a node. As many replicas as ranks give
every rank a whole model, which suits small ones: gradients alone travel.

Legend: parameters have any shape; dimension 0 is split over the R ranks of a mesh.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nextstep.errors import ModelFileError, NextStepError
from nextstep.model.precision import resolved

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

UNIT_LISTS = ("layers",)
"""Names of module lists whose members are gathered one by one; all else is gathered at once,
because only these are run by every rank in every micro-batch, whatever is in it."""


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: 0 .. world - 1; rank 0 writes logs.
        world, local: number of processes; rank on this machine.
        device: what this process computes on.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@contextlib.contextmanager
def joined(device: str | None = None, minutes: float = 30.0) -> Iterator[Ranks]:
    """Join the processes that the environment names, and leave them at the end.

    Without `WORLD_SIZE` in the environment, or with 1, there is one process and no communication.

    Args:
        device: "cpu" or "cuda"; default CUDA when there is one.
        minutes: how long a rank waits for the others before it fails.

    Raises:
        NextStepError: when the environment is incomplete or there are too few devices.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    world, rank, local = (_number(n, d) for n, d in PLACES.items())
    if kind.startswith("cuda") and local >= torch.cuda.device_count():
        raise NextStepError(
            f"process {local} of this machine has no CUDA device, there are "
            f"{torch.cuda.device_count()}; start fewer processes or choose the cpu"
        )
    place = torch.device("cuda", local) if kind == "cuda" else torch.device(kind)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield Ranks(device=place)
        return
    import torch.distributed as dist

    if dist.is_initialized():
        # Ray has joined the processes already, and will part them.
        yield Ranks(rank, world, local, place)
        return
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=minutes))
    try:
        yield Ranks(rank, world, local, place)
    finally:
        dist.destroy_process_group()


PLACES = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise NextStepError(f"the environment variable {name} must be a number, not '{value}'")
    return int(value)


def build_mesh(ranks: Ranks, replicas: int = 1) -> DeviceMesh | None:
    """The mesh to shard over: None for one process, else ("shard",) or ("replicate", "shard").

    Args:
        ranks: from `joined`.
        replicas: whole copies of the model; with one a node, weights are gathered inside nodes.

    Raises:
        NextStepError: when replicas do not divide the ranks.
    """
    if ranks.world % replicas:
        raise NextStepError(
            f"{ranks.world} processes cannot hold {replicas} equal replicas; "
            "choose a divisor of the number of processes"
        )
    if ranks.world == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    if replicas == 1:
        return init_device_mesh(ranks.device.type, (ranks.world,), mesh_dim_names=("shard",))
    shape = (replicas, ranks.world // replicas)
    return init_device_mesh(ranks.device.type, shape, mesh_dim_names=("replicate", "shard"))


def shard_units(model: nn.Module) -> list[nn.Module]:
    """Modules whose weights are gathered alone: the members of lists named in `UNIT_LISTS`."""
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in UNIT_LISTS
    ]
    return [unit for units in lists for unit in units]


def shard(
    model: nn.Module, mesh: DeviceMesh, precision: str, reshard_after_forward: bool = True
) -> None:
    """Shard a model in place; its parameters become DTensors, each rank holding some rows.

    With a whole copy on every rank the model stays as it is, and `add_up` sums its gradients. Else
    its weights are made contiguous, as FSDP2 refuses those that lie channels last.

    Gradients are summed over ranks, not averaged, because every rank divides by the counts of all;
    a parameter that one rank did not use counts there as zero. Only the members of `UNIT_LISTS`
    must be called equally often on every rank in a micro-batch: a call gathers weights from all.

    Args:
        model: on any device, "meta" too (see `fill`).
        mesh: from `build_mesh`.
        precision: "bf16" gathers and computes in bf16 and reduces in fp32, "fp32" does all in the
            parameters' own dtype.
        reshard_after_forward: see `TrainConfig`.
    """
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if mesh.size(mesh.ndim - 1) == 1:
        return
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    half = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
    )
    for unit in shard_units(model):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)
    model.run_gathered = types.MethodType(_run, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "run_gathered")


def _run(model: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    return function(model, *args)


def run_gathered(model: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """`function(model, *args)`, with the weights in place also when the model is sharded."""
    if is_sharded(model):
        return model.run_gathered(function, *args)  # type: ignore[operator]
    return function(model, *args)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was applied."""
    return hasattr(model, "run_gathered")


def reduce_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums gradients over ranks; nothing on one process."""
    if is_sharded(model):
        model.set_requires_gradient_sync(now)  # type: ignore[operator]


def add_up(gradients: Iterable[Tensor], at_once: int = 1 << 24) -> None:
    """Sum gradients over all ranks in place, for whole copies of a model.

    Args:
        gradients: the same shapes in the same order on every rank, one dtype.
        at_once: numbers that travel together, in the room of as many more.
    """
    import torch.distributed as dist

    bundle: list[Tensor] = []
    for gradient in [*gradients, None]:
        if bundle and (gradient is None or sum(map(Tensor.numel, bundle)) >= at_once):
            total = torch.cat([tensor.flatten() for tensor in bundle])
            dist.all_reduce(total)
            for tensor, part in zip(bundle, total.split([t.numel() for t in bundle]), strict=True):
                tensor.copy_(part.view_as(tensor))
            bundle = []
        if gradient is not None:
            bundle.append(gradient)


def let_go(model: nn.Module) -> None:
    """Free gathered weights, so that the next use gathers them anew; nothing on one process.

    A forward pass without a backward pass leaves the outermost weights gathered: to be called
    after it, before weights are changed or read.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is this rank's part of a larger one."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, in full; every rank of the mesh must ask."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def gathered(tensors: Mapping[str, Tensor], leads: bool) -> dict[str, Tensor]:
    """Whole tensors in the host memory of the leading rank, one gathered at a time.

    Every rank must call this; the others get an empty dict.
    """
    result = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if leads:
            result[name] = full.to("cpu", copy=True)
    return result


class Peers:
    """Small numbers that ranks tell each other, from host to host.

    Args:
        mesh: of all ranks; None for one process, which talks to itself.
    """

    def __init__(self, mesh: DeviceMesh | None) -> None:
        self.rank, self.world, self.group = 0, 1, None
        if mesh is not None:
            import torch.distributed as dist

            self.rank, self.world = dist.get_rank(), dist.get_world_size()
            self.group = new_host_group()

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes logs."""
        return self.rank == 0

    def table(self, numbers: list[float]) -> Tensor:
        """Every rank's numbers, as many each: fp64 [world, len(numbers)], equal everywhere."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        if self.group is None:
            return mine[None]
        import torch.distributed as dist

        rows = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(rows, mine, group=self.group)
        return torch.stack(rows)

    def any(self, *wishes: bool) -> list[bool]:
        """For each wish, whether some rank has it."""
        return (self.table([float(wish) for wish in wishes]).sum(0) > 0).tolist()

    def names(self, mine: list[str]) -> list[str]:
        """All ranks' names, in order of rank."""
        if self.group is None:
            return mine
        import torch.distributed as dist

        rows: list[Any] = [None] * self.world
        dist.all_gather_object(rows, mine, group=self.group)
        return [name for row in rows for name in row]


def agreed_precision(precision: str, device: torch.device, world: int) -> str:
    """A precision with "auto" replaced by the same choice on all ranks.

    Args:
        precision: as in `TrainConfig`.
        device: of this rank.
        world: ranks; with more than one every rank must ask, and one that is fastest in fp32
            decides for all.
    """
    mine = resolved(precision, device)
    if precision != "auto" or world == 1:
        return mine
    import torch.distributed as dist

    found: list[Any] = [None] * world
    dist.all_gather_object(found, mine)
    return "fp32" if "fp32" in found else mine


def new_host_group() -> Any:
    """A process group of all ranks that moves host memory; every rank must ask for it."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo")


def local_part(full: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, laid out as `like` is; no communication."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return full
    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def fill(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]], device: torch.device
) -> list[str]:
    """Give a sharded model that was built on "meta" its memory and its weights.

    So no process ever holds more than its own rows and one whole tensor:

        with torch.device("meta"):
            model = NextStepModel(config)
        shard(model, mesh, "bf16")
        missing = fill(model, read_tensors(folder), ranks.device)

    Args:
        model: sharded, or whole for one process; parameters on "meta" are allocated, others kept.
        tensors: names and whole tensors in any order, e.g. of `model.checkpoints.read_tensors`.
        device: where the weights go.

    Returns:
        Names of parameters and buffers that got no weights and hold whatever was in memory.

    Raises:
        ModelFileError: naming a tensor that is unknown or of another shape.
    """
    shared = _shared(model)
    if any(p.is_meta for p in model.parameters()):
        model.to_empty(device=device)
        _share_again(model, shared)
    wanted = dict(model.state_dict(keep_vars=True))
    missing = {name for name in wanted if name not in shared}
    with torch.no_grad():
        for name, value in tensors:
            if name not in wanted:
                raise ModelFileError(f"the model has no tensor '{name}'")
            if wanted[name].shape != value.shape:
                raise ModelFileError(
                    f"tensor '{name}' has shape {tuple(value.shape)}, "
                    f"the model's has {tuple(wanted[name].shape)}"
                )
            wanted[name].copy_(local_part(value, wanted[name]))
            missing.discard(shared.get(name, name))
    return sorted(missing)


def _shared(model: nn.Module) -> dict[str, str]:
    """Second names of parameters that have several, with the first."""
    first: dict[int, str] = {}
    again = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept != name:
            again[name] = kept
    return again


def _share_again(model: nn.Module, shared: Mapping[str, str]) -> None:
    for name, kept in shared.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(kept))
