"""Events: one class from the scheduler to server-sent events and back."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from nextstep import client
from nextstep.engine.events import LAST, Event, Part

TOLD = [
    (Event("queued", position=3), {"position": 3}),
    (Event("started", batch=2), {"batch": 2}),
    (Event("row", index=1, row=2, rows=4), {"index": 1, "row": 2, "rows": 4}),
    (
        Event("row", index=0, row=1, rows=4, preview=b"png"),
        {"index": 0, "row": 1, "rows": 4, "preview": "cG5n"},
    ),
    (Event("text", index=1, text="a cät"), {"index": 1, "text": "a cät"}),
    (Event("part", index=1, parts=(Part("a cat"),)), {"index": 1, "text": "a cat"}),
    (
        Event("part", index=2, parts=(Part("", b"png", {"seed": 1}),)),
        {"index": 2, "picture": "cG5n", "settings": {"seed": 1}},
    ),
    (
        Event("failed", message="too large", bad_input=True),
        {"error": "too large", "bad_input": True},
    ),
    (Event("cancelled"), {}),
    (Event("stopping", message="later"), {"error": "later"}),
]


@pytest.mark.parametrize(("event", "data"), TOLD, ids=lambda told: getattr(told, "kind", ""))
def test_events_keep_their_form_over_the_wire(event: Event, data: dict[str, object]) -> None:
    assert event.to_json() == data
    read = Event.from_json(event.kind, json.loads(json.dumps(event.to_json())), "j1")
    assert read == replace(event, job="j1")


def test_only_a_done_job_has_pictures_and_its_state_follows_its_kind() -> None:
    parts = Part("so"), Part("", b"png")
    assert Event("done", parts=parts).pictures == parts[1:]
    assert Event("part", parts=parts[1:]).pictures == ()
    states = {kind: Event(kind).state for kind in ("queued", "started", "row", "text", *LAST)}
    assert states.pop("queued") == "queued" and states.pop("done") == "done"
    assert set(states.values()) == {"running"}


def test_event_kind_of_a_newer_service_is_passed_on() -> None:
    event = Event.from_json("resting", {"minutes": 3}, "j1")
    assert (event.kind, event.job, event.state) == ("resting", "j1", "running")


def test_client_loads_no_torch_and_keeps_earlier_names() -> None:
    code = "import sys, nextstep.client; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
    assert (client.Update, client.RemotePicture) == (Event, Part)


def test_picture_of_a_part_is_decoded_and_saved_whole(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    part = Part("", (tmp_path / "a.png").read_bytes())
    part.save(tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == part.png and part.image.size == (3, 2)
