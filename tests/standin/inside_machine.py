"""Bundles on machines with one or several GPUs of every kind, and with every builder option."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx

import sdexport
from sdexport.artifacts.builder_options import NOT_SERVED, BuilderOptions
from sdexport.backends import targets
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.gpus import find_gpus
from sdexport.backends.cuda.slots import LoopMode
from sdexport.backends.tensorrt import session
from sdexport.errors import DeviceLostError, EngineError, UsageError
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from tests.standin.world import Standin, forget_devices, gpu_pipeline, make_bundle, write_plans

ADA = {"compute_capabilities": ["sm89"]}
REQUEST: dict[str, Any] = {"num_inference_steps": 3, "seed": 1, "width": 64, "height": 64}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    forget_devices()


def image(path: Path) -> bytes:
    with sdexport.load(path) as pipe:
        return pipe.generate("apple", **REQUEST).images[0].tobytes()


@pytest.fixture(scope="module")
def wanted(host: Pipeline) -> bytes:
    return host.generate("apple", **REQUEST).images[0].tobytes()


# The card


@pytest.mark.parametrize(
    ("target", "here", "remedy"),
    [
        ("tensorrt-rtx", 86, "with --compute-capability sm86"),
        ("tensorrt-rtx", 75, "with --compute-capability sm75"),
        ("tensorrt-rtx", 90, "on this machine with --target tensorrt"),
        ("tensorrt", 90, "on this machine"),
    ],
)
def test_a_bundle_for_another_gpu(
    standin: Standin, tmp_path: Path, target: str, here: int, remedy: str
) -> None:
    """The message names the GPU, what the bundle was built for, and the remedy."""
    bundle = make_bundle(tmp_path / "b", target, ADA, capabilities=["sm89"])
    standin.device(here)
    with pytest.raises(
        EngineError,
        match=rf"{target} cannot load text_encoder: built for compute capability sm89, and this "
        rf"machine has sm{here} \(stand-in, no GPU\); build the bundle again {remedy}",
    ) as raised:
        sdexport.load(bundle.path)
    assert "truncated" not in str(raised.value)
    standin.device(89)
    assert image(bundle.path)


def test_the_suitable_one_of_several_gpus_is_used(
    standin: Standin, tmp_path: Path, wanted: bytes
) -> None:
    bundle = make_bundle(tmp_path / "b", builder=ADA, capabilities=["sm89"])
    standin.device(75, 86, 89)
    with sdexport.load(bundle.path) as pipe:
        gpu = pipe.loaded.sessions["denoise_step"].context  # type: ignore[attr-defined]  # on a GPU
        assert (gpu.ordinal, gpu.capability) == (2, "sm89")
        assert pipe.generate("apple", **REQUEST).images[0].tobytes() == wanted
    standin.device(75, 86)
    with pytest.raises(EngineError, match=r"this machine has sm75 \(.*\), sm86 \(stand-in, no GPU"):
        sdexport.load(bundle.path)


def test_the_requested_gpu_is_used(standin: Standin, tmp_path: Path, wanted: bytes) -> None:
    bundle = make_bundle(tmp_path / "b", builder=ADA, capabilities=["sm89"])
    standin.device(89, 89, 75)
    for device in (0, 1):
        with sdexport.load(bundle.path, device=device) as pipe:
            parts = pipe.loaded
            for engine in (
                parts.sessions["text_encoder"],
                parts.sessions["denoise_step"],
                parts.sessions["vae_decoder"],
            ):
                assert engine.context.ordinal == device  # type: ignore[attr-defined]  # on a GPU
            assert pipe.generate("apple", **REQUEST).images[0].tobytes() == wanted
    with pytest.raises(EngineError, match=r"built for .* sm89, and this machine has sm75 \(stand"):
        sdexport.load(bundle.path, device=2)
    with pytest.raises(UsageError, match=r"device must be one of 0 \(stand-in.*, 2 .*, got 3"):
        sdexport.load(bundle.path, device=3)


@pytest.mark.parametrize("device", [-1, 1.0, True, "0", "cuda:0"])
def test_an_invalid_device_number(standin: Standin, tmp_path: Path, device: Any) -> None:
    bundle = make_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="device must be the number of a GPU, .* got "):
        sdexport.load(bundle.path, device=device)


def test_a_hidden_gpu_is_not_used(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "b", builder=ADA, capabilities=["sm89"])
    standin.device(75, 89)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    forget_devices()
    assert [gpu.capability for gpu in find_gpus()[0]] == ["sm89"]
    assert image(bundle.path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    forget_devices()
    with pytest.raises(EngineError, match=r"built for .* sm89, and this machine has sm75 \(st"):
        sdexport.load(bundle.path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    forget_devices()
    with pytest.raises(EngineError, match="there is no GPU to run it"):
        sdexport.load(bundle.path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_a_failed_search_for_gpus_is_repeated(standin: Standin, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", builder=ADA)
    find_gpus.cache_clear()
    standin.fail("cuDeviceGetCount", 1, 3)
    with pytest.raises(EngineError, match="there is no GPU to run it: the NVIDIA driver finds"):
        sdexport.load(bundle.path)
    assert image(bundle.path)


# Every builder option

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "compute_capabilities": (ADA, {"capabilities": ["sm89"]}),
    "optimization_level": ({"optimization_level": 5}, {}),
    "workspace": ({"workspace": 1 << 30}, {}),
    "refittable": ({"refittable": True}, {}),
    "timing_cache": ({"timing_cache": True}, {}),
    "hardware_compatibility": (
        {"compute_capabilities": ["sm86"], "hardware_compatibility": "ampere_plus"},
        {"capabilities": ["sm86"], "hardware": "ampere_plus"},
    ),
    "version_compatible": (
        {"version_compatible": True},
        {"version_compatible": True, "version": "1.6.0.1"},
    ),
}
"""By option: the manifest's builder options, and the plan that the library builds with them."""

PLANS = [target for target in targets.TARGETS if target.suffix == ".plan"]
SERVED = [(target, option) for target in PLANS for option in target.options]


def test_every_option_is_tested_or_refused() -> None:
    known = {entry.name for entry in dataclasses.fields(BuilderOptions)}
    assert known == set(CASES) | set(NOT_SERVED)
    assert {option for _, option in SERVED} == set(CASES)


@pytest.mark.parametrize(("target", "option"), SERVED, ids=str)
def test_a_bundle_built_with_the_option_generates(
    standin: Standin, tmp_path: Path, wanted: bytes, target: targets.Target, option: str
) -> None:
    builder, plan = CASES[option]
    bundle = make_bundle(tmp_path / "b", target.name, builder, **plan)
    assert image(bundle.path) == wanted


@pytest.mark.parametrize("target", PLANS, ids=lambda target: target.name)
@pytest.mark.parametrize("option", NOT_SERVED)
def test_an_unsupported_option_is_refused(target: targets.Target, option: str) -> None:
    assert option not in target.options
    with pytest.raises(UsageError, match=f"{option} is not served: .*; leave it out"):
        targets.resolve_options(target, BuilderOptions(**{option: True}))


def test_a_plan_without_weights_is_refused(standin: Standin, tmp_path: Path) -> None:
    """Earlier versions of sdexport built such plans."""
    builder = {"refittable": True, "strip_weights": True}
    bundle = make_bundle(tmp_path / "b", builder=builder, stripped=True)
    with pytest.raises(EngineError, match="text_encoder was built without its weights.*again"):
        sdexport.load(bundle.path)


# Plans that bring code


def test_host_code_is_allowed_only_for_plans_that_declare_it(
    standin: Standin, tmp_path: Path, wanted: bytes
) -> None:
    brings = make_bundle(tmp_path / "a", builder={"version_compatible": True},
                         version_compatible=True)  # fmt: skip
    plain = make_bundle(tmp_path / "b")
    for bundle, allowed in ((brings, True), (plain, False), (brings, True)):
        with sdexport.load(bundle.path) as pipe:
            engine: Any = pipe.loaded.sessions["denoise_step"]
            assert engine._engine.runtime.engine_host_code_allowed is allowed
            assert pipe.generate("apple", **REQUEST).images[0].tobytes() == wanted


def test_undeclared_host_code_is_refused(standin: Standin, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", version_compatible=True)
    with pytest.raises(EngineError, match="engineHostCodeAllowed is not set.*does not say so: bu"):
        sdexport.load(bundle.path)


def test_a_plan_of_a_later_version(standin: Standin, tmp_path: Path) -> None:
    """Version-compatible plans run with later versions of the library, not with earlier ones."""
    bundle = make_bundle(tmp_path / "b", builder={"version_compatible": True},
                         version_compatible=True, version="9.0.0.1")  # fmt: skip
    with pytest.raises(EngineError, match="VERSION_MISMATCH.*another version than"):
        sdexport.load(bundle.path)


# Errors that the library reports otherwise than by raising


def failing(parts: LoadedModel, folder: Path, said: str, **changes: Any) -> None:
    plans = write_plans(folder, parts, **changes)
    for mode in (LoopMode.EAGER, LoopMode.WHOLE_LOOP):
        with (
            pytest.raises(EngineError, match=said),
            gpu_pipeline(parts, plans, mode) as pipe,
        ):
            pipe.generate("apple", **REQUEST)


def test_activation_memory_that_is_not_reported(
    standin: Standin, parts: LoadedModel, tmp_path: Path
) -> None:
    said = "text_encoder does not report how much activation memory.*shapes are not known"
    failing(parts, tmp_path, said, untold=True)


def test_an_engine_that_needs_no_activation_memory(
    standin: Standin, parts: LoadedModel, tmp_path: Path
) -> None:
    (call,) = prepared(parts, write_plans(tmp_path, parts, activations=0), "text_encoder")
    assert call.memory == 0


def test_activation_memory_that_is_rejected(
    standin: Standin, parts: LoadedModel, tmp_path: Path
) -> None:
    said = "text_encoder does not accept its activation memory: .*setDeviceMemory.*are too few"
    failing(parts, tmp_path, said, deaf=True)


def test_an_input_in_host_memory(standin: Standin, parts: LoadedModel, tmp_path: Path) -> None:
    said = r"text_encoder has shape tensors in host memory \(input_ids\), .*build the bundle again"
    plans = write_plans(tmp_path, parts, host=["input_ids"])
    with pytest.raises(EngineError, match=said):
        gpu_pipeline(parts, plans)


def prepared(parts: LoadedModel, plans: dict[str, Path], name: str) -> list[Any]:
    from sdexport.backends.slots import Shape, text_shapes

    pipe = gpu_pipeline(parts, plans)
    engine: Any = pipe.loaded.sessions[name]
    with driver.Stream() as stream:
        shapes = text_shapes(pipe.loaded.sessions, Shape(1, 2, 8, 8, parts.model.tokens))
        call = engine.prepare(shapes, stream)
        held = [call]
        assert session.compiles_at_run_time(tensorrt_rtx)
        # The library does not keep the configuration; the call does.
        assert call._context.config() is not None
        call.close()
    pipe.close()
    return held


def test_memory_that_contexts_keep_is_counted(
    standin: Standin, parts: LoadedModel, tmp_path: Path
) -> None:
    size = 4 << 20
    found = []
    for persistent in (0, size):
        plans = write_plans(tmp_path / str(persistent), parts, persistent=persistent)
        with gpu_pipeline(parts, plans, LoopMode.STEP_GRAPH) as pipe:
            pipe.generate("apple", **REQUEST)
            (workspaces,) = pipe._pool._made
            found.append(workspaces.bytes)
    assert found[1] - found[0] == 3 * size


def test_the_device_is_not_queried_during_a_capture(
    standin: Standin, parts: LoadedModel, tmp_path: Path
) -> None:
    """The library's error is reported, and the next image is correct."""
    with gpu_pipeline(parts, write_plans(tmp_path, parts), LoopMode.STEP_GRAPH) as pipe:
        standin.fail("cuLaunchHostFunc", 3, 701)
        with standin.counted() as calls, pytest.raises(EngineError, match="denoise_step failed to"):
            pipe.generate("apple", **REQUEST)
        assert calls["cuStreamBeginCapture_v2"] == 1, "it was to fail in a capture"
        assert pipe.generate("apple", **REQUEST).images


# Statuses


@pytest.mark.parametrize("status", sorted(driver.LOST))
def test_a_status_that_ends_the_process_is_reported(standin: Standin, status: int) -> None:
    gpu = driver.context(0)
    standin.fail("cuMemGetInfo_v2", 1, status)
    with pytest.raises(DeviceLostError, match="can no longer use the GPU.*start the program again"):
        gpu.memory()
    if status in STICKY:
        with pytest.raises(DeviceLostError):
            driver.DeviceBuffer(64)
    standin.revive()
    with suppress(DeviceLostError):
        gpu.memory()


STICKY = {226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911}
"""After which "any further CUDA work will return the same error"."""
