"""Our own HTTP transport to Consul, in place of py-consul's: its endpoints over :mod:`rebootd.consul.http`.

It carries py-consul's endpoints (:meth:`Transport.get` and its siblings) and raw requests (``request``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import consul.base
import consul.exceptions

from rebootd.consul.http import Http, Response, failure, is_write, milliseconds, seconds, within
from rebootd.core.errors import NotFound, OutcomeUnknown, Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from rebootd.consul.http import Params
    from rebootd.consul.settings import ConsulSettings

__all__ = ["Response", "Transport", "failure", "is_write", "milliseconds", "seconds", "within"]


class Transport(Http, consul.base.HTTPClient):  # type: ignore[misc]  # py-consul is untyped
    """A pooled HTTP client for one Consul agent, in the shape that py-consul's endpoints call."""

    def __init__(self, settings: ConsulSettings) -> None:
        scheme, host, port = settings.endpoint()
        consul.base.HTTPClient.__init__(self, host, port, scheme, settings.verify)
        Http.__init__(self, settings)

    async def _endpoint(
        self,
        callback: Callable[[Any], Any],
        method: str,
        path: str,
        params: Params,
        body: bytes | str | None,
        headers: Mapping[str, str] | None,
        timeout: float | None,
        raw: bool = False,
    ) -> Any:
        response = await self.request(method, path, params, body, timeout, headers)
        error = failure(method, path, response)
        if error is not None:
            raise error
        content = response.body if raw else response.body.decode("utf-8", "replace")
        try:
            return callback(consul.base.Response(response.status, response.headers, content))
        except consul.exceptions.NotFound as missing:
            raise NotFound(f"{method} {path}: {missing}") from missing
        except consul.exceptions.ConsulException as unreadable:
            kind = OutcomeUnknown if is_write(method, path) else Unreachable
            raise kind(f"{method} {path}: {unreadable}") from unreadable

    def get(
        self,
        callback: Callable[[Any], Any],
        path: str,
        params: Params = None,
        headers: Mapping[str, str] | None = None,
        raw: bool = False,
        connections_timeout: float | None = None,
    ) -> Awaitable[Any]:
        """py-consul's GET: awaits to what ``callback`` makes of the answer."""
        return self._bound(callback, "GET", path, params, None, headers, connections_timeout, raw)

    def put(
        self,
        callback: Callable[[Any], Any],
        path: str,
        params: Params = None,
        data: bytes | str | None = "",
        headers: Mapping[str, str] | None = None,
        connections_timeout: float | None = None,
    ) -> Awaitable[Any]:
        """py-consul's PUT."""
        return self._bound(callback, "PUT", path, params, data, headers, connections_timeout)

    def post(
        self,
        callback: Callable[[Any], Any],
        path: str,
        params: Params = None,
        data: bytes | str | None = "",
        headers: Mapping[str, str] | None = None,
        connections_timeout: float | None = None,
    ) -> Awaitable[Any]:
        """py-consul's POST."""
        return self._bound(callback, "POST", path, params, data, headers, connections_timeout)

    def delete(
        self,
        callback: Callable[[Any], Any],
        path: str,
        params: Params = None,
        data: bytes | str | None = "",
        headers: Mapping[str, str] | None = None,
        connections_timeout: float | None = None,
    ) -> Awaitable[Any]:
        """py-consul's DELETE."""
        return self._bound(callback, "DELETE", path, params, data, headers, connections_timeout)

    def _bound(
        self,
        callback: Callable[[Any], Any],
        method: str,
        path: str,
        params: Params,
        body: bytes | str | None,
        headers: Mapping[str, str] | None,
        timeout: float | None,
        raw: bool = False,
    ) -> Awaitable[Any]:
        # The surrounding `within` is read now: the awaitable may be awaited after the block was left.
        limit = timeout if timeout is not None else self._allowed(list(params or ()))
        return self._endpoint(callback, method, path, params, body, headers, limit, raw)
