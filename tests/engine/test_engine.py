"""Engine and picture states: the same bytes from any state, in any process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import Parts
from nextstep.engine.request import Request
from nextstep.engine.results import GeneratedPicture
from nextstep.engine.scheduler import EngineLimits
from nextstep.engine.state import FORMAT, PictureState
from nextstep.errors import NextStepError
from nextstep.pipeline import NextStepPipeline

RED = Image.new("RGB", (32, 32), "red")


@pytest.fixture(scope="module")
def engine(tiny_parts: Parts) -> Engine:
    return Engine.of_parts(tiny_parts)


def finish(engine: Engine, ticket: int) -> GeneratedPicture:
    done = {e.ticket: e.picture for e in engine.run_until_idle() if e.kind == "finished"}
    picture = done[ticket]
    assert picture is not None
    return picture


def resumed(engine: Engine, state: PictureState) -> int:
    return engine.submit(state.request, state)


def drawn(engine: Engine, request: Request) -> bytes:
    return finish(engine, engine.submit(request)).png()


def begun(engine: Engine, request: Request, steps: int) -> PictureState:
    ticket = engine.submit(request)
    for _ in range(steps):
        engine.step()
    state = engine.snapshot(ticket)
    engine.cancel(ticket)
    engine.run_until_idle()
    return state


def test_pictures_equal_the_pipelines_in_any_batch(
    engine: Engine, tiny_pipeline: NextStepPipeline, tiny_parts: Parts
) -> None:
    requests = [
        engine.request("a red apple", seed=3, height=48),
        engine.request("make it blue", [RED, RED], seed=4, solver="v1", steps=4),
        engine.request("two cats", width=64, guidance=1.0, negative_prompt="dull", index=2),
    ]
    alone = [drawn(Engine.of_parts(tiny_parts), request) for request in requests]
    tickets = [engine.submit(request) for request in requests]
    made = {e.ticket: e.picture for e in engine.run_until_idle() if e.picture}
    assert [made[ticket].png() for ticket in tickets] == alone
    plain = tiny_pipeline.generate("a red apple", seed=3, height=48)[0].image
    apart = np.asarray(plain).astype(int) - np.asarray(made[tickets[0]].image)
    assert np.abs(apart).max() <= 1
    record = made[tickets[1]].settings
    rows = engine.scheduler.backend.block_rows
    assert (record["task"], record["seed"], record["block_rows"]) == ("edit", 4, rows)
    assert len(record["sources"]) == 2 and record["backend"] == "torch"
    assert engine._requests == {}


def test_a_state_goes_on_in_another_process(
    engine: Engine, tiny_folder: Path, tmp_path: Path
) -> None:
    request = engine.request("make it blue <image> now", [RED], seed=9, height=48)
    whole = drawn(engine, request)
    begun(engine, request, 3).save(tmp_path / "state")
    code = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[4]))\n"
        "from nextstep.engine.engine import *; from nextstep.engine.pretrained import load_parts\n"
        "from nextstep.engine.state import PictureState\n"
        "parts = load_parts(sys.argv[1])._replace(model_hash='tiny')\n"
        "engine = Engine.of_parts(parts); state = PictureState.load(sys.argv[2])\n"
        "engine.submit(state.request, state)\n"
        "engine.run_until_idle()[-1].picture.save(sys.argv[3])\n"
    )
    out = tmp_path / "out.png"
    call = [sys.executable, "-c", code, str(tiny_folder), str(tmp_path / "state"), str(out)]
    # A picture records its threads, and other tests may have changed those of this process.
    subprocess.run([*call, str(torch.get_num_threads())], check=True)
    assert out.read_bytes() == whole


def test_every_token_is_a_place_to_go_on_from(engine: Engine) -> None:
    request = engine.request("a red apple", height=48, width=48, solver="sde")
    whole = drawn(engine, request)
    for steps in range(9):
        state = begun(engine, request, steps)
        assert len(state.tokens) == steps
        assert finish(engine, resumed(engine, state)).png() == whole


def test_a_state_that_looks_ahead_keeps_its_guesses(engine: Engine, tmp_path: Path) -> None:
    request = engine.request(
        "a red apple", height=64, width=64, jacobi_window=5, jacobi_tolerance=0.3
    )
    whole = drawn(engine, request)
    assert b'"jacobi_window": 5' in whole
    for steps in (1, 3):
        begun(engine, request, steps).save(tmp_path / "state")
        state = PictureState.load(tmp_path / "state")
        assert state.guesses is not None and len(state.guesses) == 4
        assert finish(engine, resumed(engine, state)).png() == whole


def test_fork_keeps_rows_and_continues_alone(engine: Engine) -> None:
    request = engine.request("a red apple", height=48)
    state = begun(engine, request, 5)
    assert (state.rows, len(state.rewind(1).tokens)) == (2, 2)
    assert finish(engine, resumed(engine, state.rewind(1))).png() == drawn(engine, request)
    forks = [
        state.fork(2),
        state.fork(2, seed=5),
        state.fork(2, prompt="two cats"),
        state.fork(2, guidance=4.0, steps=3),
    ]
    last = []
    for fork in forks:
        ticket = resumed(engine, fork)
        tokens = [e.tokens for e in engine.run_until_idle() if e.ticket == ticket][-1]
        assert torch.equal(tokens[:4], state.tokens[:4])
        last.append(tokens[4:])
    assert len({tokens.numpy().tobytes() for tokens in last}) == 4
    # A fork of no rows is the other request itself.
    other = replace(request, seed=5)
    assert finish(engine, resumed(engine, state.fork(0, seed=5))).png() == drawn(engine, other)
    with pytest.raises(NextStepError, match="2 whole rows, not 3"):
        state.fork(3)
    with pytest.raises(ValueError, match="unknown setting 'colour'"):
        state.fork(1, colour=3)


def test_stopping_early_keeps_whole_rows(engine: Engine) -> None:
    request = engine.request("a red apple", height=64)
    whole = [e for e in engine.run_until_idle()]
    ticket = engine.submit(request)
    for _ in range(5):
        whole = engine.step()
    engine.stop(ticket)
    (event,) = engine.step()
    assert event.picture is not None
    assert event.picture.settings["rows_done"] == 2
    pixels = np.asarray(event.picture.image)
    assert pixels.shape == (64, 32, 3)
    assert (pixels[32:] == 128).all()
    assert not (pixels[:32] == 128).all()
    assert whole[-1].kind == "token"
    state = engine.state(request, event.tokens)
    assert finish(engine, resumed(engine, state)).png() == drawn(engine, request)


def test_finished_state_gives_the_picture_at_once(engine: Engine) -> None:
    request = engine.request("a red apple")
    engine.submit(request)
    last = engine.run_until_idle()[-1]
    assert last.picture is not None
    ticket = resumed(engine, engine.state(request, last.tokens))
    assert [event.kind for event in engine.step()] == ["started", "finished"]
    with pytest.raises(NextStepError, match=f"no picture {ticket}"):
        engine.snapshot(ticket)


def test_states_are_checked(engine: Engine, tmp_path: Path) -> None:
    state = begun(engine, engine.request("a red apple", [RED]), 1)
    path = tmp_path / "state"
    state.save(path)
    loaded = PictureState.load(path)
    assert torch.equal(loaded.tokens, state.tokens)
    assert torch.equal(loaded.request.sources[0].tokens, state.request.sources[0].tokens)
    assert (loaded.request.settings, loaded.fingerprint) == (
        state.request.settings,
        state.fingerprint,
    )
    assert list(tmp_path.iterdir()) == [path]
    for name, value, word in [("model", "x", "model"), ("dtype", "float16", "number format")]:
        other = replace(state, fingerprint=replace(state.fingerprint, **{name: value}))
        with pytest.raises(NextStepError, match=f"begun with another {word}"):
            resumed(engine, other)
    more = replace(state.fingerprint, threads=state.fingerprint.threads + 1)
    more.check(state.fingerprint)
    with pytest.raises(NextStepError, match="begun with another number of threads"):
        more.check(state.fingerprint, threads=True)
    replace(more, threads=0).check(state.fingerprint, threads=True)  # of an older state, not known
    with pytest.raises(NextStepError, match="values, this model's have"):
        resumed(engine, replace(state, tokens=torch.zeros(1, 3)))
    with pytest.raises(NextStepError, match="5 tokens of a picture of 4"):
        replace(state, tokens=torch.zeros(5, 64))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        PictureState.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello, this is a text and nothing more")
    with pytest.raises(NextStepError, match="is no picture state"):
        PictureState.load(tmp_path / "text")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    with pytest.raises(NextStepError, match="damaged: its checksum is wrong"):
        PictureState.load(tmp_path / "flipped")
    save_file({"tokens": state.tokens}, tmp_path / "other")
    with pytest.raises(NextStepError, match="is no picture state"):
        PictureState.load(tmp_path / "other")
    for told, word in [({}, "damaged"), ({"version": 8}, "has version 8, this program reads 7")]:
        save_file({"tokens": state.tokens}, tmp_path / "bad", {FORMAT: json.dumps(told)})
        with pytest.raises(NextStepError, match=word):
            PictureState.load(tmp_path / "bad")


def test_requests_are_checked(engine: Engine, tiny_parts: Parts) -> None:
    with pytest.raises(ValueError, match="2\\^63"):
        engine.request("a", seed=-1)
    with pytest.raises(ValueError, match="index must be at least 0"):
        engine.request("a", index=-1)
    with pytest.raises(ValueError, match="multiples of 16"):
        engine.request("a", height=20)
    with pytest.raises(ValueError, match="every picture needs one tag <image>"):
        engine.request("<image> and <image>", [RED])
    with pytest.raises(ValueError, match="shorten the prompt"):
        engine.submit(engine.request("word " * 300))
    small = Engine.of_parts(tiny_parts, EngineLimits(cache_bytes=100))
    with pytest.raises(NextStepError, match="give the engine more"):
        small.submit(small.request("a"))


def test_deadline_is_counted_from_the_request(tiny_parts: Parts) -> None:
    now = 100.0
    own = tiny_parts
    engine = Engine(
        own.model, own.text_tokenizer, own.image_tokenizer, own.defaults, clock=lambda: now
    )
    engine.submit(engine.request("a", seconds=5))
    engine.step()
    now = 106.0
    (event,) = engine.step()
    assert (event.kind, event.picture) == ("late", None)
    assert "before its deadline" in event.message
