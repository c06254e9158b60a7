"""A bundle keeps what each engine computes, without weights, and never needs it to generate."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts.manifest import read_manifest
from sdexport.compiler import BuildOptions, build_folder
from sdexport.errors import FolderError
from sdexport.graph.flops import graph_cost
from sdexport.graph.proto import load_graph
from sdexport.graph.skeleton import Call, shapes_at
from sdexport.model.shapes import Precision
from tests.conftest import TARGETS, TINY_PROFILE

OPTIONS = BuildOptions("onnxruntime-cpu", Precision.FP32, TINY_PROFILE)


def forget_graphs(bundle: Path) -> None:
    """Makes the bundle one of a version that kept none."""
    shutil.rmtree(bundle / bundles.GRAPHS)
    bundles.write_manifest(bundle, read_manifest(bundle / bundles.MANIFEST_FILE))


@pytest.mark.parametrize("target", TARGETS)
def test_every_engine_has_one(tiny_bundle: Callable[[str], Path], target: str) -> None:
    bundle = bundles.open_bundle(tiny_bundle(target))
    profile = bundle.manifest.profile
    usual = Call(profile.height.opt, profile.width.opt, profile.batch.opt)
    for name, engine in bundle.manifest.engines.items():
        path = bundle.graph_file(name)
        assert path.stat().st_size < 200_000
        graph = load_graph(path)
        cost = graph_cost(graph, shapes_at(graph, usual))
        assert (cost.flops, cost.parameters) == (engine.flops, engine.parameters)
        half = graph_cost(graph, shapes_at(graph, Call(32, 64)))
        # Texts and timesteps are the same at any size.
        assert name.startswith(("text", "time")) or half.flops < cost.flops


def test_a_bundle_without_is_built_again(own_bundle: Path, tiny_onnx: Path) -> None:
    forget_graphs(own_bundle)
    with pytest.raises(FolderError, match="keeps no graph of 'denoise_step'.*build the bundle"):
        bundles.open_bundle(own_bundle).graph_file("denoise_step")
    before = bundles.open_bundle(own_bundle).manifest.fingerprint
    report = build_folder(tiny_onnx, own_bundle, OPTIONS)
    assert (report.reused, report.fingerprint) == (False, before)
    assert bundles.open_bundle(own_bundle).graph_file("denoise_step").is_file()
    assert build_folder(tiny_onnx, own_bundle, OPTIONS).reused


def test_an_altered_graph_is_found(own_bundle: Path) -> None:
    path = own_bundle / bundles.graph_name("vae_decoder")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FolderError, match="vae_decoder.onnx was altered"):
        bundles.open_bundle(own_bundle)
    path.unlink()
    with pytest.raises(FolderError, match="vae_decoder.onnx is missing"):
        bundles.open_bundle(own_bundle, check=False)


DRAW = """
import sys
for name in ("onnx", "sdexport.graph", "sdexport.compiler.inspect"):
    sys.modules[name] = None
import sdexport
image = sdexport.load(sys.argv[1]).generate("a dog", steps=1, seed=1).images[0]
print(image.size)
"""


@pytest.mark.parametrize("kept", [True, False])
def test_generation_needs_neither_graphs_nor_onnx(own_bundle: Path, kept: bool) -> None:
    if not kept:
        forget_graphs(own_bundle)
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(own_bundle)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(Path(bundles.__file__).parent.parent)},
    )
    assert done.stdout.strip() == "(64, 64)", done.stderr
