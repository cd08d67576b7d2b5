"""What no coordinator of ours would say: the agent keeps it out of its journal and asks the next instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.wire import Answer, PermitAnswer

if TYPE_CHECKING:
    from rebootd.core.wire import Directive

LARGEST = 2**53
"""Indexes and epochs stay below what every JSON reader keeps exactly; a coordinator refuses larger ones."""
LONGEST = 512
"""Characters of an id, a state, a cycle's name or a nonce."""
SENTENCE = 4096
"""Characters of what a machine waits for."""


def doubt(answer: object) -> str:
    """Why the answer cannot come from a coordinator of ours, or ``""``."""
    if isinstance(answer, PermitAnswer):
        if not 0 <= answer.epoch < LARGEST:
            return "an epoch that cannot be"
        return "words that are too long" if len(answer.reason) > SENTENCE else ""
    if not isinstance(answer, Answer):
        return ""
    directive = answer.directive
    numbers = [answer.index, answer.epoch, *((directive.epoch, directive.version) if directive else ())]
    if not all(0 <= number < LARGEST for number in numbers):
        return "an index or epoch that cannot be"
    words = [answer.state]
    if directive is not None:
        words += [directive.id, directive.boot_id, directive.cycle, directive.method]
    if max(map(len, words)) > LONGEST or len(answer.waiting_for) > SENTENCE:
        return "words that are too long"
    return ""


def for_another(directive: Directive, name: str) -> bool:
    """Whether the directive is of another machine; its id begins with the machine's name."""
    return directive.id.rpartition("/")[0].rpartition("/")[0] != name
