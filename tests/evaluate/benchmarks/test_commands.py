"""`nextstep eval BENCH generate | score | report`, with an endpoint as judge; kills in between."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2  # noqa: F401 - once, not in every forked process
import pytest

from nextstep.evaluate.benchmarks import benchmark_class, scoring
from nextstep.evaluate.benchmarks.base import Output
from nextstep.evaluate.benchmarks.generation import Run
from nextstep.evaluate.judges.openai import OpenAIJudge
from nextstep.train import launch
from tests.cli.test_commands import nextstep
from tests.evaluate.benchmarks.fakes import GOOD
from tests.evaluate.benchmarks.official import SETS, made, tree, write_json
from tests.evaluate.judges.server import FAULTS, endpoint
from tests.train.play import server

GENERATE = ("--size", 32, "--preset", "model", "--batch-size", 8)


def test_the_three_commands(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, run = SETS["wise"](tmp_path / "set"), tmp_path / "run"
    status, said, _ = nextstep(
        capsys, "eval", "wise", "generate", "--data", data, "-m", tiny_folder, "-o", run, *GENERATE
    )
    assert status == 0
    assert "licence: not known" in said
    assert "the hash of the official set is not pinned" in said
    assert sorted(path.name for path in (run / "images").iterdir())[0] == "1.png"
    with endpoint(answer=lambda _: GOOD["wise"]) as server:
        judge = f"openai:gpt-4o-2024-05-13@{server.url}"
        status, said, _ = nextstep(capsys, "eval", "wise", "score", run, "-j", judge, "--json")
        assert status == 0
        assert json.loads(said)["failures"] == 0
        status, _, _ = nextstep(capsys, "eval", "wise", "score", run, "-j", judge, "--json")
        assert sum(server.requests.values()) == 8  # nothing is paid for twice
    status, said, _ = nextstep(capsys, "eval", "wise", "report", run, "--compare", run)
    assert status == 0
    assert "| cultural | 0.850 |" in said
    assert "NextStep-1 (Self-CoT)" in said
    assert "the hash of the official set is not pinned" in said
    assert (run / "report.md").exists()
    assert not any(
        "gpt-4o" in note for note in json.loads((run / "report.json").read_text())["notes"]
    )


def test_processes_share_a_set(tiny_folder: Path, tmp_path: Path) -> None:
    data, run = SETS["geneval2"](tmp_path / "set"), tmp_path / "run"
    command = [
        sys.executable, "-m", "nextstep", "eval", "geneval2", "generate", "--data", data,
        "-m", tiny_folder, "-o", run, "--workers", 2, *GENERATE, "--json",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((run / "images").glob("*.png"))) == 8


def in_processes(function: Callable, arguments: tuple, processes: int, cuda: bool) -> None:
    """In place of Ray: processes of this machine that begin at the same time."""
    assert not cuda
    launch.launch(function, arguments, processes, "forkserver")


@pytest.mark.parametrize("benchmark", ["geneval2", "world"])
def test_processes_that_ray_places_share_a_set(
    benchmark: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, alone = tmp_path / "run", tmp_path / "alone"
    if benchmark == "world":
        asked = ("-t", "single", "-t", "read_count", "--split", "seen", "-n", 4)
    else:
        asked = ("--data", SETS[benchmark](tmp_path / "set"), *GENERATE)
    command = ("eval", benchmark, "generate", *asked, "-m", tiny_folder, "--json", "-o")
    assert nextstep(capsys, *command, alone)[0] == 0
    server()
    monkeypatch.setattr(launch, "launch_on_ray", in_processes)
    monkeypatch.chdir(tmp_path)
    status, said, _ = nextstep(capsys, *command, "run", "--ray", "--workers", 3)
    assert status == 0
    assert json.loads(said.splitlines()[-1]) == {"run": "run", "items": 8, "missing": 0}
    made = {name: data for name, data in tree(run / "images").items() if name.endswith(".png")}
    assert made == {n: d for n, d in tree(alone / "images").items() if n.endswith(".png")}
    assert len(made) == (4 if benchmark == "world" else 8)


def test_ray_itself_places_processes(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if not request.config.getoption("--ray"):
        pytest.skip("starts a Ray cluster: give --ray")
    pytest.importorskip("ray.train")
    data, run = SETS["geneval2"](tmp_path / "set"), tmp_path / "run"
    status, _, err = nextstep(
        capsys, "eval", "geneval2", "generate", "--data", data, "-m", tiny_folder, "-o", run,
        *GENERATE, "--ray", "--workers", 2, "--json",
    )  # fmt: skip
    assert status == 0, err
    assert len(list((run / "images").glob("*.png"))) == 8


def test_without_ray_it_is_named(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray.train", None)
    data = SETS["geneval2"](tmp_path / "set")
    status, _, err = nextstep(
        capsys, "eval", "geneval2", "generate", "--data", data, "-m", tiny_folder,
        "-o", tmp_path / "run", *GENERATE, "--ray",
    )  # fmt: skip
    assert status == 2
    assert "Ray Train is not installed" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("score", "RUN"), "needs a judge for 'judge'"),
        (("score", "RUN", "-j", "gpt-4o"), "names no judge"),
        (("score", "RUN", "-j", "painter=ocr"), "no role 'painter'"),
        (("report", "RUN"), "is not scored"),
        (("score", "nowhere", "-j", "ocr"), "holds no run"),
        (("generate", "--data", "nowhere", "-o", "out"), "cannot be read"),
        (("generate", "--data", "SET", "-o", "out", "--preset", "paper"), "--preset is one of"),
    ],
)
def test_bad_wishes_are_one_sentence(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, command: tuple[str, ...],
    why: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    data, run = SETS["wise"](tmp_path / "set"), tmp_path / "run"
    if "RUN" in command:
        nextstep(
            capsys, "eval", "wise", "generate", "--data", data, "-m", tiny_folder, "-o", run,
            *GENERATE, "--json",
        )  # fmt: skip
    names = {"RUN": str(run), "SET": str(data)}
    told = [names.get(word, word) for word in command]
    more = ["-m", str(tiny_folder)] if told[0] == "generate" else []
    status, _, err = nextstep(capsys, "eval", "wise", *told, *more)
    assert status == 2
    assert why in err
    assert len(err.strip().splitlines()) == 1


KILLS = 20


def test_scoring_survives_twenty_kills(tmp_path: Path) -> None:
    """Nothing is lost, nothing counts twice, and only what was under way is asked again."""
    count, together = 80, 4
    benchmark = benchmark_class("ueval")()
    values = [
        {"prompt": f"p{n}", "task": "art", "id": n, "image_rubrics": [f"rubric {n}"]}
        for n in range(count)
    ]
    write_json(tmp_path / "set.json", values)
    items = benchmark.read(tmp_path / "set.json")
    run = Run(tmp_path / "run", benchmark, items, {"model": "m"})
    for item in items:
        benchmark.write(run.images, item, Output([made(0)]), "m")

    def faults(number: int, question: str) -> str:
        return FAULTS[len(question) % 2] if number == 0 and "7" in question else ""

    with endpoint(answer=lambda _: '{"criteria_met": true}', faults=faults, delay=0.02) as server:

        def score() -> None:
            judge = OpenAIJudge(
                "judge", server.url, None, run.folder / "answers", together, pause=0.01
            )
            scoring.score(run, {"judge": judge}, "judge")

        fork = multiprocessing.get_context("fork")
        for number in range(KILLS):
            before = sum(server.answered.values())
            process = fork.Process(target=score)
            process.start()
            while process.is_alive() and sum(server.answered.values()) < before + 2 + number % 4:
                time.sleep(0.002)
            process.kill()
            process.join()
        score()
        asked = sum(server.answered.values())
        assert len(server.answered) == count
        # What was under way at a kill is asked again, and nothing else.
        assert asked <= count + KILLS * together
        score()
        assert sum(server.answered.values()) == asked
    text = (run.folder / "scores/judge/items.jsonl").read_text()
    kept = [json.loads(line) for line in text.splitlines()]
    assert sorted(int(one["key"]) for one in kept) == list(range(count))
    assert all(one["values"] == {"image": 1.0, "rate": 1.0} for one in kept)
    assert not any(one["failures"] for one in kept)
