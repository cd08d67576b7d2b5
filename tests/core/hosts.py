"""Hosts of the pure simulation: what an agent and its machine do, honestly or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.directives import directive_for
from rebootd.core.model import State
from rebootd.core.wire import CheckResult, Directive, DirectiveKind, PermitRequest, Report, Result

if TYPE_CHECKING:
    from tests.core.simulation import Simulation

WORK = {DirectiveKind.DRAIN: 4.0, DirectiveKind.REBOOT: 2.0, DirectiveKind.ENABLE: 3.0}
"""Seconds that the hooks of each directive take."""


class Host:
    """One machine and its agent. ``boot`` counts its boots; everything below it belongs to that boot."""

    def __init__(self, name: str, rack: str) -> None:
        self.name = name
        self.rack = rack
        self.machine_id = f"id-{name}"
        self.boot = 0
        self.kernel = "6.1"
        self.up = False
        self.agent = False
        self.back_at = 0.0
        self.results: dict[str, Result] = {}
        self.last: Result | None = None
        self.ghost: Report | None = None
        self.said: Report | None = None
        self.start()

    @property
    def boot_id(self) -> str:
        """The present boot's id."""
        return f"{self.name}-b{self.boot}"

    def start(self) -> None:
        """A new boot: out of service, nothing checked, no nonce. ``ghost`` is the last word of the boot before."""
        self.ghost, self.said = self.said, None
        self.boot += 1
        self.up = self.agent = True
        self.check = CheckResult()
        self.in_service = False
        self.by_hand = ""
        self.nonce = ""
        self.index = 0
        self.grant: tuple[str, str, float] | None = None
        self.doing: tuple[Directive, float] | None = None

    def down(self, until: float) -> None:
        """Power is gone, or the kernel; it boots at ``until``."""
        self.up = self.agent = False
        self.back_at = until

    def report(self, sim: Simulation) -> Report:
        """What it says of itself now."""
        return Report(
            name=self.name,
            machine_id=self.machine_id,
            boot_id=self.boot_id,
            rack=self.rack,
            kernel=self.kernel,
            labels={"role": "db" if int(self.name[-2:]) % 2 else "web"},
            boot_check=self.check,
            result=self.last,
            in_service=self.in_service,
            by_hand=self.by_hand,
            clock=sim.time,
            index=self.index,
        )

    def live(self, sim: Simulation) -> None:
        """One turn: boot, work, report, obey."""
        if not self.up:
            if sim.time >= self.back_at:
                self.start()
            return
        if not self.agent:
            return
        if self.check.status != "passed":
            self.check = CheckResult("failed", "a unit is failed") if sim.mishap(0.2) else CheckResult("passed")
        if self._reboots(sim):
            return
        self._works(sim)
        self.said = self.report(sim)
        sim.called(self.said)
        self._obeys(sim)

    def _reboots(self, sim: Simulation) -> bool:
        if self.grant is None:
            return False
        boot_id, nonce, until = self.grant
        self.grant = None
        if boot_id != self.boot_id or nonce != self.nonce or sim.time >= until or sim.mishap(0.1):
            return False
        if self.doing is not None and sim.mishap(0.1):
            self._ends(self.doing[0], False)
            return False
        sim.reboots(self)
        self.down(sim.time + (2000.0 if sim.mishap(0.1) else sim.rng.uniform(3, 25)))
        self.kernel = "6.12"
        return True

    def _works(self, sim: Simulation) -> None:
        if self.doing is None or sim.time < self.doing[1]:
            return
        directive, _ = self.doing
        if directive.kind is DirectiveKind.REBOOT:
            self.nonce = self.nonce or sim.new_nonce()
            before = f"{self.name}-b{self.boot - 1}"
            sim.asks(
                PermitRequest(
                    name=self.name,
                    machine_id=self.machine_id,
                    boot_id=before if sim.mishap(0.03) else directive.boot_id,
                    nonce=self.nonce,
                    directive=directive.id,
                    epoch=directive.epoch,
                )
            )
            return
        self._ends(directive, not sim.mishap(0.12))

    def _ends(self, directive: Directive, ok: bool) -> None:
        if ok and directive.kind is DirectiveKind.ENABLE:
            self.in_service = True
        self.last = Result(directive.id, directive.kind, ok, "" if ok else "a hook failed", directive.epoch)
        self.results[directive.id] = self.last
        self.doing = None

    def _obeys(self, sim: Simulation) -> None:
        record = sim.machines.get(self.name)
        if record is None or sim.mishap(0.2):
            return
        self.index = record.version
        held = self.name in sim.machine_holds or record.rack in sim.rack_holds
        directive = directive_for(record, self.boot_id, sim.epoch, held=held, conflict=self.name in sim.conflicts)
        if directive is None or directive.id in self.results:
            self.doing = None
            return
        if self.doing is not None and self.doing[0].id == directive.id:
            return
        if directive.kind is DirectiveKind.DRAIN:
            self.in_service, self.by_hand = False, ""
        self.doing = (directive, sim.time + WORK[directive.kind])

    # --- mishaps -------------------------------------------------------------------------

    def enabled_by_hand(self) -> None:
        """Break-glass on the host."""
        if self.up:
            self.in_service, self.by_hand = True, "no coordinator answers"

    def loses_journal(self) -> None:
        """Forgets its nonce and what it has done; the boot stays the same."""
        self.nonce, self.results, self.grant, self.doing = "", {}, None, None

    def lies(self, sim: Simulation) -> None:
        """Says what nobody asked for: a result of some step, at random."""
        record = sim.machines.get(self.name)
        version = (record.version if record else 1) + sim.rng.randint(-3, 1)
        kind = sim.rng.choice(list(DirectiveKind))
        self.last = Result(f"{self.name}/{version}/{kind.value}", kind, sim.rng.random() < 0.5, "a lie")

    def rests(self, state: State) -> bool:
        """Whether the host is where the record says: in service, or out of it."""
        return self.up and self.agent and self.in_service == (state is State.IN_SERVICE)
