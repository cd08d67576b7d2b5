"""What the daemon is compared with: a bare aiohttp handler that parses and answers the same JSON, and decides nothing.

``python -m tests.bench.bare PORT`` serves on loopback until it is ended.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
from aiohttp import web

from rebootd.cli import collector
from rebootd.core.wire import Answer, Directive, DirectiveKind, Report

BACKLOG = 4096
"""As the daemon's own, so that a burst of connections costs both the same."""

_decoder = msgspec.json.Decoder(Report)
_encoder = msgspec.json.Encoder()


async def _report(request: web.Request) -> web.Response:
    report = _decoder.decode(await request.read())
    directive = None
    state = "in-service"
    if report.boot_check.status != "passed":
        state = "verifying"
    elif report.result is None and not report.in_service:
        state = "enabling"
        directive = Directive(
            f"{report.name}/{report.index + 1}/enable", DirectiveKind.ENABLE, 1, report.index + 1, report.boot_id
        )
    moved = report.index if report.in_service else report.index + 1
    answer = Answer(index=moved, epoch=1, state=state, directive=directive)
    return web.Response(body=_encoder.encode(answer), headers={"Content-Type": "application/json"})


async def _serve(port: int) -> None:
    app = web.Application()
    app.router.add_post("/v1/machines/{name}/report", _report)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=75.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    collector.spare()  # the daemon has it too: what is compared is the work, not Python's collector
    asyncio.run(_serve(int(sys.argv[1])))
