"""A client for the service: pictures and their rows from another process or machine.

    with Client("http://127.0.0.1:8000") as client:
        for update in client.stream("red apple, flat style", seed=1):
            if update.preview:
                Path("now.png").write_bytes(update.preview)
        update.pictures[0].save("apple.png")

`AsyncClient` has the same methods to be awaited.
"""

from __future__ import annotations

from nextstep.client.async_client import AsyncClient
from nextstep.client.client import Client
from nextstep.client.protocol import (
    BusyError,
    JobState,
    RemotePicture,
    ServiceError,
    StoryPart,
    Update,
)

__all__ = [
    "AsyncClient",
    "BusyError",
    "Client",
    "JobState",
    "RemotePicture",
    "ServiceError",
    "StoryPart",
    "Update",
]
