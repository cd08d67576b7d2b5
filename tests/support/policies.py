"""The shipped Consul ACL policies: read, filled in, taken apart into rules, and given to a real Consul."""

from __future__ import annotations

import json
import re
import string
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.cluster import Agent

FOLDER = Path(__file__).parents[2] / "systemd" / "consul"
NAMES = tuple(sorted(path.name.removesuffix(".policy.hcl") for path in FOLDER.glob("*.policy.hcl")))
_RULE = re.compile(
    r'^(?:[a-z_]+ "[^"]*" \{\n  policy = "(?:read|write)"\n\}|[a-z_]+ = "(?:read|write)")$', re.MULTILINE
)


def rules(name: str, **values: str) -> list[str]:
    """The rules of one policy with its template filled in; every line that is no comment belongs to one."""
    text = string.Template((FOLDER / f"{name}.policy.hcl").read_text(encoding="utf-8")).substitute(values)
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = _RULE.findall(bare)
    assert re.sub(r"\s", "", "".join(found)) == re.sub(r"\s", "", bare), f"{name} has more than its rules"
    return found


def token(consul: Agent, wanted: Sequence[str]) -> str:
    """The secret of a new token that may do what these rules say."""
    name = f"p-{uuid.uuid4().hex[:8]}"
    consul.ask("/v1/acl/policy", "PUT", json.dumps({"Name": name, "Rules": "\n".join(wanted)}).encode())
    made = consul.ask("/v1/acl/token", "PUT", json.dumps({"Policies": [{"Name": name}]}).encode())
    return str(made["SecretID"])


def lesser(wanted: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Every policy that lacks one rule, or has ``read`` in it instead of ``write``, with a word for what is less."""
    found = []
    for index, rule in enumerate(wanted):
        title = " ".join(rule.split())
        found.append((f"without {title}", [*wanted[:index], *wanted[index + 1 :]]))
        if '"write"' in rule:
            weaker = rule.replace('"write"', '"read"')
            found.append((f"read only: {title}", [*wanted[:index], weaker, *wanted[index + 1 :]]))
    return found
