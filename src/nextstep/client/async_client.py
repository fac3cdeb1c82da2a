"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Self

from nextstep.client.calls import Calls
from nextstep.client.protocol import checked, connection_options, wrap_errors

if TYPE_CHECKING:
    import httpx2


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
