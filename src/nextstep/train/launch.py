"""Starting the processes of a run: on this machine, or on a Ray cluster.

torchrun and SLURM need nothing from here: they set the environment that `parallel.joined` reads
(see `examples/`). In every case a process runs `function(*arguments)`, which joins the others:

    def work(recipe):
        with joined() as ranks:
            mesh = build_mesh(ranks)
            ...

    launch(work, (recipe,), processes=8)
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable
from typing import Any

from nextstep.errors import NextStepError

Work = Callable[..., Any]


def launch(
    function: Work, arguments: tuple = (), processes: int = 1, method: str = "spawn"
) -> None:
    """Run a function in several processes of this machine and wait for all.

    When one fails, the others are ended.

    Args:
        function: importable by name.
        arguments: of the function; they are pickled.
        processes: how many; one runs in this very process.
        method: of `multiprocessing`: "spawn", "fork" or "forkserver".

    Raises:
        NextStepError: when `processes` is not positive.
        Exception: `torch.multiprocessing.ProcessRaisedException`, with the traceback of the first
            process that failed.
    """
    if processes < 1:
        raise NextStepError(f"a run needs at least 1 process, not {processes}")
    if processes == 1:
        function(*arguments)
        return
    from torch.multiprocessing.spawn import start_processes

    port = free_port()
    start_processes(_work, (processes, port, function, arguments), processes, start_method=method)


def _work(local: int, world: int, port: int, function: Work, arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    function(*arguments)


def free_port() -> int:
    """A TCP port of this machine that nobody listens to just now.

    One below those that systems give to outgoing connections, where there is one: a port from among
    those may be taken again before it is used.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 20):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch_on_ray(
    function: Work,
    arguments: tuple = (),
    processes: int = 1,
    cuda: bool = True,
    cpus_each: int = 1,
    name: str | None = None,
) -> None:
    """Run a function in processes that Ray Train places on the machines of a cluster.

    Connects to the cluster that RAY_ADDRESS names, or starts one on this machine. Folders in
    `arguments` must lie where every machine sees them.

    Args:
        function: importable by name on every machine, or picklable.
        arguments: of the function; they are pickled.
        processes: how many, each with one GPU when `cuda`.
        cuda: compute on GPUs.
        cpus_each: processor cores set aside for each process.
        name: of the run in Ray.

    Raises:
        NextStepError: when Ray is not installed.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise NextStepError(
            "Ray Train is not installed; run pip install 'ray[train]', or use torchrun"
        ) from None

    def work(_config: dict[str, Any]) -> None:
        function(*arguments)

    TorchTrainer(
        work,
        train_loop_config={},
        scaling_config=ScalingConfig(
            num_workers=processes, use_gpu=cuda, resources_per_worker={"CPU": cpus_each}
        ),
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        run_config=RunConfig(name=name),
    ).fit()
