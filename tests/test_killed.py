"""`compile` killed at any moment: the earlier bundle or the new one is there, whole."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.killing import in_containers


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="kills forks and makes namespaces")
def test_killed_at_many_moments() -> None:
    """In a process of its own, because it forks; `python -m tests.killing` tries more moments."""
    containers = "2" if in_containers() else "0"
    subprocess.run(
        [sys.executable, "-m", "tests.killing", "--moments", "4", "--containers", containers],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="kills forks")
def test_a_writer_of_a_folder_killed_at_every_moment() -> None:
    """Seconds; see `tests.killing_folders`."""
    subprocess.run(
        [sys.executable, "-m", "tests.killing_folders"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
