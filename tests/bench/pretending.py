"""Systems that pretend to generate, and short runs of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdexport.artifacts.documents import to_builtins
from sdexport.bench.results import Effort
from sdexport.bench.run import run
from sdexport.bench.scenario import Scenario
from sdexport.bench.systems import System

ADAPTER = Path(__file__).parent / "adapters" / "pretend.py"
SCENARIO = Scenario("pretence", "nobody/nothing", ("a", "b"), "", (0, 1), 24, 16, 1, 2, "pndm", 2.5)
SHORT = Effort(rounds=5, seconds=0, timeout=60)


def pretend(name: str, prepared: Path | None = None, **options: Any) -> System:
    """A system of the adapter `pretend.py`."""
    return System(name, name, "peer", ADAPTER, options, prepared=prepared)


def measure(folder: Path, *systems: System, effort: Effort = SHORT) -> dict[str, dict[str, Any]]:
    """The results of a run as JSON values, by system, and under "" the whole document."""
    made = run(systems, SCENARIO, effort, folder, command="sdexport bench")
    found = json.loads(json.dumps(to_builtins(made)))
    return {"": found} | {one["name"]: one for one in found["systems"]}
