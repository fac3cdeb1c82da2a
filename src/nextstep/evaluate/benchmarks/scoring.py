"""Scoring a run: every item once, kept as soon as it is known, gone on with after any stop.

RUN/scores/NAME/judges.json    who judges, and whether that is the official judge
RUN/scores/NAME/items.jsonl    a line an item: values, failures, evidence
RUN/scores/NAME/answers/       answers of paid judges
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import Benchmark, Item, Judges, Measurement
from nextstep.evaluate.benchmarks.generation import Run
from nextstep.evaluate.benchmarks.statistics import Row
from nextstep.evaluate.judges.protocol import UnavailableError
from nextstep.utils.files import read_json, write_json

JUDGES, ITEMS, ANSWERS = "judges.json", "items.jsonl", "answers"
GONE_AFTER = 3
"""Items in a row without an answer after which a judge counts as gone."""


@dataclass(frozen=True)
class Scored:
    """An item with its verdict.

    Attributes:
        item: of the set.
        measured: the verdict.
    """

    item: Item
    measured: Measurement

    @property
    def row(self) -> Row:
        """For statistics."""
        return Row(self.item.key, self.item.group, self.measured.values)


class Scores:
    """The verdicts of one set of judges on one run.

    Args:
        folder: RUN/scores/NAME.
        identity: who judges what; a folder with verdicts of others is refused.

    Raises:
        NextStepError: when the folder holds the verdicts of other judges.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / JUDGES
        if path.exists():
            if read_json(path) != dict(identity):
                raise NextStepError(
                    f"{folder} holds verdicts of other judges; give these another --name"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, dict(identity))

    def read(self) -> dict[str, tuple[str, Measurement]]:
        """Key -> (hash of the pictures, verdict); a line cut off by a stop is left out."""
        path = self.folder / ITEMS
        if not path.exists():
            return {}
        whole = path.read_bytes().rpartition(b"\n")[0]
        found = {}
        for line in whole.splitlines():
            one = json.loads(line)
            found[one["key"]] = (
                one["pictures"], Measurement(one["values"], one["failures"], one["evidence"])
            )  # fmt: skip
        return found

    def repair(self) -> None:
        """Cut off what a stop left of a last line."""
        path = self.folder / ITEMS
        if path.exists():
            data = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)

    def append(self, verdicts: Sequence[tuple[Item, str, Measurement]]) -> None:
        """Keep verdicts on items and the hashes of their pictures; on the disk on return."""
        lines = [
            {
                "key": item.key, "group": item.group, "pictures": pictures,
                "values": measured.values, "failures": measured.failures,
                "evidence": measured.evidence,
            }
            for item, pictures, measured in verdicts
        ]  # fmt: skip
        with (self.folder / ITEMS).open("ab") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def score(
    run: Run,
    judges: Judges,
    name: str,
    on_items: Callable[[int], None] | None = None,
) -> list[Scored]:
    """Judge every item that has no verdict on its present pictures yet.

    Args:
        run: whose pictures are judged.
        judges: by role.
        name: of the folder of verdicts.
        on_items: told how many items are ready whenever some are.

    Raises:
        NextStepError: when a role has no judge, or the folder holds verdicts of other judges.
        UnavailableError: when a judge could not be reached for some items; they are left for a
            later run.
    """
    check_roles(run.benchmark, judges)
    scores = Scores(folder_of(run, name), identity_of(run, judges))
    scores.repair()
    kept, told = scores.read(), on_items or (lambda count: None)
    hashes = {item.key: pictures_hash(run, item) for item in run.items}
    asked = [item for item in run.items if kept.get(item.key, ("",))[0] != hashes[item.key]]
    told(len(run.items) - len(asked))
    lost = _judge_all(run, judges, asked, scores, hashes, told)
    if lost:
        reason = next(iter(lost.values()))
        raise UnavailableError(
            f"{len(lost)} of {len(run.items)} items are not judged yet; run the same command "
            f"again to go on ({reason})"
        )
    return read_scores(run, name)


def _judge_all(
    run: Run, judges: Judges, items: Sequence[Item], scores: Scores,
    hashes: Mapping[str, str], told: Callable[[int], None],
) -> dict[str, str]:  # fmt: skip
    """Item -> why it has no verdict; empty when all have."""
    workers = max((judge.concurrency for judge in judges.values()), default=1)
    each = run.benchmark.judged_together
    chunks = [items[start : start + each] for start in range(0, len(items), each)]
    lost: dict[str, str] = {}
    gone = _Gone()

    def measure(chunk: Sequence[Item]) -> list[Measurement]:
        gone.check()
        outputs = [run.benchmark.outputs(run.images, item, run.model) for item in chunk]
        try:
            measured = run.benchmark.measure_all(chunk, outputs, judges)
        except UnavailableError:
            gone.missed()
            raise
        gone.answered()
        return measured

    with ThreadPoolExecutor(workers) as pool:
        running: dict[Future[list[Measurement]], Sequence[Item]] = {
            pool.submit(measure, chunk): chunk for chunk in chunks
        }
        try:
            for future in as_completed(running):
                chunk = running[future]
                try:
                    measured = future.result()
                except UnavailableError as error:
                    lost |= {item.key: str(error) for item in chunk}
                    continue
                scores.append(
                    [(item, hashes[item.key], m) for item, m in zip(chunk, measured, strict=True)]
                )
                told(len(chunk))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return lost


class _Gone:
    """Notices that a judge has not answered for several items in a row."""

    def __init__(self) -> None:
        self._misses, self._guard = 0, threading.Lock()

    def missed(self) -> None:
        """Count an item without an answer; from any thread."""
        with self._guard:
            self._misses += 1

    def answered(self) -> None:
        """Start the count again; from any thread."""
        with self._guard:
            self._misses = 0

    def check(self) -> None:
        """Raise UnavailableError when too many items in a row have no answer."""
        if self._misses >= GONE_AFTER:
            raise UnavailableError("the judge is gone")


def import_results(run: Run, path: Path, name: str) -> list[Scored]:
    """Take over the verdicts that the official scorer wrote.

    Raises:
        NextStepError: when it wrote none that can be read, or none of this run's items.
    """
    found = run.benchmark.read_results(path, run.items)
    if not any(item.key in found for item in run.items):
        raise NextStepError(f"{path} holds no results of this run's items")
    identity = {
        "benchmark": run.benchmark.name,
        "roles": {},
        "imported": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    scores = Scores(folder_of(run, name), identity)
    scores.repair()
    kept = scores.read()
    for item in run.items:
        verdict = found.get(item.key)
        if verdict is None:
            lowest = run.benchmark.lowest(item)
            verdict = Measurement(lowest, ["the official scorer left it out"])
        elif not all(map(math.isfinite, verdict.values.values())):
            # A mean would leave it out, so that failing paid.
            verdict = Measurement(
                run.benchmark.lowest(item), ["the official scorer gave no number"]
            )
        if item.key not in kept:
            scores.append([(item, pictures_hash(run, item), verdict)])
    return read_scores(run, name)


def read_scores(run: Run, name: str) -> list[Scored]:
    """The verdicts on a run, in the set's order.

    Raises:
        NextStepError: when some items have none, or their pictures have changed since.
    """
    folder = folder_of(run, name)
    if not (folder / JUDGES).exists():
        raise NextStepError(
            f"{run.folder} has no scores '{name}'; "
            f"make them with nextstep eval {run.benchmark.name} score"
        )
    kept = Scores(folder, read_json(folder / JUDGES)).read()
    missing = [
        item.key
        for item in run.items
        if item.key not in kept or kept[item.key][0] != pictures_hash(run, item)
    ]
    if missing:
        raise NextStepError(
            f"{len(missing)} of {len(run.items)} items of {run.folder} have no verdict on their "
            f"pictures, such as {missing[0]}; score it first"
        )
    return [Scored(item, kept[item.key][1]) for item in run.items]


def names_of_scores(run: Run) -> list[str]:
    """Names under which the run is scored."""
    return sorted(path.parent.name for path in (run.folder / "scores").glob(f"*/{JUDGES}"))


def folder_of(run: Run, name: str) -> Path:
    """Where verdicts lie.

    Raises:
        NextStepError: for a name that is no folder name.
    """
    if not re.fullmatch(r"[\w.+-]+", name):
        raise NextStepError(f"'{name}' is no name for scores: letters, digits and .+-_ only")
    return run.folder / "scores" / name


def default_name(judges: Judges) -> str:
    """A folder name from the judges' names."""
    names = "+".join(dict.fromkeys(judge.name for judge in judges.values()))
    return re.sub(r"[^\w.+-]+", "-", names).strip("-") or "judge"


def check_roles(benchmark: Benchmark, judges: Judges) -> None:
    """Refuse judges for unknown roles, and roles without a judge.

    Raises:
        NextStepError: naming the role.
    """
    for role in judges:
        if role not in benchmark.roles:
            known = ", ".join(benchmark.roles)
            raise NextStepError(f"{benchmark.title} has no role '{role}'; its roles: {known}")
    for role, what in benchmark.roles.items():
        if role not in judges and not what.optional:
            raise NextStepError(
                f"{benchmark.title} needs a judge for '{role}' (officially "
                f"{' or '.join(what.official)}): give --judge {role}=..."
            )
    if not judges:
        raise NextStepError(f"{benchmark.title} needs a judge for at least one of its roles")


def identity_of(run: Run, judges: Judges) -> dict[str, Any]:
    """Who judges, for judges.json and reports."""
    own = run.benchmark.judge_prompt
    told = {}
    for role, judge in judges.items():
        what = run.benchmark.roles[role]
        wording = "official"
        if what.own_prompt:
            wording = "ours" if own is None else hashlib.sha256(own.encode()).hexdigest()[:12]
        told[role] = {
            "judge": judge.name,
            "official": list(what.official),
            "is_official": what.is_official(judge.name),
            "wording": wording,
        }
    return {"benchmark": run.benchmark.name, "roles": told}


def pictures_hash(run: Run, item: Item) -> str:
    """16 hex digits of the files of an item; missing ones count too."""
    digest = hashlib.sha256()
    for name in run.benchmark.files(item, run.model):
        path = run.images / name
        digest.update(path.read_bytes() if path.is_file() else b"missing")
    return digest.hexdigest()[:16]
