"""The process of one measured system: loads an adapter and answers requests with measurements.

    PYTHON worker.py ADAPTER.py

runs in the system's own interpreter, so it needs only the standard library and numpy. Requests and
answers are JSON, one a line: requests on the original stdin, answers on the original stdout. Both
descriptors become private; the output of libraries goes to stderr.

    {"do": "prepare", "checkpoint", "folder", "options"}  →  {"seconds"}
    {"do": "load", "scenario", "options"}                 →  {"seconds", "about": describe()}
    {"do": "generate", "images": FOLDER?, "latents": FOLDER?} →  {"seconds", stages, digest, memory}
    {"do": "quit"}                                        →  {}

An exception is answered with {"error", "kind"}; its traceback is on stderr. Seconds are the time of
the adapter's call, measured here; digests and files are made after the clock has stopped.
"""

from __future__ import annotations

import sys

# The folder of this script holds modules of sdexport, which must not shadow others.
if __name__ == "__main__":
    del sys.path[0]

import ctypes
import hashlib
import importlib.util
import json
import os
import signal
import struct
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

SECONDS = ("text_encoder", "denoise", "vae_decoder")
COUNTS = ("model_calls", "batches")
"""Optional values of an adapter's generate(): seconds of stages, and the numbers of calls of the
model and of batches."""

PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class AdapterError(Exception):
    """A value from an adapter is not of the required type or shape."""


class Worker:
    """The adapter of one system, and the system that it loaded."""

    def __init__(self, adapter: Path) -> None:
        self._adapter = adapter
        self._module: Any = None
        self._system: Any = None
        self._scenario: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to `request`; exceptions of the adapter pass through."""
        does: dict[str, Callable[..., dict[str, Any]]] = {
            "prepare": self._prepare,
            "load": self._load,
            "generate": self._generate,
            "quit": self._quit,
        }
        return does[request.pop("do")](**request)

    def _module_of_adapter(self) -> Any:
        if self._module is None:
            # Adapters may have files of their own beside them.
            sys.path.append(str(self._adapter.parent))
            spec = importlib.util.spec_from_file_location("adapter", self._adapter)
            if spec is None or spec.loader is None:
                raise ImportError(f"{self._adapter} is not a Python file")
            self._module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self._module)
        return self._module

    def _prepare(self, checkpoint: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        start = perf_counter()
        prepare = getattr(self._module_of_adapter(), "prepare", None)
        if prepare is None:
            return {"seconds": None}
        prepare(checkpoint, folder, options)
        return {"seconds": perf_counter() - start}

    def _load(self, scenario: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        start = perf_counter()
        self._system = self._module_of_adapter().load(scenario, options)
        seconds = perf_counter() - start
        self._scenario = scenario
        return {"seconds": seconds, "about": described(plain(self._system.describe()))}

    def _generate(self, images: str | None = None, latents: str | None = None) -> dict[str, Any]:
        start = perf_counter()
        generated = self._system.generate()
        seconds = perf_counter() - start
        pixels = checked(generated["images"], self._scenario)
        if images is not None:
            for index, image in enumerate(pixels):
                (Path(images) / f"{index}.png").write_bytes(png(image))
        if latents is not None and generated.get("latents") is not None:
            for index, latent in enumerate(np.asarray(generated["latents"], np.float32)):
                np.save(Path(latents) / f"{index}.npy", latent)
        told = timed(
            {name: plain(generated.get(name)) for name in (*SECONDS, "evaluations", *COUNTS)}
        )
        device = getattr(self._system, "peak_device_bytes", None)
        return {
            "seconds": seconds,
            "digest": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "host_bytes": peak_bytes(),
            "device_bytes": device() if callable(device) else None,
            **told,
        }

    def _quit(self) -> dict[str, Any]:
        close = getattr(self._system, "close", None)
        if callable(close):
            close()
        return {}


def checked(images: Any, scenario: dict[str, Any]) -> NDArray[np.uint8]:
    """The images, shape (n, H, W, 3), dtype uint8.

    Raises:
        AdapterError: their number, size or dtype is not that of the scenario.
    """
    pixels: NDArray[np.uint8] = np.ascontiguousarray(images)
    wanted = (len(scenario["seeds"]), scenario["height"], scenario["width"], 3)
    if pixels.dtype != np.uint8 or pixels.shape != wanted:
        raise AdapterError(
            f"the adapter's images must be uint8 {wanted}, got {pixels.dtype} {pixels.shape}"
        )
    return pixels


def described(about: Any) -> dict[str, Any]:
    """The result of an adapter's describe().

    Raises:
        AdapterError: a value of a wrong type.
    """
    if not isinstance(about, dict):
        raise AdapterError(f"describe() must give a dictionary, got {about!r}")
    kinds: dict[str, Any] = {"precision": str, "device": str, "threads": int, "bytes": int}
    for name, kind in (kinds | {"build_seconds": int | float}).items():
        if about.get(name) is not None and not isinstance(about[name], kind):
            raise AdapterError(f"describe() gave a wrong {name}: {about[name]!r}")
    for name in ("setup", "notes"):
        lines = about.get(name, [])
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise AdapterError(f"describe() must give a list of strings as {name}, got {lines!r}")
    versions = about.get("versions", {})
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise AdapterError(f"describe() must give a string for each of versions, got {versions!r}")
    return about


def timed(told: dict[str, Any]) -> dict[str, Any]:
    """The seconds and counts of one generation, each a number or None.

    Raises:
        AdapterError: a value of a wrong type.
    """
    numbers = {name: told[name] for name in (*SECONDS, *COUNTS)}
    if told["evaluations"] is not None:
        if not isinstance(told["evaluations"], list):
            raise AdapterError(
                f"generate() must give a list as evaluations, got {told['evaluations']!r}"
            )
        numbers |= {f"evaluation {index}": one for index, one in enumerate(told["evaluations"])}
    for name, value in numbers.items():
        if value is None and not name.startswith("evaluation "):
            continue
        if not isinstance(value, int if name in COUNTS else int | float) or not 0 <= value < 1e9:
            raise AdapterError(f"generate() gave a wrong {name}: {value!r}")
    return told


def png(image: NDArray[np.uint8]) -> bytes:
    """An image (H, W, 3) as a PNG file, https://www.w3.org/TR/png-3/: 8-bit RGB, no filter."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    height, width, _ = image.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    body = zlib.compress(rows.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def peak_bytes() -> int:
    """The largest resident size of this process so far: VmHWM, elsewhere getrusage's ru_maxrss."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def plain(value: Any) -> Any:
    """`value` as JSON values: numpy's numbers become Python's, an unknown type its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends.

    Between turns this process is stopped and could not notice by itself. Linux only: elsewhere the
    end of the requests ends it.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was told
            os._exit(1)


def private_streams() -> tuple[TextIO, TextIO]:
    """The original stdin and stdout; they are replaced with /dev/null and stderr."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers


def main() -> None:
    die_with_parent()
    requests, answers = private_streams()
    worker = Worker(Path(sys.argv[1]))
    for line in requests:
        request = json.loads(line)
        last = request["do"] == "quit"
        try:
            answer = worker.answer(request)
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            answer = {"error": str(error) or repr(error), "kind": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if last:
            # Everything was answered: threads and exit handlers of libraries are not waited for.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


if __name__ == "__main__":
    main()
