"""YAML as policies use it: text, lists and mappings, strictly.

Every scalar stays the text that was written (so ``1:30`` is no number of base 60 and ``no`` is not
false); the policy's parsers judge it. Duplicate keys, aliases, tags and deep nesting are refused,
since each of them hides what a policy says.
"""

from __future__ import annotations

import yaml

from rebootd.core.inputs import bad_input

MAX_TEXT = 1_000_000
MAX_DEPTH = 12


class _Loader(yaml.BaseLoader):
    """BaseLoader (all scalars are text) that refuses duplicate keys, aliases, tags and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if self.check_event(yaml.AliasEvent):
            problem = "aliases are not accepted"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        # A tag would vanish: of `selector: !canary, role=web` only `role=web` would be left.
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, "tags are not accepted", mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            _refuse_duplicates(node)
        return node


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
        if key.value in seen:
            problem = f"the key {ascii(key.value)[:80]} appears twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        seen.add(key.value)


def load_yaml(text: str, field: str) -> object:
    """The document in ``text``: nested dicts and lists of str. Raises InvalidInput with line and column."""
    if len(text) > MAX_TEXT:
        raise bad_input(field, text, f"at most {MAX_TEXT} characters of YAML")
    try:
        document: object = yaml.load(text, _Loader)  # noqa: S506 - a BaseLoader constructs nothing but text
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        lines = text.splitlines()
        line = lines[mark.line] if mark and mark.line < len(lines) else ""
        raise bad_input(field, line, f"YAML ({where}: {error.problem or error.context}{_quoting(line)})") from error
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise bad_input(field, "", f"YAML (line {line_number}, column {column}: {error.reason})") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Escapes and directives with impossible numbers end as plain ValueErrors inside PyYAML.
        raise bad_input(field, text, "YAML without impossible numbers in its escapes and directives") from error
    return document


def _quoting(line: str) -> str:
    return "; a value that begins with * or ! must be quoted" if ": *" in line or ": !" in line else ""
