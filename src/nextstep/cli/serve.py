"""`nextstep serve`: an image service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o

LIMITS = "Limits"


def command(
    model: o.Model = "nano",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    folder: Annotated[
        Path, typer.Option(help="Keeps jobs and pictures over restarts.")
    ] = Path("runs/serve"),
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep jobs and pictures in memory only.")
    ] = False,
    keys: Annotated[Path | None, typer.Option(help="File of API keys (their hashes).")] = None,
    new_key: Annotated[
        str | None, typer.Option(help="Make a key of that name in --keys, show it, and leave.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Jobs accepted and not yet finished.",
                                       rich_help_panel=LIMITS)] = 64,
    per_key: Annotated[int, typer.Option(min=1, help="Of them by one key.",
                                         rich_help_panel=LIMITS)] = 16,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds a job may take with waiting.",
                                            rich_help_panel=LIMITS)] = 600,
    keep: Annotated[int, typer.Option(min=1, help="Finished jobs that are kept.",
                                      rich_help_panel=LIMITS)] = 1000,
    grace: Annotated[float, typer.Option(min=1, help="Seconds for running jobs when it stops.",
                                         rich_help_panel=LIMITS)] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made together.")] = 8,
    preview_share: Annotated[
        float, typer.Option(min=0, help="Share of the time that previews of rows may take.")
    ] = 0.1,
    vae: o.Vae = None,
    adapter: o.Adapter = None,
    adapter_scale: o.AdapterScale = 1.0,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
) -> None:  # fmt: skip
    """Serve pictures over HTTP: OpenAI's image and chat endpoints, and jobs with live rows.

    Example: nextstep serve --model nano --port 8000
    """
    from nextstep.errors import NextStepError

    try:
        from nextstep.serve import server
        from nextstep.serve.keys import add_key
        from nextstep.serve.limits import Limits, check_binding
    except ModuleNotFoundError as error:
        raise NextStepError(
            f"serving needs {error.name}: pip install 'open-nextstep[serve]'"
        ) from None
    if new_key is not None:
        if keys is None:
            raise NextStepError("--new-key needs --keys FILE, where its hash is kept")
        typer.echo(add_key(keys, new_key))
        return
    check_binding(host, keys)
    limits = Limits(
        queue=queue, per_key=min(per_key, queue), deadline=deadline, keep=keep, grace=grace
    )
    pipeline = o.load_pipeline(model, dtype, device, vae, adapter, adapter_scale, quantize)
    name = Path(model).name if Path(model).is_dir() else model
    app = server.build_app(pipeline, name, None if ephemeral else folder, keys, limits, batch_size,
                           preview_share=preview_share)  # fmt: skip
    typer.echo(f"serving {name} at http://{host}:{port}", err=True)
    server.serve(app, host, port, keys, grace)
