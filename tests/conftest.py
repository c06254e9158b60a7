"""What the tests share: small checkpoints, and what is made of them once a session."""

from __future__ import annotations

import gc
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from sdexport.backends import targets
from sdexport.compiler import BuildOptions, build_folder
from sdexport.model.shapes import Precision, Profile, Range

ROOT = Path(__file__).parent.parent
EMOJI = ROOT / "examples" / "emoji" / "checkpoint"
TARGETS = tuple(target.name for target in targets.TARGETS if not target.gpu)
"""Those that need no GPU."""

# Properties of numerics take as long as the machine is busy: no deadline, and the same examples
# wherever they run.
settings.register_profile("sdexport", deadline=None, derandomize=True)
settings.load_profile("sdexport")

# A shell that starts the tests in the background has them ignore SIGINT, and what they start with
# them, while some tests interrupt what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_PROFILE = Profile(batch=Range(1, 1, 3), height=Range(32, 64, 128), width=Range(32, 64, 128))
EMOJI_PROFILE = Profile(batch=Range(1, 1, 8), height=Range(64, 128, 256), width=Range(64, 128, 256))


@pytest.fixture(scope="module", autouse=True)
def long_lived_objects_set_aside() -> None:
    """Later collections leave out what is there now.

    A build collects garbage between its stages, which takes half a second each time once torch,
    its exporter and thousands of tests are in memory.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with Stable Diffusion 1.x's structure, few channels and random weights."""
    from tests.checkpoints import make_tiny_checkpoint

    path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make_tiny_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint's ONNX folder in float32."""
    from sdexport.export import export_checkpoint

    path = tmp_path_factory.mktemp("onnx") / "tiny"
    export_checkpoint(tiny_checkpoint, path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_onnx: Path) -> Callable[[str], Path]:
    """The tiny checkpoint's bundle in float32 for a target; made once, not to be altered."""
    made: dict[str, Path] = {}

    def bundle(target: str = "onnxruntime-cpu") -> Path:
        if target not in made:
            path = tmp_path_factory.mktemp("bundles") / f"tiny-{target}"
            build_folder(tiny_onnx, path, BuildOptions(target, Precision.FP32, TINY_PROFILE))
            made[target] = path
        return made[target]

    return bundle


@pytest.fixture
def own_bundle(tmp_path: Path, tiny_bundle: Callable[[str], Path]) -> Path:
    """A copy of the tiny bundle for ONNX Runtime that a test may damage."""
    return Path(shutil.copytree(tiny_bundle("onnxruntime-cpu"), tmp_path / "bundle"))


@pytest.fixture(scope="session")
def emoji_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX folder of the checkpoint in the repository, in float32."""
    from sdexport.export import export_checkpoint

    path = tmp_path_factory.mktemp("onnx") / "emoji"
    export_checkpoint(EMOJI, path)
    return path


@pytest.fixture(scope="session")
def emoji_bundle(
    tmp_path_factory: pytest.TempPathFactory, emoji_onnx: Path
) -> Callable[[str], Path]:
    """The emoji checkpoint's bundle in float32 for a target; made once, not to be altered."""
    made: dict[str, Path] = {}

    def bundle(target: str) -> Path:
        if target not in made:
            path = tmp_path_factory.mktemp("bundles") / f"emoji-{target}"
            build_folder(emoji_onnx, path, BuildOptions(target, Precision.FP32, EMOJI_PROFILE))
            made[target] = path
        return made[target]

    return bundle
