"""Tokens and rights, against a Consul that denies by default."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from rebootd.consul.client import Consul
from rebootd.consul.settings import ConsulSettings
from rebootd.core.errors import Conflict, Denied
from rebootd.store.consul import ConsulStore
from rebootd.store.port import CheckNotExists, Op, Set
from tests.support.cluster import dev_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.cluster import Agent

RULES = 'key_prefix "ours/" { policy = "write" } key_prefix "seen/" { policy = "read" }'
UNKNOWN = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": "root", "agent": "root"}}
    with dev_agent(tmp_path_factory.mktemp("acl"), acl=acl) as agent:
        yield agent


@pytest.fixture(scope="module")
def token(guarded: Agent) -> str:
    """A token that may write under ours/ and read under seen/."""
    guarded.ask("/v1/acl/policy", "PUT", json.dumps({"Name": "narrow", "Rules": RULES}).encode())
    made = guarded.ask("/v1/acl/token", "PUT", json.dumps({"Policies": [{"Name": "narrow"}]}).encode())
    return str(made["SecretID"])


@pytest.fixture
async def store(guarded: Agent, token: str) -> AsyncIterator[ConsulStore]:
    made = ConsulStore.open(ConsulSettings(address=guarded.url, token=token))
    yield made
    await made.close()


async def test_what_may_not_be_written_is_denied_not_lost(store: ConsulStore) -> None:
    assert await store.commit([Set("ours/a", b"1")])
    alone: list[Op] = [Set("theirs/a", b"1")]
    mixed: list[Op] = [Set("ours/b", b"1"), Set("seen/a", b"1"), CheckNotExists("ours/a")]
    for ops in (alone, mixed):
        with pytest.raises(Denied, match="Permission denied"):
            await store.commit(ops)
    with pytest.raises(Conflict):
        await store.commit([CheckNotExists("ours/a")])
    entries, _ = await store.list("ours/")
    assert [entry.key for entry in entries] == ["ours/a"]


async def test_what_may_not_be_read_is_denied_not_empty(store: ConsulStore) -> None:
    with pytest.raises(Denied):
        await store.get("theirs/a")
    # Consul answers an unreadable folder as if it were empty; a coordinator would believe that it has no machines.
    with pytest.raises(Denied):
        await store.list("theirs/")
    with pytest.raises(Denied):
        await store.watch("theirs/", 0, 1)
    assert (await store.list("seen/"))[0] == []
    assert await store.get("seen/a") is None


async def test_sessions_and_nodes_are_denied(store: ConsulStore, guarded: Agent) -> None:
    with pytest.raises(Denied):
        await store.create_session("x")
    with pytest.raises(Denied):
        await store.ensure_lock_node("locks")
    root = ConsulStore.open(guarded.settings)
    session = await root.create_session("x")
    with pytest.raises(Denied):
        await store.renew_session(session)
    with pytest.raises(Denied):
        await store.destroy_session(session)
    await root.renew_session(session)
    await root.close()


async def test_an_unknown_token_is_denied(guarded: Agent) -> None:
    store = ConsulStore.open(ConsulSettings(address=guarded.url, token=UNKNOWN))
    with pytest.raises(Denied):
        await store.commit([Set("ours/a", b"1")])
    with pytest.raises(Denied):
        await store.list("ours/")
    await store.close()


async def test_the_environment_overrides_nothing(guarded: Agent, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", UNKNOWN)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    client = Consul(ConsulSettings(address=guarded.url, token=token))
    assert await client.kv.put("ours/env", "1")
    # py-consul's own txn sends no token; ours goes with every request.
    ops = [{"KV": {"Verb": "set", "Key": "ours/txn", "Value": ""}}]
    assert (await client.txn.put(ops))["Errors"] is None
    # A token given to one call still wins.
    assert await client.kv.put("theirs/call", "1", token="root")
    await client.close()


async def test_a_rotated_token_file_is_read_again(guarded: Agent, token: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{UNKNOWN}\n")
    store = ConsulStore.open(ConsulSettings(address=guarded.url, token_file=str(path)))
    with pytest.raises(Denied):
        await store.get("ours/a")
    path.write_text(f"{token}\n")
    await store.get("ours/a")
    await store.close()
