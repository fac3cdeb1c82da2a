"""Connections that have not sent a whole head yet: how long they may take, and how many may wait.

A head that never ends would hold its connection for ever; some hundred of them, all there are.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded_protocol(seconds: float, most: int) -> type[H11Protocol]:
    """A protocol for one server.

    Args:
        seconds: that the head of a request may take, from the connection's start or from the end
            of the answer before it.
        most: connections that may wait for a head at once; of more the oldest are closed.
    """
    # In the order in which they began to wait.
    waiting: dict[H11Protocol, asyncio.TimerHandle] = {}

    class BoundedProtocol(H11Protocol):
        """HTTP/1.1 whose requests begin in time."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """A connection is there."""
            super().connection_made(transport)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            """It is gone."""
            super().connection_lost(exc)
            self._forget()

        def handle_events(self) -> None:
            """Something arrived, or an answer was sent."""
            super().handle_events()
            self._watch_head()

        def _watch_head(self) -> None:
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._forget()
            elif self not in waiting:
                waiting[self] = self.loop.call_later(seconds, self.transport.close)
                if len(waiting) > most:
                    oldest = next(iter(waiting))
                    waiting.pop(oldest).cancel()
                    oldest.transport.close()

        def _forget(self) -> None:
            timer: Any = waiting.pop(self, None)
            if timer is not None:
                timer.cancel()

    return BoundedProtocol
