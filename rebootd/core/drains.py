"""The leader's side of a drain: when a machine's Nomad client may be drained, is drained, and is as before again.

Nomad cannot be fenced. So what was there before is committed in the machine's record first, each drain carries a mark
that names the record's step, and what is asked of Nomad follows from the committed record alone (:func:`next_act`),
again at every look and after every election. Only what carries our mark is ever undone (S4).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from rebootd.core.advance import transition_event
from rebootd.core.decision import MachineStep
from rebootd.core.inputs import format_duration
from rebootd.core.model import Blocker, Machine, State
from rebootd.core.nomad import NomadDrain, NomadSeen, client_of, mark_of
from rebootd.core.policy_drains import NomadDrains
from rebootd.core.selectors import parse_selector
from rebootd.core.walk import waits

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rebootd.core.nomad import NomadAlloc, NomadClient
    from rebootd.core.policy import Policy
    from rebootd.core.view import View
    from rebootd.core.walk import Walk

FRESH = 30.0
"""Seconds that a reading of Nomad may be old when a machine is to go on its way out."""
NAMED = 4
NOMAD = "whoever runs Nomad"
LEADER = "the leader, at Nomad"
UNSET = NomadDrains(machines=parse_selector("*"))
"""The times that count when the policy has lost its section while drains are still to be undone."""


class Act(StrEnum):
    """What is to be asked of Nomad for one machine now."""

    NOTHING = "nothing"
    DRAIN = "drain"
    STOP = "stop the drain, keep it ineligible"
    UNDO = "stop the drain, make it eligible"
    ENABLE = "make it eligible"


class Side(msgspec.Struct, frozen=True):
    """How the Nomad side of a drain stands: ``done``, ``failed`` (why), or what it waits for."""

    done: bool = False
    failed: str = ""
    blocker: Blocker | None = None


class Back(msgspec.Struct, frozen=True):
    """How the return stands: what it waits for (None: nothing), since when all is well, whether it is left owing."""

    blocker: Blocker | None = None
    since: float = 0.0
    owed: bool = False
    note: str = ""


def concerned_by(policy: Policy, machine: Machine) -> bool:
    """Whether the policy says that the machine has a Nomad client."""
    nomad = policy.drains.nomad
    return nomad is not None and nomad.machines.matches(machine)


def orphan(client: NomadClient, prefix: str, machines: Mapping[str, Machine]) -> bool:
    """Whether a drain under way is one of this fleet's that no record tells of.

    Only what is under way counts: a client that others made ineligible later still carries our last mark. And only
    machines that the fleet knows: another data center's rebootd may use the same Nomad and the same prefix.
    """
    if not client.draining or not client.mark.startswith(prefix):
        return False
    machine = machines.get(client.mark.removeprefix(prefix).rpartition("/")[0])
    return machine is not None and (machine.nomad is None or machine.nomad.mark != client.mark)


def next_act(machine: Machine, client: NomadClient) -> Act:
    """What follows for the machine's client from the committed record. Others' drains are never touched."""
    drain = machine.nomad
    if drain is None or drain.foreign:
        return Act.NOTHING
    ours = client.mark == drain.mark
    if machine.state is State.DRAINING:
        as_found = not client.draining and client.eligible == drain.eligible
        return Act.DRAIN if not ours and as_found else Act.NOTHING
    if not ours:
        return Act.NOTHING
    if machine.state in {State.ENABLING, State.IN_SERVICE}:
        if client.draining:
            return Act.UNDO if drain.eligible else Act.STOP
        return Act.ENABLE if drain.eligible and not client.eligible else Act.NOTHING
    return Act.STOP if client.draining else Act.NOTHING


# --- going out -----------------------------------------------------------------------------------


def keeps_in(view: View, machine: Machine) -> Blocker | None:
    """Why the machine may not be drained now as far as Nomad is concerned. What is unknown is not safe (S6)."""
    snapshot = view.snapshot
    if machine.nomad is None and not concerned_by(snapshot.policy, machine):
        return None
    sight = snapshot.nomad
    if machine.nomad is not None:
        return Blocker("nomad", "its eligibility at Nomad is still to be restored", machine.since, LEADER)
    if sight is None:
        said = "the policy drains it at Nomad, and this leader was given no address of one"
        return Blocker("nomad", said, snapshot.leading_since, "whoever runs rebootd: --nomad")
    if sight.error or view.now - sight.at > FRESH:
        said = f"Nomad cannot be asked: {sight.error or 'its last answer is too old'}"
        return Blocker("nomad", said, sight.at or snapshot.leading_since, NOMAD)
    client = client_of(sight.clients.get(machine.name, ()))
    if isinstance(client, str):
        return Blocker("nomad", client, sight.at, NOMAD)
    if client.status != "ready":
        return Blocker("nomad", f"its Nomad client is {client.status}", sight.at, NOMAD)
    return None


def drained(walk: Walk) -> Side:
    """How far the Nomad side of the machine's drain is. Adds to the record what was there before it begins."""
    view, m = walk.view, walk.machine
    if m.nomad is None and not concerned_by(view.snapshot.policy, m):
        return Side(done=True)
    began = _began(view, m)
    policy = view.snapshot.policy.drains.nomad or UNSET
    seen = _seen(view, m)
    over = view.now - began > (m.nomad.deadline if m.nomad is not None else policy.deadline)
    if seen is None or seen.error or seen.at < began:
        why = seen.error if seen is not None and seen.error else "it has not been asked yet"
        if over:
            return Side(failed=f"Nomad did not tell within its deadline whether its allocations stopped: {why}")
        return Side(blocker=waits(m, "nomad", f"Nomad cannot be asked how far its drain is: {why}", NOMAD))
    client = client_of(seen.clients, m.nomad.node if m.nomad is not None else "")
    if isinstance(client, str):
        return Side(failed=client)
    if m.nomad is None:
        return _begin(walk, policy, client, seen)
    return _progress(view, m, m.nomad, client, seen, over)


def _begin(walk: Walk, policy: NomadDrains, client: NomadClient, seen: NomadSeen) -> Side:
    m = walk.machine
    if client.status != "ready":
        return Side(failed=f"its Nomad client is {client.status}")
    if seen.allocs is None:
        return Side(blocker=waits(m, "nomad", "its allocations at Nomad are being looked at", LEADER))
    live = [a for a in seen.allocs if a.live]
    eligible = client.eligible and not client.draining
    drain = NomadDrain(
        node=client.id,
        mark=mark_of(walk.view.snapshot.fleet, m.name, m.version),
        since=walk.now,
        eligible=eligible,
        foreign=client.draining,
        force=policy.force,
        # What others made ineligible gets no system job back: it keeps what it has.
        keep_system=policy.keep_system or not eligible,
        deadline=policy.deadline,
        system=tuple(sorted({a.job for a in live if a.type == "system"})),
        services={
            job: seen.services[job].running
            for job in sorted({a.job for a in live if a.type == "service"})
            if job in seen.services
        },
    )
    walk.machine = replace(m, nomad=drain)
    was = "others drain it" if drain.foreign else "eligible" if eligible else "not eligible, and stays so"
    told = transition_event(m, walk.machine, now=walk.now, cause="Nomad drain", detail=f"{client.id}: {was}")
    walk.events.append(replace(told, kind="drain", to=""))
    return Side(blocker=waits(m, "nomad", "its Nomad drain is about to begin", LEADER))


def _progress(view: View, m: Machine, drain: NomadDrain, client: NomadClient, seen: NomadSeen, over: bool) -> Side:
    ours = client.mark == drain.mark
    whose = "the drain of others" if drain.foreign else "its Nomad drain"
    if not ours and not drain.foreign:
        if client.draining or client.eligible != drain.eligible:
            return Side(failed=f"others {_did(client)} before its Nomad drain began")
        said = "it has not begun"
    elif not client.draining and (client.eligible or (ours and client.drain != "complete")):
        return Side(failed=f"others ended {whose}")
    elif seen.allocs is None:
        said = "its allocations are being looked at"
    else:
        left = remaining(drain, seen.allocs)
        if not left and not client.draining:
            return Side(done=True)
        said = _named(left)
    if over and not (drain.force and ours):
        return Side(failed=f"{whose} was not over within {format_duration(drain.deadline)}: {said}")
    spent = format_duration(round(max(0.0, view.now - drain.since)))
    what = f"{whose} goes on for {spent} of {format_duration(drain.deadline)}: {said}"
    return Side(blocker=waits(m, "nomad", what, "Nomad, or time"))


def _did(client: NomadClient) -> str:
    if client.draining:
        return "began to drain it"
    return "made it eligible" if client.eligible else "made it ineligible"


def remaining(drain: NomadDrain, allocs: tuple[NomadAlloc, ...]) -> tuple[NomadAlloc, ...]:
    """The allocations that have yet to stop before the machine is drained."""
    kept = {"system", "sysbatch"} if drain.keep_system or drain.foreign else set()
    return tuple(a for a in allocs if a.live and a.type not in kept)


def _named(left: tuple[NomadAlloc, ...]) -> str:
    if not left:
        return "its allocations have stopped, Nomad is about to end it"
    names = sorted(a.name for a in left)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} allocations have yet to stop: {', '.join(names[:NAMED])}{more}"


def undone_by_others(view: View, m: Machine) -> str:
    """Says that somebody made a drained machine's client eligible again, or ``""``: its reboot would kill anew."""
    seen = _seen(view, m)
    if m.nomad is None or seen is None or seen.error or seen.at < _began(view, m):
        return ""
    client = next((c for c in seen.clients if c.id == m.nomad.node), None)
    return "others made it eligible at Nomad" if client is not None and client.eligible else ""


def not_permitted(view: View, m: Machine) -> Blocker | None:
    """Why a drained machine may not reboot now: nobody can tell whether Nomad has put something on it again."""
    if m.nomad is None or m.state is State.REBOOTING:
        return None
    seen = _seen(view, m)
    if seen is not None and not seen.error and view.now - seen.at <= FRESH:
        return None
    why = seen.error if seen is not None and seen.error else "its last answer is too old"
    return Blocker("nomad", f"Nomad cannot be asked: {why}", seen.at if seen is not None else m.since, NOMAD)


# --- coming back ---------------------------------------------------------------------------------


def not_ready(view: View, m: Machine) -> Blocker | None:
    """Why a booted machine's Nomad client is not shown to be well; a silent Nomad holds nobody back for long (S5)."""
    nomad, sight = view.snapshot.policy.drains.nomad, view.snapshot.nomad
    if nomad is None or sight is None or not nomad.machines.matches(m) or view.power_loss:
        return None
    began = _began(view, m)
    if sight.error or sight.at < began:
        if view.now - max(sight.at, began) > nomad.patience:
            return None
        return waits(m, "nomad", f"Nomad cannot be asked: {sight.error or 'it is being asked'}", NOMAD)
    client = client_of(sight.clients.get(m.name, ()))
    if isinstance(client, str):
        return waits(m, "nomad", client, NOMAD)
    return None if client.status == "ready" else waits(m, "nomad", f"its Nomad client is {client.status}", NOMAD)


def back(view: View, m: Machine) -> Back:
    """How far the machine is at Nomad on its way back: eligibility, then what it is expected to run."""
    drain = m.nomad
    if drain is None:
        return Back()
    began, seen = _began(view, m), _seen(view, m)
    policy = view.snapshot.policy.drains.nomad or UNSET
    if seen is None or seen.error or seen.at < began:
        silent = max(seen.at, began) if seen is not None else began
        why = seen.error if seen is not None and seen.error else "it has not been asked yet"
        if view.now - silent > policy.patience:
            return Back(owed=True, note=f"what it was at Nomad is restored when Nomad answers again: {why}")
        return Back(waits(m, "nomad", f"Nomad cannot be asked: {why}", NOMAD))
    if not as_before(drain, seen.clients):
        return Back(waits(m, "nomad", "its eligibility at Nomad is being restored", LEADER))
    system = missing_system(drain, seen)
    if system:
        return Back(waits(m, "nomad", f"system jobs do not run on it yet: {', '.join(system[:NAMED])}", "Nomad"))
    short = short_services(drain, seen)
    if short and view.now - began <= policy.services and not view.power_loss:
        return Back(waits(m, "nomad", f"service jobs are not whole yet: {', '.join(short[:NAMED])}", "Nomad"))
    return Back(since=seen.well_since, note=f"not whole at Nomad: {', '.join(short[:NAMED])}" if short else "")


def as_before(drain: NomadDrain, clients: tuple[NomadClient, ...]) -> bool:
    """Whether nothing that rebootd did to the client is left: undone, never done, or taken over by others."""
    client = next((c for c in clients if c.id == drain.node), None)
    if drain.foreign or client is None or client.mark != drain.mark:
        return True
    return not client.draining and (client.eligible or not drain.eligible)


def missing_system(drain: NomadDrain, seen: NomadSeen) -> tuple[str, ...]:
    """System jobs that ran on the client before, are still wanted, and do not run on it."""
    client = client_of(seen.clients, drain.node)
    if isinstance(client, str) or not client.eligible or drain.foreign:
        # Nomad puts no system job on a client that others keep ineligible.
        return ()
    running = {a.job for a in seen.allocs or () if a.running}
    return tuple(j for j in drain.system if j not in running and j in seen.services and seen.services[j].wanted)


def short_services(drain: NomadDrain, seen: NomadSeen) -> tuple[str, ...]:
    """Service jobs that ran on the client before and have fewer running allocations now, wherever they are."""
    out = []
    for job, before in drain.services.items():
        now = seen.services.get(job)
        expected = min(before, now.wanted) if now is not None else 0
        if now is not None and now.running < expected:
            out.append(f"{job} ({now.running} of {expected} run)")
    return tuple(out)


def well(drain: NomadDrain, seen: NomadSeen) -> bool:
    """Whether the machine's own part is as before; the soak counts from here."""
    return as_before(drain, seen.clients) and not missing_system(drain, seen)


def settled_debts(view: View, taken: Collection[str]) -> list[MachineStep]:
    """Machines in service whose client is as before at last: their records forget the drain."""
    steps = []
    sight = view.snapshot.nomad
    for name, seen in sight.seen.items() if sight is not None else ():
        m = view.snapshot.machines.get(name)
        if m is None or m.nomad is None or m.state is not State.IN_SERVICE or name in taken:
            continue
        if seen.error or seen.at < _began(view, m) or not as_before(m.nomad, seen.clients):
            continue
        after = replace(m, nomad=None)
        told = transition_event(m, after, now=view.now, cause="as before at Nomad")
        steps.append(MachineStep(name=name, before=m, after=after, events=(replace(told, kind="drain", to=""),)))
    return steps


def _seen(view: View, m: Machine) -> NomadSeen | None:
    return view.snapshot.nomad.seen.get(m.name) if view.snapshot.nomad is not None else None


def _began(view: View, m: Machine) -> float:
    """When this leader could first look at the machine in its present state."""
    return max(m.since, view.snapshot.leading_since) if m.since <= view.now else view.snapshot.leading_since
