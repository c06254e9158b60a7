"""Kills `compile` at moments spread over its whole run, and looks at what is left each time.

    python -m tests.killing --moments 25

A moment is a change of the file system, counted in a run that is not killed; the last ones, around
the renames that put the bundle into its place, are all tried. After each kill the bundle at the
destination must open and generate the earlier model's image or the new one's, or be absent if
there was none; then `compile` must succeed, and leave nothing beside the bundle. Written with
--containers, two processes in process id namespaces of their own compile at once, and one of them
is killed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}
LAST = 12
"""So many of a run's last moments are all tried."""
REQUEST: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "width": 32, "height": 32}
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")
"""Starts a program that sees other process ids than those outside."""
NOT_FIRST = ("sh", "-c", '"$@"; exit $?', "sh")
"""Starts a program as another than a container's first process, which its own SIGKILL spares."""


@functools.cache
def in_containers() -> bool:
    """Whether `CONTAINER` can be had here."""
    if shutil.which(CONTAINER[0]) is None:
        return False
    tried = subprocess.run([*CONTAINER, "true"], capture_output=True, check=False)
    return tried.returncode == 0


def count_and_kill(moment: int | None, exchanging: bool) -> Callable[[], int]:
    """Counts this process's changes of files from now on, and kills it just before the `moment`th.

    Gives what says how many there were.
    """
    from sdexport.artifacts.storage import folders

    seen = 0

    def happens() -> None:
        nonlocal seen
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and set(str(arguments[1])) & set("wax+")):
            happens()

    sys.addaudithook(heard)
    real = folders.exchange

    def exchange(one: Path, other: Path) -> bool:
        happens()
        done = exchanging and real(one, other)
        happens()
        return done

    folders.exchange = exchange
    return lambda: seen


def compile_here(checkpoint: Path, bundle: Path, *, again: bool = False) -> None:
    """Compiles; `again`: as a user does after a kill, here without comparing with PyTorch anew."""
    from sdexport.compiler import BuildOptions, compile_checkpoint
    from sdexport.model.shapes import Precision, Profile, Range

    profile = Profile(batch=Range(1, 1, 2), height=Range(32, 32, 64), width=Range(32, 32, 64))
    options = BuildOptions("onnxruntime-cpu", Precision.FP32, profile)
    compile_checkpoint(checkpoint, bundle, options, force=not again, verify=not again)


def forked(run: Callable[[], None]) -> int:
    """Runs in a child that has imported everything already; its exit status, below 0: a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def image_of(bundle: Path) -> str:
    """What the bundle generates, in a process of its own; raises where it does not."""
    generated = subprocess.run(
        [sys.executable, "-m", "tests.killing", "generate", str(bundle)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if generated.returncode:
        raise AssertionError(f"{bundle} does not generate: {generated.stderr[-800:]}")
    return generated.stdout.strip()


def generate(bundle: Path) -> str:
    import hashlib

    import sdexport

    with sdexport.load(bundle, threads=1) as pipeline:
        images = pipeline.generate("a red cat", **REQUEST).images
    return hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()


def beside(bundle: Path) -> list[str]:
    return sorted(path.name for path in bundle.parent.iterdir() if path != bundle)


class Trial:
    """Two checkpoints, their bundles and what these generate."""

    def __init__(self, work: Path) -> None:
        # Threads that wait for each other by spinning take minutes where others compute as well.
        os.environ["OMP_NUM_THREADS"] = "1"
        # Imported once, for all children; nothing is computed here, which no fork would survive.
        import diffusers  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import transformers  # noqa: F401

        self.work = work
        self.images: dict[str, str] = {}
        self.counts: dict[tuple[bool, bool], int] = {}
        for seed, name in enumerate(("old", "new")):
            assert forked(functools.partial(self._make, name, seed)) == 0
            self.images[image_of(work / name)] = name
        assert len(self.images) == 2

    def _make(self, name: str, seed: int) -> None:
        from tests.checkpoints import make_tiny_checkpoint

        make_tiny_checkpoint(self.work / f"{name}-checkpoint", seed=seed)
        compile_here(self.work / f"{name}-checkpoint", self.work / name)

    def place(self, name: str, old: bool) -> Path:
        folder = self.work / name
        folder.mkdir()
        if old:
            shutil.copytree(self.work / "old", folder / "bundle")
        return folder / "bundle"

    def found(self, bundle: Path) -> str:
        """Which bundle is there: `old`, `new` or `absent`."""
        from sdexport.artifacts import storage

        return self.images[image_of(bundle)] if storage.found_again(bundle) else "absent"

    def moments(self, old: bool, exchanging: bool) -> int:
        """How many changes a run makes that is not killed; counted once."""
        if (old, exchanging) in self.counts:
            return self.counts[old, exchanging]
        bundle = self.place(f"count-{old}-{exchanging}", old)
        counted = self.work / f"count-{old}-{exchanging}.json"

        def run() -> None:
            many = count_and_kill(None, exchanging)
            compile_here(self.work / "new-checkpoint", bundle)
            number = many()
            counted.write_text(json.dumps(number))

        assert forked(run) == 0
        self.counts[old, exchanging] = int(json.loads(counted.read_text()))
        return self.counts[old, exchanging]

    def kill(self, moment: int, old: bool, exchanging: bool) -> tuple[str, int]:
        """What is there after a kill, and how many leftovers; raises where anything is wrong."""
        bundle = self.place(f"kill-{moment}-{old}-{exchanging}", old)

        def run() -> None:
            count_and_kill(moment, exchanging)
            compile_here(self.work / "new-checkpoint", bundle)

        status = forked(run)
        assert status == -signal.SIGKILL, f"moment {moment} ended with {status}"
        left = len(beside(bundle))
        found = self.found(bundle)
        assert old or found != "old"
        assert not old or found != "absent", f"moment {moment} lost both bundles"
        self.rerun(bundle)
        shutil.rmtree(bundle.parent)
        return found, left

    def rerun(self, bundle: Path) -> None:
        checkpoint = self.work / "new-checkpoint"
        assert forked(lambda: compile_here(checkpoint, bundle, again=True)) == 0
        assert self.found(bundle) == "new"
        assert beside(bundle) == [], beside(bundle)

    def containers(self, moment: int, old: bool) -> str:
        """Two containers compile at once, one is killed; what is there when the other has ended."""
        bundle = self.place(f"two-{moment}-{old}", old)
        processes = [
            subprocess.Popen(
                [*CONTAINER, *NOT_FIRST, sys.executable, "-m", "tests.killing", "compile",
                 str(self.work / "new-checkpoint"), str(bundle), str(when)],
                cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for when in (moment, -1)
        ]  # fmt: skip
        said = [process.communicate()[1] for process in processes]
        # Where the other was first, there is less to do, and the moment may not come.
        killed = processes[0].returncode != 0
        assert processes[1].returncode == 0, said[1][-800:]
        found = self.found(bundle)
        assert found == "new"
        self.rerun(bundle)
        shutil.rmtree(bundle.parent)
        return f"{found}, one killed" if killed else f"{found}, moment not reached"


def spread(total: int, moments: int) -> list[int]:
    """`moments` numbers below `total`: the last ones, the others spread over what is before."""
    last = min(LAST, moments // 2)
    before = total - last
    early = [before * number // (moments - last) for number in range(moments - last)]
    return [*early, *range(before, total)]


def tried(trial: Trial, moments: int, *, old: bool, exchanging: bool, only_last: bool = False
          ) -> dict[str, Any]:  # fmt: skip
    """Kills at so many moments and counts what was found; stops with the first fault."""
    start = time.monotonic()
    total = trial.moments(old, exchanging)
    chosen = list(range(total - min(LAST, moments), total)) if only_last else spread(total, moments)
    counts: Counter[str] = Counter()
    left = 0
    for moment in chosen:
        found, leftovers = trial.kill(moment, old, exchanging)
        counts[found] += 1
        left += leftovers
        print(f"moment {moment} of {total}: {found}", file=sys.stderr, flush=True)
    return {
        "old bundle there": old,
        "exchange": exchanging,
        "moments": len(chosen),
        "of": total,
        **counts,
        "leftovers before the rerun": left,
        "after": 0,
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    if sys.argv[1:2] == ["generate"]:
        print(generate(Path(sys.argv[2])))
        return
    if sys.argv[1:2] == ["compile"]:
        checkpoint, bundle, moment = sys.argv[2:]
        if int(moment) >= 0:
            count_and_kill(int(moment), True)
        compile_here(Path(checkpoint), Path(bundle))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--moments", type=int, default=25)
    parser.add_argument("--containers", type=int, default=4, help="kills of one of two containers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        for old in (True, False):
            print(json.dumps(tried(trial, given.moments, old=old, exchanging=True)), flush=True)
        print(
            json.dumps(tried(trial, given.moments, old=True, exchanging=False, only_last=True)),
            flush=True,
        )
        if given.containers:
            total = trial.moments(True, True)
            counts = Counter(
                trial.containers(moment, old)
                for old in (True, False)
                for moment in range(0, total, -(-total // given.containers))
            )
            assert any("killed" in found for found in counts)
            print(json.dumps({"two containers": counts.total(), **counts}), flush=True)


if __name__ == "__main__":
    main()
