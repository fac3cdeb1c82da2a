"""Run the application: uvicorn, logs as lines of JSON, an orderly stop.

Connections that have not sent a whole head yet are bounded in time and number: a head that never
ends would hold its connection for ever, and some hundred of them all there are.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from nextstep.engine.engine import Engine
from nextstep.engine.scheduler import EngineLimits
from nextstep.serve.api.app import create_app
from nextstep.serve.api.keys import Keys
from nextstep.serve.jobs.backend import ServiceBackend
from nextstep.serve.jobs.engine_backend import EngineBackend
from nextstep.serve.jobs.limits import ServiceLimits, bind, check_binding, checked_origin
from nextstep.serve.jobs.metrics import Metrics
from nextstep.serve.jobs.store import Store

if TYPE_CHECKING:
    from nextstep.pipeline import NextStepPipeline


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


_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonLogFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, and what the event carries."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update({k: v for k, v in vars(record).items() if k not in _PLAIN})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class Server(uvicorn.Server):
    """uvicorn that takes no more jobs from the moment it is asked to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop."""
        self.drain()
        super().handle_exit(sig, frame)

    def drain(self) -> None:
        """Refuse new jobs; those whose clients wait go on."""
        app: FastAPI = self.config.app  # type: ignore[assignment]
        app.state.service.jobs.drain()


def build_app(
    pipeline: NextStepPipeline,
    name: str,
    folder: Path | Store | None,
    keys: Path | None = None,
    limits: ServiceLimits | None = None,
    max_batch: int = 8,
    preview_share: float = 0.03,
    aliases: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> FastAPI:
    """The application for a loaded model.

    Args:
        pipeline: holds the model and its tokenizers.
        name: of the model as clients say it.
        folder: for jobs and pictures, or a store that is open already; None keeps them in memory.
        keys: file of API keys.
        limits: see `ServiceLimits`.
        max_batch: pictures and texts made together.
        preview_share: of the time, that previews of rows may take.
        aliases, origins: see `create_app`.

    Raises:
        NextStepError: for a bad file of keys, a folder that cannot be used, or a machine whose
            kernels cannot keep pictures apart.
    """
    metrics = Metrics()
    backend = make_backend(pipeline, name, max_batch, preview_share, metrics.batch.observe)
    return app_around(backend, folder, keys, limits, metrics, aliases, origins)


def make_backend(
    pipeline: NextStepPipeline,
    name: str,
    max_batch: int = 8,
    preview_share: float = 0.03,
    on_batch: Callable[[int], None] | None = None,
) -> EngineBackend:
    """An engine for a loaded model, in its own thread; arguments as of `build_app`."""
    engine = Engine(
        pipeline.model,
        pipeline.text_tokenizer,
        pipeline.image_tokenizer,
        pipeline.defaults,
        EngineLimits(running=max_batch),
        model_hash=pipeline.model_hash,
        adapter=pipeline.adapter,
    )
    return EngineBackend(engine, name, preview_share, on_batch, pipeline.vocabulary)


def app_around(
    backend: ServiceBackend,
    folder: Path | Store | None,
    keys: Path | None = None,
    limits: ServiceLimits | None = None,
    metrics: Metrics | None = None,
    aliases: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> FastAPI:
    """The application around any backend; arguments as of `build_app`."""
    chosen = limits or ServiceLimits()
    known = Keys.of_file(keys) if keys else None
    store = folder if isinstance(folder, Store) else Store(folder, chosen.keep)
    return create_app(
        backend, store, chosen, metrics or Metrics(), known,
        aliases=frozenset(aliases), origins=frozenset(map(checked_origin, origins)),
    )  # fmt: skip


def server(app: FastAPI, host: str, port: int, grace: float, root_path: str = "") -> Server:
    """uvicorn around the application, with our logs."""
    limits = app.state.service.limits
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=max(1, round(grace)),
        h11_max_incomplete_event_size=65_536,
        ws="none",
        http=bounded_protocol(limits.head_seconds, limits.heads),
        loop="asyncio",
        root_path=root_path,
    )
    return Server(config)


def log_to_stderr() -> None:
    """Lines of JSON on stderr; uvicorn's own say only what went wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLogFormatter())
    for name, level in (("nextstep.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def serve(
    app: FastAPI,
    host: str,
    port: int,
    keys: Path | None,
    grace: float,
    root_path: str = "",
    bound: socket.socket | None = None,
) -> None:
    """Listen until a signal stops it.

    Args:
        app: the application.
        host, port: to listen on.
        keys: file of API keys, if there is one.
        grace: seconds for running jobs when it stops.
        root_path: path under which a proxy shows the service, which it takes away itself.
        bound: the socket of that address, see `bind`; None makes one.

    Raises:
        NextStepError: when anybody could reach it and there are no keys.
    """
    check_binding(host, keys)
    log_to_stderr()
    server(app, host, port, grace, root_path).run([bound or bind(host, port)])
