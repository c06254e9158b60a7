"""What stands in for the slow stages, so that the command line is tested in no time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from sdexport.model.shapes import Profile, Range
from sdexport.pipeline.pipeline import Step
from sdexport.pipeline.request import Request
from sdexport.pipeline.result import Result, Timings, parameters_of

PROFILE = Profile(batch=Range(1, 1, 2), height=Range(64, 64, 128), width=Range(64, 64, 128))
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Ran:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What stdout holds, which must be one JSON document."""
        return json.loads(self.out)


class PipelineDouble:
    """Generates grey images; remembers what it was asked for."""

    def __init__(self) -> None:
        self.loaded = SimpleNamespace(bounds=SimpleNamespace(profile=PROFILE))
        self.requests: list[Request] = []
        self.loads: list[tuple[Path, int | None]] = []
        self.failure: BaseException | None = None
        self.warnings: tuple[str, ...] = ()

    def load(self, path: Path, *, threads: int | None = None) -> PipelineDouble:
        self.loads.append((path, threads))
        return self

    def evaluations(self, request: Request) -> int:
        return request.plan.evaluations * -(-request.images // PROFILE.batch.max)

    def steps(self, request: Request) -> Iterator[Step]:
        self.requests.append(request)
        print("a library prints something")
        if self.failure is not None:
            raise self.failure
        total = self.evaluations(request)
        images = [Image.new("RGB", (request.width, request.height), "grey")] * request.images
        result = Result(
            images,
            request.seeds,
            parameters_of(request, {"model": "double"}),
            Timings(1.0, 0.1, 0.8, 0.1, (0.8 / total,) * total),
            self.warnings,
        )
        for index in range(total):
            last = index + 1 == total
            yield Step(
                index,
                total,
                (0, request.images),
                result if last else None,
                _read=lambda: np.zeros((1, 4, 8, 8), np.float32),
            )
