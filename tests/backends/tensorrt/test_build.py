"""Builds with the real TensorRT for RTX, which needs no GPU: engines, options, errors, Ctrl-C."""

from __future__ import annotations

import dataclasses
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sdexport import memory
from sdexport.artifacts import storage
from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.backends import targets
from sdexport.backends.build_request import BuiltEngine, EngineRequest, ShapeRange
from sdexport.backends.cuda import driver, gpus
from sdexport.backends.cuda.gpus import Gpu
from sdexport.backends.tensorrt import build as tensorrt_build
from sdexport.backends.tensorrt import config as tensorrt_config
from sdexport.backends.tensorrt import readback
from sdexport.backends.tensorrt.library import (
    TENSORRT_RTX,
    Log,
    capture_log,
    library,
    logger,
    network_flags,
    version,
)
from sdexport.compiler.options import Choice
from sdexport.errors import EngineError, MissingExtraError, StorageError, UsageError
from sdexport.model.shapes import Precision
from sdexport.progress import Silent
from tests.graph.models import model

if importlib.util.find_spec("tensorrt_rtx") is None:
    pytest.skip("tensorrt-rtx is not installed", allow_module_level=True)

HALF = TensorProto.FLOAT16
SHAPES = {"x": ShapeRange((1, 64), (2, 64), (4, 64))}
OPTIONS = BuilderOptions(compute_capabilities=("sm86", "sm89"), workspace=1 << 30)

Write = Callable[..., EngineRequest]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides this machine's GPUs."""
    pretend(monkeypatch)


def pretend(monkeypatch: pytest.MonkeyPatch, *found: Gpu) -> None:
    """Makes `find_gpus` return these GPUs."""
    seen = (found, "" if found else "no NVIDIA driver is installed")
    for module in (targets, tensorrt_config, readback):
        monkeypatch.setattr(module, "find_gpus", lambda: seen)


ADA = Gpu("an Ada card", "sm89", 8 << 30)
TURING = Gpu("a Turing card", "sm75", 8 << 30, 1)
HOPPER = Gpu("a Hopper card", "sm90", 80 << 30)


def layers(count: int = 2) -> onnx.ModelProto:
    """`count` pairs of a MatMul with a weight and a Softmax."""
    nodes, name = [], "x"
    for index in range(count):
        nodes.append(helper.make_node("MatMul", [name, "weight"], [f"m{index}"], f"matmul{index}"))
        name = f"y{index}" if index + 1 < count else "y"
        nodes.append(helper.make_node("Softmax", [f"m{index}"], [name], f"softmax{index}"))
    return model(
        nodes,
        [("x", HALF, ["batch", 64])],
        [("y", HALF, ["batch", 64])],
        {"weight": np.eye(64, dtype=np.float16)},
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a model and its weights, and returns a request to build it."""

    def written(made: onnx.ModelProto | None = None, **changes: Any) -> EngineRequest:
        source, output = tmp_path / "source", tmp_path / "output"
        source.mkdir()
        output.mkdir()
        onnx.save(
            made or layers(),
            source / "model.onnx",
            save_as_external_data=True,
            location="weights.data",
            size_threshold=78,
        )
        request = EngineRequest(
            "denoise_step", source / "model.onnx", output, Precision.FP16, (SHAPES,), OPTIONS
        )
        return dataclasses.replace(request, **changes)

    return written


def build(request: EngineRequest) -> BuiltEngine:
    return targets.build_engine(targets.TENSORRT_RTX, request)


def test_an_engine_for_several_gpus(write: Write) -> None:
    request = write()
    built = build(request)
    assert built.file == Path("engine.plan")
    plan = (request.output / built.file).read_bytes()
    facts = built.facts
    assert facts["bytes"] == len(plan)
    assert facts["profiles"] == 1
    assert facts["workspace"] == 1 << 30
    assert isinstance(facts["seconds"], float)
    assert isinstance(facts["activation_bytes"], int)
    assert facts["read_back"] == {
        "compute_capabilities": ["sm86", "sm89"],
        "stream_capturable": True,
    }
    assert facts["read_from"] == "the plan; the engine was not loaded: no GPU here"


@pytest.mark.parametrize(
    ("here", "source"),
    [
        ((), "no GPU here"),
        ((HOPPER,), "built for sm86, sm89, and this machine has sm90 (a Hopper card)"),
        ((TURING,), "built for sm86, sm89, and this machine has sm75 (a Turing card)"),
        (
            (HOPPER, TURING),
            "built for sm86, sm89, and this machine has sm90 (a Hopper card), sm75 (a Turing card)",
        ),
    ],
)
def test_a_machine_without_a_suitable_gpu_builds_an_engine(
    write: Write, monkeypatch: pytest.MonkeyPatch, here: tuple[Gpu, ...], source: str
) -> None:
    """What the plan alone shows is read back; the other options are recorded as not checked."""
    pretend(monkeypatch, *here)
    facts = build(write()).facts
    assert facts["read_from"] == f"the plan; the engine was not loaded: {source}"
    assert facts["read_back"] == {
        "compute_capabilities": ["sm86", "sm89"],
        "stream_capturable": True,
    }
    assert facts["not_checked"] == [
        "hardware_compatibility",
        "profiles",
        "refittable",
        "strip_weights",
    ]


def test_the_gpu_that_runs_it_reads_it_back(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several GPUs, the suitable one is made current before the engine is loaded."""
    pretend(monkeypatch, HOPPER, dataclasses.replace(ADA, ordinal=1))
    current: list[int] = []
    monkeypatch.setattr(
        driver, "context", lambda ordinal: SimpleNamespace(use=lambda: current.append(ordinal))
    )
    with pytest.raises(EngineError, match="built the engine of denoise_step and cannot load it"):
        build(write())  # There is no driver.
    assert current == [1]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
def test_float32_is_not_computed_in_tf32(
    write: Write, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """The library's default is TF32."""
    module = library(TENSORRT_RTX)
    found: list[bool] = []

    def applied(target: str, module: Any, config: Any, request: EngineRequest) -> None:
        found.append(config.get_flag(module.BuilderFlag.TF32))
        apply(target, module, config, request)
        found.append(config.get_flag(module.BuilderFlag.TF32))

    apply = tensorrt_config.apply
    monkeypatch.setattr(tensorrt_config, "apply", applied)
    facts = build(write(precision=precision)).facts
    assert found == [True, False]
    assert facts["tf32"] is False
    assert module.BuilderFlag.TF32 is not None


def test_no_memory_is_allocated_at_run_time(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a stream can be captured; see CUDA graphs in the library's release notes."""
    module, request = library(TENSORRT_RTX), write()
    config = module.Builder(logger(module)).create_builder_config()
    assert not config.get_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    tensorrt_config.apply(TENSORRT_RTX, module, config, request)
    assert config.get_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)

    class Deaf:
        """A configuration that ignores the flag."""

        def __getattr__(self, name: str) -> Any:
            return getattr(config, name)

        def get_flag(self, flag: Any) -> bool:
            return flag != module.BuilderFlag.REQUIRE_USER_ALLOCATION and config.get_flag(flag)

    with pytest.raises(EngineError, match="ignored require_user_allocation = True for denoise"):
        tensorrt_config.apply(TENSORRT_RTX, module, Deaf(), request)
    monkeypatch.setattr(readback, "_read_plan", lambda plan: {"stream_capturable": False})
    with pytest.raises(EngineError, match="denoise_step must be capturable in a CUDA graph"):
        build(request)


# The library's flags that do not change float32 arithmetic, and those that do.
HARMLESS = {
    "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "EDITABLE_TIMING_CACHE",
    "SAFETY_SCOPE", "DIRECT_IO", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME",
    "ERROR_ON_TIMING_CACHE_MISS", "DISABLE_COMPILATION_CACHE", "STRIP_PLAN", "REFIT_IDENTICAL",
    "WEIGHT_STREAMING", "REFIT_INDIVIDUAL", "STRICT_NANS", "MONITOR_MEMORY",
    "DISTRIBUTIVE_INDEPENDENCE", "REQUIRE_USER_ALLOCATION",
}  # fmt: skip
LESS_EXACT = {"TF32", "SPARSE_WEIGHTS"}


def test_no_flag_for_less_exact_arithmetic_is_set(write: Write) -> None:
    module = library(TENSORRT_RTX)
    flags = module.BuilderFlag.__members__
    assert set(flags) == HARMLESS | LESS_EXACT, "classify the new flag"
    config = module.Builder(logger(module)).create_builder_config()
    tensorrt_config.apply(TENSORRT_RTX, module, config, write())
    assert [name for name in sorted(LESS_EXACT) if config.get_flag(flags[name])] == []


@pytest.mark.parametrize("target", [t for t in targets.TARGETS if t.suffix == ".plan"], ids=str)
def test_arithmetic_is_part_of_the_fingerprint(target: targets.Target) -> None:
    choice = Choice(target, Precision.FP32, "library 1", ())
    assert choice.settings(None)["arithmetic"] == {"tf32": False}


def test_a_shape_tensor_input_is_refused(write: Write) -> None:
    made = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape")],
        [("x", HALF, ["batch", 64]), ("shape", TensorProto.INT64, [2])],
        [("y", HALF, ["a", "b"])],
        {},
    )
    shapes = {**SHAPES, "shape": ShapeRange((2,), (2,), (2,))}
    with pytest.raises(
        EngineError, match="denoise_step's input 'shape' is a shape tensor in host memory"
    ):
        build(write(made, shapes=(shapes,)))


def test_further_capabilities_do_not_grow_the_engine(write: Write, tmp_path: Path) -> None:
    """Kernels are compiled where the engine runs, which is why one engine serves all."""
    request = write()
    sizes = []
    for capabilities in (("sm89",), ("sm75", "sm86", "sm89", "sm120")):
        options = dataclasses.replace(OPTIONS, compute_capabilities=capabilities)
        facts = build(dataclasses.replace(request, options=options)).facts
        assert facts["compute_capabilities"] == list(capabilities)
        sizes.append(facts["bytes"])
    assert isinstance(sizes[0], int)
    assert isinstance(sizes[1], int)
    assert sizes[1] - sizes[0] < 1000


def test_several_profiles_in_one_engine(write: Write) -> None:
    wide = {"x": ShapeRange((8, 64), (8, 64), (16, 64))}
    assert build(write(shapes=(SHAPES, wide))).facts["profiles"] == 2


def test_a_profile_that_the_graph_contradicts(write: Write) -> None:
    shapes = {"x": ShapeRange((1, 32), (2, 32), (4, 32))}
    with pytest.raises(
        EngineError, match="dimension 1 of input x is fixed at 64 in the ONNX graph, but 32"
    ):
        build(write(shapes=(shapes,)))


def test_a_profile_without_an_input(write: Write) -> None:
    with pytest.raises(EngineError, match="denoise_step has no range for its input 'x', only .*z"):
        build(write(shapes=({"z": SHAPES["x"]},)))


def test_a_profile_of_another_rank(write: Write) -> None:
    shapes = {"x": ShapeRange((1,), (2,), (4,))}
    with pytest.raises(EngineError, match="input x has 2 dimensions, but 1 in the profile"):
        build(write(shapes=(shapes,)))


def one_node(node: onnx.NodeProto) -> onnx.ModelProto:
    made = layers()
    del made.graph.node[:]
    made.graph.node.append(node)
    made.opset_import.append(helper.make_opsetid("mine", 1))
    return made


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            helper.make_node("Conjure", ["x"], ["y"], "rabbit", domain="mine"),
            r"the graph of denoise_step: node 'rabbit' \(Conjure\): .*Plugin not found",
        ),
        (
            helper.make_node("StringNormalizer", ["x"], ["y"], "words"),
            r"node 'words' \(StringNormalizer\): this operator is not supported",
        ),
        (
            helper.make_node("Add", ["x", "floats"], ["y"], "mixture"),
            r"node 'mixture' \(Add\): .*must have same input types.* Half and Float",
        ),
    ],
)
def test_the_parser_names_node_and_operator(write: Write, node: onnx.NodeProto, said: str) -> None:
    made = one_node(node)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "floats"))
    with pytest.raises(EngineError, match=said) as raised:
        build(write(made))
    assert "TensorRT for RTX cannot parse" in str(raised.value)
    assert "cudaError" not in str(raised.value)


def test_a_file_that_is_not_onnx(write: Write) -> None:
    request = write()
    request.model.write_bytes(b"no model")
    with pytest.raises(EngineError, match="denoise_step: .*Failed to parse the ONNX model"):
        build(request)


def test_too_small_a_workspace(write: Write) -> None:
    options = dataclasses.replace(OPTIONS, workspace=1 << 20)
    with pytest.raises(EngineError, match="raise the builder option workspace .it is 1 MiB"):
        build(write(options=options))


def test_activations_beyond_the_workspace(write: Write) -> None:
    """The message for a profile whose images do not fit into the workspace."""
    log = Log([("ERROR", "Error Code 2: OutOfMemory (Requested size was 4393907374 bytes.)")])
    said = tensorrt_build._failure_message(TENSORRT_RTX, write(), log)
    assert "raise the builder option workspace (it is 1,024 MiB)" in said
    assert "a smaller maximum batch" in said


def test_memory_is_checked_before_the_build(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100 << 20)
    with pytest.raises(EngineError, match=r"denoise_step takes about 0.6 GB .* 0.1 GB are free"):
        build(write())


def test_disk_space_is_checked_before_the_build(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
    with pytest.raises(StorageError, match="denoise_step takes about 0.00 GB .* has 0.00 GB free"):
        build(write())


class Interrupting(Silent):
    """A progress that raises KeyboardInterrupt at its `reports`th report, as Ctrl-C does."""

    def __init__(self, reports: int) -> None:
        self.reports = reports
        self.said: list[str] = []
        self.threads: set[int] = set()

    def advance(self, units: int = 1, note: str = "") -> None:
        self.threads.add(threading.get_ident())
        self.said.append(note)
        if len(self.said) == self.reports:
            raise KeyboardInterrupt


def test_ctrl_c_ends_the_build(write: Write) -> None:
    progress = Interrupting(1)
    request = write(layers(150), progress=progress)
    with pytest.raises(KeyboardInterrupt):
        build(request)
    assert progress.said[-1] == "ending the build"
    assert list(request.output.iterdir()) == []
    # The builder's thread has ended, and the next build works.
    assert not [t for t in threading.enumerate() if t.name.startswith("build ")]
    build(dataclasses.replace(request, progress=Silent()))


def test_progress_is_reported_from_the_calling_thread(write: Write) -> None:
    progress = Interrupting(0)
    build(write(layers(100), progress=progress))
    assert progress.threads == {threading.get_ident()}
    assert any("/" in note for note in progress.said)


def test_capabilities_must_be_given_without_a_gpu() -> None:
    with pytest.raises(UsageError, match="--compute-capability, one or several of sm75, .*sm89"):
        targets.resolve_options(targets.TENSORRT_RTX, BuilderOptions())


def test_the_default_capability_is_that_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ADA)
    settled = targets.resolve_options(targets.TENSORRT_RTX, BuilderOptions())
    assert settled.compute_capabilities == ("sm89",)
    assert settled.workspace == tensorrt_config.DEFAULT_WORKSPACE


@pytest.mark.parametrize(
    ("capability", "said"),
    [("sm90", "does not build for sm90, .* build for the target tensorrt"), ("sm61", "sm61")],
)
def test_capabilities_that_the_library_does_not_support(capability: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        targets.resolve_options(
            targets.TENSORRT_RTX, BuilderOptions(compute_capabilities=(capability, "sm89"))
        )


@pytest.mark.parametrize(
    "options",
    [
        BuilderOptions(version_compatible=True),
        BuilderOptions(hardware_compatibility="ampere_plus"),
        BuilderOptions(timing_cache=Path("cache")),
    ],
    ids=lambda options: options.given()[0],
)
def test_options_of_the_other_library(options: BuilderOptions) -> None:
    with pytest.raises(
        UsageError, match=f"tensorrt-rtx has no builder option {options.given()[0]}"
    ):
        targets.resolve_options(targets.TENSORRT_RTX, options)


def test_cpu_targets_accept_no_builder_options() -> None:
    with pytest.raises(UsageError, match="openvino-cpu has no builder option optimization_level"):
        targets.resolve_options(targets.OPENVINO_CPU, BuilderOptions(optimization_level=3))


def test_a_refittable_engine_needs_a_gpu_to_build() -> None:
    options = BuilderOptions(("sm89",), refittable=True)
    with pytest.raises(UsageError, match="refittable of tensorrt-rtx needs a GPU on the machine"):
        targets.resolve_options(targets.TENSORRT_RTX, options)


def test_a_refittable_engine_is_for_one_gpu() -> None:
    options = dataclasses.replace(OPTIONS, refittable=True)
    with pytest.raises(UsageError, match="exactly one compute capability, got sm86, sm89"):
        targets.resolve_options(targets.TENSORRT_RTX, options)


def test_stripped_weights_are_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ADA)
    options = BuilderOptions(("sm89",), refittable=True, strip_weights=True)
    with pytest.raises(UsageError, match="strip_weights is not served: .* refitted before it runs"):
        targets.resolve_options(targets.TENSORRT_RTX, options)


def test_a_refittable_build_without_a_driver_names_the_remedy(write: Write) -> None:
    """Without the check in `resolve_options`: the library's error, and the remedy."""
    options = BuilderOptions(("sm89",), refittable=True)
    with pytest.raises(EngineError, match="CUDA_SUCCESS.*with a working NVIDIA driver"):
        build(write(options=options))


def test_tensorrt_needs_a_gpu_to_build() -> None:
    with pytest.raises(EngineError, match=r"builds on the GPU that it runs on.*tensorrt-rtx"):
        tensorrt_config.resolve_options("tensorrt", BuilderOptions())


def test_an_ignored_option_is_an_error(write: Write) -> None:
    """The library only warns, and builds without the option."""
    options = dataclasses.replace(OPTIONS, hardware_compatibility="ampere_plus")
    with pytest.raises(EngineError, match="hardware_compatibility|HardwareCompatibilityLevel"):
        build(write(options=options))


def test_an_engine_runs_where_all_its_parts_run(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, compute_capabilities=("sm89",))
    request = EngineRequest("unet", tmp_path, tmp_path, Precision.FP16, (SHAPES,), options)
    plan = b"accelerators={sm86 sm89 }\0accelerators={sm89 }"
    found = readback.read_back(TENSORRT_RTX, None, plan, request, Log())
    assert found["read_back"] == {"compute_capabilities": ["sm89"]}


def test_a_capability_that_is_missing_in_the_engine_is_named(tmp_path: Path) -> None:
    request = EngineRequest("vae_decoder", tmp_path, tmp_path, Precision.FP16, (SHAPES,), OPTIONS)
    with pytest.raises(EngineError, match="vae_decoder was built for sm86 but runs on sm89"):
        readback.read_back(TENSORRT_RTX, None, b"accelerators={sm89 }", request, Log())


def test_a_warning_of_an_ignored_option_is_an_error(tmp_path: Path) -> None:
    request = EngineRequest("unet", tmp_path, tmp_path, Precision.FP16, (SHAPES,), OPTIONS)
    log = Log([("WARNING", "setFoo() is unsupported in TensorRT-RTX.")])
    with pytest.raises(EngineError, match=r"ignored an option for unet: setFoo"):
        readback.read_back(TENSORRT_RTX, None, b"", request, log)


class TestLibrary:
    """The module `tensorrt.library`."""

    def test_versions_and_flags(self) -> None:
        module = library(TENSORRT_RTX)
        assert version(module) >= (1, 5)
        assert network_flags(module) in (0, 1)

    def test_there_is_one_logger(self) -> None:
        module = library(TENSORRT_RTX)
        assert logger(module) is logger(module)

    def test_a_library_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
        with pytest.raises(MissingExtraError, match=r"pip install .*\[tensorrt\]"):
            library("tensorrt")

    def test_another_name(self) -> None:
        with pytest.raises(UsageError, match="must be one of: tensorrt, tensorrt-rtx; got 'tenso"):
            library("tensorflow")

    def test_a_log_is_captured_by_thread(self) -> None:
        module = library(TENSORRT_RTX)
        with capture_log() as log, capture_log(this_thread=True) as own:
            runtime = module.Runtime(logger(module))
            assert runtime.deserialize_cuda_engine(b"no engine") is None
            other = threading.Thread(target=lambda: runtime.deserialize_cuda_engine(b"nor this"))
            other.start()
            other.join()
        assert "readHeader" in log.errors
        assert len(log.entries) == 2 * len(own.entries)
        with capture_log() as later:
            pass
        assert later.errors == ""


def test_finding_gpus_raises_nothing() -> None:
    found, why = gpus.find_gpus()
    assert bool(found) != bool(why)
