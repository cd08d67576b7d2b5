"""The fenced writer under random faults: what it says of a step is what became of it.

Several callers write records that they read before, on few keys, with guards that come and go. Answers are lost, writes
land late or never, people edit records, and at some time another leader takes over. Afterwards everything that was
still on its way lands, and the list of what landed is compared with what the writer said.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from rebootd.core.errors import Conflict, FenceLost
from rebootd.store.memory import LOST_REPLY, NEVER, Fate, MemoryStore, late
from rebootd.store.port import CheckIndex, CheckNotExists, CheckSession, Delete, Entry, Lock, Op, Session, Set
from rebootd.store.writer import Committed, Dropped, FencedWriter, Guard, Outcome, Step
from rebootd.store.writer_proof import write_id
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Sequence

Wish = tuple[list[str], str, str]
"""Keys to write, what guards them, and the lane."""
Rounds = list[tuple[float, list[Wish]]]
Trouble = tuple[float, str]

KEYS = ["m/0", "m/1", "m/2", "m/3"]

fates = st.one_of(
    st.just(Fate()),
    st.sampled_from([LOST_REPLY, NEVER, Fate(0.3), Fate(20.0)]),
    st.sampled_from([0.05, 0.2, 0.5, 1.0, 5.0, 60.0]).map(late),
)
wishes = st.tuples(
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True),
    st.sampled_from(["", "", "halt", "policy", "lock"]),
    st.sampled_from(["back", "out"]),
)
calls = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 7.0]), st.lists(wishes, min_size=1, max_size=4)), max_size=4)
troubles = st.lists(
    st.tuples(st.sampled_from([0.02, 0.1, 0.3, 2.0]), st.sampled_from(["halt", "policy", "edit", "outage", "lock"])),
    max_size=12,
)


class Story:
    """One run: what is told to the writer, what it says, what lands."""

    def __init__(self, script: list[Fate]) -> None:
        self.store = MemoryStore()
        self.script = iter(script)
        self.said: dict[str, Outcome | None] = {}
        self.keys: dict[str, list[str]] = {}
        self.landed: Counter[str] = Counter()
        self.landed_at: dict[str, int] = {}
        self.fenced: list[int] = []
        self.ids = count()
        self.lost = 0
        self.taken = 0
        self.stored: dict[str, bytes] = {}

    async def begin(self) -> None:
        self.session = await self.store.create_session("a", lock_delay=1)
        ops: list[Op] = [Lock("leader", b"", self.session), Set("policy", b"0"), Set("m/0", b"{}"), Set("m/1", b"{}")]
        await self.store.commit(ops)
        self.store.consul.observers.append(self.observe)
        self.store.faults.choose = lambda _: next(self.script, None)
        self.writer = FencedWriter(
            self.store, "leader", self.session, new_write_id=lambda: f"w{next(self.ids)}", jitter=lambda: 0.5
        )

    def observe(self, index: int, ops: Sequence[Op]) -> None:
        writes = [op for op in ops if isinstance(op, Set)]
        if not isinstance(ops[0], CheckSession):
            self.stored |= {op.key: op.value for op in writes}
            return
        self.fenced.append(index)
        # The writer's touch: the stored value once more, one flag bit flipped (so a second touch has no flag again).
        touch = len(ops) == 2 and len(writes) == 1 and self.stored.get(writes[0].key) == writes[0].value
        self.stored |= {op.key: op.value for op in writes}
        for stamp in set() if touch else {write_id(op.value) for op in writes} & self.said.keys():
            self.landed[stamp] += 1
            self.landed_at[stamp] = index

    async def call(self, wait: float, wanted: list[Wish]) -> None:
        await asyncio.sleep(wait)
        steps, stamps = [], []
        for keys, guard, lane in wanted:
            stamp = self.writer.new_write_id()
            stamps.append(stamp)
            self.keys[stamp], self.said[stamp] = keys, None
            ops = [Set(key, json.dumps({"write_id": stamp}).encode(), self.index(key)) for key in keys]
            locks = [Lock("rack", b"", self.session)] if guard == "lock" else []
            guards: dict[str, Guard] = {
                "halt": CheckNotExists("halt"),
                "policy": CheckIndex("policy", self.index("policy")),
            }
            steps.append(Step((*ops, *locks), (guards[guard],) if guard in guards else (), lane))
        for stamp, outcome in zip(stamps, await self.writer.commit(steps), strict=True):
            self.said[stamp] = outcome

    def index(self, key: str) -> int:
        entry = self.entry(key)
        return entry.modify_index if entry else 0

    def entry(self, key: str) -> Entry | None:
        return self.store.consul.entries.get(key)

    def trouble(self, what: str) -> None:
        consul = self.store.consul
        if what == "outage":
            consul.faults.unavailable = not consul.faults.unavailable
        elif consul.faults.unavailable:
            return  # nobody writes now
        elif what == "halt":
            consul.apply([Delete("halt") if self.entry("halt") else Set("halt", b"stop")])
        elif what == "policy":
            consul.apply([Set("policy", b"%d" % next(self.ids))])
        elif what == "edit" and (entry := self.entry("m/0")):  # as `kv get`, an editor and `kv put` do it
            consul.apply([Set("m/0", entry.value + b" ")])
        elif what == "lock":
            mine = consul.create_session(Session(id="", node=consul.node))
            try:
                consul.apply([Lock("rack", b"", mine)])
            except Conflict:
                consul.apply([Delete("rack")])

    def take_over(self) -> None:
        """The end of our session; from here on nothing of ours may land."""
        self.store.consul.faults.unavailable = False
        self.store.consul.destroy_session(self.session)
        self.taken = len(self.fenced)

    def check(self) -> None:
        for stamp, outcome in self.said.items():
            event(type(outcome).__name__)
            assert self.landed[stamp] <= 1, f"{stamp} landed twice"
            if isinstance(outcome, Committed):
                assert self.landed[stamp] == 1, f"{stamp} was said to be committed"
                assert outcome.indexes.keys() >= set(self.keys[stamp])
                assert all(outcome.indexes[key] in {0, self.landed_at[stamp]} for key in self.keys[stamp])
            elif isinstance(outcome, Dropped) and outcome.settled:
                assert not self.landed[stamp], f"{stamp} was said to be dropped: {outcome}"


async def tell(script: list[Fate], callers: list[Rounds], happenings: list[Trouble], takeover: float | None) -> Story:
    story = Story(script)
    await story.begin()

    async def caller(rounds: Rounds) -> None:
        try:
            for wait, wanted in rounds:
                await story.call(wait, wanted)
        except FenceLost:
            story.lost += 1

    async def world() -> None:
        for wait, what in happenings:
            await asyncio.sleep(wait)
            story.trouble(what)

    consul = story.store.consul
    if takeover is not None:
        asyncio.get_running_loop().call_later(takeover, story.take_over)
    async with asyncio.TaskGroup() as group:
        troubling = group.create_task(world())
        for rounds in callers:
            group.create_task(caller(rounds))
        await troubling
        consul.faults.unavailable = False
    # Whatever stood in the way of a late write goes away, and everything on its way arrives.
    consul.apply([Delete("halt"), Delete("rack")])
    await asyncio.sleep(100)
    story.check()
    return story


@settings(max_examples=300, deadline=None)
@given(st.lists(fates, max_size=25), st.lists(calls, min_size=1, max_size=4), troubles)
@example(  # the writer touches a record that somebody edited in the meantime: no second landing
    [Fate(), Fate(), LOST_REPLY],
    [[(0.0, [(["m/0"], "", "back")] * 2), (0.1, [(["m/0"], "halt", "back")])]],
    [(0.02, "halt"), (0.02, "edit")],
)
def test_what_the_writer_says_is_what_happened(
    script: list[Fate], callers: list[Rounds], happenings: list[Trouble]
) -> None:
    assert not run(tell(script, callers, happenings, None)).lost


@settings(max_examples=150, deadline=None)
@given(
    st.lists(fates, max_size=25),
    st.lists(calls, min_size=1, max_size=4),
    troubles,
    st.sampled_from([0.0, 0.1, 0.5, 3.0, 10.0]),
)
def test_nothing_lands_after_the_next_leader_began(
    script: list[Fate], callers: list[Rounds], happenings: list[Trouble], takeover: float
) -> None:
    story = run(tell(script, callers, happenings, takeover))
    assert len(story.fenced) == story.taken
    event(f"lost by {story.lost}")
