"""The gate on Nomad's quorum, on three real Nomad servers: healthy, one down, and no answer at all.

Skipped without ``nomad`` (``$NOMAD_BIN`` or on PATH).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from rebootd.coordinator.gates import nomad_quorum
from rebootd.coordinator.gates.tools import Tools
from rebootd.core.errors import Unreachable
from rebootd.core.gates import Reading, Verdict, Word, judge
from rebootd.core.policy_gates import Gate, NomadQuorum
from tests.support.nomad import nomad

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebootd.core.gates import Servers
    from tests.support.nomad import Nomad

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NAMES = [f"nomad-server{n}" for n in range(3)]


@pytest.fixture(scope="module")
def three() -> Iterator[Nomad]:
    with nomad({}, servers=3) as made:
        yield made


async def see(url: str) -> Servers:
    tools = Tools(None)
    try:
        return await nomad_quorum.read(NomadQuorum(address=url), tools)
    finally:
        await tools.close()


async def verdict(url: str, leaving: str = "") -> Verdict:
    """What the gate says of a reading of now."""
    gate = Gate(name="nomad", test=NomadQuorum(address=url))
    now = time.time()
    try:
        reading = Reading(gate=gate, at=now, value=await see(url))
    except Unreachable as error:
        reading = Reading(gate=gate, at=now, error=str(error))
    return judge(gate, reading, now=now, leaving=leaving)


async def until(url: str, word: Word, says: str, leaving: str = "", seconds: float = 60.0) -> Verdict:
    """Autopilot looks every few seconds, and calls a server stable after ten."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        said = await verdict(url, leaving)
        if said.word is word and says in said.what:
            return said
        assert asyncio.get_running_loop().time() < end, f"still {said}"
        await asyncio.sleep(0.5)


async def test_three_servers_that_are_well_let_one_go_and_one_that_is_down_keeps_all_in(three: Nomad) -> None:
    first, last = three.servers[0].url, three.servers[2]
    for name in NAMES:
        said = await until(first, Word.PASS, "3 servers are well", leaving=name)
        assert "1 may fail" in said.what
    assert set((await see(first)).members) == set(NAMES)
    last.kill()
    said = await until(first, Word.BLOCK, NAMES[2], leaving=NAMES[0])
    assert "not healthy" in said.what or "autopilot does not know it" in said.what
    # Two of three are left: the next one would take the quorum.
    assert (await see(first)).tolerance == 0
    last.spawn()
    await until(first, Word.PASS, "3 servers are well", leaving=NAMES[0], seconds=120)


async def test_servers_that_have_lost_their_quorum_or_do_not_answer_are_unknown(three: Nomad) -> None:
    first = three.servers[0]
    await until(first.url, Word.PASS, "3 servers are well", seconds=120)
    for other in three.servers[1:]:
        other.kill()
    # The last leader passes until it has noticed, and then nobody can say.
    said = await until(first.url, Word.UNKNOWN, "cannot be read", leaving=NAMES[0])
    first.kill()
    said = await verdict(first.url)
    assert said.word is Word.UNKNOWN
    assert "cannot be read" in said.what
