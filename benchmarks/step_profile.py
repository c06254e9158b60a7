"""Where an evaluation's time goes in an OpenVINO bundle: its denoise step, by kind of operator.

    python benchmarks/step_profile.py BUNDLE [--size 512x512] [--rounds 10] [--longest 20]

The step is compiled as the run path compiles it: for the shapes of one image with guidance,
without the inputs that an image from text can do without. Times are OpenVINO's own (PERF_COUNT),
means over the rounds; an operator's name is that of the first operator of the ONNX graph in it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.artifacts.bundle import open_bundle
from sdexport.backends.openvino import optional_inputs, precision, session
from sdexport.backends.slots import Shape, step_shapes
from sdexport.model.shapes import Precision
from sdexport.pipeline.load import load_model


def compiled(path: Path, width: int, height: int) -> Any:
    """The step of the bundle at `path`, compiled with counters; ready to be run."""
    bundle = open_bundle(path, check=False)
    parts = load_model(bundle)
    scale = parts.model.latents.scale
    shapes = step_shapes(
        parts.sessions, Shape(1, 2, height // scale, width // scale, parts.model.tokens)
    )
    core = session.core()
    model = core.read_model(bundle.engine_file("denoise_step"))
    if optional_inputs.find(model):
        model = optional_inputs.remove(model)
    inputs = {port: next(n for n in shapes if n in port.get_names()) for port in model.inputs}
    model.reshape({port: shapes[name] for port, name in inputs.items()})
    if bundle.manifest.precision is not Precision.FP32:
        precision.keep_float32(model, core)
    call = core.compile_model(
        model,
        session.DEVICE,
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": session.HINTS[bundle.manifest.precision],
            "PERF_COUNT": True,
        },
    ).create_infer_request()
    numbers = np.random.default_rng(0)
    for index in range(len(model.inputs)):
        tensor = call.get_input_tensor(index).data
        tensor[:] = numbers.standard_normal(tensor.shape, np.float32)
    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", default="512x512", metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--longest", type=int, default=20, help="single operators that are shown")
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    call = compiled(given.bundle, width, height)
    kinds: Counter[tuple[str, str]] = Counter()
    calls: Counter[tuple[str, str]] = Counter()
    single: Counter[tuple[str, str]] = Counter()
    for number in range(given.rounds + 1):
        call.infer()
        for one in call.profiling_info if number else ():  # the first one is warm-up
            seconds = one.real_time.total_seconds()
            if one.status.name == "EXECUTED":
                kinds[one.node_type, one.exec_type] += seconds
                calls[one.node_type, one.exec_type] += 1
                single[one.node_type, one.node_name] += seconds
    whole = sum(kinds.values())
    print(f"{whole / given.rounds * 1e3:10.2f} ms an evaluation, in its operators")
    for (kind, how), seconds in kinds.most_common():
        count = calls[kind, how] // given.rounds
        print(
            f"{seconds / given.rounds * 1e3:10.2f} ms {seconds / whole:6.1%} {count:5} × "
            f"{kind} {how}"
        )
    print()
    for (kind, name), seconds in single.most_common(given.longest):
        print(f"{seconds / given.rounds * 1e3:10.2f} ms {kind} {name}")


if __name__ == "__main__":
    main()
