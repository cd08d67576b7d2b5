"""The policy's section ``drains``: what it accepts."""

from __future__ import annotations

import pytest

from rebootd.core.errors import InvalidInput
from rebootd.core.policy import parse_policy, render_policy

FULL = "drains: {nomad: {machines: role=web, datacenter: dc2, deadline: 1m, at_deadline: force, system: keep}}"


def test_it_is_written_as_it_was_read() -> None:
    policy = parse_policy(FULL)
    assert parse_policy(render_policy(policy)) == policy
    assert policy.drains.nomad is not None
    assert (policy.drains.nomad.force, policy.drains.nomad.keep_system) == (True, True)


def test_the_deadline_fits_into_that_of_the_state_by_default() -> None:
    policy = parse_policy("{deadlines: {draining: 4m}, drains: {nomad: {machines: '*'}}}")
    assert policy.drains.nomad is not None
    assert policy.drains.nomad.deadline == 120


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{nomad: {}}", "drains.nomad.machines"),
        ("{nomad: {machines: '*', deadline: 20m}}", "drains.nomad.deadline"),
        ("{nomad: {machines: '*', at_deadline: never}}", "drains.nomad.at_deadline"),
        ("{nomad: {machines: '*', system: maybe}}", "drains.nomad.system"),
        ("{consul: {}}", "drains.consul"),
    ],
)
def test_bad_input_is_named(text: str, field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_policy(f"drains: {text}")
    assert error.value.field == field
