"""Checks half-precision graphs without a GPU: generates real images and watches every value.

The pipeline generates with the half-precision graphs computed in float32 on the CPU. The maximum
of every half-precision value is measured: beyond 65,504 it would be infinite on a GPU. The nodes
around values that reach or approach this limit are kept in float32. Then each graph computes the
same calls with every half-precision value rounded, which measures the accuracy, and shows whether
enough was kept in float32.

The check does not cover a GPU's order of summation, nor kernels that sum in half precision. The
record therefore says `not run on a device`.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdexport import memory
from sdexport.artifacts import storage
from sdexport.artifacts.onnx_folder import MODEL_FILE
from sdexport.backends.onnxruntime.cpu import OnnxRuntimeEngine, runtime
from sdexport.backends.session import Array, Binding, Engine
from sdexport.errors import EngineError, StorageError
from sdexport.graph.half_values import LARGEST
from sdexport.graph.keep_float32 import keep_float32, values_to_keep
from sdexport.graph.proto import load_graph, save_graph
from sdexport.graph.widen_half import WATCH, widen_half, widen_weights
from sdexport.model.shapes import TensorSpec
from sdexport.model.spec import ModelSpec
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from sdexport.progress import Progress, stage

NOT_RUN = "not run on a device"
KEEP_FLOAT32_FROM = LARGEST / 4
"""The magnitude from which on a value is kept in float32: other prompts can increase it."""

PROMPTS = ("a red apple", "a photo of an astronaut riding a horse on the moon, highly detailed")
NEGATIVE_PROMPT = "blurry, low quality"
GUIDANCE = 7.5
SAMPLER = "euler"
"""The sampler with the largest initial inputs before scaling."""

FLOP_BUDGET = 4e12
"""The UNet's operations in the float32 run of a check, and again in the rounded run: one or two
minutes on two cores."""

MAX_STEPS, MIN_FULL_SIZE_STEPS, MIN_STEPS = 20, 8, 4
WORKING_BYTES = 3 << 29
"""Memory that the check takes beside the weights, in bytes: measured 1.3 of 5.6 GB at 256 × 256."""

MAX_NAMED = 12
"""The maximum number of an engine's values that the record names, the largest first."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The images to generate for a check; it takes a few minutes at most.

    Attributes:
        size: (width, height) in pixels.
    """

    size: tuple[int, int]
    steps: int
    prompts: tuple[str, ...] = PROMPTS
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one engine's graph.

    Attributes:
        watched: the number of half-precision values that were watched.
        calls: the number of calls.
        largest: the largest magnitude.
        at: the value that reached it.
        beyond: values above 65,504 before any was kept in float32, with their magnitudes, the
            largest first.
        near: values above a quarter of 65,504, likewise.
        kept_float32: the number of values that are kept in float32.
        rms, largest_error: the difference of the half-precision outputs from float32 on the same
            inputs and weights: relative to the outputs' RMS, and absolute. The rounding of the
            weights is part of the export's parity instead.
    """

    watched: int
    calls: int
    largest: float
    at: str
    beyond: Mapping[str, float]
    near: Mapping[str, float]
    kept_float32: int
    rms: float
    largest_error: float


@dataclass(slots=True)
class _WatchRecord:
    """The measurements of a watched engine."""

    names: tuple[str, ...]
    largest: Array
    calls: list[tuple[dict[str, Array], dict[str, Array]]] = field(default_factory=list)

    def sizes(self) -> dict[str, float]:
        return dict(zip(self.names, self.largest.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Watched:
    """An `Engine` that stores its additional output `WATCH` and its calls in a record."""

    engine: OnnxRuntimeEngine
    record: _WatchRecord

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.engine.outputs if spec.name != WATCH)

    @property
    def optional(self) -> tuple[str, ...]:
        return ()  # All inputs are bound, so that all values are watched.

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> Binding:
        own = {name: buffer for name, buffer in (shared or {}).items() if name != WATCH}
        extra = {WATCH: (len(self.record.names),)} if self.record.names else {}
        return _WatchedBinding(self, self.engine.bind({**shapes, **extra}, own))


@dataclass(frozen=True, slots=True, eq=False)
class _WatchedBinding:
    watched: _Watched
    inner: Binding

    @property
    def buffers(self) -> Mapping[str, Array]:
        return {name: b for name, b in self.inner.buffers.items() if name != WATCH}

    def run(self) -> None:
        inputs = {
            spec.name: self.inner.buffers[spec.name].copy() for spec in self.watched.engine.inputs
        }
        self.inner.run()
        record = self.watched.record
        if record.names:
            # Not fmax, which ignores NaN.
            np.maximum(record.largest, self.inner.buffers[WATCH], out=record.largest)
        outputs = {spec.name: self.inner.buffers[spec.name].copy() for spec in self.watched.outputs}
        record.calls.append((inputs, outputs))


def choose_trial(usual: tuple[int, int], flops: int, multiple: int) -> Trial:
    """The trial with as many steps as `FLOP_BUDGET` allows, at the usual size or at half of it.

    Values depend on their surroundings and little on the image's extent, so that a smaller image is
    representative. The graphs are dynamic in their sizes, whatever profiles are built.

    Args:
        usual: the bundle's default size, (width, height) in pixels.
        flops: operations of one guided evaluation at that size.
        multiple: the number of pixels of which sides must be multiples.
    """
    steps = int(FLOP_BUDGET / max(1, flops) / len(PROMPTS))
    if steps >= MIN_FULL_SIZE_STEPS:
        return Trial(usual, min(steps, MAX_STEPS))
    width, height = (max(64, side // 2 // multiple * multiple) for side in usual)
    return Trial((width, height), max(MIN_STEPS, min(MAX_STEPS, 4 * steps)))


def check_half(
    folder: Path,
    load: Callable[[Mapping[str, Engine]], LoadedModel],
    trial: Trial,
    progress: Progress,
) -> dict[str, Any]:
    """Checks the half-precision graphs in `folder`, and keeps in float32 what would overflow.

    Args:
        folder: contains `ENGINE/model.onnx` and weights; graphs are rewritten in place if needed.
        load: makes a model of the engines in `folder`.
        trial: the images to generate.

    Returns:
        The record for the manifest, JSON values.

    Raises:
        EngineError: a graph overflows even so (the message names engine and value), or memory is
            too small for the weights in float32.
        StorageError: the disk is too small for the weights in float32.
    """
    _check_space(folder)
    with stage(progress, "checking half precision", None), contextlib.ExitStack() as leftovers:
        trials = _TrialRun(folder, leftovers)
        progress.advance(0, "generating in float32, every value watched")
        records = trials.generate(load, trial)
        findings = {}
        for name in trials.engines:
            progress.advance(0, f"{name} rounded to half precision")
            findings[name] = trials.judge(name, records[name])
    return {
        "device": NOT_RUN,
        "computed_by": f"onnxruntime {runtime().__version__}, on the CPU",
        "limit": LARGEST,
        "kept_float32_from": KEEP_FLOAT32_FROM,
        "prompts": list(trial.prompts),
        "size": list(trial.size),
        "steps": trial.steps,
        "sampler": SAMPLER,
        "guidance": GUIDANCE,
        "seed": trial.seed,
        "engines": {name: _json_value(asdict(finding)) for name, finding in findings.items()},
    }


def _check_space(folder: Path) -> None:
    """Checks that memory and disk space suffice for a check.

    Raises:
        EngineError, StorageError: the message says what is needed and what is free, in GB.
    """
    wide = 2 * storage.size_of(folder)
    needed, available = wide + WORKING_BYTES, memory.available_bytes()
    remedy = "or leave the check out with --no-half-check"
    if available is not None and available < needed:
        raise EngineError(
            f"checking half precision takes about {needed / 1e9:.1f} GB of memory and "
            f"{available / 1e9:.1f} GB are free; end other programs, {remedy}"
        )
    free = storage.free_bytes(folder)
    if free < wide:
        raise StorageError(
            f"checking half precision takes {wide / 1e9:.2f} GB of temporary space beside "
            f"{folder.parent} and {free / 1e9:.2f} GB are free; free some space, {remedy}"
        )


def _json_value(value: Any) -> Any:
    """`value` with infinities and NaN as strings, which JSON cannot represent otherwise."""
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class _TrialRun:
    """The check of the graphs in `folder`; `leftovers` removes temporary files."""

    folder: Path
    leftovers: contextlib.ExitStack

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(sorted(path.parent.name for path in self.folder.glob(f"*/{MODEL_FILE}")))

    def generate(
        self, load: Callable[[Mapping[str, Engine]], LoadedModel], trial: Trial
    ) -> dict[str, _WatchRecord]:
        """Generates the trial's images; returns every engine's measurements."""
        watched = {name: self._load(name) for name in self.engines}
        loaded = load(watched)
        pipeline = Pipeline(loaded)
        for index, prompt in enumerate(trial.prompts):
            result = pipeline.generate(
                prompt,
                negative_prompt=NEGATIVE_PROMPT,
                num_inference_steps=trial.steps,
                guidance_scale=GUIDANCE,
                sampler=SAMPLER,
                seed=trial.seed + index,
                width=trial.size[0],
                height=trial.size[1],
            )
            if "vae_encoder" in watched:
                _encode(watched["vae_encoder"], np.asarray(result.images[0]), loaded.model)
        records = {name: engine.record for name, engine in watched.items()}
        # Frees gigabytes of weights before the next ones are loaded.
        del watched, loaded, pipeline
        gc.collect()
        return records

    def judge(self, name: str, record: _WatchRecord) -> Finding:
        """Keeps overflowing values in float32, and measures the accuracy of half precision."""
        path = self.folder / name / MODEL_FILE
        sizes = record.sizes()
        model = load_graph(path)
        kept = values_to_keep(model, sizes, KEEP_FLOAT32_FROM)
        if kept:
            save_graph(keep_float32(model, kept), path)
        engine = self._load(name, rounded=True)
        error = _compare(engine, record)
        # An integer output, such as the image, cannot show NaN or infinity of inner values.
        worst = max(
            engine.record.sizes().items(), key=lambda item: _nan_as_infinity(item[1]), default=None
        )
        if worst is not None and not worst[1] <= LARGEST:
            raise EngineError(
                f"{name} overflows half precision at {worst[0]!r}, although {len(kept)} of its "
                "values are kept in float32; build with --precision bf16 or fp32"
            )
        # The operator helps users to find a value, whose name is the exporter's.
        makers = {value: node.op_type for node in model.graph.node for value in node.output}
        sizes = {f"{value} ({makers[value]})": size for value, size in sizes.items()}
        at = max(sizes, key=lambda value: _nan_as_infinity(sizes[value]), default="")
        return Finding(
            watched=len(sizes),
            calls=len(record.calls),
            largest=sizes.get(at, 0.0),
            at=at,
            beyond=_largest(sizes, LARGEST, math.inf),
            near=_largest(sizes, KEEP_FLOAT32_FROM, LARGEST),
            kept_float32=len(kept),
            rms=error[0],
            largest_error=error[1],
        )

    def _load(self, name: str, *, rounded: bool = False) -> _Watched:
        folder = self.folder / name
        model = load_graph(folder / MODEL_FILE)
        wide = widen_half(model, watch=True, rounded=rounded)
        path = folder / "wide.onnx"
        if not path.exists():
            for file in (path, *widen_weights(model, folder)):
                self.leftovers.callback(file.unlink, missing_ok=True)
        save_graph(wide.model, path)
        return _Watched(
            OnnxRuntimeEngine(name, _session(name, path)),
            _WatchRecord(wide.watched, np.zeros(len(wide.watched), np.float32)),
        )


def _session(name: str, path: Path) -> Any:
    library = runtime()
    options = library.SessionOptions()
    options.log_severity_level = 4
    # Without optimisations, which would remove values that are watched.
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the graph's order, so that a value is measured as soon as it is computed. By default the
    # measurements come last, and all values stay in memory until then.
    options.execution_order = library.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    # Prepacking would hold a second copy of the weights.
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # The library's own classes derive from Exception alone.
        raise EngineError(
            f"ONNX Runtime cannot load the half-precision graph of {name}: {error}; leave the "
            "check out with --no-half-check, or export the checkpoint again"
        ) from error


def _encode(engine: _Watched, image: Array, model: ModelSpec) -> None:
    """Runs the VAE encoder on an image (height, width, 3) with values from 0 to 255."""
    sample = (image.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)
    height, width = (side // model.latents.scale for side in sample.shape[2:])
    (output,) = engine.outputs
    shapes = {
        "sample": sample.shape,
        output.name: (1, 2 * model.latents.channels, height, width),
    }
    binding = engine.bind(shapes)
    binding.buffers["sample"][...] = sample
    binding.run()


def _compare(engine: _Watched, record: _WatchRecord) -> tuple[float, float]:
    """The maximum relative RMS and the maximum difference over the calls of a record.

    Raises:
        EngineError: an output is NaN or infinite in half precision but not in float32.
    """
    worst = largest = 0.0
    bound: dict[tuple[Any, ...], Binding] = {}
    for inputs, outputs in record.calls:
        shapes = {name: value.shape for name, value in (inputs | outputs).items()}
        key = tuple(sorted(shapes.items()))
        binding = bound.get(key) or bound.setdefault(key, engine.bind(shapes))
        for name, value in inputs.items():
            binding.buffers[name][...] = value
        binding.run()
        engine.record.calls.clear()
        for name, theirs in outputs.items():
            ours = binding.buffers[name].astype(np.float64)
            if np.isfinite(theirs).all() and not np.isfinite(ours).all():
                raise EngineError(
                    f"the output {name} of {engine.name} has NaN or infinity in half precision, "
                    "although overflowing values are kept in float32; build with --precision bf16 "
                    "or fp32"
                )
            difference = ours - theirs
            scale = max(float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))), 1e-12)
            worst = max(worst, float(np.sqrt(np.mean(np.square(difference)))) / scale)
            largest = max(largest, float(np.abs(difference).max()))
    bound.clear()
    gc.collect()
    return worst, largest


def _nan_as_infinity(size: float) -> float:
    return math.inf if math.isnan(size) else size


def _largest(sizes: Mapping[str, float], above: float, below: float) -> dict[str, float]:
    """The values above `above` and at most `below`, the largest first, at most `MAX_NAMED`."""
    found = {name: size for name, size in sizes.items() if above < _nan_as_infinity(size) <= below}
    ordered = sorted(found, key=lambda name: _nan_as_infinity(found[name]), reverse=True)
    return {name: found[name] for name in ordered[:MAX_NAMED]}
