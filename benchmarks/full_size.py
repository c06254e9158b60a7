"""A checkpoint of Stable Diffusion 1.5's size, from export to an image: time and peak memory.

The weights are random (the published configuration, half precision), so the image means nothing;
time and memory do. Each command runs in a process of its own, whose peak the system tells.

    python benchmarks/full_size.py FOLDER [--target openvino-cpu] [--steps 5] [--size 512x512]
    python benchmarks/full_size.py FOLDER --target tensorrt-rtx --compute-capability sm86 sm89

A bundle for GPUs is built where none is, and generated from only where one is. FOLDER needs about
15 GB; the checkpoint there is made once, the bundle is reused when it is equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MAKE = """
import sys
from pathlib import Path
from tests.checkpoints import make_sd15_checkpoint
make_sd15_checkpoint(Path(sys.argv[1]))
"""


def measured(*command: str) -> tuple[str, float, int]:
    """What `command` printed, its seconds, and its peak memory in bytes; ends when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}\n{said}")
    return said, time.perf_counter() - start, usage.ru_maxrss * 1024


def line(name: str, seconds: float, peak: int) -> None:
    print(f"{name:28} {seconds:9.1f} s {peak / 1e9:8.2f} GB", flush=True)


def show_engines(bundle: Path) -> None:
    """What the build noted of each engine of a bundle for GPUs."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    for name, engine in manifest["engines"].items():
        built = engine["built"]
        print(
            f"  {name}: {built['bytes'] / 1e6:,.0f} MB for "
            f"{', '.join(built['compute_capabilities'])}, built in {built['seconds']:.1f} s, "
            f"{built['peak_bytes'] / 1e9:.2f} GB at most, "
            f"{built['activation_bytes'] / 1e6:,.0f} MB of activations"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="openvino-cpu")
    parser.add_argument("--compute-capability", nargs="*", default=[], metavar="SM")
    parser.add_argument("--steps", default="5")
    parser.add_argument("--size", default="512x512", metavar="WxH")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = folder / "checkpoint", folder / f"bundle-{options.target}"
    sdexport = (sys.executable, "-m", "sdexport")
    print(f"{'stage':28} {'time':>11} {'peak':>11}")
    if not checkpoint.exists():
        _, seconds, peak = measured(sys.executable, "-c", MAKE, str(checkpoint))
        line("make the checkpoint", seconds, peak)
    capabilities = [f"--compute-capability={one}" for one in options.compute_capability]
    said, seconds, peak = measured(
        *(*sdexport, "compile", str(checkpoint), str(bundle), "--target", options.target, "--json"),
        *capabilities,
    )
    report: dict[str, Any] = json.loads(said)
    for stage in report["stages"]:
        line(f"  {stage['name']}", stage["seconds"], stage["peak_bytes"])
    line("sdexport compile", seconds, peak)
    said, _, _ = measured(*sdexport, "engines", "list", str(bundle), "--json")
    (stored,) = json.loads(said)
    if not stored["runs"]:
        show_engines(bundle)
        print(f"\nnot generated from: {stored['why']}")
        print(json.dumps({"compile": report}), file=sys.stderr)
        return
    said, seconds, peak = measured(
        *(*sdexport, "generate", str(bundle), "a red apple", "--steps", options.steps),
        *("--size", options.size, "--seed", "0", "-o", str(folder / "image.png"), "--json"),
    )
    generated: dict[str, Any] = json.loads(said)
    line("sdexport generate", seconds, peak)
    timings = generated["seconds"]
    inside = sum(timings["evaluations"])
    print(
        f"\ntext encoder {timings['text_encoder']:.2f} s, {len(timings['evaluations'])} "
        f"evaluations of {inside / len(timings['evaluations']):.2f} s, "
        f"VAE decoder {timings['vae_decoder']:.2f} s; "
        f"the loop outside evaluations {1 - inside / timings['denoise']:.3%}"
    )
    print(json.dumps({"compile": report, "generate": generated}), file=sys.stderr)


if __name__ == "__main__":
    main()
