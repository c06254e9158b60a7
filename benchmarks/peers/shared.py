"""What adapters take from a scenario: diffusers' sampler, and the number of threads.

Standard library only: it runs in the environment of whichever peer imports it, and turns the
telemetry of what the peer imports afterwards off.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

# By its path: a peer's environment has no sdexport.
_privacy = runpy.run_path(str(Path(__file__).resolve().parents[2] / "sdexport" / "privacy.py"))
_privacy["turn_off"]()

PLAIN_SIGMAS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", **PLAIN_SIGMAS}
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", PLAIN_SIGMAS),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", PLAIN_SIGMAS),
    "lms": ("LMSDiscreteScheduler", PLAIN_SIGMAS),
    "dpm2": ("KDPM2DiscreteScheduler", PLAIN_SIGMAS),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {**MULTISTEP, "solver_order": 2}),
    "dpmpp-3m": ("DPMSolverMultistepScheduler", {**MULTISTEP, "solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {"solver_type": "bh2", **PLAIN_SIGMAS}),
    "deis": ("DEISMultistepScheduler", PLAIN_SIGMAS),
    "lcm": ("LCMScheduler", {}),
}
"""A scenario's sampler → diffusers' scheduler, and what is changed of the checkpoint's settings."""


def diffusers_sampler(name: str) -> tuple[str, dict[str, Any]]:
    """diffusers' scheduler of a scenario's sampler, and the settings that are changed.

    Raises:
        ValueError: none of `SAMPLERS`.
    """
    if name not in SAMPLERS:
        raise ValueError(
            f"sampler {name!r} is not possible with this peer; {', '.join(SAMPLERS)} are"
        )
    return SAMPLERS[name]


def threads_of(scenario: dict[str, Any]) -> int:
    """The threads that the scenario asks for, else one for every physical core.

    That is what OpenVINO, ONNX Runtime and PyTorch take by themselves.
    """
    threads: int | None = scenario["threads"]
    return threads if threads is not None else physical_cores()


def physical_cores() -> int:
    """Physical cores that this process may use; logical ones where Linux does not tell."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for block in Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n"):
        said = {key.strip(): value.strip() for key, _, value in
                (line.partition(":") for line in block.splitlines())}  # fmt: skip
        if "core id" in said and int(said["processor"]) in allowed:
            cores.add((said.get("physical id"), said["core id"]))
    return len(cores) or len(allowed)
