"""Half precision tried without a GPU: real prompts through the graphs, every value watched.

The pipeline generates with the half-precision graphs computed in float32 on the CPU. Every value
that
is to be in half precision tells how large it becomes: one beyond 65,504 would be infinite on a GPU.
Where that happens, or nearly, the nodes around it are kept in float32. Then each graph computes the
same calls once more with every such value rounded to half precision, which tells what half
precision costs in accuracy, and whether what was kept is enough.

What this does not show is a GPU's own order of summation, and kernels that sum in half precision.
The record says so: `not run on a device`, until it has been.
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
from sdexport.backends.session import Array, Binding
from sdexport.errors import EngineError, StorageError
from sdexport.graph.half_values import LARGEST
from sdexport.graph.keep_float32 import keep_float32, values_to_keep
from sdexport.graph.proto import load_graph, save_graph
from sdexport.graph.widen_half import WATCH, widen_half, widen_weights
from sdexport.model.shapes import TensorSpec
from sdexport.pipeline.pipeline import Pipeline, PipelineParts
from sdexport.progress import Progress, stage

NOT_RUN = "not run on a device"
NEAR = LARGEST / 4
"""From here on a value is kept in float32: other prompts than those tried may double it."""

PROMPTS = ("a red apple", "a photo of an astronaut riding a horse on the moon, highly detailed")
NEGATIVE_PROMPT = "blurry, low quality"
GUIDANCE = 7.5
SAMPLER = "euler"
"""Of all samplers, the one whose first inputs are the largest before they are scaled."""

BUDGET = 4e12
"""Floating-point operations of the UNet that a check may take in float32, and as many rounded: a
minute or two on two cores."""

MOST_STEPS, ENOUGH_STEPS, FEWEST_STEPS = 20, 8, 4
WORKING_BYTES = 3 << 29
"""Memory that the check takes beside the weights: 1.3 GB of 5.6 were measured at 256 × 256."""

NAMED = 12
"""At most so many values of an engine are named in the record, the largest first."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is generated for the check; chosen so that it takes minutes at most.

    Attributes:
        size: (width, height) in pixels.
    """

    size: tuple[int, int]
    steps: int
    prompts: tuple[str, ...] = PROMPTS
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one engine's graph showed.

    Attributes:
        watched: how many half-precision values were watched; `calls`: in how many calls.
        largest: the greatest magnitude, and `at` which value; infinite or NaN as text.
        beyond: values above 65,504 and what they reached, the largest first, before anything was
            kept in float32; `near`: those above a quarter of it.
        kept_float32: how many values are computed in float32 because of them.
        rms, largest_error: of the half-precision outputs against float32 on the same inputs and
            weights: relative to the outputs' RMS, and in their unit. The rounding of the weights is
            not in it; the export's parity has that.
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
class _Record:
    """What a watched engine collects."""

    names: tuple[str, ...]
    largest: Array
    calls: list[tuple[dict[str, Array], dict[str, Array]]] = field(default_factory=list)

    def sizes(self) -> dict[str, float]:
        return dict(zip(self.names, self.largest.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Watched:
    """An engine as the pipeline takes it, whose further output `WATCH` goes into a record."""

    engine: OnnxRuntimeEngine
    record: _Record

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
        return ()  # Everything is to be watched.

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
            # Not fmax: a value that is no number is what is looked for.
            np.maximum(record.largest, self.inner.buffers[WATCH], out=record.largest)
        outputs = {spec.name: self.inner.buffers[spec.name].copy() for spec in self.watched.outputs}
        record.calls.append((inputs, outputs))


def choose_trial(usual: tuple[int, int], flops: int, multiple: int) -> Trial:
    """As many steps as `BUDGET` allows, at the usual size or, where that is too much, at half.

    A smaller image is a fair trial: what a value becomes depends on what surrounds it, and hardly
    on how far the image goes on. Graphs are open in their sizes, whatever profiles are built.

    Args:
        usual: (width, height) in pixels.
        flops: of one guided evaluation at that size.
        multiple: of pixels that a side of an image has.
    """
    steps = int(BUDGET / max(1, flops) / len(PROMPTS))
    if steps >= ENOUGH_STEPS:
        return Trial(usual, min(steps, MOST_STEPS))
    width, height = (max(64, side // 2 // multiple * multiple) for side in usual)
    return Trial((width, height), max(FEWEST_STEPS, min(MOST_STEPS, 4 * steps)))


def check_half(
    folder: Path, make_parts: Callable[..., PipelineParts], trial: Trial, progress: Progress
) -> dict[str, Any]:
    """Tries the half-precision graphs in `folder` and keeps in float32 what needs it.

    Args:
        folder: with `ENGINE/model.onnx` and weights; graphs are replaced where something is kept.
        make_parts: `load.parts_of` with everything given but the engines that `folder` has.
        trial: what to generate.

    Returns:
        The record for the manifest, JSON values.

    Raises:
        EngineError: a graph gives values that are no numbers even so; names engine and value.
        EngineError, StorageError: no room for the weights in float32, in memory or on the disk,
            where they are made and thrown away.
    """
    _check_room(folder)
    with stage(progress, "checking half precision", None), contextlib.ExitStack() as leftovers:
        trials = _Trials(folder, leftovers)
        progress.advance(0, "generating in float32, every value watched")
        records = trials.generate(make_parts, trial)
        findings = {}
        for name in trials.engines:
            progress.advance(0, f"{name} rounded to half precision")
            findings[name] = trials.judge(name, records[name])
    return {
        "device": NOT_RUN,
        "computed_by": f"onnxruntime {runtime().__version__}, on the CPU",
        "limit": LARGEST,
        "kept_float32_from": NEAR,
        "prompts": list(trial.prompts),
        "size": list(trial.size),
        "steps": trial.steps,
        "sampler": SAMPLER,
        "guidance": GUIDANCE,
        "seed": trial.seed,
        "engines": {name: _plain(asdict(finding)) for name, finding in findings.items()},
    }


def _check_room(folder: Path) -> None:
    """Refuses a check that would run out of memory or disk half-way.

    Raises:
        EngineError, StorageError: with what is needed and what there is, in GB.
    """
    wide = 2 * storage.size_of(folder)
    needed, available = wide + WORKING_BYTES, memory.available_bytes()
    remedy = "or leave the check out with --no-half-check"
    if available is not None and available < needed:
        raise EngineError(
            f"trying half precision takes about {needed / 1e9:.1f} GB of memory and "
            f"{available / 1e9:.1f} GB are free; end other programs, {remedy}"
        )
    free = storage.free_bytes(folder)
    if free < wide:
        raise StorageError(
            f"trying half precision takes {wide / 1e9:.2f} GB beside {folder.parent} for a while "
            f"and {free / 1e9:.2f} GB are free; free some space, {remedy}"
        )


def _plain(value: Any) -> Any:
    """`value` with infinities and NaN as text: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class _Trials:
    """The graphs in `folder`; what is written beside them is removed by `leftovers`."""

    folder: Path
    leftovers: contextlib.ExitStack

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(sorted(path.parent.name for path in self.folder.glob(f"*/{MODEL_FILE}")))

    def generate(
        self, make_parts: Callable[..., PipelineParts], trial: Trial
    ) -> dict[str, _Record]:
        """What every engine's values reached while the trial's images were generated."""
        watched = {name: self._load(name) for name in self.engines}
        parts = make_parts(**watched)
        pipeline = Pipeline(parts)
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
                _encode(watched["vae_encoder"], np.asarray(result.images[0]), parts)
        records = {name: engine.record for name, engine in watched.items()}
        # Gigabytes of weights go before the next ones come.
        del watched, parts, pipeline
        gc.collect()
        return records

    def judge(self, name: str, record: _Record) -> Finding:
        """Keeps in float32 what has to be, and tells what half precision costs then."""
        path = self.folder / name / MODEL_FILE
        sizes = record.sizes()
        model = load_graph(path)
        kept = values_to_keep(model, sizes, NEAR)
        if kept:
            save_graph(keep_float32(model, kept), path)
        engine = self._load(name, rounded=True)
        error = _compare(engine, record)
        # An output of whole numbers, as images are, cannot tell what went wrong on its way.
        worst = max(engine.record.sizes().items(), key=lambda item: _order(item[1]), default=None)
        if worst is not None and not worst[1] <= LARGEST:
            raise EngineError(
                f"{name} overflows half precision at {worst[0]!r} although {len(kept)} of its "
                "values are kept in float32; build with --precision bf16 or fp32"
            )
        # People find a value by the operator that makes it; names of values are the exporter's.
        makers = {value: node.op_type for node in model.graph.node for value in node.output}
        sizes = {f"{value} ({makers[value]})": size for value, size in sizes.items()}
        at = max(sizes, key=lambda value: _order(sizes[value]), default="")
        return Finding(
            watched=len(sizes),
            calls=len(record.calls),
            largest=sizes.get(at, 0.0),
            at=at,
            beyond=_largest(sizes, LARGEST, math.inf),
            near=_largest(sizes, NEAR, LARGEST),
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
            _Record(wide.watched, np.zeros(len(wide.watched), np.float32)),
        )


def _session(name: str, path: Path) -> Any:
    library = runtime()
    options = library.SessionOptions()
    options.log_severity_level = 4
    # The graph as it is: what is optimised away is not watched.
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the graph's own order, in which a value is watched as soon as it is there. In the usual one
    # the watching comes last, and every value of the graph has to be kept until then.
    options.execution_order = library.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    # A second copy of the weights that saves a little time in many calls.
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # The library's own classes derive from Exception alone.
        raise EngineError(
            f"ONNX Runtime cannot load the half-precision graph of {name}: {error}; leave the "
            "check out with --no-half-check, or export the checkpoint again"
        ) from error


def _encode(engine: _Watched, image: Array, parts: PipelineParts) -> None:
    """Runs the VAE encoder on an image (height, width, 3) of the range 0 to 255."""
    sample = (image.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)
    height, width = (side // parts.latent_scale for side in sample.shape[2:])
    (output,) = engine.outputs
    shapes = {
        "sample": sample.shape,
        output.name: (1, 2 * parts.latent_channels, height, width),
    }
    binding = engine.bind(shapes)
    binding.buffers["sample"][...] = sample
    binding.run()


def _compare(engine: _Watched, record: _Record) -> tuple[float, float]:
    """The worst relative RMS and the largest difference over the calls of a record.

    Raises:
        EngineError: an output is no number in half precision, and is one in float32.
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
                    f"{engine.name} gives {name} with NaN or infinity in half precision, though "
                    "what overflowed is kept in float32; build with --precision bf16 or fp32"
                )
            difference = ours - theirs
            scale = max(float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))), 1e-12)
            worst = max(worst, float(np.sqrt(np.mean(np.square(difference)))) / scale)
            largest = max(largest, float(np.abs(difference).max()))
    bound.clear()
    gc.collect()
    return worst, largest


def _order(size: float) -> float:
    return math.inf if math.isnan(size) else size


def _largest(sizes: Mapping[str, float], above: float, below: float) -> dict[str, float]:
    """The values of a range, the largest first, at most `NAMED`."""
    found = {name: size for name, size in sizes.items() if above < _order(size) <= below}
    ordered = sorted(found, key=lambda name: _order(found[name]), reverse=True)
    return {name: found[name] for name in ordered[:NAMED]}
