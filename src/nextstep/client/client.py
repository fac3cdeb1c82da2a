"""`AsyncClient` for asyncio, and `Client`, which waits.

The calls of both are one source; those of `Client` go over connections that answer before they
return. A coroutine over them never has to wait, so sending to it once runs it to its end, without
an event loop.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from nextstep.client.calls import Calls
from nextstep.client.protocol import checked, connection_options, wrap_errors

if TYPE_CHECKING:
    import httpx2


P = ParamSpec("P")
T = TypeVar("T")


class _PlainCalls(Calls):
    """The calls over connections that answer before they return."""

    def __init__(self, options: dict[str, Any]) -> None:
        import httpx2

        self._http = httpx2.Client(**options)

    async def close(self) -> None:
        self._http.close()

    async def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        with wrap_errors():
            return checked(self._http.request(method, path, **options))

    async def _lines(self, path: str) -> AsyncGenerator[str, None]:
        with wrap_errors(), self._http.stream("GET", path) as answer:
            if answer.status_code != 200:
                answer.read()
                checked(answer)
            for line in answer.iter_lines():
                yield line


def _result(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a call over plain connections waited")


def _waiting(
    call: Callable[Concatenate[Calls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """The call, returning what it would be awaited for."""

    @functools.wraps(call)
    def wait(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _result(call(self._calls, *args, **kwargs))

    return wait


def _iterating(
    call: Callable[Concatenate[Calls, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Client, P], Generator[T, None, None]]:
    """The call, for an ordinary loop; leaving that closes the connection."""

    @functools.wraps(call)
    def iterate(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        made = call(self._calls, *args, **kwargs)
        try:
            while True:
                yield _result(made.__anext__())
        except StopAsyncIteration:
            return
        finally:
            _result(made.aclose())

    return iterate


class Client:
    """Talks to a service and waits for it.

    Args:
        url: of the service, such as http://127.0.0.1:8000.
        key: API key, where the service wants one.
        timeout: seconds without a word from the service after which it counts as gone.

    Raises:
        NextStepError: for an address that is none. All methods raise it for requests that the
            service calls faulty, `BusyError` when its queue is full, and `ServiceError` when it
            fails or cannot be reached.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        self._calls = _PlainCalls(connection_options(url, key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    submit = _waiting(Calls.submit)
    stream = _iterating(Calls.stream)
    generate = _waiting(Calls.generate)
    story = _waiting(Calls.story)
    events = _iterating(Calls.events)
    pictures = _waiting(Calls.pictures)
    job = _waiting(Calls.job)
    jobs = _waiting(Calls.jobs)
    cancel = _waiting(Calls.cancel)
    stop = _waiting(Calls.stop)
    fork = _waiting(Calls.fork)
    resample = _waiting(Calls.resample)
    tokens = _waiting(Calls.tokens)
    close = _waiting(Calls.close)


class AsyncClient(Calls):
    """`Client` for asyncio; see there."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        import httpx2

        self._http = httpx2.AsyncClient(**connection_options(url, key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        with wrap_errors():
            return checked(await self._http.request(method, path, **options))

    async def _lines(self, path: str) -> AsyncGenerator[str, None]:
        with wrap_errors():
            async with self._http.stream("GET", path) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    checked(answer)
                async for line in answer.aiter_lines():
                    yield line
