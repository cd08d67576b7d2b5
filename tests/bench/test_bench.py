"""The bench itself works: small sizes, no limit and no time is asserted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.bench import figures
from tests.bench.__main__ import BENCHES, SMALL
from tests.bench.connection import Connection

if TYPE_CHECKING:
    from pathlib import Path


def test_a_percentile_is_one_of_the_values() -> None:
    assert figures.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert figures.percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert figures.percentile([7.0], 0.99) == 7.0


def test_only_the_generated_part_of_the_page_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(figures, "PAGE", page)
    monkeypatch.setattr(figures, "machine", lambda load: f"a machine with load {load}")
    met = figures.Figure(what="speed", value="2 x", beside="1", limit="at most 4 x", met=True)
    missed = figures.Figure(what="size", value="9", limit="8", met=False)
    figures.write([met, missed, figures.Figure(what="count", value="5")], 0.5)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{figures.BEGIN}\n")
    assert text.endswith(f"{figures.END}\nafter\n")
    assert "old" not in text
    assert "| speed | 2 x | 1 | at most 4 x | pass |" in text
    assert "| size | 9 |  | 8 | MISS |" in text
    assert "| count | 5 |  |  | stated |" in text


async def test_the_client_reads_answers_that_come_in_pieces_and_tells_lost_connections() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
        assert await reader.readexactly(5) == b"hello"
        for piece in (b"HTTP/1.1 307 X\r\nLocation: http://a:1/b\r", b"\nContent-Length: 4\r\n\r\n", b"bo", b"dy"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = await Connection.open("127.0.0.1", server.sockets[0].getsockname()[1], "127.0.0.9")
    assert await connection.post(b"/v1/x", b"hello") == (307, "http://a:1/b", b"body")
    with pytest.raises(ConnectionResetError):
        await connection.post(b"/v1/x", b"again")
    assert connection.lost
    with pytest.raises(ConnectionResetError):
        await connection.post(b"/v1/x", b"and again")
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_every_bench_runs_and_gives_its_figures(name: str) -> None:
    taken = SMALL[name]()
    assert taken
    assert all(f.what and f.value for f in taken)
    assert set(SMALL) <= set(BENCHES)
