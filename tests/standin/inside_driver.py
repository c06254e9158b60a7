"""`backends/cuda/driver.py` on the stand-in driver, and the stand-in itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np
import pytest

from sdexport.artifacts.builder_options import BuiltFor
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.layout import Block, Layout, Tensor
from sdexport.errors import DeviceLostError, DeviceMemoryError, EngineError, UsageError
from tests.standin.world import LAUNCH_FAILED, OUT_OF_MEMORY, OUT_OF_RESOURCES, Standin


@pytest.fixture
def gpu() -> driver.Context:
    return driver.Context()


def pinned(values: np.ndarray) -> driver.PinnedBuffer:
    buffer = driver.PinnedBuffer(values.nbytes)
    buffer.array(values.shape, values.dtype)[...] = values
    return buffer


def test_the_device_is_described(gpu: driver.Context, standin: Standin) -> None:
    assert (gpu.capability, gpu.name) == ("sm89", "stand-in, no GPU")
    with driver.DeviceBuffer(1 << 20):
        free, total = gpu.memory()
        assert (total, total - free) == (2 << 30, 1 << 20)


def test_work_runs_at_the_wait(gpu: driver.Context) -> None:
    with (
        driver.Stream() as stream,
        driver.DeviceBuffer(16) as device,
        driver.PinnedBuffer(16) as host,
    ):
        values = host.array((4,), np.float32)
        assert np.isnan(values).all(), "new pinned memory holds no numbers"
        values[...] = 1
        stream.copy_in(device.address, host, 16)
        values[...] = 2  # A mistake in earnest: the copy has not run yet.
        stream.wait()
        values[...] = 3
        stream.copy_out(host, device.address, 16)
        stream.wait()
        assert (values == 2).all()


def test_device_memory_is_nan_before_and_after_use(gpu: driver.Context) -> None:
    with driver.Stream() as stream, driver.PinnedBuffer(64) as host:
        values = host.array((16,), np.float32)
        with driver.DeviceBuffer(64) as device:
            values[...] = 7
            stream.copy_out(host, device.address, 64)
            stream.wait()
            assert np.isnan(values).all()
            stream.zero(device.address, 32)
            stream.copy_out(host, device.address, 64)
            stream.wait()
            assert (values[:8] == 0).all()
            assert np.isnan(values[8:]).all()


def test_events_are_passed_in_stream_order(gpu: driver.Context) -> None:
    with (
        driver.Stream() as stream,
        driver.DeviceBuffer(16) as device,
        driver.PinnedBuffer(16) as host,
        driver.Event() as first,
        driver.Event() as second,
    ):
        assert first.done(), "an event that nobody recorded is passed"
        stream.record(first)
        stream.copy_in(device.address, host, 16)
        stream.record(second)
        assert not second.done()
        questions = 1
        while not second.done():
            questions += 1
        assert questions == 2, "the device does one piece of work a question"
        assert first.done()
        assert second.seconds_since(first) > 0


def test_a_graph_keeps_its_addresses(gpu: driver.Context, standin: Standin) -> None:
    with (
        driver.Stream() as stream,
        driver.DeviceBuffer(16) as device,
        driver.PinnedBuffer(16) as host,
    ):
        values = host.array((4,), np.float32)

        def body() -> None:
            stream.copy_in(device.address, host, 16)

        with driver.Graph(stream, body) as graph:
            stream.wait()
            for number in range(3):
                values[...] = number
                stream.launch(graph)
                stream.wait()
                values[...] = -1
                stream.copy_out(host, device.address, 16)
                stream.wait()
                assert (values == number).all()
        assert standin.count("cuGraphLaunch") >= 3


def test_a_graph_that_reads_freed_memory_loses_the_device(
    gpu: driver.Context, standin: Standin
) -> None:
    with driver.Stream() as stream, driver.PinnedBuffer(16) as host:
        device = driver.DeviceBuffer(16)
        with driver.Graph(stream, lambda: stream.copy_in(device.address, host, 16)) as graph:
            device.close()
            stream.launch(graph)
            with pytest.raises(DeviceLostError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*start the"):
                stream.wait()
            # From now on everything says so.
            with pytest.raises(DeviceLostError):
                gpu.use()
            standin.revive()


@pytest.mark.parametrize(
    "forbidden",
    [
        pytest.param(lambda stream: driver.DeviceBuffer(64), id="allocate"),
        pytest.param(lambda stream: driver.PinnedBuffer(64), id="pin"),
        pytest.param(lambda stream: stream.wait(), id="wait"),
    ],
)
def test_an_invalid_capture_is_refused_and_leaves_nothing(
    gpu: driver.Context, standin: Standin, forbidden: Callable[[driver.Stream], None]
) -> None:
    with driver.Stream() as stream:
        before = standin.held()
        with pytest.raises(EngineError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
            driver.Graph(stream, lambda: forbidden(stream))
        assert standin.held() == before
        # The stream captures and works again.
        with driver.Graph(stream, lambda: None) as graph:
            stream.launch(graph)
            stream.wait()


def test_another_thread_may_allocate_during_a_capture(gpu: driver.Context) -> None:
    failures: list[BaseException] = []

    def allocate() -> None:
        try:
            gpu.use()
            driver.DeviceBuffer(64).close()
        except BaseException as error:
            failures.append(error)

    def body() -> None:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()

    with driver.Stream() as stream, driver.Graph(stream, body):
        assert failures == []


def test_a_thread_without_the_context_is_refused(gpu: driver.Context) -> None:
    said: list[str] = []

    def work() -> None:
        try:
            driver.DeviceBuffer(64)
        except EngineError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "cuMemAlloc failed with CUDA_ERROR_INVALID_CONTEXT" in said[0]


def test_copies_beyond_memory_are_refused(gpu: driver.Context) -> None:
    with (
        driver.Stream() as stream,
        driver.DeviceBuffer(64) as device,
        driver.PinnedBuffer(128) as host,
    ):
        with pytest.raises(EngineError, match="cuMemcpyHtoDAsync.*CUDA_ERROR_INVALID_VALUE"):
            stream.copy_in(device.address, host, 65)
        with pytest.raises(EngineError, match="cuMemcpyDtoHAsync.*CUDA_ERROR_INVALID_VALUE"):
            stream.copy_out(host, device.address + 32, 64)
        with pytest.raises(EngineError, match="cuMemsetD8Async"):
            stream.zero(device.address, 65)


def test_a_memory_error_says_what_is_needed_and_free(gpu: driver.Context, standin: Standin) -> None:
    with (
        driver.DeviceBuffer(1 << 30),
        pytest.raises(
            DeviceMemoryError,
            match=r"activations need 1,536 MiB .*1,024 of 2,048 MiB are free.*cuMemAlloc",
        ),
    ):
        driver.DeviceBuffer(3 << 29, "activations")
    assert standin.held()[0] == 0


def test_errors_name_the_call_the_status_and_the_remedy(
    gpu: driver.Context, standin: Standin
) -> None:
    with driver.Stream() as stream, driver.DeviceBuffer(64) as device:
        for status, kind, pattern in (
            (OUT_OF_RESOURCES, EngineError, r"cuMemsetD8Async.*OUT_OF_RESOURCES.*fewer images"),
            (OUT_OF_MEMORY, DeviceMemoryError, r"memory is full.*cuMemsetD8Async.*other programs"),
            (
                LAUNCH_FAILED,
                DeviceLostError,
                r"can no longer use the GPU.*LAUNCH_FAILED.*start the pr",
            ),
            (999, EngineError, r"status 999.*start the program again.*NVRM"),
        ):
            standin.fail("cuMemsetD8Async", 1, status)
            with pytest.raises(kind, match=pattern):
                stream.zero(device.address, 64)
            standin.revive()


def test_closing_is_idempotent_and_continues_after_a_failure(
    gpu: driver.Context, standin: Standin
) -> None:
    before = standin.held()
    buffers = [driver.DeviceBuffer(64) for _ in range(3)]
    buffers[0].close()
    buffers[0].close()
    standin.fail("cuMemFree_v2", 1, OUT_OF_RESOURCES)
    with pytest.raises(EngineError, match="cuMemFree"):
        driver.close_all(buffers)
    assert standin.held() == before


def test_rows_of_a_table_are_aligned(gpu: driver.Context) -> None:
    layout = Layout.of(
        [
            Tensor("ids", np.dtype(np.int64), (2, 3)),
            Tensor("timestep", np.dtype(np.float32), (3,), rows=5),
            Tensor("noise", np.dtype(np.float32), (3, 2, 2), rows=1),
        ]
    )
    with driver.Stream() as stream:
        block = Block(layout, "a test")
        block.host("ids")[...] = np.arange(6).reshape(2, 3)
        block.host("timestep")[...] = np.arange(15, dtype=np.float32).reshape(5, 3)
        block.host("noise")[...] = np.full((1, 3, 2, 2), 4)
        stream.copy_in(block.device.address, block.pinned, layout.size)
        for row in range(5):
            address = block.address("timestep", row)
            assert address % driver.ALIGNMENT == 0
            with driver.PinnedBuffer(12) as host:
                stream.copy_out(host, address, 12)
                stream.wait()
                assert (host.array((3,), np.float32) == np.arange(3) + 3 * row).all()
        block.close()


def test_threads_wait_for_their_own_streams(gpu: driver.Context) -> None:
    found: dict[int, bool] = {}

    def work(number: int) -> None:
        gpu.use()
        source = np.full(1000, number, np.float32)
        with driver.Stream() as stream, driver.DeviceBuffer(4000) as device, pinned(source) as host:
            values = host.array((1000,), np.float32)
            for _ in range(50):
                stream.copy_in(device.address, host, 4000)
                stream.copy_out(host, device.address, 4000)
                stream.wait()
            found[number] = bool((values == number).all())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys(range(8), True)


def test_cuda_is_refused_in_a_forked_child() -> None:
    driver.context_for("tensorrt", "unet", BuiltFor())
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            driver.context_for("tensorrt", "unet", BuiltFor())
            said = "no error"
        except UsageError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert "forked from" in said
    assert "spawn" in said


@pytest.mark.parametrize("times", [1, 2])
def test_a_capture_that_was_spoilt_from_outside_is_tried_once_more(
    gpu: driver.Context, standin: Standin, times: int
) -> None:
    tries = []

    def body() -> None:
        tries.append(1)
        if len(tries) <= times:
            driver.driver().cuCtxSynchronize()  # As another library of the process may.

    with driver.Stream() as stream:
        before = standin.held()
        if times == 1:
            with driver.Graph(stream, body) as graph:
                stream.launch(graph)
                stream.wait()
        else:
            with pytest.raises(EngineError, match="CAPTURE_INVALIDATED"):
                driver.Graph(stream, body)
        assert len(tries) == 2
        assert standin.held() == before
