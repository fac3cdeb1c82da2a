"""Our own client and `nextstep generate --server` against a listening service."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from nextstep.cli.main import command_line
from nextstep.client import (
    AsyncClient,
    BusyError,
    Client,
    Event,
    Part,
    ServiceError,
)
from nextstep.errors import NextStepError
from nextstep.pipeline import NextStepPipeline
from tests.serve.conftest import Running, alone, picture_bytes, running, until


def test_rows_then_the_engines_own_pictures(
    narrow: Running, tiny_pipeline: NextStepPipeline
) -> None:
    with Client(narrow.url) as client:
        busy = client.submit("a", size="128x128", steps=200)
        updates = []
        for update in client.stream("a red apple", n=2, size="32x48", seed=4):
            # Nothing of it is made before it is watched.
            client.cancel(busy.id)
            updates.append(update)
        again = client.job(updates[-1].job)
        assert client.jobs(1) == [again] and again.state == "done" and again.n == 2
    shown = [update for update in updates if update.rows]
    assert sorted((u.index, u.row) for u in shown) == [(i, k) for i in (0, 1) for k in (1, 2, 3)]
    assert all(bool(u.preview) == (u.row < 3) for u in shown)
    wanted = alone(tiny_pipeline, "a red apple", height=48, width=32, n=2, seed=4)
    assert [p.png for p in updates[-1].pictures] == [p.png() for p in wanted]
    assert updates[-1].pictures[0].image.tobytes() == wanted[0].image.tobytes()


def test_edits(service: Running, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture_bytes())
    with Client(service.url) as client:
        ours = client.generate("make it blue", images=[path], seed=1)[0]
        ours.save(tmp_path / "b.png")
        assert client.generate("make it blue", images=[picture_bytes()], seed=1) == [ours]
    assert (tmp_path / "b.png").read_bytes() == ours.png
    assert ours.settings["task"] == "edit"


def test_pictures_are_gone_on_from(service: Running) -> None:
    mask = io.BytesIO()
    Image.new("L", (32, 64), 255).save(mask, "PNG")

    async def awaited(job: str) -> list[Part]:
        async with AsyncClient(service.url) as client:
            fork = await client.fork(job, 2, seed=9)
            _ = [update async for update in client.events(fork.id)]
            told = await client.tokens(job, noise_samples=2)
            assert len(told["token_std"]) == 8
            assert (await client.resample(job, tokens=[1])).n == 1
            assert (await client.stop(job)).state == "done"
            return await client.pictures(fork.id)

    with Client(service.url) as client:
        job = client.submit("a red apple", size="32x64", seed=4)
        (first,) = list(client.events(job.id))[-1].pictures
        fork = client.fork(job.id, 2, seed=9)
        made = list(client.events(fork.id))[-1].pictures
        assert made[0].png != first.png
        whole = client.resample(job.id, mask=mask.getvalue())
        again = list(client.events(whole.id))[-1].pictures[0]
        assert again.image.tobytes() == first.image.tobytes()
        assert client.stop(job.id).state == "done"
        assert client.tokens(job.id)["rows"] == 4
        kept = client.generate(
            "make it blue", images=[first.png], mask=client.pictures(job.id)[0].png, seed=1
        )
        assert kept[0].settings["mask"]
    assert asyncio.run(awaited(job.id)) == list(made)


def test_leaving_the_loop_stops_the_job(service: Running) -> None:
    with Client(service.url) as client:
        stream = client.stream("a", size="128x128", steps=200)
        job = next(stream).job
        stream.close()
        until(lambda: client.job(job).state == "cancelled")
        with pytest.raises(ServiceError, match="cancelled"):
            list(client.events(job))


@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "AVIF"])
def test_pictures_of_any_format_that_is_read_are_sent(service: Running, form: str) -> None:
    source = picture_bytes(form)
    with Client(service.url) as client:
        made = client.generate("make it blue", images=[source], size="32x32", seed=1)[0]
    assert made.settings["task"] == "edit"


def test_errors_are_distinguished(service: Running, app_of: Callable) -> None:
    with Client(service.url) as client:
        for bad in ({"size": "33x32"}, {"colour": "red"}, {"n": 0}):
            with pytest.raises(NextStepError):
                client.generate("a", **bad)
        with pytest.raises(NextStepError, match="no job"):
            list(client.events("0" * 32))
        with pytest.raises(NextStepError, match="cannot be sent to a service"):
            client.generate("a", images=[b"<svg/>"])
    with pytest.raises(NextStepError, match="http"):
        Client("localhost:8000")
    with Client("http://127.0.0.1:1") as nobody, pytest.raises(ServiceError) as told:
        nobody.jobs()
    assert str(told.value).startswith("the service at http://127.0.0.1:1 cannot be reached: ")
    assert "Errno" not in str(told.value)
    with running(app_of(queue=1)) as made, Client(made.url) as client:
        job = client.submit("a", size="128x128", steps=200)
        with pytest.raises(BusyError) as busy:
            client.submit("a")
        assert busy.value.retry_after >= 1
        client.cancel(job.id)


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, inspect.Signature]:
        names = (name for name in dir(kind) if not name.startswith("_"))
        return {name: inspect.signature(getattr(kind, name)) for name in names}

    assert calls(Client) == calls(AsyncClient)
    assert {"stream", "generate", "story", "events", "close"} < set(calls(Client))


def test_leaving_an_awaited_loop_stops_the_job(service: Running) -> None:
    async def awaited() -> str:
        async with AsyncClient(service.url) as client:
            async with aclosing(client.stream("a", size="128x128", steps=200)) as updates:
                job = (await anext(updates)).job
            return job

    job = asyncio.run(awaited())
    with Client(service.url) as client:
        until(lambda: client.job(job).state == "cancelled")


def test_the_waiting_client_works_inside_an_event_loop(service: Running) -> None:
    async def inside() -> list[Part]:
        with Client(service.url) as client:
            return client.generate("two cats", size="32x32", seed=4)

    with Client(service.url) as client:
        assert asyncio.run(inside()) == client.generate("two cats", size="32x32", seed=4)


def test_both_clients_tell_a_story(service: Running) -> None:
    fields = {"max_images": 1, "max_tokens": 4, "seed": 4}

    async def awaited() -> list[str | Part]:
        async with AsyncClient(service.url) as client:
            return await client.story(["a red apple", picture_bytes()], **fields)

    updates: list[Event] = []
    with Client(service.url) as client:
        told = client.story(["a red apple", picture_bytes()], updates.append, **fields)
    assert told and told == asyncio.run(awaited())
    assert updates[-1].state == "done"


def test_the_awaited_client_tells_the_same(narrow: Running) -> None:
    fields = {"size": "32x48", "seed": 4}

    async def awaited() -> list[Event]:
        updates = []
        async with AsyncClient(narrow.url) as client:
            busy = await client.submit("a", size="128x128", steps=200)
            async for update in client.stream("two cats", **fields):
                await client.cancel(busy.id)
                updates.append(update)
        return updates

    with Client(narrow.url) as client:
        waited = client.generate("two cats", **fields)
    told = asyncio.run(awaited())
    assert list(told[-1].pictures) == waited
    assert [u.row for u in told if u.rows] == [1, 2, 3]
    assert [bool(u.preview) for u in told if u.rows] == [True, True, False]


def test_the_command_draws_at_a_service(
    service: Running, tmp_path: Path, tiny_pipeline: NextStepPipeline
) -> None:
    given = ["generate", "a red apple", "--server", service.url, "--seed", "3", "-n", "2"]
    out = str(tmp_path / "a.png")
    made = CliRunner().invoke(command_line(), [*given, "--steps", "3", "-o", out, "--json"])
    assert made.exit_code == 0, made.output
    wanted = alone(tiny_pipeline, "a red apple", n=2, seed=3, steps=3)
    for place, one in enumerate(json.loads(made.stdout)["pictures"]):
        assert Path(one["path"]).read_bytes() == wanted[place].png()
    assert "2 pictures in" in CliRunner().invoke(command_line(), [*given, "-o", out]).stdout
    for more in (["--height", "32"], ["--dtype", "bf16"], ["--steps", "0"]):
        wrong = CliRunner().invoke(command_line(), [*given, *more, "-o", out])
        assert isinstance(wrong.exception, ValueError), more


def test_the_serve_command_refuses_in_words(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    made = CliRunner().invoke(command_line(), ["serve", "--new-key", "ann", "--keys", str(keys)])
    assert made.stdout.startswith("ns-") and keys.read_text().startswith("ann ")
    for bad in (["--host", "0.0.0.0"], ["--new-key", "ann"], ["--keys", str(tmp_path / "no")]):
        assert isinstance(CliRunner().invoke(command_line(), ["serve", *bad]).exception, ValueError)


@pytest.mark.parametrize(
    "ignored",
    [["--model", "nano"], ["--device", "cpu"], ["--batch-size", "2"], ["--adapter-scale", "1"]],
)
def test_options_that_a_service_would_ignore_are_refused(ignored: list[str]) -> None:
    given = ["generate", "a", "--server", "http://localhost:1", *ignored]
    wrong = CliRunner().invoke(command_line(), given).exception
    assert str(wrong) == f"a service has its own model and batches: leave out {ignored[0]}"
