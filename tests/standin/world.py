"""Shared by the tests that run with the stand-in driver: its counters, and pipelines on it.

For processes that were started with the stand-in driver; see `test_standin.py`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import convert
from msgspec.structs import replace

from sdexport.artifacts.builder_options import BuilderRecord
from sdexport.artifacts.bundle import Bundle, open_bundle, write_manifest
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.device import MAX_KEPT_BYTES, CudaDevice
from sdexport.backends.cuda.gpus import find_gpus
from sdexport.backends.cuda.slots import LoopMode
from sdexport.backends.session import Sessions
from sdexport.backends.tensorrt import session
from sdexport.model.shapes import MAX_PIECES, Precision
from sdexport.pipeline.load import load_model
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline

BUNDLE = Path(os.environ.get("STANDIN_BUNDLE", "."))
PLANS = Path(os.environ.get("STANDIN_PLANS", "."))

OUT_OF_MEMORY, OUT_OF_RESOURCES, LAUNCH_FAILED = 2, 701, 719


class Standin:
    """The stand-in driver of this process."""

    def __init__(self) -> None:
        library = self.library = ctypes.CDLL("libcuda.so.1")
        library.standin_count.restype = ctypes.c_long
        library.standin_call.restype = ctypes.c_char_p
        library.standin_call.argtypes = [ctypes.c_size_t]
        library.standin_fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
        library.standin_device.argtypes = [ctypes.c_int, ctypes.c_size_t]
        library.standin_add_device.argtypes = [ctypes.c_int]
        for name in ("memory_used", "memory_peak", "pinned_used"):
            getattr(library, f"standin_{name}").restype = ctypes.c_size_t
        library.standin_objects.restype = ctypes.c_long
        library.standin_failure_left.restype = ctypes.c_long

    def count(self, name: str) -> int:
        """Calls of `name` since the last reset."""
        return int(self.library.standin_count(name.encode()))

    def calls(self) -> list[str]:
        """All calls since the last reset, and the work that was run (`run.…`), in order."""
        names = []
        while (name := self.library.standin_call(len(names))) is not None:
            names.append(name.decode())
        return names

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Counts the calls of the body."""
        found: Counter[str] = Counter()
        self.library.standin_reset()
        yield found
        found.update(self.calls())

    def fail(self, name: str, after: int, status: int) -> None:
        """Makes the call of `name` that comes `after`-th from now fail with `status`."""
        self.library.standin_fail(name.encode(), after, status)

    @property
    def failure_waits(self) -> bool:
        """Whether the failure asked for has not come yet."""
        return int(self.library.standin_failure_left()) > 0

    def revive(self) -> None:
        """The device works again, and nothing is to fail."""
        self.library.standin_revive()

    def device(self, sm: int = 89, *more: int, size: int = 2 << 30) -> None:
        """The devices' compute capabilities, and their memory; what is known of others goes."""
        self.library.standin_device(sm, size)
        for other in more:
            self.library.standin_add_device(other)
        forget_devices()

    def held(self) -> tuple[int, int, int]:
        """Device bytes, pinned bytes, and objects (streams, events, graphs) that exist."""
        gc.collect()
        return (
            int(self.library.standin_memory_used()),
            int(self.library.standin_pinned_used()),
            int(self.library.standin_objects()),
        )


def forget_devices() -> None:
    """Makes the next search find other devices; resources on the old ones must be closed."""
    find_gpus.cache_clear()
    driver.context.cache_clear()
    session._runtime.cache_clear()
    find_gpus()  # Before a call is made to fail: what is found is kept.


def profiles(parts: LoadedModel, sizes: tuple[tuple[int, int, int], ...]) -> dict[str, Any]:
    """Profiles of the engines for (minimum, optimum, maximum) of batch, height and width."""
    from sdexport.backends.slots import (
        Shape,
        encoder_shapes,
        image_shapes,
        step_shapes,
        text_shapes,
    )

    engines = parts.sessions
    found = []
    for place in range(3):
        batch, height, width = (sizes[axis][place] for axis in range(3))
        scale = parts.model.latents.scale
        branches = (1, 2, 2)[place]
        tokens = (1, 1, MAX_PIECES)[place] * parts.model.tokens
        shape = Shape(batch, branches, height // scale, width // scale, tokens)
        found.append(
            {
                "text_encoder": text_shapes(engines, shape),
                "denoise_step": step_shapes(engines, shape),
                "vae_decoder": image_shapes(engines, shape),
                "vae_encoder": encoder_shapes(engines, shape),
            }
        )
    return {
        engine: {tensor: [entry[engine][tensor] for entry in found] for tensor in found[0][engine]}
        for engine in found[0]
    }


def write_plans(folder: Path, parts: LoadedModel, **changes: Any) -> dict[str, Path]:
    """The double's engines for the bundle's models; `changes` are those of `write_plan`."""
    import tensorrt_rtx

    bundle = open_bundle(BUNDLE, check=False)
    made = {}
    limits = (parts.bounds.profile.batch, parts.bounds.profile.height, parts.bounds.profile.width)
    sizes = changes.pop("sizes", tuple((one.min, one.opt, one.max) for one in limits))
    for name, shapes in profiles(parts, sizes).items():
        made[name] = tensorrt_rtx.write_plan(
            folder / name / "engine.plan", bundle.engine_file(name), [shapes], **changes
        )
    return made


def host_parts(bundle: Path = BUNDLE) -> LoadedModel:
    """The parts of the bundle for ONNX Runtime, on one thread as the double's engines are."""
    return load_model(open_bundle(bundle, check=False), threads=1)


def gpu_pipeline(
    parts: LoadedModel,
    plans: dict[str, Path],
    loop: LoopMode = LoopMode.AUTO,
    *,
    kept_bytes: int = MAX_KEPT_BYTES,
    cache: Path | None = None,
) -> Pipeline:
    """The pipeline that generates with the double's engines on the stand-in."""
    engines = {
        name: session.load("tensorrt-rtx", name, path, Precision.FP32, None)
        for name, path in plans.items()
    }
    sessions = Sessions(parts.model, {**parts.sessions.engines, **engines})
    device = CudaDevice(sessions, loop, cache=cache, kept_bytes=kept_bytes)
    return Pipeline(dataclasses.replace(parts, sessions=sessions, device=device))


def make_bundle(
    path: Path,
    target: str = "tensorrt-rtx",
    builder: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Bundle:
    """The bundle with the double's engines, as a build for the target writes it.

    Args:
        builder: the builder options of its manifest.
        changes: those of the double's plans, see `write_plans`.
    """
    left = shutil.ignore_patterns("*.onnx", "*.data", "vae_encoder")
    shutil.copytree(BUNDLE, path, ignore=left, dirs_exist_ok=True)
    manifest = open_bundle(BUNDLE, check=False).manifest
    plans = write_plans(path, host_parts(), **changes)
    engines = {
        name: replace(manifest.engines[name], file=file.relative_to(path).as_posix())
        for name, file in plans.items()
    }
    return write_manifest(
        path,
        replace(
            manifest,
            target=target,
            library="tensorrt_rtx 1.7",
            engines=engines,
            builder=convert(dict(builder or {}), BuilderRecord),
        ),
    )


def tell(**measurements: Any) -> None:
    """Writes measurements for the outer test, if it asked for them."""
    path = os.environ.get("STANDIN_FIGURES")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(measurements) + "\n")


if __name__ == "__main__":
    make_bundle(Path(sys.argv[1]))
