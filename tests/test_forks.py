"""A forked child refuses its parent's pipeline at once, and can load its own where that works.

The runtimes are those of every target that is installed and needs no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.backends import forks
from sdexport.backends.targets import TARGETS, availability
from sdexport.errors import UsageError
from sdexport.pipeline.pipeline import Pipeline

INSTALLED = [t.name for t in TARGETS if not t.gpu and availability(t)[0]]

CHILD = """
import json, os, signal, sys
import sdexport
bundle, before, *doing = sys.argv[1:]
pipe = stream = step = None
if before != "imported":
    pipe = sdexport.load(bundle)
    request = pipe.request("apple", num_inference_steps=2, seed=0)
if before == "generated":
    pipe.generate("apple", num_inference_steps=2, seed=0)
if before == "streaming":
    stream = pipe.stream("apple", num_inference_steps=4, seed=0)
    step = next(stream)
if before == "dropped":
    pipe.generate("apple", num_inference_steps=2, seed=0)
    pipe.close()
    pipe = None
ways = {
    "nothing": lambda: None,
    "load": lambda: sdexport.load(bundle).generate("apple", num_inference_steps=2, seed=0),
    "generate": lambda: pipe.generate("apple", num_inference_steps=2),
    "stream": lambda: next(pipe.stream("apple", num_inference_steps=2)),
    "steps": lambda: next(pipe.steps(request)),
    "generate_batch": lambda: pipe.generate_batch([request]),
    "next": lambda: next(stream),
    "latents": lambda: step.latents,
    "close": lambda: pipe.close(),
    "request": lambda: pipe.request("apple", num_inference_steps=2),
    "evaluations": lambda: pipe.evaluations(request),
}
ended = {}
for does in doing:
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read) as pipe_end:
            said = pipe_end.read()
        ended[does] = [said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
        continue
    signal.alarm(60)
    try:
        found = ways[does]()
        said = "generated" if isinstance(found, sdexport.Result) else "did"
    except sdexport.SdexportError as error:
        said = "refused" if "docs/service.md" in str(error) else str(error)
    os.write(write, said.encode())
    os.close(write)
    sys.exit()  # It ends as a program does, not by force.
print(json.dumps(ended), flush=True)
os._exit(0)
"""
"""Forks once for each thing that a child does, after the parent has done what is `before`."""

GENERATING = ("generate", "generate_batch", "stream", "steps")
HARMLESS = ("close", "request", "evaluations")
"""The pipeline's public methods: those that a child is refused, and those that touch no engine."""

DOES: dict[str, dict[str, str]] = {
    "imported": {"nothing": "did", "load": "generated"},
    "loaded": {"nothing": "did", "load": "generated", "generate": "refused"},
    "generated": {
        **{"nothing": "did", "load": "generated"},
        **dict.fromkeys(GENERATING, "refused"),
        **dict.fromkeys(HARMLESS, "did"),
    },
    "streaming": {"next": "refused", "latents": "refused"},
    "dropped": {"nothing": "did", "load": "generated"},
}
"""By what the parent did before: what a child does, and how that ends."""


def test_every_public_method_is_tried() -> None:
    methods = {name for name in vars(Pipeline) if not name.startswith("_")}
    assert methods == {*GENERATING, *HARMLESS}


@pytest.mark.parametrize("target", INSTALLED)
@pytest.mark.parametrize("before", DOES)
def test_a_child_generates_with_its_own_pipeline_alone(
    tiny_bundle: Callable[[str], Path], target: str, before: str
) -> None:
    """Whatever it inherited, it ends as it should, and is told at once what cannot work."""
    does = dict(DOES[before])
    if target == "openvino-cpu" and before in ("generated", "dropped"):
        does["load"] = "refused"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(tiny_bundle(target)), before, *does],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: [said, 0] for name, said in does.items()}


def test_a_runtime_starts_again_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_started", {})
    forks.check_start("A runtime")
    forks.note_started("A runtime")
    forks.check_start("A runtime")
    monkeypatch.setattr(forks, "_started", {"A runtime": os.getpid() + 1})
    with pytest.raises(UsageError, match="A runtime ran in the process that this one was forked"):
        forks.check_start("A runtime")
