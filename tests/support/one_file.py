"""``make dist`` for this Python and machine only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def one_file(folder: Path) -> Path:
    """Builds the one file below ``folder`` and returns its path; takes about 20 s."""
    stamp = folder / "stamp"  # newer than all that would make the environment anew, which we are running in
    stamp.touch()
    subprocess.run(
        [
            *("make", "dist", f"DIST={folder / 'dist'}", f"BUILD={folder / 'build'}", f"STAMP={stamp}"),
            *(f"DIST_PYTHONS={sys.version_info.major}.{sys.version_info.minor}", f"DIST_ARCHS={os.uname().machine}"),
            f"VENV={sys.prefix}",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return folder / "dist" / "rebootd"
