"""The service with one hostile client among 32: how long the others wait for their next row.

31 clients draw one picture after the other and note when each row came. First they are alone, then
one more client sends what costs most: long texts, large pictures, bodies of many values, heads that
never end, jobs that it cancels at once. Told are the gaps between the rows of a picture, and the
worst of them with and without that client; the status is 1 when it grew more than three times.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
from PIL import Image
from serve_load import service, submit

MOST = 3.0
"""Times that the worst gap may grow."""
SETTLING = 2.0
"""Seconds of each phase that do not count."""
Attack = Callable[[httpx2.AsyncClient], Awaitable[object]]
JSON = {"Content-Type": "application/json"}


def picture(side: int, quality: int = 90) -> str:
    """A large photo as a data URI: noise costs most to decode."""
    file = io.BytesIO()
    small = Image.effect_noise((side // 8, side // 8), 90).convert("RGB")
    small.resize((side, side)).save(file, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def attacks(url: str) -> dict[str, Attack]:
    """What the hostile client does, by name; bodies are made once, before anything is timed."""
    text = {"role": "user", "content": "a red apple " * 2600}
    photo = picture(4000)
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "2 MB of chat": ("/v1/chat/completions", {"messages": [text] * 64}),
        "longest chat that is taken": ("/v1/chat/completions", {
            "messages": [{"role": "user", "content": "a " * 15_000}], "max_tokens": 1}),
        "eight photos": ("/jobs", {"prompt": "make it blue", "images": [photo] * 8}),
        "three photos": ("/jobs", {"prompt": "make it blue", "images": [photo] * 3}),
        "photos through responses": ("/v1/responses", {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "blue"}] + [
                {"type": "input_image", "image_url": photo}] * 3}],
            "tools": [{"type": "image_generation"}]}),
        "many values": ("/jobs", {"prompt": "a", "images": [1] * 8_000_000}),
        "one long value": ("/jobs", {"prompt": "a", "images": ["A" * 30_000_000]}),
        "unknown fields": ("/jobs", {"prompt": "a", **{f"k{i}": 1 for i in range(100_000)}}),
    }  # fmt: skip
    made: dict[str, Attack] = {}
    for name, (path, body) in bodies.items():
        made[name] = _posting(path, json.dumps(body).encode())
    made["heads that never end"] = lambda _: _half_heads(url)
    made["jobs cancelled at once"] = _cancelled
    return made


def _posting(path: str, data: bytes) -> Attack:
    async def post(client: httpx2.AsyncClient) -> object:
        answer = await client.post(path, content=data, headers=JSON)
        if answer.status_code == 202:
            await client.post(f"/jobs/{answer.json()['id']}/cancel")
        return answer.status_code

    return post


async def _half_heads(url: str) -> None:
    address = urlsplit(url)
    lines = [socket.create_connection((address.hostname, address.port)) for _ in range(100)]
    for line in lines:
        line.sendall(b"GET /health HTTP/1.1\r\nHost")
    await asyncio.sleep(0.5)
    for line in lines:
        line.close()


async def _cancelled(client: httpx2.AsyncClient) -> None:
    for seed in range(20):
        answer = await client.post("/jobs", json={"prompt": "fox", "seed": seed, "n": 4})
        if answer.status_code == 202:
            await client.post(f"/jobs/{answer.json()['id']}/cancel")


async def rows_of(client: httpx2.AsyncClient, seed: int, end: float, gaps: list[float]) -> None:
    """Draw until the end; the seconds between the rows of each picture go to `gaps`."""
    begun, number = time.monotonic(), 0
    while time.monotonic() < end:
        number += 1
        body = {"prompt": "red apple, noto style", "seed": seed * 1000 + number}
        job = await submit(client, body)
        last, kind = 0.0, ""
        async with client.stream("GET", f"/jobs/{job}/events?previews=false") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                if not line.startswith("data: ") or kind != "row":
                    continue
                now = time.monotonic()
                if last and now - begun > SETTLING:
                    gaps.append(now - last)
                last = now


async def phase(url: str, clients: int, seconds: float, hostile: bool) -> dict[str, Any]:
    """One stretch of time with these clients: gaps between rows, and what the hostile one did."""
    gaps: list[float] = []
    done: dict[str, int] = {}
    ways = attacks(url) if hostile else {}

    async def attack() -> None:
        dice = random.Random(0)
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            while time.monotonic() < end:
                name = dice.choice(list(ways))
                with contextlib.suppress(httpx2.HTTPError, OSError):
                    await ways[name](client)
                done[name] = done.get(name, 0) + 1

    end = time.monotonic() + seconds + SETTLING
    async with contextlib.AsyncExitStack() as stack:
        lines = [
            await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=600))
            for _ in range(clients)
        ]
        work = [rows_of(line, place, end, gaps) for place, line in enumerate(lines)]
        await asyncio.gather(*work, *([attack()] if hostile else []))
    gaps.sort()
    return {
        "rows": len(gaps),
        "p50_s": round(statistics.median(gaps), 3),
        "p99_s": round(gaps[int(0.99 * (len(gaps) - 1))], 3),
        "worst_s": round(gaps[-1], 3),
        **({"attacks": done} if hostile else {}),
    }


def main() -> None:
    """Measure, print, and say whether the others were left in peace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--clients", type=int, default=31)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30)
    asked = parser.parse_args()
    with service(asked.model, "--ephemeral", "--batch-size", str(asked.batch)) as (url, _):
        asyncio.run(phase(url, 2, 1, False))  # warm
        alone = asyncio.run(phase(url, asked.clients, asked.seconds, False))
        beside = asyncio.run(phase(url, asked.clients, asked.seconds, True))
    times = beside["worst_s"] / alone["worst_s"]
    told = {"what": "hostile", "model": asked.model, "clients": asked.clients,
            "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
            "alone": alone, "beside": beside, "times": round(times, 2)}  # fmt: skip
    print(json.dumps(told))
    raise SystemExit(0 if times <= MOST else 1)


if __name__ == "__main__":
    main()
