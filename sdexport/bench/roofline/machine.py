"""The machine's peak rates in matrix products and in memory, measured in a process of its own.

So what is measured holds no threads or memory of the calling process. All measurements take turns,
so that a disturbance affects them alike; the peak is the best sample, since only a disturbance
makes a sample slower than the machine is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from sdexport.artifacts import documents
from sdexport.artifacts.storage import temporary_folder
from sdexport.bench.results import MatrixProduct, Memory, Peaks, Rates, Share
from sdexport.bench.scenario import Text, Threads
from sdexport.errors import EngineError, UsageError
from sdexport.model.bounds import Length

ROUNDS = 3
"""Turns of each measurement."""

TURN_S = 0.2
"""A turn takes at least this long, and two samples."""

QUIET, ATTEMPTS = 0.05, 3
"""The share of the processors' time that other processes may take, and the number of attempts to
stay below it."""

TIMEOUT_S = 300.0

STAT = Path("/proc/stat")

HOW = (
    "the fastest of copy, triad and read (a dot product) by numpy over {bytes:,} bytes an array, "
    "{threads} threads with arrays of their own"
)
"""How memory was measured."""


class Sampled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The samples of a matrix product.

    Attributes:
        precision: the number format.
        library: name and version.
        size: n of the n × n matrices.
        samples: operations a second, in order.
    """

    precision: Text
    library: Text
    size: Length
    samples: Annotated[Rates, Meta(min_length=1)]


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One attempt at all measurements, as the measuring process writes it.

    Attributes:
        device: `cpu`, or the GPU's name.
        threads: of the processor.
        products: of every library, format and size.
        operations: samples of each operation on memory, bytes a second.
        how: how memory was measured.
        load_of_others: the share of all processors' time that went to other processes and to other
            guests of the machine; None where the system does not tell.
    """

    device: Text
    threads: Threads | None = None
    products: tuple[Sampled, ...]
    operations: Annotated[dict[Text, Annotated[Rates, Meta(min_length=1)]], Meta(min_length=1)]
    how: Text
    load_of_others: Share | None = None


def measure(threads: int | None = None, device: str = "cpu") -> Peaks:
    """The peaks of the processor or, with `device` "cuda", of the first GPU; about 15 s.

    Where other processes take more than `QUIET` of the processors' time, it is measured again,
    `ATTEMPTS` times in all, and all samples count.

    Args:
        threads: of the processor; None: its physical cores.
        device: `cpu`, or `cuda`, which needs PyTorch built for CUDA (its products are cuBLAS's).

    Raises:
        UsageError: an unknown device, or less than one thread.
        EngineError: the measuring process failed; the message ends with its last output.
    """
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device must be cpu or cuda, got {device!r}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, or None for all cores, got {threads}")
    module = "sdexport.bench.roofline.machine" if device == "cpu" else "sdexport.export.gpu_peaks"
    start = time.perf_counter()
    given = threads if device == "cpu" else None
    attempts = [_attempt(module, given)]
    while _disturbed(attempts[-1]) and len(attempts) < ATTEMPTS:
        attempts.append(_attempt(module, given))
    return Peaks(
        device=attempts[0].device,
        threads=attempts[0].threads,
        compute=best_of([one for attempt in attempts for one in attempt.products]),
        memory=fastest(
            {
                name: [sample for attempt in attempts for sample in attempt.operations[name]]
                for name in attempts[0].operations
            },
            attempts[0].how,
        ),
        load_of_others=tuple(attempt.load_of_others for attempt in attempts),
        seconds=time.perf_counter() - start,
    )


def _disturbed(attempt: Attempt) -> bool:
    return attempt.load_of_others is not None and attempt.load_of_others > QUIET


def _attempt(module: str, threads: int | None) -> Attempt:
    """The measurements of the program `module`, run in a process of its own."""
    with temporary_folder() as folder:
        # A file, not the output: libraries write to that.
        result = folder / "peaks.json"
        command = [sys.executable, "-m", module, str(result)]
        if threads is not None:
            command.append(f"--threads={threads}")
        try:
            done = subprocess.run(
                command, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"measuring the machine's peaks took more than {TIMEOUT_S:.0f} s; run again when "
                "the machine has less load"
            ) from error
        if done.returncode or not result.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise EngineError(
                f"measuring the machine's peaks failed (exit code {done.returncode}): {said}"
            )
        return documents.from_json(result, Attempt)


def _environment() -> dict[str, str]:
    """This process's variables, this package's folder, and one thread for numpy's own library.

    The bandwidth measurement has its own threads, each of which calls that library.
    """
    here = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def take_turns(
    runs: Sequence[Callable[[], object]], *, rounds: int = ROUNDS, turn: float = TURN_S
) -> list[list[float]]:
    """The seconds of every sample of each of `runs`, which take turns after one warm-up run each.

    Args:
        runs: each does its work once and returns when it is finished.
        rounds: turns of each, of at least two samples and `turn` seconds.
    """
    samples: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, taken in zip(runs, samples, strict=True):
            run()  # The caches hold the data of the measurement before.
            enough = len(taken) + 2
            end = time.perf_counter() + turn
            while len(taken) < enough or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
    return samples


def best_of(found: Sequence[Sampled]) -> dict[str, MatrixProduct]:
    """By number format the fastest product, the slower ones in its `others`."""
    ranked = sorted(found, key=lambda one: -max(one.samples))
    by_format: dict[str, list[MatrixProduct]] = {}
    for one in ranked:
        by_format.setdefault(one.precision, []).append(
            MatrixProduct(
                flops_per_second=max(one.samples),
                library=one.library,
                size=one.size,
                samples=tuple(one.samples),
            )
        )
    return {
        name: msgspec.structs.replace(best, others=tuple(others))
        for name, (best, *others) in by_format.items()
    }


def fastest(operations: Mapping[str, Sequence[float]], how: str) -> Memory:
    """The bandwidth of memory by the fastest operation.

    Args:
        operations: samples of each, bytes a second.
        how: how they were measured.
    """
    name = max(operations, key=lambda one: max(operations[one]))
    return Memory(
        bytes_per_second=max(operations[name]),
        how=f"{name}; {how}",
        operations={one: tuple(samples) for one, samples in operations.items()},
    )


def _measure_here(threads: int) -> Attempt:
    """The processor's samples, taken in this process."""
    from sdexport.bench.roofline.bandwidth import ARRAY_BYTES, MemoryArrays
    from sdexport.bench.roofline.gemm import products

    made = list(products(threads))
    before = _used()
    memory = MemoryArrays(threads)
    taken = iter(
        take_turns([one.run for one in made] + [run for _, run in memory.operations.values()])
    )
    others = _others(before, _used())
    memory.close()
    return Attempt(
        device="cpu",
        threads=threads,
        products=tuple(
            Sampled(
                precision=one.precision,
                library=one.library,
                size=one.size,
                samples=tuple(one.operations / seconds for seconds in next(taken)),
            )
            for one in made
        ),
        operations={
            name: tuple(moved / seconds for seconds in next(taken))
            for name, (moved, _) in memory.operations.items()
        },
        how=HOW.format(bytes=ARRAY_BYTES, threads=threads),
        load_of_others=others,
    )


def _used() -> tuple[float, float, float] | None:
    """Seconds so far: all processors in use, all processors, this process; None but on Linux."""
    try:
        line = STAT.read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; proc(5). Guests are part of user.
    ticks = [int(field) for field in line.split()[1:9]]
    second = os.sysconf("SC_CLK_TCK")
    own = os.times()
    whole = sum(ticks) / second
    return whole - (ticks[3] + ticks[4]) / second, whole, own.user + own.system


def _others(
    before: tuple[float, float, float] | None, after: tuple[float, float, float] | None
) -> float | None:
    """The share of all processors' time between that was neither idle nor this process's."""
    if before is None or after is None:
        return None
    busy, whole, own = (end - start for start, end in zip(before, after, strict=True))
    return max(0.0, busy - own) / whole if whole > 0 else None


def main() -> None:
    """The measuring process: writes an `Attempt` to the file of its first argument."""
    from sdexport.backends.host.device import default_threads

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    value = _measure_here(given.threads or default_threads())
    given.result.write_bytes(msgspec.json.encode(value))


if __name__ == "__main__":
    main()
