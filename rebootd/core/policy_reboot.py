"""The policy's section ``reboot``: how machines reboot, parsed, written and chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.inputs import Fields, bad_input, parse_choice
from rebootd.core.methods import METHODS
from rebootd.core.selectors import Selector, parse_selector

if TYPE_CHECKING:
    from rebootd.core.model import Cycle, Machine
    from rebootd.core.policy import Policy


class RebootRule(msgspec.Struct, frozen=True):
    """The machines that ``machines`` matches reboot by ``method``."""

    machines: Selector
    method: str


def parse_method(value: object, field: str) -> str:
    """One of ``METHODS``. Raises InvalidInput."""
    return parse_choice(value, field, METHODS)


def parse_reboot(items: list[tuple[str, object]]) -> tuple[RebootRule, ...]:
    """The rules in their order, of (dotted path, value) pairs. Raises InvalidInput."""
    rules = []
    for path, item in items:
        fields = Fields(item, path, ("machines", "method"))
        rules.append(RebootRule(fields.need("machines", _selector), fields.need("method", parse_method)))
    return tuple(rules)


def _selector(value: object, field: str) -> Selector:
    if not isinstance(value, str):
        raise bad_input(field, value, "a selector as text")
    return parse_selector(value, field)


def render_reboot(rules: tuple[RebootRule, ...]) -> list[dict[str, str]]:
    """The rules as the policy file lays them out."""
    return [{"machines": rule.machines.text, "method": rule.method} for rule in rules]


def method_for(policy: Policy, cycle: Cycle | None, machine: Machine) -> str:
    """How the machine is to reboot for the cycle: the cycle's word, then the first rule that fits; ``""``: none."""
    if cycle is not None and cycle.method:
        return cycle.method
    place = method_rule(policy, machine)
    return policy.reboot[place].method if place is not None else ""


def method_rule(policy: Policy, machine: Machine) -> int | None:
    """The place of the first rule that fits the machine, or None."""
    return next((place for place, rule in enumerate(policy.reboot) if rule.machines.matches(machine)), None)


def same_kernel(one: str, other: str) -> bool:
    """Whether two boot_ids are of one start of the kernel: agents count soft-reboots behind a ``+``."""
    return one.partition("+")[0] == other.partition("+")[0]
