"""No library that is used here sends anything, or leaves a file that was not asked for.

Every library that some file of the repository imports is imported in a fresh process, every runtime
builds and generates in one: with an empty home and temporary folder, and behind a shim of the C
library that notes what would leave this machine and lets nothing out.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import sdexport
from sdexport import privacy
from sdexport.backends.targets import TARGETS, builds_here, runs_here
from tests.bad_paths import RESULTS, verbs
from tests.conftest import ROOT

PACKAGE = Path(sdexport.__file__).parent
COMPILER = shutil.which(os.environ.get("CC", "cc"))

SENDERS = {
    "onnxruntime",
    "openvino",
    "openvino_genai",
    "openvino_tokenizers",
    "nncf",
    "optimum",
    "huggingface_hub",
    "diffusers",
    "transformers",
}
"""Libraries that have telemetry, or the tool that imports those that have."""

PEERS = ROOT / "benchmarks" / "peers"
FONTS = "matplotlib/fontlist-"
"""matplotlib keeps a list of fonts in its cache folder, which is a cache and nothing else."""

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what, const char *where)
{
    FILE *file = fopen(getenv("NETWORK_LOG"), "a");
    if (file) { fprintf(file, "%s %s\n", what, where ? where : "?"); fclose(file); }
}

static int foreign(const struct sockaddr *to)
{
    return to && (to->sa_family == AF_INET || to->sa_family == AF_INET6);
}

int connect(int fd, const struct sockaddr *to, socklen_t length)
{
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    if (!foreign(to)) return real(fd, to, length);
    note("connect", "an internet address");
    errno = ENETUNREACH;
    return -1;
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to,
               socklen_t length)
{
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) =
        dlsym(RTLD_NEXT, "sendto");
    if (!foreign(to)) return real(fd, data, size, flags, to, length);
    note("sendto", "an internet address");
    errno = ENETUNREACH;
    return -1;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found)
{
    (void)service; (void)hints; (void)found;
    note("getaddrinfo", node);
    return EAI_FAIL;
}

struct hostent *gethostbyname(const char *name)
{
    note("gethostbyname", name);
    return NULL;
}
"""


def sources(*folders: Path) -> list[Path]:
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        if not {".venv", "source", "work", "modules"} & set(path.relative_to(ROOT).parts)
    ]


def imports(path: Path) -> dict[str, int]:
    """The libraries that a file imports, at its top or later, by the line of the first import."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.endswith(("import_module", "importorskip")):
                names = [str(node.args[0].value)]
        for name in names:
            library = name.split(".")[0]
            found[library] = min(found.get(library, sys.maxsize), getattr(node, "lineno", 0))
    return found


def test_the_package_turns_telemetry_off_before_it_imports_anything() -> None:
    """Whatever module of it is imported, `sdexport/__init__.py` comes first."""
    path = PACKAGE / "__init__.py"
    assert not set(imports(path)) - {"__future__", "importlib", "typing", "sdexport"}
    calls = [
        ast.unparse(node)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    assert calls == ["privacy.turn_off()"]
    assert set(imports(PACKAGE / "privacy.py")) <= set(sys.stdlib_module_names) | {"__future__"}


OUTSIDE = [
    path
    for path in sources(ROOT / "benchmarks", ROOT / "examples", ROOT / "scripts")
    if set(imports(path)) & SENDERS
]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_outside_the_package_turn_it_off_first(path: Path) -> None:
    """By importing sdexport, or one of the peers' modules that load `privacy.py` by its path."""
    turned = {"shared", "exports"} if path.is_relative_to(PEERS) else {"sdexport"}
    found = imports(path)
    if path == PEERS / "pipelines.py":  # imported by adapters, after `shared`
        turned = {"torch"}
    first = min(found[name] for name in SENDERS & set(found))
    assert any(found.get(name, sys.maxsize) < first for name in turned)


def test_the_peers_modules_load_it_by_its_path() -> None:
    for name in ("shared.py", "exports.py", "setup.py"):
        text = (PEERS / name).read_text(encoding="utf-8")
        assert '"sdexport" / "privacy.py"' in text
        assert '_privacy["turn_off"]()' in text
    for path in PEERS.glob("*/adapter.py"):
        assert {"shared", "exports"} & set(imports(path)), path


def test_tests_begin_with_the_package() -> None:
    """`tests/conftest.py` is imported before every test; it imports no such library itself."""
    found = imports(ROOT / "tests" / "conftest.py")
    assert "sdexport" in found
    assert not set(found) & SENDERS


def test_children_inherit_it() -> None:
    code = f"import os; print(*(os.environ.get(name) for name in {list(privacy.SETTINGS)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(privacy.SETTINGS.values())


@dataclass(frozen=True)
class Watched:
    """Runs processes with an empty home, and tells what they left and whom they called."""

    library: Path
    folder: Path

    def run(self, *arguments: str) -> list[str]:
        home, temporary, log = (self.folder / name for name in ("home", "tmp", "network"))
        home.mkdir()
        temporary.mkdir()
        environment = {
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LD_PRELOAD": str(self.library),
            "NETWORK_LOG": str(log),
        }
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        files = [
            str(path.relative_to(self.folder))
            for place in (home, temporary)
            for path in place.rglob("*")
            if not path.is_dir()
        ]
        called = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return sorted(name for name in files if FONTS not in name) + called


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux":
        pytest.skip("the shim of the C library is preloaded as Linux does it")
    if COMPILER is None:
        pytest.skip("no C compiler (cc) is installed")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM, encoding="utf-8")
    flags = ["-shared", "-fPIC", "-Wall", "-Werror"]
    command = [COMPILER, *flags, "-o", str(folder / "shim.so"), str(folder / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return folder / "shim.so"


@pytest.fixture
def watched(shim: Path, tmp_path: Path) -> Watched:
    return Watched(shim, tmp_path)


def test_the_watch_sees_what_is_sent_and_left(watched: Watched) -> None:
    """Without this the tests below could not fail."""
    code = (
        "import pathlib, socket, tempfile; open(pathlib.Path.home() / 'left', 'w'); "
        "tempfile.mkstemp(suffix='.ses')\n"
        "try: socket.create_connection(('telemetry.invalid', 80))\nexcept OSError: pass\n"
        "try: socket.socket().connect(('127.0.0.1', 9))\nexcept OSError: pass\n"
    )
    home, temporary, *called = watched.run("-c", code)
    assert (home, temporary[:4], temporary[-4:]) == ("home/left", "tmp/", ".ses")
    assert called == ["getaddrinfo telemetry.invalid", "connect an internet address"]


IMPORTED = sorted(
    name
    for name in set().union(*(imports(path) for path in sources(PACKAGE)))
    if name not in sys.stdlib_module_names and name not in {"sdexport", "__future__"}
)
"""Every library that the package imports."""


def is_installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("library", IMPORTED)
def test_importing_a_library_sends_and_leaves_nothing(library: str, watched: Watched) -> None:
    if not is_installed(library):
        pytest.skip(f"{library} is not installed")
    assert watched.run("-c", f"import sdexport, {library}") == []


@pytest.mark.parametrize("target", [t.name for t in TARGETS if t.name and runs_here(t)[0]])
def test_generating_sends_and_leaves_nothing(
    target: str, watched: Watched, tiny_bundle: Callable[[str], Path]
) -> None:
    bundle = str(tiny_bundle(target))
    arguments = ["generate", bundle, "an apple", "--steps", "2", "-o", "image.png"]
    assert watched.run("-m", "sdexport", *arguments) == []


@pytest.mark.parametrize("target", [t.name for t in TARGETS if builds_here(t)[0]])
def test_building_sends_and_leaves_nothing(target: str, watched: Watched, tiny_onnx: Path) -> None:
    arguments = ["build", str(tiny_onnx), "bundle", "--target", target, "--precision", "fp32"]
    if target == "tensorrt-rtx":
        arguments += ["--compute-capability", "sm89"]
    assert watched.run("-m", "sdexport", *arguments) == []


VERBS = {
    "compile": ["compile", "{checkpoint}", "bundle", "--target", "onnxruntime-cpu"],
    "export": ["export", "{checkpoint}", "onnx"],
    "build": None,
    "generate": None,
    "verify": ["verify", "{bundle}", "--checkpoint", "{checkpoint}"],
    "upgrade": ["upgrade", "{bundle}"],
    "inspect": ["inspect", "{bundle}"],
    "samplers": ["samplers"],
    "doctor": ["doctor"],
    "engines list": ["engines", "list", "."],
    "engines prune": ["engines", "prune", ".", "--cannot-run"],
    "bench run": [
        *("bench", "{bundle}", "--checkpoint", "{checkpoint}", "--report", "report"),
        *("--steps", "1", "--rounds", "2", "--seconds", "0"),
    ],
    "bench report": ["bench", "report", "{results}"],
    "bench compare": ["bench", "compare", "{results}", "{results}"],
}
"""Every verb's arguments; None where a test above runs it for every target."""


def test_every_verb_is_watched() -> None:
    assert {" ".join(words) for words, _ in verbs()} == set(VERBS)


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for verb, arguments in VERBS.items() if arguments])
def test_a_verb_sends_and_leaves_nothing(
    verb: str, watched: Watched, tiny_checkpoint: Path, tiny_bundle: Callable[[str], Path]
) -> None:
    results = shutil.copytree(RESULTS.parent, watched.folder / "results")
    places = {
        "checkpoint": str(tiny_checkpoint),
        "bundle": str(tiny_bundle("onnxruntime-cpu")),
        "results": str(results),
    }
    arguments = [argument.format(**places) for argument in VERBS[verb] or ()]
    assert watched.run("-m", "sdexport", *arguments) == []
