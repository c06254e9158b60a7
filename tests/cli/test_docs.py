"""docs/cli.md is what the command line says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_current_in_any_environment() -> None:
    strange = {"COLUMNS": "31", "TERM": "dumb", "NO_COLOR": "1", "CI": "true", "LANG": "C"}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "cli_docs.py", "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | strange,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
