"""Calls every verb and function that takes a path with every kind of bad path; see test_paths.py.

    python tests/bad_paths.py BUNDLE ONNX CHECKPOINT FOLDER

Run without root's privileges, or folders that may not be entered are entered. Prints one line of
JSON a case: what was called, with which kind of path, how it ended, and what was said.
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import signal
import socket
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import typer.main

from sdexport.cli import main
from sdexport.cli.app import app
from sdexport.errors import SdexportError

PATIENCE_S = 90
RESULTS = next((Path(__file__).parent.parent / "benchmarks" / "results").glob("*/results.json"))
NONSENSE = b"\xff\xfe not utf-8"

TAKES = {
    "CHECKPOINT": "input",
    "BUNDLE": "input",
    "ONNX_DIR": "input",
    "DIR": "input",
    "PATH": "input",
    "OLD": "input",
    "NEW": "input",
    "FILE": "input",
    "checkpoint": "input",
    "recipe": "input",
    "scenario": "scenario",
    "image": "input",
    "mask": "input",
    "against": "input",
    "output": "file",
    "onnx": "output",
    "report": "place",
}
"""Parameters that take a path, by metavar of an argument or name of an option: something that is
read, a folder that is made, or an image that is written."""

MADE = {("compile", "bundle"), ("export", "onnx_dir"), ("build", "bundle")}
"""Arguments that name a folder to make."""

NO_PATH = {"prompt", "negative_prompt", "sampler", "noise", "fit", "guidance_interval", "target"}
NO_PATH |= {"prompt_syntax", "size", "precision", "component", "compute_capability"}
NO_PATH |= {"batch", "height", "width", "timesteps", "sigmas"}
"""Parameters that take text which is no path."""


def make_bad(folder: Path) -> dict[str, str]:
    """One path of every bad kind in `folder`, by kind."""
    os.mkfifo(folder / "fifo")
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)  # A socket's path may have 107 bytes.
    server.bind("socket")
    os.chdir(here)
    server.close()
    (folder / "loop").symlink_to("loop")
    (folder / "ring-a").symlink_to("ring-b")
    (folder / "ring-b").symlink_to("ring-a")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "empty-file").touch()
    (folder / "file").write_bytes(b"content\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "something").write_text("else")
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/" + NONSENSE))
    odd.mkdir()
    (odd / "something").write_text("else")
    (folder / "line\nend").mkdir()
    (folder / "line\nend" / "something").write_text("else")
    closed = folder / "closed"
    closed.mkdir()
    (closed / "inner").mkdir()
    closed.chmod(0)
    unlisted = folder / "unlisted"
    unlisted.mkdir()
    (unlisted / "something").write_text("else")
    unlisted.chmod(0o111)
    unread = folder / "unread"
    unread.write_bytes(b"content\n")
    unread.chmod(0)
    return {
        "empty": "",
        "NUL": f"{folder}/a\0b",
        "long name": f"{folder}/{'x' * 300}",
        "long path": f"{folder}/" + "long/" * 1000,
        "fifo": f"{folder}/fifo",
        "socket": f"{folder}/socket",
        "/dev/zero": "/dev/zero",
        "/dev/full": "/dev/full",
        "loop": f"{folder}/loop",
        "ring": f"{folder}/ring-a/x",
        "dangling": f"{folder}/dangling",
        "nothing": f"{folder}/nothing/there",
        "an empty file": f"{folder}/empty-file",
        "a file": f"{folder}/file",
        "below a file": f"{folder}/file/x",
        "a folder": f"{folder}/folder",
        "not UTF-8": str(odd),
        "a line's end": f"{folder}/line\nend",
        "closed": f"{folder}/closed",
        "below closed": f"{folder}/closed/inner",
        "unlisted": f"{folder}/unlisted",
        "unread": f"{folder}/unread",
    }


FINE = {
    "output": {"dangling", "nothing"},
    "file": {"dangling", "nothing", "an empty file", "a file", "unread", "unlisted", "not UTF-8"},
}
"""Kinds at which something can be made all the same, and kinds that are tried elsewhere."""
FINE["file"] |= {"fifo", "socket", "a line's end", "a folder", "/dev/zero", "/dev/full"}
FINE["place"] = {*FINE["output"], *FINE["file"]} - {"a file", "an empty file", "fifo", "socket"}
FINE["place"] -= {"unread", "/dev/zero", "/dev/full"}
FINE["scenario"] = {"an empty file"}
FINE["listing"] = {"a folder", "not UTF-8", "a line's end"}


def verbs() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb of the command line, with the words that call it."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield words, command
        else:
            for name, one in inner.items():
                yield from below(one, (*words, name))

    yield from below(typer.main.get_command(app), ())


def kind_of(verb: str, command: Any, parameter: Any) -> str | None:
    """What a parameter takes: `input`, `output`, `file`; None for no path.

    Raises:
        AssertionError: a parameter that takes text and is in neither table.
    """
    name = parameter.name
    if (verb, name) in MADE:
        return "output"
    if verb in ("list", "prune"):
        return "listing" if name == "folder" else None
    is_argument = parameter.param_type_name == "argument"
    key = str(parameter.metavar).upper().rstrip(".") if is_argument else name
    if key in TAKES:
        return TAKES[key]
    hint = str(typing.get_type_hints(command.callback)[parameter.name])
    is_text = "str" in hint or "Path" in hint
    assert name in NO_PATH or not is_text, f"does {name!r} of {verb} take a path?"
    return None


def good_words(verb: str, command: Any, good: dict[str, str]) -> dict[str, list[str]]:
    """What every required parameter of a verb is given where it is not the one that is tried."""
    words: dict[str, list[str]] = {}
    for one in command.params:
        if one.param_type_name == "argument" and (one.required or verb in ("compile",)):
            words[one.name] = [good.get(f"{verb}.{one.name}", good.get(one.name, "a fox"))]
        elif one.required:
            words[one.name] = [one.opts[0], good[one.name]]
    return words


def of_command_line(bad: dict[str, str], good: dict[str, str]) -> Iterator[dict[str, Any]]:
    for words, command in verbs():
        verb = words[-1]
        for parameter in command.params:
            takes = kind_of(verb, command, parameter)
            if takes is None:
                continue
            for kind, path in bad.items():
                if kind in FINE.get(takes, ()):
                    continue
                given = good_words(verb, command, good)
                if parameter.name == "mask":
                    given["image"] = ["--image", good["image"]]
                is_argument = parameter.param_type_name == "argument"
                given[parameter.name] = [path] if is_argument else [parameter.opts[0], path]
                arguments = [*words, "--json"]
                for name in sorted(given, key=lambda name: not given[name][0].startswith("-")):
                    if given[name][0].startswith("-"):
                        arguments += given[name]
                order = [one.name for one in command.params if one.param_type_name == "argument"]
                arguments += [word for name in order if name in given for word in given[name]]
                yield run_verb(f"{' '.join(words)} {parameter.name}", kind, path, arguments)


def run_verb(what: str, kind: str, path: str, arguments: list[str]) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()

    def call() -> str:
        with redirect_stdout(out), redirect_stderr(err):
            return f"exit {main(arguments)}"

    ended = watched(call)
    found = {"what": what, "kind": kind, "path": path, "ended": ended, "said": err.getvalue()}
    lines = [line for line in err.getvalue().splitlines() if line]
    problem = ""
    if ended != "exit 2":
        problem = ended
    elif len(lines) != 1 or not lines[0].startswith("error: "):
        problem = "stderr is not one line"
    else:
        problem = unnamed(path, lines[0])
        try:
            assert json.loads(out.getvalue())["error"]["message"]
        except (ValueError, KeyError, AssertionError):
            problem = f"no error document: {out.getvalue()[:200]!r}"
    return found | {"problem": problem}


def unnamed(path: str, said: str) -> str:
    """Whether a message does not name a path, by the part of it that no message escapes."""
    last = [part for part in path.split("/") if part][-1:] or [""]
    name = "".join(c if " " < c < "\x7f" else "\0" for c in last[0]).split("\0")[0][:40]
    return "" if name in said else f"the message does not name {name!r}"


def watched(call: Callable[[], str]) -> str:
    """How `call` ends, `hang` where it does not."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S)
    try:
        return call()
    except TimeoutError:
        return "hang"
    except SdexportError as error:
        return f"user error: {error}"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def functions() -> Iterator[tuple[str, Callable[..., Any], str, str]]:
    """Every public function with a parameter that takes a path: name, function, parameter, kind."""
    import sdexport
    from sdexport.artifacts import bundle, onnx_folder, recipe
    from sdexport.bench import compare, results_file, scenario
    from sdexport.compiler import inspect as inspection
    from sdexport.compiler import store
    from sdexport.export import checkpoint
    from sdexport.pipeline import tokenizer

    homes = [bundle, store, inspection, onnx_folder, recipe, compare, results_file, scenario]
    homes += [checkpoint]
    exported = {name: getattr(sdexport, name) for name in sdexport.__all__}
    classes = [value for value in exported.values() if inspect.isclass(value)]
    seen = {name: value for name, value in exported.items() if callable(value)}
    for home in homes:
        for name, value in vars(home).items():
            if inspect.isfunction(value) and value.__module__ == home.__name__ and name[0] != "_":
                seen[f"{home.__name__.rsplit('.')[-1]}.{name}"] = value
    for owner in (*classes, tokenizer.PromptTokenizer):
        for name, value in inspect.getmembers(owner, inspect.isroutine):
            if name[0] != "_":
                seen[f"{owner.__name__}.{name}"] = value
    for name, function in seen.items():
        taking = function.__init__ if inspect.isclass(function) else function
        for parameter, hint in getattr(taking, "__annotations__", {}).items():
            if parameter != "return" and any(
                word in str(hint) for word in ("Path", "ImageLike", "OneOrMorePictures")
            ):
                yield name, function, parameter, str(hint)


SKIPPED = {
    "bundle.is_bundle": "asks whether one is there",
    "bundle.write_manifest": "of a folder that this package made",
    "results_file.write": "of a folder that this package made",
    "results_file.images_folder": "names a folder below one that was read",
    "bundle.refuse_other_folder": "of a path that its callers have checked",
    "BuildReport": "comes out of a build",
    "BuilderOptions": "a timing cache is read by a build on a GPU",
}
OUTPUTS = {("build_folder", "bundle"), ("compile", "bundle"), ("compile", "onnx")}
OUTPUTS |= {("export_checkpoint", "folder")}


def of_functions(
    bad: dict[str, Any], good: dict[str, str], drawer: Any, generated: Any
) -> Iterator[dict[str, Any]]:
    for name, function, parameter, _ in functions():
        if name in SKIPPED:
            continue
        takes = "output" if (name, parameter) in OUTPUTS else "input"
        takes = "file" if name == "Result.save" else takes
        takes = "listing" if name.startswith("store.") else takes
        takes = "scenario" if name == "scenario.read_scenario" else takes
        for kind, path in bad.items():
            # None gives no path there, and a list gives several images.
            optional = parameter in ("onnx", "image", "mask_image") and kind in ("None", "a list")
            if optional or kind in FINE.get(takes, ()):
                continue
            values: dict[str, Any] = {}
            for one, about in inspect.signature(function).parameters.items():
                if one == "self":
                    values[one] = generated if name.startswith("Result.") else drawer
                elif about.default is about.empty and one not in ("cls", "args", "kwargs"):
                    values[one] = good.get(f"{name}.{one}", good.get(one, "a fox"))
            if name == "store.prune":
                values |= {"older_days": None, "cannot_run": False, "remove": False}
            if name.startswith("Pipeline."):
                values |= {"prompt": good["prompt"]}
                values |= {"image": good["image"]} if parameter == "mask_image" else {}
            values[parameter] = path
            owner = [values.pop("self")] if "self" in values else []
            bound = functools.partial(function, *owner)

            def call(function: Any = bound, values: dict[str, Any] = values) -> str:
                made = function(**values)
                if inspect.isgenerator(made):
                    next(made)
                return "returned"

            ended = watched(call)
            problem = "" if ended.startswith("user error: ") else ended
            if not problem and isinstance(path, str):
                problem = unnamed(path, ended)
            yield {
                "what": f"{name}({parameter})",
                "kind": kind,
                "path": str(path),
                "ended": ended,
                "problem": problem,
            }


def run(bundle: Path, onnx: Path, checkpoint: Path, folder: Path) -> None:
    """Prints every case; `folder` is an empty one for what is made."""
    import numpy as np
    from PIL import Image

    import sdexport
    from sdexport.pipeline.result import Result, Timings

    image = folder / "image.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
    place = Path(tempfile.mkdtemp(dir=folder))
    bad = make_bad(place)
    good = {
        "bundle": str(bundle),
        "bundles": str(bundle),
        "path": str(bundle),
        "folder": str(folder),
        "onnx_dir": str(onnx),
        "onnx": str(folder / "onnx"),
        "checkpoint": str(checkpoint),
        "image": str(image),
        "mask": str(image),
        "old": str(RESULTS),
        "new": str(RESULTS),
        "prompt": "a fox",
        "least": "0.02",
        "compile.bundle": str(folder / "made"),
        "export.onnx_dir": str(folder / "made"),
        "build.bundle": str(folder / "made"),
        "build_folder.bundle": str(folder / "made"),
        "export_checkpoint.folder": str(folder / "made"),
    }
    drawer = sdexport.load(bundle)
    generated = Result(
        [Image.new("RGB", (8, 8))],
        (0,),
        {
            **{"prompts": ["a"], "negative_prompts": [""], "seeds": [0], "guidance": 1.0},
            **{"steps": 1, "sampler": "ddim", "width": 8, "height": 8},
        },
        Timings(0.0, 0.0, 0.0, 0.0, ()),
    )
    odd: dict[str, Any] = {"None": None, "a number": 3, "bytes": b"/tmp", "a list": [1]}
    for found in of_functions(bad, good, drawer, generated):
        print(json.dumps(found), flush=True)
    for found in of_functions(odd, good, drawer, generated):
        print(json.dumps(found), flush=True)
    for found in of_command_line(bad, good):
        print(json.dumps(found), flush=True)
    for path in place.iterdir():
        with suppress(OSError):
            path.chmod(0o700)


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:]))
