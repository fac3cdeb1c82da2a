"""Commands that need no model import no torch, and neither does any refusal of arguments."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from tests.conftest import TINY

RUN = """
import contextlib, io, json, sys
from nextstep.cli import main
found = []
for arguments in json.loads(sys.stdin.read()):
    sys.argv = ["nextstep", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.run()
        except SystemExit as leaving:
            status = leaving.code or 0
    found.append([status, out.getvalue(), err.getvalue(), "torch" in sys.modules])
print(json.dumps(found))
"""
REFUSED = {
    "generate a --size 256x256 -o {tmp}/a.png": "this model draws up to 128x128 pixels",
    "generate a --height 256 --width 256 -o {tmp}/a.png": "256x256 pixels are too large",
    "generate a --height 144 -o {tmp}/a.png": "128x144 pixels are too large",
    "generate a --size 100x128 -o {tmp}/a.png": "positive multiples of 16",
    "generate a --size 0x128 -o {tmp}/a.png": "--size is WIDTHxHEIGHT",
    "generate a --size large -o {tmp}/a.png": "--size is WIDTHxHEIGHT",
    "generate a --size 128x128 --width 64 -o {tmp}/a.png": "either --size",
    "generate a --steps 0 -o {tmp}/a.png": "steps must be at least",
    "generate a --guidance nan -o {tmp}/a.png": "guidance must be a finite number",
    "generate a --solver rk4 -o {tmp}/a.png": "unknown solver 'rk4'",
    "generate a --schedule cosine -o {tmp}/a.png": "unknown guidance schedule",
    "generate a --seed -1 -o {tmp}/a.png": "a seed must lie between",
    "generate a -n 0 -o {tmp}/a.png": "the number of pictures",
    "generate a -n 99999999 -o {tmp}/a.png": "the number of pictures",
    "generate a --height 0 -o {tmp}/a.png": "positive multiples of 16, not 0x128",
    "generate a --width 0 -o {tmp}/a.png": "positive multiples of 16, not 128x0",
    "generate a --batch-size 0 -o {tmp}/a.png": "batch size must be at least 1",
    "generate a --dtype fp8 -o {tmp}/a.png": "unknown dtype 'fp8'",
    "generate a --device tpu -o {tmp}/a.png": "unknown device 'tpu'",
    "generate a --quantize int2 -o {tmp}/a.png": "cannot be quantised to 'int2'",
    "generate a -m {tmp}/none -o {tmp}/a.png": "no model folder",
    "generate a --vae {tmp}/none -o {tmp}/a.png": "no model folder",
    "generate a --adapter {tmp}/none -o {tmp}/a.png": "no adapter folder",
    "generate a --adapter-scale 7 -o {tmp}/a.png": "no effect without --adapter",
    "generate a --server http://127.0.0.1:1 --dtype bf16 -o {tmp}/a.png": "has its own model",
    "generate a --server here -o {tmp}/a.png": "no address of a service",
    "edit a -i {tmp}/good.png --size 256x256 -o {tmp}/a.png": "256x256 pixels are too large",
    "edit a -i {tmp}/good.png --steps 0 -o {tmp}/a.png": "steps must be at least",
    "edit a -i {tmp}/good.png --width 0 -o {tmp}/a.png": "positive multiples of 16, not 16x0",
    "edit a -i {tmp}/good.png -n 99999999 -o {tmp}/a.png": "the number of pictures",
    "edit <image>a<image> -i {tmp}/good.png -o {tmp}/a.png": "names <image_0>, <image_1>, and 1 "
    "picture was given",
    "edit a -i {tmp}/good.png --mask {tmp}/good.png --mask-feather -1 -o {tmp}/a.png": "must lie "
    "between 0 and",
    "edit a -i {tmp} -o {tmp}/a.png": "is not a picture file but a folder",
    "edit a -i {tmp}/none.png -o {tmp}/a.png": "no picture",
    "story a --max-pictures 99999999 -o {tmp}/a.png": "the number of pictures",
    "story a --seed -1 -o {tmp}/a.png": "a seed must lie between",
    "world show --size 33 -t counting -o {tmp}/a.png": "positive multiple of 16, not 33",
    "serve --ephemeral --grace inf": "'grace' must be a finite number",
    "serve --ephemeral --port {taken}": "choose another --port or --host",
    "story a --steps 0 -o {tmp}/a.png": "steps must be at least",
    "story a --adapter {tmp}/none -o {tmp}/a.png": "no adapter folder",
    "read {tmp}/good.png --device tpu": "unknown device",
    "read {tmp}/good.png --adapter {tmp}/none": "no adapter folder",
    "predict {tmp}/good.png -a b --solver rk4 -o {tmp}/a.png": "unknown solver",
    "predict {tmp}/good.png -a b --adapter {tmp}/none -o {tmp}/a.png": "no adapter folder",
    "eval world -o {tmp}/e --answers me": "answers come from",
    "eval world -o {tmp}/e --adapter {tmp}/none": "no adapter folder",
    "convert nano {tmp}/x --layout gguf": "unknown layout",
    "convert nano {tmp}/x --adapter {tmp}/none": "no adapter folder",
    "convert {tmp}/none {tmp}/x": "no model folder",
    "fit-solver nano": "is no folder of yours",
    "fit-solver nano --steps 1 -o {tmp}/g.json": "a solver of 2 to",
    "finetune --data {tmp} -o {tmp}/f --rank 0": "rank of an adapter",
    "finetune --data {tmp} -o {tmp}/f --alpha nan": "alpha of an adapter must be above 0",
    "finetune --data {tmp} -o {tmp}/f --context-noise inf": "must be a finite number",
    "finetune --data {tmp}/none -o {tmp}/f": "no folder",
    "finetune --data {tmp} -o {tmp}/f --device tpu": "unknown device",
    "serve --host 0.0.0.0": "can be reached from other machines",
    "serve --replicas x": "--replicas is a number",
    "serve --dtype fp8": "unknown dtype",
    "serve -m {tmp}/none": "no model folder",
    "serve --new-key ann": "--new-key needs --keys",
    "train {tmp}/none.yaml": "none.yaml",
    "train no-such-recipe": "no recipe 'no-such-recipe'",
    "plan no-such-recipe": "no recipe 'no-such-recipe'",
    "plan pretrain-nano --device abacus": "abacus",
    "verify {tmp}/good.png": "carries no NextStep settings",
    "replay {tmp}/good.png -o {tmp}/a.png": "carries no NextStep settings",
    "show-settings {tmp}": "is not a picture file but a folder",
    "show-settings {tmp}/good.png": "carries no NextStep settings",
    "info 9b": "no model folder '9b'",
    "data build {tmp}/none {tmp}/set": "none",
    "data check {tmp}/none": "none",
}
ANSWERED = (
    "info nano", "info nano --words", "info 14b --json", "info {tmp}/tiny",
    "show-settings {tmp}/made.png", "serve --new-key ann --keys {tmp}/keys.txt",
    "data build {tmp}/pictures {tmp}/set --json", "data check {tmp}/set",
    "world show -t single -n 1 -o {tmp}/w.png",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("refusals")
    Image.new("RGB", (32, 32)).save(tmp / "good.png")
    info = PngImagePlugin.PngInfo()
    info.add_itxt("nextstep", json.dumps({"prompt": "a"}))
    Image.new("RGB", (8, 8)).save(tmp / "made.png", pnginfo=info)
    (tmp / "tiny").symlink_to(tiny_folder)
    (tmp / "pictures").mkdir()
    for number in range(2):
        Image.new("RGB", (32, 32)).save(tmp / "pictures" / f"{number}.png")
        (tmp / "pictures" / f"{number}.txt").write_text("a red apple")
    return tmp


def outcomes(commands: list[str], tmp: Path) -> list[tuple[int, str, str, bool]]:
    """(status, stdout, stderr, whether torch was loaded by now) of each, in one fresh process."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        taken = busy.getsockname()[1]
        arguments = [command.format(tmp=tmp, taken=taken).split() for command in commands]
        done = subprocess.run(
            [sys.executable, "-c", RUN], input=json.dumps(arguments), capture_output=True,
            text=True, check=True, cwd=tmp,
        )  # fmt: skip
    return [tuple(one) for one in json.loads(done.stdout)]


def test_bad_arguments_are_refused_before_torch_is_loaded(place: Path) -> None:
    found = dict(zip(REFUSED, outcomes(list(REFUSED), place), strict=True))
    for command, (status, out, err, torch) in found.items():
        assert not torch, command
        assert (status, out) == (2, ""), (command, status, err)
        assert REFUSED[command] in " ".join(err.split()), (command, err)
        assert err.startswith("nextstep: ") and err.count("\n") == 1, command


def test_commands_without_a_model_do_not_load_torch(place: Path) -> None:
    for command, outcome in zip(ANSWERED, outcomes(list(ANSWERED), place), strict=True):
        status, out, err, torch = outcome
        assert (status, torch) == (0, False), (command, err)
        assert out


def test_info_tells_the_limits_in_pixels(place: Path) -> None:
    (_, told, _, _), (_, raw, _, _) = outcomes(["info nano", "info {tmp}/tiny --json"], place)
    assert "this model draws up to 128x128 pixels, in multiples of 16" in told
    most = (TINY.max_position_embeddings - 1) * 256
    assert f"up to {most:,} pixels in all" in json.loads(raw)["size_limits"]
