"""The adapter of this project's bundles: runs a scenario through `sdexport.load`."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport import __version__
from sdexport.artifacts import storage
from sdexport.artifacts.bundle import open_bundle
from sdexport.backends.host.device import default_threads
from sdexport.pipeline.load import load as load_pipeline
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.request import Request
from sdexport.pipeline.result import Result

LIBRARIES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-rtx"),
}
"""The distributions that may run a target, by the first part of the target's name."""

TIMES_ARE_KEPT = (
    "the model's projection of each timestep is computed once and kept for later generations"
)


class BundleSystem:
    """A loaded bundle that generates one scenario."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        self._path = Path(options["bundle"])
        self._scenario = scenario
        self._manifest = open_bundle(self._path, check=False).manifest
        self.pipeline: Pipeline = load_pipeline(
            self._path, threads=scenario["threads"], loop=options.get("loop", "auto")
        )

    def describe(self) -> dict[str, Any]:
        """The bundle's precision, size and versions, and how it was loaded."""
        threads, target = self._scenario["threads"], self._manifest.target
        given = "" if threads is None else f", threads={threads}"
        return {
            "precision": str(self._manifest.precision),
            "device": "cpu" if target.endswith("-cpu") else "cuda",
            # The default of the CPU's runtimes.
            "threads": default_threads() if threads is None else threads,
            "versions": {"sdexport": __version__, "numpy": np.__version__} | _library(target),
            "setup": [
                f"target {target}, built with {self._manifest.library}",
                f'pipe = sdexport.load("{self._path.name}"{given})',
                "pipe.generate(prompts, seed=seeds, …): Result.timings are the stages",
            ],
            "bytes": storage.size_of(self._path),
            "build_seconds": sum(one.seconds for one in self._manifest.stages) or None,
            "notes": [TIMES_ARE_KEPT] if "time_projection" in self._manifest.engines else [],
        }

    def generate(self) -> dict[str, Any]:
        """Generates the scenario once, batch by batch."""
        images: list[NDArray[np.uint8]] = []
        latents: list[NDArray[np.float32]] = []
        text, denoise, decoder = 0.0, 0.0, 0.0
        evaluations: list[float] = []
        calls = 0
        for first in range(0, len(self._scenario["seeds"]), self._scenario["batch"]):
            request = request_of(self.pipeline, self._scenario, first)
            result, called = self._generate(request, latents)
            images += [np.asarray(image) for image in result.images]
            text += result.timings.text_encoder
            denoise += result.timings.denoise
            decoder += result.timings.vae_decoder
            evaluations += result.timings.evaluations
            calls += called
        return {
            "images": np.stack(images),
            "latents": np.concatenate(latents),
            "text_encoder": text,
            # A device that runs the whole loop as one piece does not tell single evaluations.
            "evaluations": evaluations or None,
            "denoise": denoise,
            "vae_decoder": decoder,
            "model_calls": calls,
        }

    def _generate(self, request: Request, latents: list[NDArray[np.float32]]) -> tuple[Result, int]:
        """`Pipeline.generate`, and the latents that it decoded, which are added to `latents`.

        Returns:
            The result, and how often the model was evaluated.
        """
        result: Result | None = None
        calls = 0
        for step in self.pipeline.steps(request, watched=False):
            calls = step.index + 1
            _, last = step.image_range
            if step.result is not None or (step.index + 1) % request.plan.evaluations == 0:
                latents.append(step.latents)
            result = step.result if last == request.images else None
        assert result is not None, "the last step carries the result"
        return result, calls

    def close(self) -> None:
        """Releases the engines."""
        self.pipeline.close()


def request_of(pipeline: Pipeline, scenario: dict[str, Any], first: int) -> Request:
    """The request for the images of one batch of `scenario`, from image `first` on."""
    chosen = slice(first, first + scenario["batch"])
    return pipeline.request(
        scenario["prompts"][chosen],
        negative_prompt=scenario["negative_prompt"],
        seed=scenario["seeds"][chosen],
        num_inference_steps=scenario["steps"],
        sampler=scenario["sampler"],
        guidance_scale=scenario["guidance"],
        width=scenario["width"],
        height=scenario["height"],
    )


def _library(target: str) -> dict[str, str]:
    """The version of the library that runs `target`."""
    found = {}
    for name in LIBRARIES.get(target.partition("-")[0], ()):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load(scenario: dict[str, Any], options: dict[str, Any]) -> BundleSystem:
    """The bundle `options["bundle"]`, ready to generate `scenario`."""
    return BundleSystem(scenario, options)
