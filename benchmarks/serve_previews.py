"""What looking on costs: processor time of the service with and without previews of rows.

Pictures of 128 px are drawn in rounds, in turn with somebody who asks for the picture after every
row and somebody who does not; HTTP and PNG count. One thread computes, because threads that wait
for each other count as busy. Prints a table and ends with one line of JSON;
the status is 1 when previews take more than 15 % of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import httpx2
from serve_load import service, submit

TICKS = os.sysconf("SC_CLK_TCK")
LIMIT = 0.15


def processor_seconds(process: int) -> float:
    """Of all threads of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def watch(client: httpx2.AsyncClient, number: int, previews: bool) -> int:
    """Draw one picture to its end; how many previews came."""
    prompt = "red apple, noto style, white background"
    job = await submit(client, {"prompt": prompt, "seed": number, "size": "128x128"})
    url, shown = f"/jobs/{job}/events?previews={str(previews).lower()}", 0
    async with client.stream("GET", url, timeout=600) as answer:
        async for line in answer.aiter_lines():
            shown += line.startswith("data: ") and '"preview"' in line
    return shown


async def rounds(
    url: str, process: int, together: int, asked: argparse.Namespace
) -> dict[str, Any]:
    """Medians over the rounds of `together` pictures at once."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    shown, number = 0, 0
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        for turn in range(asked.rounds + 1):
            for previews in (False, True):
                begun = processor_seconds(process)
                for _ in range(max(1, asked.pictures // together)):
                    numbers = range(number, number + together)
                    made = await asyncio.gather(*(watch(client, n, previews) for n in numbers))
                    number += together
                if turn:  # the first warms up
                    seconds[previews].append(processor_seconds(process) - begun)
                    shown = max(shown, *made)
    plain, looked = (statistics.median(seconds[key]) for key in (False, True))
    return {"together": together, "plain_s": round(plain, 3), "with_previews_s": round(looked, 3),
            "more": round(looked / plain - 1, 3), "previews_of_a_picture": shown}  # fmt: skip


def main() -> None:
    """Measure, print, and say whether the limit held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pictures", type=int, default=16, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--share", default="0.03", help="the service's --preview-share")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory() as scratch,
        service(asked.model, "--folder", scratch, "--preview-share", asked.share) as (url, process),
    ):
        told = [asyncio.run(rounds(url, process.pid, n, asked)) for n in asked.together]
    for row in told:
        print(*(f"{name} {value}" for name, value in row.items()), sep="   ")
    worst = max(row["more"] for row in told)
    print(json.dumps({"model": asked.model, "rows": told, "limit": LIMIT, "ok": worst <= LIMIT}))
    raise SystemExit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
