"""Whether the host needs a reboot: yes, no or unknown, from several sources.

The rule: *yes* if any configured source says yes; *no* only if at least one source is configured and all of them say
no; *unknown* otherwise. Unknown never counts as yes, and one unknown source is enough to spoil a no.

Here live the sources (files, tools), the choice between them by distribution, and the rule. Here never lives: what
follows from a required reboot (core).
"""

from __future__ import annotations

from rebootd.agent.detect.detector import Detector
from rebootd.agent.detect.finding import Finding, combine

__all__ = ["Detector", "Finding", "combine"]
