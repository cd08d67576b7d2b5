"""The routes that any daemon answers, leader or not: its health, its metrics, and what its API is."""

from __future__ import annotations

from aiohttp import web

from rebootd.api.bodies import query
from rebootd.api.door import DOOR
from rebootd.api.route import JSON, TEXT, Route
from rebootd.core.errors import NotFound

DOCUMENT: web.AppKey[bytes] = web.AppKey("document", bytes)
"""The OpenAPI document, which is made from the table that this module is part of."""


async def _healthz(_request: web.Request) -> web.Response:
    return web.Response(body=b'{"status":"ok"}\n', headers={"Content-Type": JSON})


async def _metrics(request: web.Request) -> web.Response:
    render = request.app[DOOR].metrics
    if render is None:
        raise NotFound("this daemon keeps no metrics")
    return web.Response(body=render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def _openapi(request: web.Request) -> web.Response:
    query(request)
    return web.Response(body=request.app[DOCUMENT], headers={"Content-Type": JSON})


ROUTES = (
    Route(
        method="GET",
        path="/v1/openapi.json",
        handler=_openapi,
        summary="This document",
        role="viewer",
        leader=False,
    ),
    Route(
        method="GET",
        path="/healthz",
        handler=_healthz,
        summary="200 as long as the daemon's loop lives, leader or not",
        leader=False,
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=_metrics,
        summary="What Prometheus scrapes; a daemon without certificates shows it to everybody",
        role="viewer",
        bare=True,
        answer=str,
        media=TEXT,
        leader=False,
        errors=(404,),
    ),
)
