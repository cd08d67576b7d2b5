"""``rebootd agent`` on a host whose clock is wrong by CLOCK_OFF seconds."""

from __future__ import annotations

import os
import time

from rebootd.cli.agent import agent

if __name__ == "__main__":
    right, off = time.time, float(os.environ["CLOCK_OFF"])
    time.time = lambda: right() + off
    agent()
