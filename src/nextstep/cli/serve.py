"""`nextstep serve`: an image service."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextstep.cli import options as o

if TYPE_CHECKING:
    from nextstep.pipeline import NextStepPipeline
    from nextstep.serve.jobs.engine_backend import EngineBackend
    from nextstep.serve.jobs.ray_backend import RayBackend

LIMITS, RAY = "Limits", "Several machines"

ServedName = Annotated[
    list[str] | None,
    typer.Option(help="Another name that clients may ask for, such as gpt-image-1; repeat it."),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(help="Pages of this origin may ask, such as https://example.org; repeat it."),
]
RootPath = Annotated[
    str, typer.Option(help="Path under which a proxy shows the service, such as /pictures.")
]
Folder = Annotated[Path, typer.Option(help="Keeps jobs and pictures over restarts.")]
Ephemeral = Annotated[
    bool, typer.Option("--ephemeral", help="Keep jobs and pictures in memory only.")
]
NewKey = Annotated[
    str | None, typer.Option(help="Make a key of that name in --keys, show it, and leave.")
]
Queue = Annotated[
    int, typer.Option(min=1, help="Jobs accepted and not yet finished.", rich_help_panel=LIMITS)
]
PerKey = Annotated[int, typer.Option(min=1, help="Of them by one key.", rich_help_panel=LIMITS)]
Deadline = Annotated[
    float, typer.Option(min=1, help="Seconds a job may take with waiting.", rich_help_panel=LIMITS)
]
Keep = Annotated[
    int, typer.Option(min=1, help="Finished jobs that are kept.", rich_help_panel=LIMITS)
]
Grace = Annotated[
    float,
    typer.Option(min=1, help="Seconds for running jobs when it stops.", rich_help_panel=LIMITS),
]
PicturePixels = Annotated[
    int, typer.Option(min=1, help="Most pixels of an uploaded picture.", rich_help_panel=LIMITS)
]
DecodedPixels = Annotated[
    int,
    typer.Option(
        min=1,
        help="Most pixels in memory while the pictures of a request are decoded; photos in JPEG "
        "are shrunk on the way and count less.",
        rich_help_panel=LIMITS,
    ),
]
PreviewShare = Annotated[
    float, typer.Option(min=0, help="Share of the time that decoding previews may take.")
]
Ray = Annotated[
    bool,
    typer.Option(
        "--ray", help="Make the pictures in replicas on a Ray cluster.", rich_help_panel=RAY
    ),
]
Replicas = Annotated[
    str,
    typer.Option(
        help="Of the model: a number, or FEWEST-MOST to follow the load.", rich_help_panel=RAY
    ),
]


def command(
    model: o.Model = "nano",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    folder: Folder = Path("runs/serve"),
    ephemeral: Ephemeral = False,
    keys: Annotated[Path | None, typer.Option(help="File of API keys (their hashes).")] = None,
    new_key: NewKey = None,
    queue: Queue = 64,
    per_key: PerKey = 16,
    deadline: Deadline = 600,
    keep: Keep = 1000,
    grace: Grace = 20,
    picture_pixels: PicturePixels = 250_000_000,
    decoded_pixels: DecodedPixels = 64_000_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made together.")] = 8,
    preview_share: PreviewShare = 0.03,
    ray: Ray = False,
    replicas: Replicas = "1",
    replica_cpus: Annotated[float, typer.Option(min=0, rich_help_panel=RAY)] = 1,
    replica_gpus: Annotated[float, typer.Option(min=0, rich_help_panel=RAY)] = 0,
    served_model_name: ServedName = None,
    cors_origin: Origins = None,
    root_path: RootPath = "",
    vae: o.Vae = None,
    adapter: o.Adapter = None,
    adapter_scale: o.AdapterScale = 1.0,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
) -> None:
    """Serve pictures over HTTP: OpenAI's image and chat endpoints, and jobs with live rows.

    Example: nextstep serve --model nano --port 8000
    """
    from nextstep.cli import checks
    from nextstep.errors import NextStepError
    from nextstep.recipe.host import settle
    from nextstep.serve.jobs.limits import (
        ServiceLimits,
        check_binding,
        checked_origin,
        checked_root,
    )
    from nextstep.serve.jobs.store import Store

    if new_key is not None:
        from nextstep.serve.api.keys import add_key

        if keys is None:
            raise NextStepError("--new-key needs --keys FILE, where its hash is kept")
        typer.echo(add_key(keys, new_key))
        return
    check_binding(host, keys)
    counts = parse_replicas(replicas)
    aliases, origins = served_model_name or [], [checked_origin(one) for one in cors_origin or []]
    checked_root(root_path)
    chosen = checks.ModelOptions(model, dtype, device, vae, adapter, adapter_scale, quantize)
    chosen.check()
    limits = ServiceLimits(
        queue=queue,
        per_key=min(per_key, queue),
        deadline=deadline,
        keep=keep,
        grace=grace,
        picture_pixels=picture_pixels,
        decoded_pixels=decoded_pixels,
    )
    # Before the model is loaded, which takes minutes for a large one.
    store = Store(None if ephemeral else folder, limits.keep)
    # Every length of prompt is a new shape, whose kernels are kept; see there.
    settle()
    from nextstep.serve.api import server

    name = served_name(model, adapter)
    load = chosen.load
    if ray:
        backend = _on_ray(partial(_replica, load, name, batch_size, preview_share), counts,
                          batch_size, replica_cpus, replica_gpus)  # fmt: skip
        app = server.app_around(backend, store, keys, limits, None, aliases, origins)
        typer.echo(f"serving {name} at http://{host}:{port} with replicas {replicas}", err=True)
        try:
            server.serve(app, host, port, keys, grace, root_path)
        finally:
            _leave_ray()
        return
    pipeline = load()
    app = server.build_app(
        pipeline,
        name,
        store,
        keys,
        limits,
        batch_size,
        preview_share=preview_share,
        aliases=aliases,
        origins=origins,
    )
    typer.echo(f"serving {name} at http://{host}:{port}", err=True)
    server.serve(app, host, port, keys, grace, root_path)


def served_name(model: str, adapter: Path | None) -> str:
    """What requests call a model: its folder's name, and that of the adapter merged into it.

    Fine-tuning writes OUTPUT/adapter, whose own name says nothing.
    """
    name = Path(model).resolve().name if Path(model).is_dir() else model
    if adapter is None:
        return name
    folder = adapter.expanduser().resolve()
    return f"{name}+{folder.parent.name if folder.name == 'adapter' else folder.name}"


def parse_replicas(text: str) -> tuple[int, int]:
    """Fewest and most replicas.

    Raises:
        ValueError: for anything but N or FEWEST-MOST.
    """
    few, _, most = text.partition("-")
    try:
        counts = int(few), int(most or few)
    except ValueError:
        counts = (0, 0)
    if not 1 <= counts[0] <= counts[1]:
        raise ValueError(f"--replicas is a number or FEWEST-MOST, such as 1-4, not '{text}'")
    return counts


def _on_ray(
    make: Callable[[], EngineBackend],
    replicas: tuple[int, int],
    ongoing: int,
    cpus: float,
    gpus: float,
) -> RayBackend:
    from nextstep.errors import NextStepError

    try:
        from nextstep.serve.jobs.ray_backend import deploy

        return deploy(make, replicas, ongoing, cpus, gpus)
    except ModuleNotFoundError as error:
        raise NextStepError(
            f"--ray needs {error.name}: pip install 'open-nextstep[serve,ray]'"
        ) from None


def _leave_ray() -> None:
    from nextstep.serve.jobs.ray_backend import shut_down

    shut_down()


def _replica(
    load: Callable[[], NextStepPipeline], name: str, batch_size: int, preview_share: float
) -> EngineBackend:
    """A model on a worker; sent there by name, so it lies at the top of the module."""
    from nextstep.serve.api.server import make_backend

    return make_backend(load(), name, batch_size, preview_share)
