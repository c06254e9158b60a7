"""Results that were made up: systems of known times."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdexport.artifacts.documents import to_builtins
from sdexport.bench import results_file
from sdexport.bench.measured import Measured, system_result
from sdexport.bench.results import Results, Turn
from sdexport.bench.systems import System
from tests.bench.pretending import ADAPTER

MACHINE: dict[str, Any] = {
    "system": "Linux",
    "processor": "a processor",
    "cores": 2,
    "flags": [],
    "memory_bytes": 1 << 30,
    "gpus": [],
    "load_before": [0.1, 0.1, 0.1],
    "load_after": [1.0, 1.0, 1.0],
    "python": "3.11",
    "libraries": {},
    "thread_settings": {},
}
ROUNDS = 12
NOISE = 0.005


def typed(value: dict[str, Any]) -> Results:
    """JSON values as results, checked as a file's are."""
    return results_file.parse(value, "made up")


def document(*, noise: float = 0.0, **seconds: float) -> dict[str, Any]:
    """JSON values of results of systems that take `seconds` a turn; the first is the baseline."""
    names = dict(seconds) | ({"noise": noise} if noise else {})
    random = np.random.default_rng(0)
    measured = [
        Measured(System(name, name, "bundle", ADAPTER), 1, load_seconds=1.0, first_seconds=2.0)
        for name in names
    ]
    now = 0.0
    for number in range(ROUNDS + 1):
        for one, taken in zip(measured, names.values(), strict=True):
            if number == ROUNDS and one is not measured[0]:
                continue
            total = taken * float(np.exp(NOISE * random.standard_normal()))
            one.rounds.append(
                Turn(
                    at=now,
                    total=total,
                    text_encoder=total * 0.01,
                    evaluations=(total * 0.018,) * 50,
                    vae_decoder=total * 0.05,
                )
            )
            now += total
    for one in measured:
        one.host_bytes, one.model_calls = 10**9, 50
        one.about = {"precision": "fp32", "device": "cpu", "threads": 2, "versions": {"it": "1"}}
    systems: list[dict[str, Any]] = [
        to_builtins(system_result(one, measured[0])) for one in measured
    ]
    for one in systems:
        one["fidelity"] = {"verdict": "same", "why": "", "images": [], "recognised": None}
    return {
        "schema": 2,
        "created": "2026-01-01T00:00:00+00:00",
        "command": "sdexport bench",
        "complete": True,
        "effort": {"rounds": 10, "seconds": 10.0, "at_once": None, "timeout": 900.0},
        "scenario": {
            "name": "made up",
            "checkpoint": "none",
            "prompts": ["a red apple"],
            "negative_prompt": "",
            "seeds": [0],
            "width": 64,
            "height": 64,
            "batch": 1,
            "steps": 50,
            "sampler": "pndm",
            "guidance": 2.5,
            "threads": None,
        },
        "machine": dict(MACHINE),
        "peaks": None,
        "roofline_problem": "",
        "baseline": systems[0]["name"],
        "systems": systems,
    }
