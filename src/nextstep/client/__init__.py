"""A client for the service: pictures and their rows from another process or machine.

    with Client("http://127.0.0.1:8000") as client:
        for event in client.stream("red apple, flat style", seed=1):
            if event.preview:
                Path("now.png").write_bytes(event.preview)
        event.pictures[0].save("apple.png")

`AsyncClient` has the same methods to be awaited.
"""

from __future__ import annotations

from nextstep.client.client import AsyncClient, Client
from nextstep.client.protocol import (
    BusyError,
    JobState,
    ServiceError,
    StoryPart,
)
from nextstep.engine.events import Event, Part

Update, RemotePicture = Event, Part
"""Names of earlier versions."""

__all__ = [
    "AsyncClient",
    "BusyError",
    "Client",
    "Event",
    "JobState",
    "Part",
    "RemotePicture",
    "ServiceError",
    "StoryPart",
    "Update",
]
