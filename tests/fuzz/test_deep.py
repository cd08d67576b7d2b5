"""The same tests with many more examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = 5000


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_of_it_for_long() -> None:
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        "-m",
        "not slow",
        "--timeout",
        "2400",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, str(here)],
        cwd=here.parents[1],
        env=os.environ | {"FUZZ_EXAMPLES": str(EXAMPLES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
