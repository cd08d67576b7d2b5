"""Gates in the policy's text: every kind is read and written, and what is wrong is named."""

from __future__ import annotations

import pytest

from rebootd.core.errors import InvalidInput
from rebootd.core.policy import parse_policy, render_policy

VALID = {
    "consul-service": "service: web, minimum: 2",
    "consul-quorum": "",
    "nomad-quorum": "address: 'http://n:4646'",
    "prometheus": "address: 'http://p:9090', query: up, holds_when: '< 5'",
    "alertmanager": "address: 'http://a:9093', matchers: 'a=\"b\"'",
}


@pytest.mark.parametrize("kind", VALID)
def test_every_kind_is_read_and_written(kind: str) -> None:
    text = f"gates: [{{name: g, kind: {kind}, covers: role=web, max_age: 30s, max_block: 1h, {VALID[kind]}}}]"
    policy = parse_policy(text)
    assert policy.gates[0].test.kind == kind
    assert parse_policy(render_policy(policy)) == policy


@pytest.mark.parametrize(
    ("gate", "field"),
    [
        ("{kind: consul-quorum}", "gates[0].name"),
        ("{name: g}", "gates[0].kind"),
        ("{name: g, kind: cosul-quorum}", "gates[0].kind"),
        ("{name: g, kind: consul-quorum, minimum: 3}", "gates[0].minimum"),
        ("{name: g, kind: consul-service, minimum: 3}", "gates[0].service"),
        ("{name: g, kind: consul-service, service: web}", "gates[0].minimum"),
        ("{name: g, kind: consul-service, service: web, minimum: 101%}", "gates[0].minimum"),
        ("{name: g, kind: consul-service, service: web, minimum: 0}", "gates[0].minimum"),
        ("{name: g, kind: consul-service, service: a b, minimum: 1}", "gates[0].service"),
        ("{name: g, kind: consul-quorum, max_age: 0}", "gates[0].max_age"),
        ("{name: g, kind: consul-quorum, max_age: -5s}", "gates[0].max_age"),
        ("{name: g, kind: consul-quorum, max_block: 0s}", "gates[0].max_block"),
        ("{name: g, kind: consul-quorum, covers: 'role='}", "gates[0].covers"),
        ("{name: g, kind: nomad-quorum}", "gates[0].address"),
        ("{name: g, kind: nomad-quorum, address: 'n:4646'}", "gates[0].address"),
        ("{name: g, kind: nomad-quorum, address: 'http://u:p@n:4646'}", "gates[0].address"),
        ("{name: g, kind: nomad-quorum, address: 'http://n:99999'}", "gates[0].address"),
        ("{name: g, kind: nomad-quorum, address: 'http://n', token_file: /etc/shadow}", "gates[0].token_file"),
        ("{name: g, kind: prometheus, address: 'http://p', query: '', holds_when: < 5}", "gates[0].query"),
        ("{name: g, kind: prometheus, address: 'http://p', query: up, holds_when: less}", "gates[0].holds_when"),
        ("{name: g, kind: prometheus, address: 'http://p', query: up, holds_when: < NaN}", "gates[0].holds_when"),
        ("{name: g, kind: prometheus, address: 'http://p', query: up}", "gates[0].holds_when"),
        (
            "{name: g, kind: prometheus, address: 'http://p', query: up, holds_when: < 5, series: one}",
            "gates[0].series",
        ),
        ("{name: g, kind: alertmanager, address: 'http://a'}", "gates[0].matchers"),
        ("{name: g, kind: alertmanager, address: 'http://a', matchers: 'a=b'}", "gates[0].matchers"),
        ("{name: g, kind: alertmanager, address: 'http://a', matchers: 'a=~\"(\"'}", "gates[0].matchers"),
        ("{name: g, kind: consul-quorum}, {name: g, kind: consul-quorum}", "gates[1].name"),
    ],
)
def test_bad_gates_are_refused_with_their_field(gate: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(f"gates: [{gate}]")
    assert caught.value.field == field
    assert caught.value.accepted
