"""One seed from beginning to end: a phase with faults, then one without, in which everything must come right."""

from __future__ import annotations

import logging
import random
import traceback
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from unittest import mock

import structlog

from rebootd.cli.collector import spare
from rebootd.coordinator import leader as leader_module
from tests.sim.checks import Violation
from tests.sim.checks_lull import lulls_watched
from tests.sim.faults import Faults
from tests.sim.forecasting import forecasting
from tests.sim.loop import Livelock
from tests.sim.month import paced, plan_of
from tests.sim.people import People
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from rebootd.core.decision import Decision
    from rebootd.core.model import Snapshot
    from tests.sim.plan import Fault, Plan

LOOK_EVERY = 10.0
SETTLE_EVERY = 20.0


@dataclass
class Outcome:
    """What became of one seed. ``violation`` "" means that everything held."""

    seed: int
    violation: str = ""
    name: str = ""
    at: float = 0.0
    hours: float = 0.0
    steps: int = 0
    messages: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every invariant held."""
        return not self.violation


def quiet_logs() -> None:
    """Product logs are dropped where they are made."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=True
    )


@cache
def prepare() -> None:
    """Once in a process that does nothing else: no logs, and the collector as the daemons have it (a fifth faster)."""
    quiet_logs()
    spare()


def run_seed(
    seed: int,
    *,
    profile: str = "",
    only: Collection[int] | None = None,
    verbose: bool = False,
    plan: Plan | None = None,
) -> Outcome:
    """Runs one seed, or the given plan, with all of its faults or ``only`` those with the given indexes."""
    plan = plan or plan_of(seed, profile)
    faults = [(i, f) for i, f in enumerate(plan.faults) if only is None or i in only]
    return run_world(World(plan, verbose=verbose), faults)


def run_world(world: World, faults: Sequence[tuple[int, Fault | None]] = ()) -> Outcome:
    """Plays a world with these faults (None: one that the caller has arranged) to its end."""
    random.seed(f"global {world.plan.seed}")
    people = People(world)
    decide: Callable[[Snapshot], Decision] = vars(leader_module)["decide"]

    def checked(snapshot: Snapshot) -> Decision:
        decision = decide(snapshot)
        world.checks.decided(snapshot, decision)
        return decision

    outcome = Outcome(world.plan.seed)
    watched = mock.patch.object(leader_module, "decide", checked)
    with watched, forecasting(world), lulls_watched(world), paced(world.plan):
        try:
            _play(world, people, faults)
        except Violation as violation:
            outcome.violation, outcome.name, outcome.at = str(violation), violation.name, violation.at
        except (Livelock, Exception) as bug:  # noqa: BLE001  a mistake in the product is what this looks for
            outcome.violation = f"{type(bug).__name__}: {bug}{_inner(bug)}"
            outcome.name, outcome.at = type(bug).__name__, world.loop.now
            if world.verbose:
                traceback.print_exception(bug)
        finally:
            outcome.hours = world.loop.now / 3600
            outcome.steps = world.loop.steps
            outcome.messages = world.net.messages
            outcome.counts = dict(world.checks.counts)
            outcome.log = world.log
            world.loop.close()
    return outcome


def _inner(bug: BaseException) -> str:
    """What a group of exceptions is about."""
    while isinstance(bug, BaseExceptionGroup):
        bug = bug.exceptions[0]
        if not isinstance(bug, BaseExceptionGroup):
            return f": {type(bug).__name__}: {bug}"
    return ""


def _play(world: World, people: People, faults: Sequence[tuple[int, Fault | None]]) -> None:
    plan, loop, checks = world.plan, world.loop, world.checks
    world.begin()
    loop.at(plan.cycle_at, _first_cycle, world, people)
    Faults(world, people).schedule([(i, f) for i, f in faults if f is not None])
    end = plan.faults_for if faults else plan.cycle_at + 1.0
    while loop.now < end:
        loop.run(min(end, loop.now + LOOK_EVERY * plan.tempo))
        checks.look()
    world.say("HEALED")
    loop.inside(world.heal)
    checks.disturbed(loop.now + 600.0)
    deadline = loop.now + plan.settle_for
    unsettled = "nothing was looked at"
    while loop.now < deadline:
        loop.inside(people.clean_up)
        loop.run(loop.now + SETTLE_EVERY)
        checks.look()
        if loop.failure is not None:
            raise loop.failure
        unsettled = checks.unsettled()
        if not unsettled and loop.inside(people.clean_up):
            return
    desk = world.desk()
    reasons = desk.decision().reasons if desk is not None else {}
    said = "; ".join(f"{name}: {', '.join(b.what for b in why)}" for name, why in sorted(reasons.items())[:6])
    checks.fail("L1", f"after {plan.settle_for / 3600:.1f} h without faults: {unsettled} [{said}]")
    assert loop.failure is not None
    raise loop.failure


def _first_cycle(world: World, people: People) -> None:
    """As soon as somebody leads and every machine has called."""
    checks = world.checks
    if "k1" in checks.cycles:
        return
    if world.desk() is not None and len(checks.records) == len(world.machines):
        people.start("*", "k1")
    if world.loop.now < world.plan.faults_for:
        world.loop.after(3.0, _first_cycle, world, people)


__all__ = ["Outcome", "prepare", "quiet_logs", "run_seed", "run_world"]
