"""The ring of events: what rides in each transaction, whatever happened, leaves it below what Consul takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebootd.coordinator.records import Keys, decode
from rebootd.coordinator.ring import Chunk, Ring
from rebootd.core.model import Event
from rebootd.store.consul_txn import encode
from rebootd.store.port import MAX_BODY, Set
from rebootd.store.writer import SEAL_BYTES, Committed, Step
from rebootd.store.writer_steps import op_size
from tests.contract.writer_bench import Bench, record
from tests.support.virtual_time import run

TEXTS = ("", "short", "x" * 300, "y" * 3000, "ü" * 5000, '"' * 20_000, "\x01" * 3000, "z" * 100_000)


@st.composite
def happenings(draw: st.DrawFn) -> list[tuple[int, list[Event]]]:
    """Steps: the size of each one's record, and its events."""
    text = st.sampled_from(TEXTS)
    event = st.builds(Event, time=st.just(1.0), machine=text, cause=text, detail=text, boot_id=text)
    step = st.tuples(st.sampled_from([0, 600, 5000, 100_000]), st.lists(event, min_size=1, max_size=6))
    return draw(st.lists(step, min_size=1, max_size=70))


@settings(max_examples=60, deadline=None)
@given(happenings())
def test_no_transaction_grows_beyond_what_may_be_sent(steps: list[tuple[int, list[Event]]]) -> None:
    async def main() -> None:
        ring = Ring(Keys())

        def seal(packed: list[Step]) -> Set | None:
            made = ring.chunk(tuple(e for s in packed if isinstance(s.note, tuple) for e in s.note))
            assert made is None or isinstance(made, Set)
            return made

        bench = await Bench().open(seal=seal)
        work = [
            Step((record(f"m/{n}", pad="p" * size),), note=ring.number(events))
            for n, (size, events) in enumerate(steps)
        ]
        outcomes = await bench.writer.commit(work)
        assert all(isinstance(o, Committed) for o in outcomes)
        assert max(len(encode(ops)) for ops in bench.landed) <= MAX_BODY
        assert {outcome for _, outcome in bench.sent} == {"committed"}
        await bench.writer.close()

    run(main())


@pytest.mark.parametrize("text", TEXTS, ids=len)
@pytest.mark.parametrize("many", [1, 64, 500])
def test_a_chunk_fits_into_what_is_kept_free_for_it_and_tells_what_it_left_out(text: str, many: int) -> None:
    ring = Ring(Keys())
    events = ring.number(Event(time=1.0, machine=f"m{n}", cause="c", detail=text, to="drained") for n in range(many))
    op = ring.chunk(events)
    assert isinstance(op, Set)
    assert op_size(op) <= SEAL_BYTES
    kept = decode(op.value, Chunk).events
    assert kept[-1].seq == events[-1].seq, "the newest is kept, so that numbers go on from there"
    if len(kept) < many:
        assert f"{many - len(kept) + 1} events" in kept[0].detail
    else:
        assert [(e.machine, e.to) for e in kept] == [(e.machine, e.to) for e in events]
