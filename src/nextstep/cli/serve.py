"""`nextstep serve`: an image service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions, with_groups

if TYPE_CHECKING:
    from nextstep.pipeline import NextStepPipeline
    from nextstep.serve.jobs.engine_backend import EngineBackend
    from nextstep.serve.jobs.limits import ServiceLimits
    from nextstep.serve.jobs.ray_backend import RayBackend

LIMITS, RAY = "Limits", "Several machines"
_option = partial(o.option, panel=LIMITS)

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
Queue = Annotated[int, _option("Jobs accepted and not yet finished.", min=1)]
PerKey = Annotated[int, _option("Of them by one key.", min=1)]
Deadline = Annotated[float, _option("Seconds a job may take with waiting.", min=1)]
Keep = Annotated[int, _option("Finished jobs that are kept.", min=1)]
Grace = Annotated[
    float,
    _option("Seconds for running jobs when it stops.", min=1),
]
PicturePixels = Annotated[int, _option("Most pixels of an uploaded picture.", min=1)]
DecodedPixels = Annotated[
    int,
    _option(
        "Most pixels in memory while the pictures of a request are decoded; photos in JPEG "
        "are shrunk on the way and count less.",
        min=1,
    ),
]
PreviewShare = Annotated[
    float, typer.Option(min=0, help="Share of the time that decoding previews may take.")
]
Ray = Annotated[
    bool,
    _option("Make the pictures in replicas on a Ray cluster.", "--ray", panel=RAY),
]
Replicas = Annotated[
    str,
    _option("Of the model: a number, or FEWEST-MOST to follow the load.", panel=RAY),
]


@dataclass(frozen=True)
class LimitOptions:
    """How much is accepted, for how long, and what is kept."""

    queue: Queue = 64
    per_key: PerKey = 16
    deadline: Deadline = 600
    keep: Keep = 1000
    grace: Grace = 20
    picture_pixels: PicturePixels = 250_000_000
    decoded_pixels: DecodedPixels = 64_000_000

    def limits(self) -> ServiceLimits:
        """The same for the service."""
        from nextstep.serve.jobs.limits import ServiceLimits

        return ServiceLimits(**{**asdict(self), "per_key": min(self.per_key, self.queue)})


@dataclass(frozen=True)
class RayOptions:
    """Whether the pictures are made on a Ray cluster, and by what there."""

    ray: Ray = False
    replicas: Replicas = "1"
    replica_cpus: Annotated[float, typer.Option(min=0, rich_help_panel=RAY)] = 1
    replica_gpus: Annotated[float, typer.Option(min=0, rich_help_panel=RAY)] = 0


@with_groups
def command(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    folder: Folder = Path("runs/serve"),
    ephemeral: Ephemeral = False,
    keys: Annotated[Path | None, typer.Option(help="File of API keys (their hashes).")] = None,
    new_key: NewKey = None,
    limit: LimitOptions,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made together.")] = 8,
    preview_share: PreviewShare = 0.03,
    cluster: RayOptions,
    served_model_name: ServedName = None,
    cors_origin: Origins = None,
    root_path: RootPath = "",
    chosen: ModelOptions,
) -> None:
    """Serve pictures over HTTP: OpenAI's image and chat endpoints, and jobs with live rows.

    Example: nextstep serve --model nano --port 8000
    """
    from nextstep.errors import NextStepError
    from nextstep.recipe.host import settle
    from nextstep.serve.jobs.limits import bind, check_binding, checked_origin, checked_root
    from nextstep.serve.jobs.store import Store

    if new_key is not None:
        from nextstep.serve.api.keys import add_key

        if keys is None:
            raise NextStepError("--new-key needs --keys FILE, where its hash is kept")
        typer.echo(add_key(keys, new_key))
        return
    check_binding(host, keys)
    counts = parse_replicas(cluster.replicas)
    aliases, origins = served_model_name or [], [checked_origin(one) for one in cors_origin or []]
    checked_root(root_path)
    chosen.check()
    limits = limit.limits()
    # Before the model is loaded, which takes minutes for a large one.
    bound = bind(host, port)
    store = Store(None if ephemeral else folder, limits.keep)
    # Every length of prompt is a new shape, whose kernels are kept; see there.
    settle()
    from nextstep.serve.api import server

    name = served_name(chosen.model, chosen.adapter)
    address = f"http://{host}:{port}"
    if cluster.ray:
        make = partial(_replica, chosen.load, name, batch_size, preview_share)
        backend = _on_ray(make, counts, batch_size, cluster.replica_cpus, cluster.replica_gpus)
        app = server.app_around(backend, store, keys, limits, None, aliases, origins)
        typer.echo(f"serving {name} at {address} with replicas {cluster.replicas}", err=True)
        try:
            server.serve(app, host, port, keys, limits.grace, root_path, bound)
        finally:
            _leave_ray()
        return
    app = server.build_app(
        chosen.load(), name, store, keys, limits, batch_size, preview_share=preview_share,
        aliases=aliases, origins=origins,
    )  # fmt: skip
    typer.echo(f"serving {name} at {address}", err=True)
    server.serve(app, host, port, keys, limits.grace, root_path, bound)


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
