"""The machine's peaks: measured apart, plausible, and never lower for a disturbance."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sdexport.artifacts.documents import to_builtins
from sdexport.bench.results import MatrixProduct, Memory
from sdexport.bench.roofline import bandwidth, gemm, machine
from sdexport.bench.roofline.bandwidth import MemoryArrays
from sdexport.bench.roofline.machine import Attempt, Sampled, best_of, fastest, measure, take_turns
from sdexport.errors import EngineError, MissingExtraError, UsageError

SIZE = 192


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products small enough for a test."""
    monkeypatch.setattr(gemm, "SMALL", SIZE)
    monkeypatch.setattr(gemm, "LARGE", (SIZE, SIZE))


@pytest.mark.usefixtures("small")
def test_products_of_both_libraries_run() -> None:
    found = list(gemm.products(1))
    assert {one.precision for one in found} >= {"fp32", "int8"}
    assert {one.library.split()[0] for one in found} == {"openvino", "onnxruntime"}
    for one in found:
        assert one.operations == 2 * SIZE**3
        one.run()


@pytest.mark.usefixtures("small")
def test_without_a_library_the_other_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise MissingExtraError("no openvino")

    monkeypatch.setattr(gemm.openvino_cpu, "core", missing)
    assert {one.library.split()[0] for one in gemm.products(1)} == {"onnxruntime"}


@pytest.mark.usefixtures("small")
def test_the_formats_are_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product rounds as its format does: else the peak would be another format's."""
    from openvino import opset13

    real = opset13.result
    kept: list[Any] = []
    monkeypatch.setattr(gemm, "_matrix", lambda size, seed: matrix(seed))

    def matrix(seed: int) -> Any:
        return np.random.default_rng(seed).standard_normal((SIZE, SIZE), np.float32)

    monkeypatch.setattr(opset13, "result", lambda node: kept.append(node) or real(node))
    exact = matrix(0).astype(float) @ matrix(1).astype(float).T
    errors = {}
    for one in gemm._openvino(SIZE, 1):
        if one.precision != "int8":
            result = one.run.__self__  # type: ignore[attr-defined]  # the request of the product
            one.run()
            got = result.get_output_tensor(0).data
            if one.precision == "bf16":
                got = (got.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            difference = got - exact
            errors[one.precision] = float(np.abs(difference).max() / np.abs(exact).max())
    assert errors["fp32"] < 1e-5
    if "bf16" in errors:
        assert 1e-4 < errors["bf16"] < 5e-2


def test_memory_does_what_it_counts() -> None:
    memory = MemoryArrays(2, total=4 * 2 * bandwidth.PIECE)
    try:
        assert {name: moved for name, (moved, _) in memory.operations.items()} == {
            "copy": 2 * 8 * bandwidth.PIECE,
            "triad": 3 * 8 * bandwidth.PIECE,
            "read": 2 * 8 * bandwidth.PIECE,
        }
        memory.operations["triad"][1]()
        assert all((a == 4).all() for a, _, _ in memory._arrays)
        memory.operations["copy"][1]()
        assert all((a == 1).all() for a, _, _ in memory._arrays)
        memory.operations["read"][1]()
    finally:
        memory.close()


def test_everything_takes_turns_after_a_first_run() -> None:
    order: list[str] = []
    runs = [lambda: order.append("a"), lambda: order.append("b")]
    samples = take_turns(runs, rounds=2, turn=0.0)
    assert [len(one) for one in samples] == [4, 4]
    assert "".join(order) == "ab" + "aaabbb" * 2


def test_a_disturbance_does_not_lower_the_peak() -> None:
    """Half of the samples are disturbed; the peak is that of the others."""
    calls = iter(range(1000))

    def run() -> None:
        time.sleep(0.03 if next(calls) % 2 else 0.003)

    (samples,) = take_turns([run], rounds=2, turn=0.1)
    assert max(samples) > 0.03
    value = fastest({"copy": [1 / seconds for seconds in samples]}, "somehow")
    assert 1 / value.bytes_per_second < 0.015
    assert value.how == "copy; somehow"


def test_the_best_library_and_size_of_each_format() -> None:
    def one(precision: str, library: str, size: int, *samples: float) -> Sampled:
        return Sampled(precision=precision, library=library, size=size, samples=samples)

    found = best_of(
        [one("fp32", "a 1", 2, 5.0, 4.0), one("fp32", "b 2", 3, 1.0, 9.0), one("int8", "a 1", 2, 7)]
    )
    slower = MatrixProduct(flops_per_second=5.0, library="a 1", size=2, samples=(5.0, 4.0))
    assert found["fp32"] == MatrixProduct(
        flops_per_second=9.0, library="b 2", size=3, samples=(1.0, 9.0), others=(slower,)
    )
    assert found["int8"].flops_per_second == 7


CHILD = """
import json, sys
from sdexport.bench.roofline import bandwidth, gemm, machine
gemm.SMALL, gemm.LARGE = 192, (192, 192)
bandwidth.ARRAY_BYTES = 2**22
bandwidth.MemoryArrays.__init__.__defaults__ = (2**22,)
machine.ROUNDS, machine.TURN_S = 1, 0.0
machine.take_turns.__kwdefaults__.update(rounds=1, turn=0.0)
machine.main()
"""


def test_measured_in_a_process_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with small matrices."""
    commands: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return real([command[0], "-c", CHILD, *command[3:]], **options)

    monkeypatch.setattr(subprocess, "run", run)
    value = measure(1)
    assert commands[0][:3] == [sys.executable, "-m", "sdexport.bench.roofline.machine"]
    assert commands[0][-1] == "--threads=1"
    json.dumps(to_builtins(value))
    assert (value.device, value.threads) == ("cpu", 1)
    assert {"fp32", "int8"} <= value.compute.keys()
    for one in value.compute.values():
        assert one.flops_per_second == max(one.samples)
        # Between a very slow processor and more than any has a core.
        assert 1e8 < one.flops_per_second < 1e14
    assert value.memory is not None
    assert set(value.memory.operations) == {"copy", "triad", "read"}
    assert value.memory.bytes_per_second > 1e7
    assert value.seconds is not None
    assert math.isfinite(value.seconds)


def ends(code: int, said: str, content: str | None) -> Callable[..., Any]:
    def run(command: list[str], **options: Any) -> Any:
        if content is not None:
            Path(command[3]).write_text(content)
        return subprocess.CompletedProcess(command, code, "", said)

    return run


def test_what_a_failed_process_said_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", ends(-11, "first\nlast words\n", None))
    with pytest.raises(EngineError, match=r"exit code -11\): last words"):
        measure()
    monkeypatch.setattr(subprocess, "run", ends(0, "", None))
    with pytest.raises(EngineError, match="nothing"):
        measure()


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TIMEOUT_S", 0.05)
    real = subprocess.run
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **options: real(
            [command[0], "-c", "import time; time.sleep(60)"], **options
        ),
    )
    with pytest.raises(EngineError, match="run again"):
        measure()


def test_unknown_devices_and_no_threads() -> None:
    with pytest.raises(UsageError, match="device must be cpu or cuda, got 'tpu'"):
        measure(device="tpu")
    with pytest.raises(
        UsageError, match="threads must be at least 1, or None for all cores, got 0"
    ):
        measure(0)


def test_without_a_gpu_that_is_said() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match="finds no GPU"):
        measure(device="cuda")


def test_what_measures_a_gpu_measures_a_processor_too() -> None:
    from sdexport.export.gpu_peaks import measure as by_torch

    written = json.dumps(by_torch("cpu", sizes=(64,), copy_bytes=4096, samples=3))
    value = msgspec.json.decode(written, type=Attempt)
    found = best_of(value.products)
    assert set(found) == {"fp32", "bf16"}
    assert len(found["fp32"].samples) == 3
    assert fastest(value.operations, value.how).bytes_per_second > 0


def test_a_disturbed_measurement_is_tried_again_and_all_samples_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = iter([(0.4, 5.0), (0.01, 9.0), (0.0, 99.0)])

    def attempt(module: str, threads: int | None) -> Attempt:
        others, best = next(taken)
        one = Sampled(precision="fp32", library="a 1", size=2, samples=(best,))
        return Attempt(
            device="cpu",
            threads=2,
            products=(one,),
            operations={"copy": (best,)},
            how="somehow",
            load_of_others=others,
        )

    monkeypatch.setattr(machine, "_attempt", attempt)
    value = measure(2)
    assert value.load_of_others == (0.4, 0.01)
    assert value.compute["fp32"].flops_per_second == 9.0
    assert value.memory == Memory(
        bytes_per_second=9.0, how="copy; somehow", operations={"copy": (5.0, 9.0)}
    )


def test_what_others_take_is_told() -> None:
    assert machine._others((10.0, 100.0, 3.0), (16.0, 120.0, 7.0)) == pytest.approx(0.1)
    assert machine._others(None, (1.0, 2.0, 3.0)) is None
    used = machine._used()
    if Path("/proc/stat").exists():
        assert used is not None
        busy, whole, own = used
        assert 0 < own < whole
        assert busy < whole


def test_another_system_tells_nothing_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "STAT", tmp_path / "none")
    assert machine._used() is None
