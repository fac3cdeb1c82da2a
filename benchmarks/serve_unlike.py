"""Why a killed service made other bytes: what `serve_load.py kill` prints when it did."""

from __future__ import annotations

import io
import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

PNG = b"\x89PNG"
WHOLE = 3
"""Pictures whose settings are shown whole, side by side; of all others only what differs."""
FIRST, LAST = 6, 30
"""Lines of a log that are shown; what computes is told in the first."""
PLAIN = '"event": "answered"', '"status": 2'
"""What stands in a line about a request that went well; such lines are left out."""


@dataclass(frozen=True)
class Round:
    """What one round of load, kill and restart left.

    Attributes:
        made: outcomes by the number of the request.
        done: numbers of those that were over when the second process began.
        logs: what its two processes said, `before` the kill and `after` it.
    """

    made: dict[int, list[bytes]]
    done: set[int]
    logs: dict[str, Path]


def explain(wrong: Sequence[int], killed: Round, alone: Round, began: float) -> str:
    """All that is known about outcomes that differ.

    Args:
        wrong: numbers of the requests.
        killed, alone: the round with other bytes, and the one without a kill.
        began: when the benchmark began, in seconds since 1970.
    """
    lines, shown = list[str](), 0
    for number in wrong:
        when = "before" if number in killed.done else "after"
        pairs = itertools.zip_longest(killed.made[number], alone.made[number], fillvalue=b"")
        for index, (here, there) in enumerate(pairs):
            if here == there:
                continue
            lines.append(f"request {number}, {index}, made {when} the kill: {_unlike(here, there)}")
            if shown < WHOLE and here.startswith(PNG) and there.startswith(PNG):
                lines += side_by_side(settings_of(here), settings_of(there))
                shown += 1
    changed = ", ".join(changed_since(began)) or "none"
    lines.append(f"files of the package that changed since the benchmark began: {changed}")
    for name, round_ in (("without a kill", alone), ("with it", killed)):
        for half, path in round_.logs.items():
            lines += [f"--- log {half}, of the round {name}", *log_ends(path)]
    lines.append(f"all of it is kept in {keep(wrong, killed, alone)}")
    return "\n".join(lines)


def settings_of(png: bytes) -> dict[str, Any]:
    """The settings inside a PNG; none where it carries none."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        told: dict[str, Any] = json.loads(picture.info.get("nextstep", "{}"))
    return told


def side_by_side(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Two settings as lines of a table; what differs is marked."""
    lines = [f"    {'':20s} {'with a kill':36s} without"]
    for name in dict.fromkeys((*here, *there)):
        one, other = (str(told.get(name, "-")) for told in (here, there))
        lines.append(f"  {'*' if one != other else ' '} {name:20s} {one:36s} {other}")
    return lines


def changed_since(began: float) -> list[str]:
    """Files of the installed package that were written since; it may be installed in place."""
    import nextstep

    folder = Path(nextstep.__file__).parent
    files = (path for path in folder.rglob("*") if path.is_file())
    own = (path for path in files if "__pycache__" not in path.parts)
    return sorted(str(path.relative_to(folder)) for path in own if path.stat().st_mtime > began)


def log_ends(path: Path) -> list[str]:
    """The first and the last lines of a log, without those of requests that went well."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else ["there is none"]
    told = [line for line in lines if not all(part in line for part in PLAIN)]
    if len(told) > FIRST + LAST:
        told[FIRST:-LAST] = [f"... {len(told) - FIRST - LAST} lines ..."]
    return told


def keep(wrong: Sequence[int], killed: Round, alone: Round) -> Path:
    """Copy the outcomes that differ, and all logs, to a new folder that stays."""
    folder = Path(tempfile.mkdtemp(prefix="nextstep-unlike-"))
    for name, round_ in (("alone", alone), ("killed", killed)):
        for half, path in round_.logs.items():
            if path.exists():
                (folder / f"{name}-{half}.log").write_bytes(path.read_bytes())
        for number in wrong:
            for index, data in enumerate(round_.made[number]):
                end = "png" if data.startswith(PNG) else "txt"
                (folder / f"{number}-{index}-{name}.{end}").write_bytes(data)
    return folder


def _unlike(here: bytes, there: bytes) -> str:
    """How two outcomes differ, in one line."""
    from nextstep.engine.reproduce import compare

    if not (here.startswith(PNG) and there.startswith(PNG)):
        return f"{_told(here)} instead of {_told(there)}"
    pictures = [Image.open(io.BytesIO(data)) for data in (here, there)]
    if pictures[0].size != pictures[1].size:
        return f"{pictures[0].size} pixels instead of {pictures[1].size}"
    one, other = settings_of(here), settings_of(there)
    names = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
    told = ", ".join(f"{name} {one.get(name, '-')} / {other.get(name, '-')}" for name in names)
    return f"pixels: {compare(*pictures)}; settings: {told or 'the same'}"


def _told(outcome: bytes) -> str:
    """An outcome that is no picture, or that it is one."""
    if outcome.startswith(PNG):
        return "a picture"
    return repr(outcome.decode(errors="replace")) if outcome else "nothing"
