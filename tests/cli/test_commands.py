"""The command line: what it writes, and one clear sentence with status 2 for bad input."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from safetensors.torch import load_file, save_file

from nextstep.cli import main as cli
from nextstep.image.encode import encode


def nextstep(capsys: pytest.CaptureFixture, *args: object) -> tuple[int, str, str]:
    """Run the command in this process: (status, stdout, stderr)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nextstep", *map(str, args)])
        patch.delenv("NEXTSTEP_TRACEBACK", raising=False)
        try:
            cli.run()
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    out = capsys.readouterr()
    return status, out.out, out.err


def test_generate_writes_a_picture_with_settings(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "a.png"
    status, said, _ = nextstep(
        capsys, "generate", "a red apple", "-m", tiny_folder, "-o", out, "--seed", 5
    )
    assert status == 0
    assert str(out) in said
    with Image.open(out) as picture:
        assert picture.size == (32, 32)
    status, said, _ = nextstep(capsys, "show-settings", out, "--json")
    record = json.loads(said)
    assert (record["prompt"], record["seed"], record["task"]) == ("a red apple", 5, "generate")
    status, said, _ = nextstep(capsys, "show-settings", out)
    assert "a red apple" in said


def test_json_and_several_pictures(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, said, err = nextstep(
        capsys, "generate", "one", "two", "-n", 2, "-m", tiny_folder,
        "-o", tmp_path / "p.png", "--json", "--height", 16, "--width", 48,
    )  # fmt: skip
    assert status == 0
    assert err == ""
    told = json.loads(said)
    assert [Path(p["path"]).name for p in told["pictures"]] == [f"p-{i}.png" for i in range(4)]
    assert all(Image.open(p["path"]).size == (48, 16) for p in told["pictures"])
    assert told["generate_s"] > 0


def test_edit(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (128, 32), "red").save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    status, _, err = nextstep(
        capsys, "edit", "make it blue", "-i", tmp_path / "in.png", "-m", tiny_folder, "-o", out
    )
    assert (status, Image.open(out).size) == (0, (64, 16)), err
    status, said, _ = nextstep(capsys, "show-settings", out, "--json")
    assert json.loads(said)["task"] == "edit"


@pytest.mark.parametrize(("ending", "form"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_the_ending_of_the_output_decides_its_form(
    ending: str, form: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / f"a.{ending}"
    assert nextstep(capsys, "generate", "an apple", "-m", tiny_folder, "-o", out)[0] == 0
    assert Image.open(out).format == form
    status, said, _ = nextstep(capsys, "show-settings", out, "--json")
    assert (status, json.loads(said)["prompt"]) == (0, "an apple")
    status, said, err = nextstep(capsys, "verify", out, "-m", tiny_folder)
    assert status == (0 if form == "PNG" else 2), said
    assert ("not exact" in err) == (form != "PNG")


def test_info(tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    status, said, _ = nextstep(capsys, "info", "14b", "--json")
    facts = json.loads(said)
    assert facts["parameters"]["flow head"] == 157_228_096
    assert facts["parameters"]["total"] == 14_953_814_080
    assert facts["parameters"]["image tokenizer"] == 83_819_683
    # 27.85 GiB of the model and 0.16 of its image tokenizer.
    assert round(facts["memory_gib"]["bf16"], 2) == 28.01
    assert "128x512" in facts["sizes"] or "256x1024" in facts["sizes"]
    status, said, _ = nextstep(capsys, "info", tiny_folder)
    assert status == 0
    assert "our layout" in said


def test_convert_there_and_back(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    status, _, err = nextstep(capsys, "convert", tiny_folder, there, "--layout", "released")
    assert (status, err) == (0, "")
    released = {p.name for p in there.iterdir()}
    assert {"tokenizer_config.json", "special_tokens_map.json"} <= released
    assert nextstep(capsys, "convert", there, back)[0] == 0
    before, after = (load_file(f / "model.safetensors") for f in (tiny_folder, back))
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)
    status, _, _ = nextstep(capsys, "convert", tiny_folder, tmp_path / "b", "--dtype", "bf16")
    assert status == 0
    weights = load_file(tmp_path / "b" / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {"torch.bfloat16"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def damaged(kind: str, tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / kind
    shutil.copytree(tiny_folder, folder)
    path = folder / "model.safetensors"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        weights = load_file(path)
        weights["norm.weight"] = weights["norm.weight"][:7].clone()
        save_file(weights, path)
    return folder


BAD = [
    ("missing folder", ["generate", "a", "-m", "{tmp}/none"], "no model folder"),
    ("truncated shard", ["generate", "a", "-m", "{truncated}"], "cut off or damaged"),
    ("wrong shape", ["generate", "a", "-m", "{misshapen}"], "norm.weight"),
    ("size", ["generate", "a", "--height", "100"], "multiples of 16"),
    ("zero size", ["generate", "a", "--width", "0"], "multiples of 16"),
    ("NaN guidance", ["generate", "a", "--guidance", "nan"], "finite number"),
    ("infinite shift", ["generate", "a", "--shift", "inf"], "time shift"),
    ("long prompt", ["generate", "word " * 2000], "tokens"),
    ("unknown solver", ["generate", "a", "--solver", "dpm"], "unknown solver 'dpm'"),
    ("huge size", ["generate", "a", "--height", "1600000", "--width", "1600000"], "too large"),
    ("endless steps", ["generate", "a", "--steps", "1000000000"], "at most 10000"),
    ("too many pictures", ["generate", "a", "-n", "200000"], "at most 100000"),
    ("not text", ["generate", "bad\udcff"], "not UTF-8"),
    ("long name", ["generate", "a", "-o", "{tmp}/" + "x" * 300 + ".png"], "too long"),
    ("long model name", ["generate", "a", "-m", "x" * 5000], "cannot be a model folder"),
    ("nobody's home", ["generate", "a", "-m", "~nosuchuser/x"], "cannot be a model folder"),
    ("meta device", ["generate", "a", "--device", "meta"], "unknown device 'meta'"),
    ("huge guidance", ["generate", "a", "--guidance", "1e38"], "at most 1000"),
    ("second of two taken", ["generate", "a", "-n", "2", "-o", "{tmp}/two.png"], "is a folder"),
    ("damaged settings", ["show-settings", "{tmp}/five.png"], "settings inside"),
    ("unknown schedule", ["generate", "a", "--schedule", "cosine"], "unknown guidance schedule"),
    ("no steps", ["generate", "a", "--steps", "0"], "steps must be at least 1"),
    ("no pictures", ["generate", "a", "-n", "0"], "at least 1"),
    ("no batch", ["generate", "a", "--batch-size", "0"], "batch size"),
    ("negative seed", ["generate", "a", "--seed", "-1"], "seed must lie"),
    ("unknown dtype", ["generate", "a", "--dtype", "fp8"], "unknown dtype 'fp8'"),
    ("absent device", ["generate", "a", "--device", "cuda:77"], "cannot be used here"),
    ("no such folder to write", ["generate", "a", "-o", "{tmp}/no/a.png"], "does not exist"),
    ("read-only output", ["generate", "a", "-o", "/proc/a.png"], "/proc"),
    ("no picture", ["generate", "a", "-o", "{tmp}/a.gif"], "does not end in .png, .jpg"),
    ("output is a folder", ["generate", "a", "-o", "{tmp}/folder.png"], "is a folder"),
    ("corrupt picture", ["edit", "a", "-i", "{tmp}/corrupt.png"], "cannot be read"),
    ("missing picture", ["edit", "a", "-i", "{tmp}/none.png"], "no picture"),
    ("huge picture", ["edit", "a", "-i", "{tmp}/huge.png"], "million are read"),
    ("tags", ["edit", "<image><image>", "-i", "{tmp}/good.png"], "every picture needs one"),
    ("no settings", ["show-settings", "{tmp}/good.png"], "carries no NextStep settings"),
    ("no file", ["show-settings", "{tmp}/none.png"], "no file"),
    ("nothing to convert", ["convert", "{tmp}/none", "{tmp}/x"], "no model folder"),
    ("existing target", ["convert", "nano", "{tmp}/folder.png"], "exists already"),
    ("unknown layout", ["convert", "nano", "{tmp}/x", "--layout", "gguf"], "unknown layout"),
    ("unknown size", ["info", "9b"], "no model folder '9b'"),
    ("unknown option", ["generate", "a", "--colour"], "No such option"),
    ("no prompt", ["generate"], "Missing argument"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "folder.png").mkdir()
    (tmp / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nonsense" * 10)
    Image.new("RGB", (32, 32)).save(tmp / "good.png")
    Image.new("1", (12_000, 9_000)).save(tmp / "huge.png")
    (tmp / "two-1.png").mkdir()
    (tmp / "five.png").write_bytes(encode(Image.new("RGB", (8, 8)), texts={"nextstep": "5"}))
    return {
        "tmp": str(tmp),
        "truncated": str(damaged("truncated", tiny_folder, tmp)),
        "misshapen": str(damaged("misshapen", tiny_folder, tmp)),
    }


@pytest.mark.parametrize(("args", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(
    args: list[str],
    message: str,
    places: dict[str, str],
    tiny_folder: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    filled = [a.format(**places) if a.startswith("{") else a for a in args]
    if filled[0] in ("generate", "edit") and "-m" not in filled:
        filled += ["-m", str(tiny_folder)]
    if filled[0] in ("generate", "edit") and "-o" not in filled:
        filled += ["-o", f"{places['tmp']}/out.png"]
    before = sorted(Path(places["tmp"]).iterdir())
    status, out, err = nextstep(capsys, *filled)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    if err.startswith("nextstep: "):
        assert err.count("\n") == 1
    assert sorted(Path(places["tmp"]).iterdir()) == before, "something was left behind"


def test_empty_prompt_is_allowed(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "e.png"
    assert nextstep(capsys, "generate", "", "-m", tiny_folder, "-o", out)[0] == 0


def test_a_failure_of_ours_is_status_1(capsys: pytest.CaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextstep.cli.info.describe", lambda model: 1 / 0)
        status, _, err = nextstep(capsys, "info", "nano")
    assert status == 1
    assert err == "nextstep: failed: ZeroDivisionError: division by zero\n"


def test_help_is_quick() -> None:
    """Under a second of the processor, which is the same on a busy machine; the best of three."""

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    times = []
    for _ in range(3):
        begun = spent()
        done = subprocess.run(
            [sys.executable, "-m", "nextstep", "--help"],
            capture_output=True, text=True, check=True, env=os.environ,
        )  # fmt: skip
        times.append(spent() - begun)
    assert "generate" in done.stdout
    assert min(times) < 1.0


def imported_by(code: str) -> set[str]:
    """Modules that a new process has imported after some code."""
    code = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    imported = imported_by("from nextstep.cli import main; main.command_line()")
    assert "nextstep.cli.train" in imported
    assert not imported & {"torch", "diffusers", "transformers", "numpy", "PIL"}


def test_a_command_imports_no_other() -> None:
    imported = imported_by("from nextstep.cli import main; main.command_line(['generate', 'x'])")
    own = {name for name in imported if name.startswith("nextstep.cli.")}
    shared = ("main", "generate", "groups", "options", "checks")
    assert own == {f"nextstep.cli.{name}" for name in shared}


def test_drawing_imports_no_training_service_or_data() -> None:
    imported = imported_by("import nextstep.pipeline")
    others = ("train", "recipe", "data", "finetune", "world", "evaluate", "serve", "client", "lab")
    assert not {
        name for name in imported if name.startswith(tuple(f"nextstep.{n}" for n in others))
    }
    heavy = {"torch._dynamo", "transformers", "diffusers", "scipy", "fastapi", "yaml", "peft"}
    assert not imported & heavy


def test_every_command_is_alone_what_it_is_among_all() -> None:
    whole = typer.main.get_command(cli.command_line())
    assert isinstance(whole, typer.core.TyperGroup) and set(whole.commands) == set(cli.HOMES)
    for name, command in whole.commands.items():
        group = typer.main.get_command(cli.command_line([name]))
        assert isinstance(group, typer.core.TyperGroup) and list(group.commands) == [name]
        assert [one.opts for one in group.commands[name].params] == [
            one.opts for one in command.params
        ]


def test_waiting_threads_sleep_soon_unless_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    cli.bound_spinning()
    assert os.environ.pop("GOMP_SPINCOUNT") == cli.SPINS
    os.environ["OMP_WAIT_POLICY"] = "active"
    cli.bound_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ
