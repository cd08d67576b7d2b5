"""The election's rules on the memory store, in virtual time: each way to win, to lose and to hand over."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from typing import TYPE_CHECKING

import pytest

from rebootd.consul.election import Candidate, Election, LeaderInfo, Leadership, Tuning
from rebootd.core.errors import NotLeader, Unreachable
from rebootd.store.memory import LOST_REPLY, NEVER, Fate, MemoryStore, late
from rebootd.store.port import Delete, Lock
from tests.support.electorate import KEY, Fleet, now
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def virtual(test: Callable[[Fleet], Coroutine[object, object, None]]) -> Callable[[], None]:
    async def whole() -> None:
        fleet = Fleet()
        try:
            await test(fleet)
            # A programming error in one of them ends its run(): none may be hidden.
            assert not [daemon.name for daemon in fleet.daemons if daemon.task.done() and daemon.task.exception()]
            values = [value for _, _, value in fleet.counted]
            assert values == list(range(1, len(values) + 1)), "the fence held: nothing was counted twice"
        finally:
            await fleet.end()

    @functools.wraps(test)
    def main() -> None:
        run(whole())

    del main.__wrapped__  # else pytest looks for a fixture named fleet
    return main


@virtual
async def test_one_wins_and_all_see_it(fleet: Fleet) -> None:
    await fleet.add(3)
    leader = await fleet.leader()
    await asyncio.sleep(5.0)
    assert [daemon for daemon in fleet.daemons if daemon.speaks()] == [leader]
    entry = await leader.store.get(KEY)
    assert entry is not None
    assert entry.session == leader.terms[0].session
    seen = [daemon.election.leader for daemon in fleet.daemons]
    assert seen == [LeaderInfo(leader.name, f"http://{leader.name}", "local", seen[0].since if seen[0] else 0.0)] * 3


@virtual
async def test_everybody_who_waits_for_a_leader_is_woken_at_once(fleet: Fleet) -> None:
    fleet.consul.faults.unavailable = True
    await fleet.add(2)
    waiting = [asyncio.create_task(daemon.election.wait_leader(30.0)) for daemon in fleet.daemons for _ in range(500)]
    assert await fleet.daemons[0].election.wait_leader(1.0) is None
    fleet.consul.faults.heal()
    leader = await fleet.leader()
    found = await asyncio.gather(*waiting)
    assert {info.id for info in found if info} == {leader.name}
    changed = asyncio.create_task(fleet.others(leader)[0].election.wait_change(found[0], 30.0))
    await asyncio.sleep(0)
    fleet.consul.destroy_session(leader.terms[-1].session)
    assert await changed is None


@virtual
async def test_a_destroyed_session_ends_the_scope_at_once(fleet: Fleet) -> None:
    await fleet.add(2)
    old = await fleet.leader()
    term = old.terms[0]
    begun = now()
    fleet.consul.destroy_session(term.session)
    await term.lost.wait()
    assert now() - begun < 0.1
    assert not term.may_speak()
    await fleet.leader()
    assert now() - begun < 0.3
    assert sum(daemon.scopes for daemon in fleet.daemons) == 1


@virtual
async def test_a_deleted_or_retaken_key_ends_the_scope(fleet: Fleet) -> None:
    await fleet.add(1)
    old = await fleet.leader()
    stranger = await old.store.create_session("stranger")
    await old.store.commit([Delete(KEY), Lock(KEY, b"not ours", stranger)])
    await old.terms[0].lost.wait()
    await asyncio.sleep(1.0)
    assert old.election.leader is None, "a holder that cannot be read is nobody to send agents to"
    assert old.scopes == 0
    await old.store.destroy_session(stranger)
    assert await fleet.leader() is old
    assert old.terms[1].session != old.terms[0].session


@virtual
async def test_a_critical_check_deposes_and_keeps_out_until_it_passes(fleet: Fleet) -> None:
    await fleet.add(2)
    old = await fleet.leader()
    fleet.consul.set_check("local", old.check, "critical")
    new = await fleet.leader(but=old, timeout=1.0)
    await asyncio.sleep(10.0)
    assert new.speaks()
    await new.election.stop()
    await asyncio.sleep(10.0)
    assert not [daemon for daemon in fleet.daemons if daemon.speaks()]
    fleet.consul.set_check("local", old.check, "passing")
    assert await fleet.leader(timeout=3.0) is old


@virtual
async def test_a_silent_store_silences_the_leader_but_does_not_depose_it(fleet: Fleet) -> None:
    await fleet.add(2)
    leader = await fleet.leader()
    await asyncio.sleep(1.0)
    fleet.consul.faults.unavailable = True
    await asyncio.sleep(1.0)
    assert leader.speaks(), "not yet"
    await asyncio.sleep(1.1)
    assert not leader.speaks()
    assert leader.scopes == 1
    await asyncio.sleep(5.0)
    fleet.consul.faults.heal()
    await asyncio.sleep(1.5)
    assert leader.speaks()
    assert len(leader.terms) == 1


@virtual
async def test_a_leader_cut_off_falls_silent_before_another_wins(fleet: Fleet) -> None:
    await fleet.add(2)
    old = await fleet.leader()
    await asyncio.sleep(1.0)
    old.store.faults.partitioned = True
    cut = now()
    # What Consul makes of a frozen holder with the default check: critical after its timeout of 3 s, at the earliest.
    asyncio.get_running_loop().call_later(3.0, fleet.consul.set_check, "local", old.check, "critical")
    new = await fleet.leader(but=old)
    assert not old.speaks()
    assert now() - cut < 3.2
    assert old.scopes == 1, "it cannot know yet"
    old.store.faults.heal()
    await old.terms[0].lost.wait()
    await asyncio.sleep(0.1)
    assert old.scopes == 0
    assert new.speaks()


@virtual
async def test_a_ttl_alone_frees_the_lock(fleet: Fleet) -> None:
    await fleet.add(2)
    old = await fleet.leader()
    cut = now()
    old.store.faults.partitioned = True
    await fleet.leader(but=old)
    assert 15.0 < now() - cut < 21.0


@virtual
async def test_stop_hands_over_and_leaves_nothing(fleet: Fleet) -> None:
    await fleet.add(2, Tuning(lock_delay=15.0))
    old = await fleet.leader()
    begun = now()
    await old.election.stop()
    await fleet.leader(but=old)
    assert now() - begun < 0.1, "no lock-delay after a hand-over"
    assert old.task.done()
    assert old.terms[0].reason == "stopping"
    assert not [one for one in fleet.consul.sessions() if old.name in one.name]


@virtual
async def test_stop_without_hand_over_is_like_a_crash(fleet: Fleet) -> None:
    await fleet.add(2)
    old = await fleet.leader()
    begun = now()
    await old.election.stop(hand_over=False)
    assert old.task.done()
    await fleet.leader(but=old)
    assert now() - begun > 15.0


@virtual
async def test_stop_of_a_follower_ends_its_session(fleet: Fleet) -> None:
    await fleet.add(2)
    leader = await fleet.leader()
    follower = fleet.others(leader)[0]
    await asyncio.sleep(0.5)
    await follower.election.stop()
    assert [one.id for one in fleet.consul.sessions()] == [leader.terms[0].session]


@virtual
async def test_who_steps_down_lets_others_go_first_for_as_long_as_it_said(fleet: Fleet) -> None:
    await fleet.add(2)
    old = await fleet.leader()
    old.terms[0].step_down("its host is to be rebooted", abstain=30.0)
    old.terms[0].step_down("a later reason")
    new = await fleet.leader(but=old, timeout=0.5)
    assert old.terms[0].reason == "its host is to be rebooted"
    await new.election.stop()
    begun = now()
    assert await fleet.leader() is old
    assert 20.0 < now() - begun < 33.0


@virtual
async def test_an_operating_error_of_the_scope_means_a_new_competition(fleet: Fleet) -> None:
    await fleet.add(1)
    only = await fleet.leader()
    only.error = Unreachable("the fleet could not be loaded")
    await only.terms[0].lost.wait()
    assert await fleet.leader() is only
    assert len(only.terms) == 2
    assert only.terms[0].session != only.terms[1].session


def test_a_programming_error_of_the_scope_ends_the_run_and_frees_the_lock() -> None:
    async def whole() -> None:
        fleet = Fleet()
        await fleet.add(2)
        old = await fleet.leader()
        old.error = KeyError("a bug")
        with pytest.raises(KeyError, match="a bug"):
            await old.task
        await fleet.leader(but=old, timeout=0.5)
        await fleet.end()

    run(whole())


def test_a_programming_error_on_the_way_out_is_not_hidden() -> None:
    async def whole() -> None:
        store = MemoryStore()

        async def lead(leadership: Leadership) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                raise ZeroDivisionError

        election = Election(store, KEY, Candidate("a", "http://a"), lead)
        task = asyncio.create_task(election.run())
        await election.wait_leader(5.0)
        with contextlib.suppress(ZeroDivisionError):
            await election.stop()
        with pytest.raises(ZeroDivisionError):
            await task
        assert store.consul.sessions() == []

    run(whole())


@virtual
async def test_a_scope_that_is_slow_to_end_does_not_hold_up_the_hand_over(fleet: Fleet) -> None:
    await fleet.add(1)
    only = await fleet.leader()
    ended = asyncio.Event()

    async def lead(leadership: Leadership) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(20)
            ended.set()

    slow = Election(MemoryStore(fleet.consul), KEY, Candidate("slow", "http://slow"), lead)
    task = asyncio.create_task(slow.run())
    await only.election.stop()
    await slow.wait_leader(5.0)
    await fleet.add(1)
    begun = now()
    assert slow.leadership is not None
    slow.leadership.step_down("test")
    await fleet.leader()
    assert now() - begun < 2.0
    assert not ended.is_set()
    await slow.stop()
    assert ended.is_set()
    await task


@pytest.mark.parametrize("fate", [LOST_REPLY, NEVER, late(0.7)], ids=["landed", "never", "late"])
def test_a_win_whose_answer_is_lost_is_a_win_once_it_is_known(fate: Fate) -> None:
    async def whole() -> None:
        fleet = Fleet()
        fleet.consul.faults.fates.extend([fate, fate])
        await fleet.add(1)
        leader = await fleet.leader(timeout=3.0)
        await asyncio.sleep(2.0)
        assert leader.speaks()
        assert len(leader.terms) == 1
        await fleet.end()

    run(whole())


@virtual
async def test_a_lock_delay_is_waited_out(fleet: Fleet) -> None:
    await fleet.add(2, Tuning(lock_delay=5.0))
    old = await fleet.leader()
    begun = now()
    fleet.consul.set_check("local", old.check, "critical")
    await fleet.leader(but=old)
    assert 5.0 <= now() - begun < 5.5


@virtual
async def test_without_permission_it_keeps_trying(fleet: Fleet) -> None:
    fleet.consul.faults.denied = ("t/leader",)
    await fleet.add(2)
    await asyncio.sleep(20.0)
    assert not fleet.counted
    fleet.consul.faults.heal()
    await fleet.leader(timeout=3.0)


@virtual
async def test_a_leader_that_may_not_write_any_more_is_silent_not_deposed(fleet: Fleet) -> None:
    await fleet.add(2)
    leader = await fleet.leader()
    fleet.consul.faults.unreadable = ("t/",)
    fleet.consul.faults.denied = ("t/",)
    await asyncio.sleep(10.0)
    assert not leader.speaks()
    assert leader.scopes == 1
    fleet.consul.faults.heal()
    await asyncio.sleep(1.0)
    assert leader.speaks()
    assert len(leader.terms) == 1


@pytest.mark.parametrize("seed", range(30))
def test_whatever_goes_wrong_it_comes_right(seed: int) -> None:
    """Three daemons, two minutes of random faults, then peace: one leader, seen by all, and every count was fenced."""

    async def whole() -> None:
        rng = random.Random(seed)
        fleet = Fleet()
        await fleet.add(3, Tuning(lock_delay=rng.choice([0.0, 1.0])))
        for _ in range(120):
            victim = rng.choice(fleet.daemons)
            match rng.randrange(8):
                case 0:
                    victim.store.faults.partitioned = True
                case 1:
                    fleet.consul.faults.unavailable = True
                case 2:
                    fleet.consul.set_check("local", victim.check, "critical")
                case 3:
                    for session in rng.sample(fleet.consul.sessions(), k=min(1, len(fleet.consul.sessions()))):
                        fleet.consul.destroy_session(session.id)
                case 4:
                    victim.store.faults.delay = rng.choice([0.01, 0.5, 3.0])
                case 5:
                    victim.store.faults.fates.append(rng.choice([LOST_REPLY, NEVER, late(rng.uniform(0.0, 5.0))]))
                case 6:
                    victim.error = rng.choice([NotLeader("again"), Unreachable("gone")])
                case _:
                    fleet.heal()
            await asyncio.sleep(rng.uniform(0.0, 2.0))
        fleet.heal()
        # The longest that may be left: a session nobody renews, twice its TTL.
        await asyncio.sleep(25.0)
        assert sum(daemon.speaks() for daemon in fleet.daemons) == 1
        assert sum(daemon.scopes for daemon in fleet.daemons) == 1
        leader = await fleet.leader()
        assert {daemon.election.leader.id for daemon in fleet.daemons if daemon.election.leader} == {leader.name}
        assert not [daemon for daemon in fleet.daemons if daemon.task.done()]
        values = [value for _, _, value in fleet.counted]
        assert len(set(values)) == len(values) > 100
        await fleet.end()

    run(whole())
