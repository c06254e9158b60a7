"""Damages every file of bundles, an ONNX folder and a checkpoint, and counts how its use ends.

    python scripts/damage.py --work DIR [--flips 20] [--cuts 20] [--only NAME] [--json FILE]

Made from the tiny checkpoint of the tests: a bundle for each processor target, an ONNX folder and
the checkpoint. Each file in turn has bytes changed, is cut off, and is replaced by a link to
nothing, a link to itself, a fifo, a device, a folder, an unreadable and an empty file. Bundles are
also tried with the digests made right again, so that what lies behind them is reached, and with
`check=False`. Cases run in child processes of bounded memory, which end before a library's crash or
an endless read can end this one.

Ended well are `works` and `user error`; `traceback`, `hang` and `killed` are faults.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE_S = 120
MEMORY_BYTES = 8 << 30
"""Address space of a child: libraries reserve much more than they use."""

REPLACED = ("dangling", "loop", "fifo", "device", "folder", "unreadable", "empty")
GOOD = ("works", "user error")


def make(work: Path) -> None:
    """The things to damage, in `work`."""
    sys.path.insert(0, str(ROOT))
    from sdexport.compiler import BuildOptions, build_folder
    from sdexport.export import export_checkpoint
    from sdexport.model.shapes import Precision, Profile, Range
    from tests.checkpoints import make_tiny_checkpoint

    side = Range(32, 64, 128)
    profile = Profile(batch=Range(1, 1, 3), height=side, width=side)
    make_tiny_checkpoint(work / "checkpoint")
    export_checkpoint(work / "checkpoint", work / "onnx")
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        build_folder(work / "onnx", work / target, BuildOptions(target, Precision.FP32, profile))


def verbs_of(kind: str) -> tuple[str, ...]:
    """What is done with a damaged thing."""
    return {
        "checkpoint": ("open", "export"),
        "onnx": ("inspect", "build"),
    }.get(kind, ("load", "load unchecked", "load resigned", "inspect", "list"))


def cases(thing: Path, flips: int, cuts: int) -> Iterator[tuple[str, str, int]]:
    """File, damage and seed of every case."""
    for file in sorted(path for path in thing.rglob("*") if path.is_file()):
        name = file.relative_to(thing).as_posix()
        yield from ((name, "flip", seed) for seed in range(flips))
        yield from ((name, "cut", seed) for seed in range(cuts))
        yield from ((name, how, 0) for how in REPLACED)


def damage(file: Path, how: str, seed: int) -> None:
    """Damages one file."""
    chance = random.Random(f"{file.name} {how} {seed}")
    content = file.read_bytes()
    file.unlink()
    if how == "flip":
        changed = bytearray(content)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
    elif how == "cut":
        file.write_bytes(content[: chance.randrange(len(content))])
    elif how == "dangling":
        file.symlink_to("nowhere")
    elif how == "loop":
        file.symlink_to(file.name)
    elif how == "fifo":
        os.mkfifo(file)
    elif how == "device":
        file.symlink_to("/dev/zero")
    elif how == "folder":
        file.mkdir()
    elif how == "unreadable":
        file.write_bytes(content)
        file.chmod(0)
    else:
        file.touch()


def sign(bundle: Path) -> None:
    """Makes the digests of a damaged bundle right again, where its manifest can be read."""
    from sdexport.artifacts import reading

    file = bundle / "bundle.json"
    try:
        value: Any = reading.read_json(file)
        for name in value["files"]:
            size, content = reading.size(bundle / name), reading.digest(bundle / name)
            value["files"][name] = {"bytes": size, "sha256": content}
        value.pop("digest", None)
        file.write_text(json.dumps(value | {"digest": reading.digest_of(value)}))
    except Exception:  # what cannot be signed is tried as it is
        return


def use(verb: str, thing: Path, out: Path) -> None:
    """Does one thing with what was damaged."""
    import sdexport
    from sdexport.compiler.store import stored_in

    if verb.startswith("load"):
        if verb == "load resigned":
            sign(thing)
        with sdexport.load(thing, threads=1, check=verb != "load unchecked") as pipeline:
            pipeline.generate("a fox", num_inference_steps=1, seed=1)
    elif verb == "inspect":
        sdexport.inspect(thing)
    elif verb == "list":
        stored_in(thing.parent)
    elif verb == "open":
        from sdexport.export import open_checkpoint

        open_checkpoint(thing)
    elif verb == "export":
        sdexport.export_checkpoint(thing, out, parity=False)
    elif verb == "build":
        sdexport.build_folder(thing, out, sdexport.BuildOptions(target="onnxruntime-cpu"))


def child(thing: Path, verb: str, place: Path) -> None:
    """Runs the cases that come on stdin, one a line, and answers each with a line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from sdexport.errors import SdexportError

    def late(number: int, frame: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    for line in sys.stdin:
        name, how, seed = json.loads(line)
        copy, out = place / "bundles" / "copy", place / "out"
        for path in (copy, out):
            shutil.rmtree(path, ignore_errors=True)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Links, but for the one file that is damaged: a copy of it all would be the longest part.
        shutil.copytree(thing, copy, copy_function=os.link)
        damaged = copy / name
        content = damaged.read_bytes()
        damaged.unlink()
        damaged.write_bytes(content)
        if verb == "load resigned" and name != "bundle.json":
            manifest = copy / "bundle.json"
            text = manifest.read_text()
            manifest.unlink()
            manifest.write_text(text)
        damage(damaged, how, seed)
        signal.alarm(PATIENCE_S)
        said = ""
        try:
            use(verb, copy, out)
            ended = "works"
        except SdexportError as error:
            ended, said = "user error", str(error)
        except TimeoutError:
            ended = "hang"
        except BaseException as error:
            ended, said = "traceback", f"{type(error).__name__}: {error}"
        signal.alarm(0)
        print("\n" + json.dumps([ended, said[:300]]), flush=True)


def run(thing: Path, verb: str, todo: list[tuple[str, str, int]], place: Path) -> Iterator[Any]:
    """Every case with how it ended and what was said; a child that ends is replaced."""
    waiting = list(todo)
    while waiting:
        command = [sys.executable, __file__, "--child", str(thing), verb, str(place)]
        if os.geteuid() == 0 and shutil.which("setpriv"):
            command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        while waiting:
            case = waiting.pop(0)
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            answer = _answer(process)
            yield (*case, *answer)
            if answer[0] in ("killed", "hang"):
                break
        process.kill()
        process.wait()


def _answer(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a child says of one case, or how it ended."""
    assert process.stdout is not None

    def late(number: int, frame: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S + 30)
    try:
        for line in process.stdout:
            if line.startswith('["'):
                ended, said = json.loads(line)
                return ended, said
        return "killed", f"exit code {process.wait()}"
    except TimeoutError:
        return "hang", "in a library's own code"
    finally:
        signal.alarm(0)


def main() -> int:
    """Runs all cases and prints a table; exit code 1 where one ended in a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--only", help="one of onnxruntime-cpu, openvino-cpu, onnx, checkpoint")
    parser.add_argument("--json", type=Path, help="write every case here")
    given = parser.parse_args()
    things = ("onnxruntime-cpu", "openvino-cpu", "onnx", "checkpoint")
    if not (given.work / "openvino-cpu").is_dir():
        given.work.mkdir(parents=True, exist_ok=True)
        make(given.work)
    faults: list[Any] = []
    every: list[Any] = []
    print(f"{'thing':16} {'verb':15} {'cases':>6} {'works':>6} {'user':>6} {'fault':>6} seconds")
    for name in things if given.only is None else (given.only,):
        for verb in verbs_of(name):
            todo = list(cases(given.work / name, given.flips, given.cuts))
            if verb in ("export", "build"):
                # Where each takes a second: fewer of the bytes of weights, which nobody parses.
                todo = [one for one in todo if one[2] < 3]
            start = time.monotonic()
            done = list(run(given.work / name, verb, todo, given.work / "place"))
            counts = Counter(one[3] for one in done)
            wrong = [(name, verb, *one) for one in done if one[3] not in GOOD]
            print(
                f"{name:16} {verb:15} {len(done):6} {counts['works']:6} "
                f"{counts['user error']:6} {len(wrong):6} {time.monotonic() - start:7.0f}",
                flush=True,
            )
            faults += wrong
            every += [(name, verb, *one) for one in done]
    for one in faults:
        print(*one)
    if given.json is not None:
        given.json.write_text(json.dumps(every, indent=1))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"{len(every)} cases, {len(faults)} faults; peak of a child {peak / 1e6:.2f} GB")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    else:
        sys.exit(main())
