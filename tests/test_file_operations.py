"""Whatever makes, moves or removes a file does it through `storage`, or is explained here."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import sdexport

PACKAGE = Path(sdexport.__file__).parent
OWN = {f"artifacts/storage/{name}.py" for name in ("aside", "errors", "files", "folders", "trees")}
OWN |= {"artifacts/locks.py", "artifacts/exchange.py"}

MODULES = {"os", "shutil", "tempfile"}
"""Whatever of these is called is looked at: nobody is to know every name that changes a file."""
HARMLESS = {"shutil.disk_usage", "shutil.which", "shutil.get_terminal_size", "tempfile.gettempdir"}
OF_OS = {
    *("rename", "renames", "replace", "link", "symlink", "unlink", "remove", "removedirs", "rmdir"),
    *("mkdir", "makedirs", "truncate", "mknod", "mkfifo", "chmod", "chown", "lchown", "utime"),
    *("getpid", "getppid", "kill"),
}
METHODS = {
    *("rename", "mkdir", "rmdir", "unlink", "touch", "symlink_to", "hardlink_to", "chmod"),
    *("write_text", "write_bytes", "lchmod", "rmtree", "copytree", "copyfile", "getpid"),
    *("copy_into", "move", "move_into", "makedirs", "mkstemp", "mkdtemp", "mknod", "mkfifo"),
}
"""Of `pathlib.Path`, whose `replace` is told from that of texts by its single argument."""

ASIDE = "in a folder that `folder_aside` gave to this process alone"
UNIQUE = "in the system's place, under a name that nobody has"
FORKED = "tells a fork from the process that loaded; locks nothing"
GRAPH = "not of a file, but of an operator in a graph"
EXPLAINED = {
    ("backends/onnxruntime/cpu.py", "rename"): (2, ASIDE),
    ("backends/tensorrt/session.py", "mkdir"): (1, "a cache's folder, which may be there already"),
    ("backends/tensorrt/build.py", "write_bytes"): (1, ASIDE),
    ("backends/tensorrt/config.py", "mkdir"): (1, "a cache's folder, which may be there already"),
    ("backends/forks.py", "os.getpid"): (5, FORKED),
    ("backends/cuda/slots.py", "touch"): (1, "not of a file"),
    ("backends/openvino/optional_inputs.py", "replace"): (1, GRAPH),
    ("backends/openvino/precision.py", "replace"): (1, GRAPH),
    ("bench/roofline/machine.py", "write_bytes"): (1, "in that folder"),
    ("bench/report/contact_sheet.py", "unlink"): (1, "of what another may have removed"),
    ("bench/prepare.py", "mkdir"): (1, ASIDE),
    ("bench/process.py", "tempfile.TemporaryFile"): (1, "has no name"),
    ("bench/run.py", "rename"): (1, "by the sole writer of the results"),
    ("bench/run.py", "unlink"): (1, "by the sole writer of the results"),
    ("bench/turns.py", "mkdir"): (1, "in the scratch folder of this run"),
    ("bench/worker.py", "write_bytes"): (1, "in the scratch folder of this run"),
    ("bench/worker.py", "os.getppid"): (2, "asks whether its own parent has just ended"),
    ("compiler/engines.py", "mkdir"): (3, ASIDE),
    ("compiler/engines.py", "rename"): (1, ASIDE),
    ("compiler/engines.py", "unlink"): (1, ASIDE),
    ("compiler/folder.py", "mkdir"): (1, ASIDE),
    ("compiler/folder.py", "os.link"): (1, ASIDE),
    ("compiler/folder.py", "unlink"): (1, ASIDE),
    ("cli/generate.py", "tempfile.mkdtemp"): (1, UNIQUE),
    ("export/gpu_peaks.py", "write_text"): (1, "the answer of a child, in its parent's folder"),
    ("export/export.py", "mkdir"): (3, ASIDE),
    ("graph/proto.py", "open for writing"): (1, ASIDE),
    ("graph/proto.py", "write_bytes"): (1, ASIDE),
    ("graph/widen_half.py", "open for writing"): (1, ASIDE),
    ("memory.py", "open for writing"): (1, "a file of the kernel's"),
    ("pipeline/scheduler.py", "os.getpid"): (1, FORKED),
    ("pipeline/generation.py", "os.getpid"): (1, FORKED),
    ("pipeline/pipeline.py", "os.getpid"): (3, FORKED),
    ("pipeline/result.py", "mkdir"): (2, "the folder of images, which may be there already"),
}  # fmt: skip
"""By file and call: how many there may be, and why they harm nobody who writes at the same time."""


def called(tree: ast.AST) -> list[str]:
    """The calls that may change files, by name."""
    found = []
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        name = imported.get(name, name)
        method = name.rsplit(".", 1)[-1]
        if name.split(".")[0] in MODULES:
            if name not in HARMLESS and (not name.startswith("os.") or name[3:] in OF_OS):
                found.append(name)
        elif name == "open" or method == "open":
            modes = [*node.args[:2], *(word.value for word in node.keywords)]
            written = [
                one.value
                for one in modes
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
            if any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in written):
                found.append("open for writing")
        elif method in METHODS and (
            isinstance(node.func, ast.Attribute) and name != f"storage.{method}"
        ):
            found.append(method)
        elif method == "replace" and len(node.args) == 1 and not node.keywords:
            found.append("replace")
    return found


def sources() -> list[Path]:
    every = sorted(PACKAGE.rglob("*.py"))
    return [path for path in every if path.relative_to(PACKAGE).as_posix() not in OWN]


def test_every_call_that_changes_files_is_known() -> None:
    counted: Counter[tuple[str, str]] = Counter()
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name in called(tree):
            counted[path.relative_to(PACKAGE).as_posix(), name] += 1
    unknown = {
        place: number
        for place, number in counted.items()
        if number > EXPLAINED.get(place, (0, ""))[0]
    }
    assert unknown == {}, (
        "write it with sdexport.artifacts.storage, or explain here why it is right"
    )
    assert all((PACKAGE / name).is_file() for name in OWN)
    gone = {place for place in EXPLAINED if not counted[place]}
    assert gone == set(), "these are explained and not there (any more)"


@pytest.mark.parametrize(
    "source",
    [
        *("import os; os.rename(a, b)", "import os; os.getpid()"),
        *("import shutil; shutil.copy2(a, b)", "from shutil import move; move(a, b)"),
        "import tempfile; tempfile.mkdtemp()",
        *("path.rename(other)", "path.replace(other)", "path.mkdir()", "open(path, 'w')"),
        *("path.open('xb')", "path.open(mode='a')", "from os import makedirs as m; m(a)"),
    ],
)  # fmt: skip
def test_such_a_call_is_seen(source: str) -> None:
    assert len(called(ast.parse(source))) == 1
