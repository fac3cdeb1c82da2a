"""The service under load: mixed requests at once, killed and restarted, for a long time.

    load    200 requests of 32 clients, beside one at a time
    kill    kill -9 during the load and restart, 20 times
    memory  of the service over 1,000 pictures
    engine  2,000 mixed requests on the engine itself

Each prints lines and ends with one of JSON; the status is 1 when something was lost or grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
from serve_requests import MALFORMED, THINGS, drawing, request
from serve_unlike import Round, explain


@contextlib.contextmanager
def service(
    model: str, *more: str, log: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A service in a process of its own; gives its address once it is ready.

    Args:
        model: that it serves.
        *more: options.
        log: file that what it says is added to.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "nextstep", "serve", "--model", model, "--port", str(port),
               "--queue", "512", "--per-key", "512", "--deadline", "3600", *more]  # fmt: skip
    with open(log or os.devnull, "ab") as told:  # noqa: PTH123 - the null device is no path
        process = subprocess.Popen(command, stderr=told)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield url, process
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the service answers, and it is this process that does."""
    end, ready = time.monotonic() + 300, False
    while not ready and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
        with contextlib.suppress(httpx2.HTTPError):
            ready = httpx2.get(f"{url}/ready").status_code == 200
    if process.poll() is not None:
        raise SystemExit(f"the service ended with status {process.returncode}")
    if not ready:
        raise SystemExit("the service was not ready after 300 s")


async def submit(client: httpx2.AsyncClient, body: dict[str, Any]) -> str:
    """Ask until the queue has room; gives the job's id."""
    while True:
        answer = await client.post("/jobs", json=body)
        if answer.status_code == 202:
            return str(answer.json()["id"])
        if answer.status_code != 429:
            raise SystemExit(f"refused: {answer.text}")
        await asyncio.sleep(float(answer.headers["retry-after"]))


async def names(client: httpx2.AsyncClient, job: str) -> AsyncIterator[str]:
    """Names of a job's events."""
    url = f"/jobs/{job}/events?previews=false"
    async with client.stream("GET", url, timeout=3600) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                yield line[7:]


async def outcome(client: httpx2.AsyncClient, job: str) -> list[bytes]:
    """What a job made, once it is over: PNGs, or its text."""
    last = [name async for name in names(client, job)][-1]
    if last != "done":
        return [last.encode()]
    told = (await client.get(f"/jobs/{job}")).json()
    made = [(await client.get(one["url"])).content for one in told["pictures"]]
    return made or [told["text"].encode()]


async def at_once(url: str, count: int, clients: int) -> dict[str, Any]:
    """All requests of many clients; one in ten is cancelled, one in twenty malformed."""
    numbers, dice = iter(range(count)), random.Random(0)
    fates = ["cancel"] * (count // 10) + ["malformed"] * (count // 20)
    fates += ["keep"] * (count - len(fates))
    dice.shuffle(fates)
    made: dict[int, list[bytes]] = {}
    seconds: dict[int, float] = {}
    ends = dict.fromkeys(("cancelled", "done before", "refused", "kept"), 0)

    async def one(client: httpx2.AsyncClient) -> None:
        for number in numbers:
            if fates[number] == "malformed":
                answer = await client.post("/jobs", **dice.choice(MALFORMED))
                assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text
                ends["refused"] += 1
                continue
            begun = time.monotonic()
            job = await submit(client, request(number))
            if fates[number] == "cancel":
                await asyncio.sleep(dice.random() * 2)
                await client.post(f"/jobs/{job}/cancel")
                made[number] = await outcome(client, job)
                ends["cancelled" if made[number] == [b"cancelled"] else "done before"] += 1
                continue
            made[number] = await outcome(client, job)
            seconds[number] = time.monotonic() - begun
            ends["kept"] += 1

    begun = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        lines = [httpx2.AsyncClient(base_url=url, timeout=3600) for _ in range(clients)]
        await asyncio.gather(*[one(await stack.enter_async_context(line)) for line in lines])
    took = time.monotonic() - begun
    return {"made": made, "seconds": seconds, "took": took, "ends": ends}


async def one_by_one(url: str, numbers: list[int]) -> dict[str, Any]:
    """The same requests, each after the one before."""
    made: dict[int, list[bytes]] = {}
    seconds: dict[int, float] = {}
    async with httpx2.AsyncClient(base_url=url, timeout=3600) as client:
        for number in numbers:
            begun = time.monotonic()
            made[number] = await outcome(client, await submit(client, request(number)))
            seconds[number] = time.monotonic() - begun
    return {"made": made, "seconds": seconds, "took": sum(seconds.values())}


def count_pictures(made: dict[int, list[bytes]]) -> int:
    """PNGs in all outcomes."""
    return sum(one.startswith(b"\x89PNG") for some in made.values() for one in some)


def load(asked: argparse.Namespace) -> dict[str, Any]:
    """Mixed requests at once, and the same one at a time: some timed, the rest for their bytes."""
    with service(asked.model, "--ephemeral", "--batch-size", str(asked.batch)) as (url, _):
        asyncio.run(one_by_one(url, [0, 9]))  # warm
        mixed = asyncio.run(at_once(url, asked.requests, asked.clients))
        kept = sorted(n for n, made in mixed["made"].items() if made != [b"cancelled"])
        single = asyncio.run(one_by_one(url, kept[: asked.timed]))
        rest = asyncio.run(one_by_one(url, kept[asked.timed :]))
    whole = single["made"] | rest["made"]
    other = [n for n in kept if mixed["made"][n] != whole[n]]
    rows = {}
    for name, run in (("at once", mixed), ("one by one", single)):
        times = sorted(run["seconds"].values())
        rows[name] = {
            "pictures": count_pictures(run["made"]),
            "pictures_per_s": round(count_pictures(run["made"]) / run["took"], 3),
            "requests_per_s": round(len(run["made"]) / run["took"], 3),
            "p50_s": round(statistics.median(times), 2),
            "p95_s": round(times[int(0.95 * (len(times) - 1))], 2),
            "took_s": round(run["took"], 1),
        }
        print(f"{name:12s}" + "  ".join(f"{k} {v}" for k, v in rows[name].items()), flush=True)
    gain = round(rows["at once"]["pictures_per_s"] / rows["one by one"]["pictures_per_s"], 2)
    answered = sum(mixed["ends"].values())
    return {"rows": rows, "gain": gain, "ends": mixed["ends"],
            "lost": asked.requests - answered, "not_as_alone": len(other),
            "ok": answered == asked.requests and not other}  # fmt: skip


def kill(asked: argparse.Namespace) -> dict[str, Any]:
    """Kill the service during the load, restart it, and see that every accepted job is finished.

    The first round is left alone: its pictures are what the others must make.
    """
    dice, checked, finished_before, began = random.Random(1), 0, 0, time.time()
    unlike: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        alone = _round(asked, Path(scratch, "0"), 600.0)
        for number in range(1, asked.kills + 1):
            patience = dice.uniform(0.3, 6)
            killed = _round(asked, Path(scratch, str(number)), patience)
            wrong = [job for job, made in killed.made.items() if made != alone.made[job]]
            if wrong:
                unlike.append(number)
                print(f"round {number}: {wrong} are not what they are without a kill")
                print(explain(wrong, killed, alone, began), flush=True)
            checked += len(killed.made)
            finished_before += len(killed.done)
            told = f"{len(killed.made)} accepted, {len(killed.done)} done at the restart"
            print(f"kill {number:2d} after {patience:.1f} s: {told}", flush=True)
    told_all = {"jobs_checked": checked, "done_at_restart": finished_before}
    return {"kills": asked.kills, **told_all, "unlike_rounds": unlike, "ok": not unlike}


def _round(asked: argparse.Namespace, folder: Path, patience: float) -> Round:
    """Load, kill after so many seconds, restart, and what the accepted jobs became."""
    accepted: dict[str, int] = {}
    folder.mkdir()
    logs = {name: folder / f"{name}.log" for name in ("before", "after")}
    with service(asked.model, "--folder", str(folder), log=logs["before"]) as (url, process):
        asyncio.run(_accepted(url, process, list(range(asked.jobs)), patience, accepted))
    ended = time.time()
    with service(asked.model, "--folder", str(folder), log=logs["after"]) as (url, _):
        states = httpx2.get(f"{url}/jobs", params={"limit": 200}).json()["data"]
        over = {one["id"] for one in states if one["finished"] and one["finished"] <= ended}
        made = asyncio.run(_outcomes(url, accepted))
    with contextlib.closing(sqlite3.connect(folder / "jobs.sqlite3")) as base:
        (sound,) = base.execute("PRAGMA integrity_check").fetchone()
    assert sound == "ok", sound
    # A job may be kept whose client was gone before it heard of it.
    return Round(made, {number for job, number in accepted.items() if job in over}, logs)


async def _accepted(
    url: str,
    process: subprocess.Popen[bytes],
    numbers: list[int],
    patience: float,
    accepted: dict[str, int],
) -> None:
    """Submit from four clients until the service is killed, or all are over."""

    async def one(client: httpx2.AsyncClient, own: list[int]) -> None:
        with contextlib.suppress(httpx2.HTTPError, IndexError):
            for number in own:
                accepted[await submit(client, request(number, steps=4))] = number
                await asyncio.sleep(0.1)
            for job in list(accepted):
                await outcome(client, job)

    async def end() -> None:
        await asyncio.sleep(patience)
        os.kill(process.pid, signal.SIGKILL)

    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        killer = asyncio.ensure_future(end())
        await asyncio.gather(*(one(client, numbers[i::4]) for i in range(4)))
        killer.cancel()


async def _outcomes(url: str, accepted: dict[str, int]) -> dict[int, list[bytes]]:
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        made = await asyncio.gather(*(outcome(client, job) for job in accepted))
    return dict(zip(accepted.values(), made, strict=True))


def own_memory(process: int) -> float:
    """MiB that a process holds itself, in memory or swapped out; pages of files come and go."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(told[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 1024


def slope(values: list[float], per: float) -> float:
    """Least-squares slope of evenly spaced values, for `per` steps."""
    return statistics.linear_regression(range(len(values)), values).slope * per


def memory(asked: argparse.Namespace) -> dict[str, Any]:
    """Memory of the service over many pictures."""
    seen: list[float] = []

    async def run(url: str) -> int:
        numbers, pictures = iter(range(10**9)), 0

        async def one(client: httpx2.AsyncClient) -> None:
            nonlocal pictures
            while pictures < asked.pictures:
                number = next(numbers)
                job = await submit(client, request(number, steps=2))
                made = await outcome(client, job)
                for _ in range(count_pictures({0: made})):
                    pictures += 1
                    if pictures % 10 == 0:
                        seen.append(own_memory(process.pid))

        async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
            await asyncio.gather(*(one(client) for _ in range(8)))
        return pictures

    with (
        tempfile.TemporaryDirectory() as scratch,
        service(asked.model, "--folder", scratch, "--keep", "100") as (url, process),
    ):
        pictures = asyncio.run(run(url))
    later = slope(seen[len(seen) // 5 :], 10)
    print(f"{pictures} pictures: " + " ".join(f"{value:.0f}" for value in seen[::10]) + " MiB")
    return {"pictures": pictures, "first_mib": round(seen[0], 1), "last_mib": round(seen[-1], 1),
            "slope_mib_per_100": round(slope(seen, 10), 3),
            "slope_after_the_first_fifth": round(later, 3), "ok": later < 1}  # fmt: skip


def engine(asked: argparse.Namespace) -> dict[str, Any]:
    """Mixed requests on the engine itself, with cancelling and setting aside."""
    from nextstep.engine.engine import Engine
    from nextstep.engine.events import ENDS
    from nextstep.engine.pretrained import load_parts
    from nextstep.engine.scheduler import EngineLimits

    made = Engine.of_parts(load_parts(asked.model), EngineLimits(running=asked.batch))
    dice, ends, live = random.Random(2), dict[int, str](), set[int]()
    seen: list[float] = []
    sources = [drawing(dice, 64) for _ in range(4)]
    asked_for = 0
    while asked_for < asked.requests or not made.idle:
        while asked_for < asked.requests and len(live) < 2 * asked.batch:
            side = dice.choice((16, 32, 48, 64))
            images = [dice.choice(sources)] if dice.random() < 0.2 else []
            size = {} if images else {"height": side, "width": dice.choice((16, 32, side))}
            solver, steps = dice.choice((("ab2", 3), ("ode", 2), ("v1", 2), ("sde", 2)))
            live.add(made.submit(made.request(
                dice.choice(THINGS), images, seed=asked_for, solver=solver, steps=steps,
                guidance=dice.choice((1.0, 2.5)), client=dice.choice("abc"), **size,
            )))  # fmt: skip
            asked_for += 1
        if live and dice.random() < 0.02:
            made.cancel(dice.choice(sorted(live)))
        if live and dice.random() < 0.02:
            ticket = dice.choice(sorted(live))
            with contextlib.suppress(ValueError):
                made.preempt(ticket)
                made.resume(ticket)
        for event in made.step():
            if event.kind in ENDS:
                ends[event.ticket] = event.kind
                live.discard(event.ticket)
                if len(ends) % 20 == 0:
                    seen.append(own_memory(os.getpid()))
    kinds = {kind: sum(end == kind for end in ends.values()) for kind in sorted({*ends.values()})}
    later = slope(seen[len(seen) // 5 :], 5)
    left = len(made._requests), len(made.scheduler._sequences), len(made.scheduler._served)
    print(f"{len(ends)} ended: {kinds}; {seen[0]:.0f} MiB at first, {seen[-1]:.0f} at the end")
    return {"requests": asked.requests, "ended": len(ends), "kinds": kinds, "left_behind": left,
            "first_mib": round(seen[0], 1), "last_mib": round(seen[-1], 1),
            "slope_after_the_first_fifth_mib_per_100": round(later, 3),
            "ok": len(ends) == asked.requests and left == (0, 0, 0) and later < 1}  # fmt: skip


def main() -> None:
    """Measure, print, and say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = {"load": load, "kill": kill, "memory": memory, "engine": engine}
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--requests", type=int, help="of load (200) and engine (2000)")
    parser.add_argument("--timed", type=int, default=60, help="requests timed one by one")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=24, help="of each kill")
    parser.add_argument("--pictures", type=int, default=1000)
    asked = parser.parse_args()
    if asked.requests is None:
        asked.requests = 2000 if asked.what == "engine" else 200
    told = kinds[asked.what](asked)
    print(json.dumps({"what": asked.what, "model": asked.model, **told}))
    raise SystemExit(0 if told["ok"] else 1)


if __name__ == "__main__":
    main()
