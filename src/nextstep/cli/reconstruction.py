"""`nextstep eval reconstruction`: an image tokenizer on a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextstep.cli import options as o

if TYPE_CHECKING:
    from PIL import Image

PUBLISHED = {
    "NextStep-1": (30.60, 0.89), "Flux.1-dev": (31.64, 0.91), "SD3-Medium": (30.00, 0.88),
    "SDXL": (26.22, 0.77),
}  # fmt: skip
"""PSNR and SSIM on ImageNet's validation pictures at 256 pixels (arXiv 2508.10711, table 8)."""


def command(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures, including its subfolders.")],
    model: o.Model = "nano",
    vae: o.Vae = None,
    size: Annotated[
        int | None,
        typer.Option(min=16, help="Cover this many pixels a side and crop the middle, as "
                     "published figures do; default every picture's own size.")
    ] = None,
    lpips: Annotated[
        Path | None, typer.Option(help="TorchScript of LPIPS' VGG (vgg16.pt).")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="TorchScript of FID's Inception (inception-2015-12-05.pt).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of pictures.")] = None,
    dtype: o.Dtype = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Encode and decode pictures and measure what changed: PSNR, SSIM, LPIPS, rFID.

    Example: nextstep eval reconstruction imagenet/val -m StepFun/NextStep-1.1 --size 256
    """
    from nextstep.cli.checks import check_device_name, parse_dtype
    from nextstep.image.formats import is_picture
    from nextstep.model.folder import find_folder, read_model_config, vae_folder

    check_device_name(device)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and is_picture(p.suffix))[:limit]
    if not files:
        raise ValueError(f"there are no pictures in {folder}")
    found = find_folder(model)
    place = vae_folder(found, read_model_config(found), vae)
    from nextstep.evaluate.fidelity import inception_net, lpips_net
    from nextstep.evaluate.reconstruction import measure
    from nextstep.vae.files import load_image_tokenizer

    told = measure(
        load_image_tokenizer(place, parse_dtype(dtype), device),
        _pictures(files, size),
        lpips=lpips_net(lpips, device) if lpips else None,
        inception=inception_net(inception, device) if inception else None,
    ).rounded()
    if as_json:
        typer.echo(json.dumps(told))
        return
    typer.echo(f"{told['pictures']} pictures through the image tokenizer of {model}")
    for name, value in told.items():
        if name != "pictures" and value is not None:
            typer.echo(f"  {name:<8}{value:>9}")
    if size == 256:
        for name, (psnr, ssim) in PUBLISHED.items():
            typer.echo(f"  {name}, as published on ImageNet: PSNR {psnr:.2f}, SSIM {ssim:.2f}")


def _pictures(files: list[Path], size: int | None) -> Iterator[Image.Image]:
    from nextstep.image.pictures import open_picture, resize_and_crop

    for file in files:
        picture = open_picture(file)
        yield picture if size is None else resize_and_crop(picture, size, size)
