"""Machines without an agent, which ask for their reboots by FleetLock: what the leader says in their agents' place.

A FleetLock client says two things: ``pre-reboot`` (may I?) and ``steady-state`` (I am back). All else follows from the
machine's committed record: :func:`voice` makes of it the report that an agent would send, so that every rule of the
core holds for these machines as for all others, under any leader. Nobody looks into such a host: what its agent would
have to prove (its drain, its checks after boot) is taken for done, and whether it lives is what Consul's node checks
say. A boot has no id of its own there, so each gets one that is made up when the client comes back from its permit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.decision import directive_id
from rebootd.core.inputs import rack_name
from rebootd.core.model import Blocker, Call, FleetLock, Observation, State
from rebootd.core.wire import CheckResult, DirectiveKind, Report, Result, Tri

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rebootd.core.model import Machine
    from rebootd.core.policy import Policy
    from rebootd.core.walk import Walk

LABEL = "fleetlock"
"""The label that is the client's group; only machines with a FleetLock client have it."""
META = "fleetlock-id"
"""The key of Consul's node meta that names a node's client, where its id is not the node's name."""
CLIENT = "the machine's FleetLock client"
REASON = "its FleetLock client asks for a reboot"
UNASKED = "its FleetLock client does not ask for a reboot"
FRESH = 4
"""The part of ``fleetlock.wish`` after which a client that says the same is written into its record once more."""

_NO_LABELS = frozenset({"rack", "chassis", META})
_RESULTS = {State.DRAINING: DirectiveKind.DRAIN, State.ENABLING: DirectiveKind.ENABLE}


def clients(nodes: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The nodes (with their meta) that each client's id stands for: one, if all is well.

    A node that names its client is nobody else's: not even of a client that calls itself by the node's name.
    """
    out: dict[str, tuple[str, ...]] = {}
    for name, meta in sorted(nodes.items()):
        client = meta.get(META) or name
        out[client] = (*out.get(client, ()), name)
    return out


def machine_id(name: str) -> str:
    """The machine-id of a machine whose client has none: an agent that reports under its name is told apart by it."""
    return f"fleetlock:{name}"


def nonce(machine: Machine) -> str:
    """The nonce of a permit: one boot, one nonce, whichever leader is asked."""
    return f"fleetlock:{machine.boot_id}"


def wished(machine: Machine, policy: Policy, now: float) -> bool:
    """Whether the client's last wish still stands. One from the future is a stamp of a clock that was ahead."""
    client, rule = machine.fleetlock, policy.fleetlock
    return client is not None and rule.enabled and bool(client.asked) and abs(now - client.asked) <= rule.wish


def unasked(machine: Machine) -> bool:
    """Whether only its FleetLock client could reboot the machine, and does not ask to: no cycle waits for it."""
    return machine.fleetlock is not None and machine.reboot_required is not Tri.YES


def not_asked(machine: Machine) -> Blocker:
    """Why a cycle that selects such a machine does not take it out."""
    return Blocker(kind="fleetlock", what=UNASKED, since=machine.since, clears=CLIENT)


def spent(machine: Machine) -> bool:
    """Whether the present boot has had its permit: when the client comes back from that, it is another boot."""
    return machine.permit is not None and machine.permit.boot_id == machine.boot_id


Memo = dict[str, "tuple[Machine, Mapping[str, str] | None, bool, Report]"]
"""What was said of each machine the last time, with what it was made of."""


def voices(
    machines: Mapping[str, Machine],
    calls: Mapping[str, Call],
    nodes: Mapping[str, Mapping[str, str]],
    gone: Mapping[str, float],
    policy: Policy,
    now: float,
    memo: Memo | None = None,
) -> Iterator[tuple[str, Observation]]:
    """What is heard of every machine with a FleetLock client, by name; ``nodes`` is the catalog's meta.

    One that the catalog has no more (``gone``) has been silent since then. ``memo`` keeps what was said from one time
    to the next, so that of ten thousand machines only those are looked at closely of which something has changed.
    """
    for name, m in machines.items():
        if m.fleetlock is not None:
            enabled = m.since if m.state is State.ENABLING else 0.0
            report = _said(m, calls.get(name), nodes.get(name), policy, now, {} if memo is None else memo)
            yield name, Observation(report, gone.get(name, now), enabled)
    for name, call in calls.items():
        known = machines.get(name)
        # A leader of an older version may have written the record, and lost what it did not know.
        if known.fleetlock is None if known is not None else policy.fleetlock.enabled:
            yield name, Observation(voice(name, known, call, nodes.get(name), policy, now), now)


def _said(
    m: Machine, call: Call | None, meta: Mapping[str, str] | None, policy: Policy, now: float, memo: Memo
) -> Report:
    if call is not None:
        return voice(m.name, m, call, meta, policy, now)
    asks, known = wished(m, policy, now), memo.get(m.name)
    if known is not None and known[0] is m and known[1] is meta and known[2] is asks:
        return known[3]
    report = voice(m.name, m, None, meta, policy, now)
    memo[m.name] = (m, meta, asks, report)
    return report


def voice(
    name: str,
    machine: Machine | None,
    call: Call | None,
    meta: Mapping[str, str] | None,
    policy: Policy,
    now: float,
) -> Report:
    """The report of one such machine; ``machine`` None: it calls for the first time.

    ``call`` is the client's request that waits for its answer. Without ``meta`` rack and labels stay what they were.
    """
    asks = not call.steady if call is not None else machine is not None and wished(machine, policy, now)
    asks = asks and policy.fleetlock.enabled
    boot_id, kind = "", None
    if machine is not None:
        boot_id, kind = machine.boot_id, _RESULTS.get(machine.state)
    if machine is None or (call is not None and call.steady and spent(machine)):
        boot_id = _boot_id(name, machine, now)
    return Report(
        name=name,
        machine_id=machine_id(name),
        boot_id=boot_id,
        rack=rack_name(meta.get("rack", "")) if meta is not None else "",
        chassis=meta.get("chassis", "") if meta is not None else machine.chassis if machine is not None else "",
        labels=_labels(machine, call, meta),
        reboot_required=Tri.YES if asks else Tri.NO,
        reboot_reasons=(REASON,) if asks else (),
        boot_check=CheckResult("passed"),
        result=_done(machine, kind) if machine is not None and kind is not None else None,
        in_service=machine is not None and machine.state in {State.IN_SERVICE, State.ENABLING},
        agent="fleetlock",
        index=machine.version if machine is not None else 0,
    )


def _labels(machine: Machine | None, call: Call | None, meta: Mapping[str, str] | None) -> dict[str, str]:
    known = machine.labels if machine is not None else {}
    group = call.group if call is not None else known.get(LABEL, "")
    if meta is None:
        return known | {LABEL: group}
    return {k: v for k, v in meta.items() if k not in _NO_LABELS and not k.startswith("consul-")} | {LABEL: group}


def _done(machine: Machine, kind: DirectiveKind) -> Result:
    return Result(directive_id(machine.name, machine.version, kind.value), kind, ok=True)


def _boot_id(name: str, machine: Machine | None, now: float) -> str:
    """An id that no boot of this machine had."""
    stamp = int(now * 1000)
    known = {machine.boot_id, *machine.boots} if machine is not None else set()
    while (boot_id := f"fleetlock:{name}:{stamp}") in known:
        stamp += 1
    return boot_id


def first(call: Call, now: float) -> FleetLock:
    """What the record of a client that calls for the first time says of it."""
    return FleetLock(id=call.id, asked=0.0 if call.steady else now, called=now)


def hear_client(walk: Walk) -> None:
    """Takes over a call into the record: now and then is enough, while the client says the same."""
    m, call = walk.machine, walk.view.snapshot.calls.get(walk.machine.name)
    if call is None:
        return
    client, said = m.fleetlock, first(call, walk.now)
    same = client is not None and client.id == said.id and bool(client.asked) is bool(said.asked)
    fresh = client is not None and abs(walk.now - client.called) <= walk.view.snapshot.policy.fleetlock.wish / FRESH
    if not (same and fresh):
        walk.machine = replace(m, fleetlock=said)
