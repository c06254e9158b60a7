"""Builder options of `tensorrt`, set and read back on doubles of the library's classes.

The library itself needs a GPU; these tests cover the options that TensorRT for RTX does not have.
"""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.backends import targets
from sdexport.backends.build_request import EngineRequest, ShapeRange
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.gpus import Gpu
from sdexport.backends.tensorrt import config as tensorrt_config
from sdexport.backends.tensorrt import library, readback
from sdexport.backends.tensorrt.library import Log
from sdexport.errors import EngineError, StorageError
from sdexport.model.shapes import Precision

GPU = Gpu("an H100", "sm90", 80 << 30)


class Flag(IntEnum):
    REFIT = 0
    TF32 = 1
    VERSION_COMPATIBLE = 2


class Level(IntEnum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class Config:
    """A double of IBuilderConfig that ignores the option named `deaf`."""

    def __init__(self, deaf: str = "") -> None:
        self.deaf = deaf
        self.flags = {Flag.TF32}
        self.pools: dict[str, int] = {}
        self.cache: Any = None
        self.cache_fits = True
        self._level, self._hardware = 3, Level.NONE

    def set_flag(self, flag: Flag) -> None:
        if self.deaf != flag.name:
            self.flags.add(flag)

    def clear_flag(self, flag: Flag) -> None:
        if self.deaf != flag.name:
            self.flags.discard(flag)

    def get_flag(self, flag: Flag) -> bool:
        return flag in self.flags

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        # The libraries round down to a multiple of a page.
        self.pools[pool] = size if self.deaf != "WORKSPACE" else size // 2

    def get_memory_pool_limit(self, pool: str) -> int:
        return self.pools[pool]

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        if self.deaf != "LEVEL":
            self._level = level

    @property
    def hardware_compatibility_level(self) -> Level:
        return self._hardware

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, level: Level) -> None:
        if self.deaf != "HARDWARE":
            self._hardware = level

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(content=content) if content != b"nonsense" else None

    def set_timing_cache(self, cache: Any, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return self.cache_fits

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache.content + b" and more")


class Engine:
    """A double of ICudaEngine with these properties."""

    refittable = True
    num_optimization_profiles = 1
    hardware_compatibility_level = Level.AMPERE_PLUS
    device_memory_size_v2 = 1 << 33

    def __init__(self, **changes: Any) -> None:
        self.stripped = 0
        for name, value in changes.items():
            setattr(self, name, value)

    def get_engine_stat(self, statistic: str) -> int:
        return self.stripped


class Runtime:
    """A double of IRuntime that loads `engine`; plans with host code only if they are allowed."""

    engine_host_code_allowed = False

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return None if plan == b"code" and not self.engine_host_code_allowed else self.engine


def module(engine: Engine | None = None) -> Any:
    """A double of the library, whose runtime loads `engine` from any plan."""

    class ILogger:
        pass

    return SimpleNamespace(
        __version__="11.4.0.106",
        __name__="tensorrt",
        ILogger=ILogger,
        BuilderFlag=Flag,
        HardwareCompatibilityLevel=Level,
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        EngineStat=SimpleNamespace(STRIPPED_WEIGHTS_SIZE="stripped"),
        Runtime=lambda logger: Runtime(engine),
    )


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (targets, tensorrt_config, readback):
        monkeypatch.setattr(one, "find_gpus", lambda: ((GPU,), ""))
    monkeypatch.setattr(driver, "context", lambda ordinal: SimpleNamespace(use=lambda: None))
    # The logger is cached by module, and the doubles are not hashable.
    monkeypatch.setattr(library, "logger", lambda module: None)


def request_for(options: BuilderOptions) -> EngineRequest:
    shapes = {"x": ShapeRange((1,), (1,), (1,))}
    return EngineRequest("unet", Path(), Path(), Precision.FP16, (shapes,), options)


EVERYTHING = BuilderOptions(
    optimization_level=5,
    workspace=1 << 32,
    hardware_compatibility="ampere_plus",
    version_compatible=True,
    refittable=True,
)


def test_every_option_is_set() -> None:
    config = Config()
    tensorrt_config.apply("tensorrt", module(), config, request_for(EVERYTHING))
    assert config.flags == {Flag.REFIT, Flag.VERSION_COMPATIBLE}
    assert config.pools == {"workspace": 1 << 32}
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level is Level.AMPERE_PLUS


@pytest.mark.parametrize(
    ("deaf", "option"),
    [
        ("REFIT", "refittable"),
        ("TF32", "tf32"),
        ("VERSION_COMPATIBLE", "version_compatible"),
        ("WORKSPACE", "workspace"),
        ("LEVEL", "optimization_level"),
        ("HARDWARE", "hardware_compatibility"),
    ],
)
def test_an_ignored_option_is_named(deaf: str, option: str) -> None:
    with pytest.raises(EngineError, match=f"ignored {option} = .* for unet and uses"):
        tensorrt_config.apply("tensorrt", module(), Config(deaf), request_for(EVERYTHING))


def test_a_level_that_this_version_does_not_have() -> None:
    old = module()
    old.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS=Level.AMPERE_PLUS)
    options = BuilderOptions(hardware_compatibility="same_compute_capability")
    with pytest.raises(EngineError, match="11.4.0.106 has no hardware_compatibility same_compute"):
        tensorrt_config.apply("tensorrt", old, Config(), request_for(options))


def test_the_gpu_determines_the_default_options() -> None:
    settled = tensorrt_config.resolve_options("tensorrt", BuilderOptions())
    assert settled.compute_capabilities == ("sm90",)
    assert settled.workspace == (80 << 30) - tensorrt_config.RESERVED_BYTES
    assert tensorrt_config.resolve_options("tensorrt", EVERYTHING).workspace == 1 << 32


def test_a_timing_cache_is_reused_by_the_next_build(tmp_path: Path) -> None:
    path = tmp_path / "caches" / "timing"
    options = BuilderOptions(timing_cache=path)
    for content in (b" and more", b" and more and more"):
        config = Config()
        tensorrt_config.apply("tensorrt", module(), config, request_for(options))
        tensorrt_config.keep_timing_cache(config, options)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["timing"]


@pytest.mark.parametrize("what", ["nonsense", "of another GPU"])
def test_a_file_that_is_not_a_timing_cache(tmp_path: Path, what: str) -> None:
    path = tmp_path / "timing"
    path.write_bytes(what.encode())
    config = Config()
    config.cache_fits = what == "nonsense"
    with pytest.raises(EngineError, match="is not a timing cache of this library's version and"):
        tensorrt_config.apply(
            "tensorrt", module(), config, request_for(BuilderOptions(timing_cache=path))
        )
    assert path.read_bytes() == what.encode()


def test_a_timing_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    options = BuilderOptions(timing_cache=tmp_path / "file" / "timing")
    config = Config()
    config.cache = SimpleNamespace(content=b"")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        tensorrt_config.keep_timing_cache(config, options)


READ = BuilderOptions(refittable=True, hardware_compatibility="ampere_plus")


def test_the_loaded_engine_is_queried() -> None:
    found = readback.read_back("tensorrt", module(Engine()), b"", request_for(READ), Log())
    assert found["read_from"] == "the engine"
    assert found["activation_bytes"] == 1 << 33
    assert found["read_back"] == {
        "refittable": True,
        "hardware_compatibility": "ampere_plus",
        "profiles": 1,
        "strip_weights": False,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"refittable": False}, "refittable = True but has False"),
        ({"hardware_compatibility_level": Level.NONE}, "'ampere_plus' but has 'none'"),
        ({"num_optimization_profiles": 2}, "profiles = 1 but has 2"),
        ({"stripped": 1000}, "strip_weights = False but has True"),
    ],
)
def test_an_engine_that_differs_from_the_request_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(EngineError, match=f"the engine of unet was built with .*{said}"):
        readback.read_back("tensorrt", module(Engine(**changes)), b"", request_for(READ), Log())


def test_an_engine_that_cannot_be_loaded() -> None:
    with pytest.raises(EngineError, match="TensorRT built the engine of unet and cannot load it"):
        readback.read_back("tensorrt", module(None), b"", request_for(READ), Log())


def test_a_library_without_a_flag_for_tf32_is_refused() -> None:
    old = module()
    old.BuilderFlag = SimpleNamespace(REFIT=Flag.REFIT)
    with pytest.raises(EngineError, match="tensorrt 11.4.0.106 has no flag for TF32, so unet"):
        tensorrt_config.apply("tensorrt", old, Config(), request_for(BuilderOptions()))


@pytest.mark.parametrize("here", ["sm75", "sm80", "sm89", "sm90", "sm100", "sm120"])
def test_hardware_compatibility_allows_other_gpus(
    monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    """An engine for Ampere and later is loaded on such GPUs, one without that option is not."""
    gpu = Gpu("a card", here, 8 << 30)
    monkeypatch.setattr(readback, "find_gpus", lambda: ((gpu,), ""))
    for level in ("ampere_plus", "none"):
        options = BuilderOptions(("sm90",), hardware_compatibility=level)
        engine = Engine(refittable=False, hardware_compatibility_level=Level[level.upper()])
        found = readback.read_back("tensorrt", module(engine), b"", request_for(options), Log())
        loads = here == "sm90" or (level == "ampere_plus" and here != "sm75")
        assert (found["read_from"] == "the engine") is loads
        assert bool(found["not_checked"]) or loads


def test_a_version_compatible_engine_contains_host_code() -> None:
    options = dataclasses.replace(READ, version_compatible=True)
    found = readback.read_back("tensorrt", module(Engine()), b"code", request_for(options), Log())
    assert found["read_from"] == "the engine"


def test_an_option_of_another_target_is_refused() -> None:
    capabilities = dataclasses.replace(READ, compute_capabilities=("sm89",))
    with pytest.raises(Exception, match="tensorrt has no builder option compute_capabilities"):
        targets.resolve_options(targets.TENSORRT, capabilities)
