"""Bodies and queries of requests, read within limits of size and time, and answers written."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from rebootd.core.errors import InvalidInput
from rebootd.core.inputs import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

BODY_TIME = 10.0
"""Seconds in which a body must have come."""
JSON = {"Content-Type": "application/json"}

_encoder = msgspec.json.Encoder()
_PATH = re.compile(r"(.*?) - at `\$(.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_NAMED_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`\Z", re.DOTALL)


def answer(value: object) -> web.Response:
    """A struct as JSON."""
    return web.Response(body=_encoder.encode(value) + b"\n", headers=JSON)


def problem(status: int, said: msgspec.Struct, headers: Mapping[str, str] | None = None) -> web.Response:
    """A Problem (or another struct of texts) with a status. What came in undecodable is shown with question marks."""
    clean = msgspec.structs.replace(
        said, **{f: getattr(said, f).encode("utf-8", "replace").decode() for f in said.__struct_fields__}
    )
    return web.Response(status=status, body=_encoder.encode(clean) + b"\n", headers={**JSON, **(headers or {})})


async def read(request: web.Request, limit: int) -> bytes:
    """The body. Raises HTTP errors: too large beyond ``limit`` bytes, timeout when it does not come."""
    length = request.content_length
    if length is not None and length > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=length)
    if request.content.is_eof():
        # It came with the headers, as small bodies do: no timer is needed.
        body = await request.read()
    else:
        try:
            async with asyncio.timeout(BODY_TIME):
                body = await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
    if len(body) > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=len(body))
    return body


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The struct in ``body``. Raises InvalidInput with the path of the field and its value."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error), body, getattr(decoder.type, "__struct_fields__", ())) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("body", body[:80].decode("utf-8", "replace"), f"JSON ({error})") from None


def _explained(message: str, body: bytes, known: tuple[str, ...]) -> InvalidInput:
    found = _PATH.match(message)
    what, path = (found[1], found[2]) if found else (message, "")
    named = _NAMED_FIELD.match(what)
    if named:
        field = f"{path}.{named[2]}".lstrip(".")
        if named[1].startswith("missing"):
            return InvalidInput(field, None, f"the field {named[2]}, which must be given")
        near = nearest(named[2], known)
        hint = f" (did you mean {near}?)" if near else ""
        accepted = "known fields only (docs/api.md)" if path else f"a known field: {', '.join(sorted(known))}{hint}"
        return InvalidInput(field, _at(body, f"{path}.{named[2]}"), accepted)
    return InvalidInput(path.lstrip(".") or "body", _at(body, path), what.removeprefix("Expected ").replace("`", ""))


def _at(body: bytes, path: str) -> Any:
    """The value that a path of msgspec's leads to, or None when it is not that plain."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The mistake was found before the reader came to where it is no JSON at all.
        return body[:80].decode("utf-8", "replace")
    for key, index in _STEP.findall(path):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and index.isdigit() and int(index) < len(value):
            value = value[int(index)]
        else:
            return None
    return value


def query(request: web.Request, *known: str) -> dict[str, str]:
    """The query's values. Raises InvalidInput for a name that is not ``known``, or that comes twice."""
    given = request.query
    if not given:
        return {}
    for key in given:
        if key not in known:
            raise InvalidInput(key[:80], given[key], f"a known parameter: {', '.join(known) or 'none'}")
        if len(given.getall(key)) > 1:
            raise InvalidInput(key, ", ".join(given.getall(key)), "one value")
    return dict(given)
