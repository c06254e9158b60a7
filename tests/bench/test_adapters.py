"""The two adapters behind every figure: this project's bundles, and diffusers, the baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from sdexport.artifacts.bundle import open_bundle
from sdexport.bench import bundle_adapter
from sdexport.pipeline.load import load_model


def scenario(checkpoint: Path, **changes: Any) -> dict[str, Any]:
    """Three images, two of them generated together."""
    return {
        "checkpoint": str(checkpoint),
        "prompts": ["a dog", "a cat", "a bird"],
        "negative_prompt": "",
        "seeds": [3, 5, 7],
        "width": 64,
        "height": 64,
        "batch": 2,
        "steps": 4,
        "sampler": "pndm",
        "guidance": 4.0,
        "threads": None,
    } | changes


def generated(system: Any) -> tuple[dict[str, Any], float]:
    start = perf_counter()
    found = system.generate()
    return found, perf_counter() - start


@pytest.fixture(scope="module")
def ours(
    tiny_checkpoint: Path, tiny_bundle: Callable[[str], Path]
) -> tuple[dict[str, Any], float, dict[str, Any]]:
    system = bundle_adapter.load(
        scenario(tiny_checkpoint), {"bundle": str(tiny_bundle("onnxruntime-cpu"))}
    )
    about = system.describe()
    try:
        return (*generated(system), about)
    finally:
        system.close()


def test_a_bundle_tells_what_it_did(ours: tuple[dict[str, Any], float, dict[str, Any]]) -> None:
    found, seconds, about = ours
    assert found["images"].shape == (3, 64, 64, 3)
    assert found["images"].dtype == np.uint8
    # PNDM evaluates the model once more than it has steps; two batches.
    assert found["model_calls"] == len(found["evaluations"]) == 2 * 5
    stages = found["text_encoder"] + sum(found["evaluations"]) + found["vae_decoder"]
    assert 0 < stages <= seconds
    assert about["precision"] == "fp32"
    assert about["device"] == "cpu"
    assert about["bytes"] > 0
    assert set(about["versions"]) == {"sdexport", "numpy", "onnxruntime"}
    assert any("kept for later generations" in note for note in about["notes"])


def test_its_latents_are_those_of_its_images(
    ours: tuple[dict[str, Any], float, dict[str, Any]], tiny_bundle: Callable[[str], Path]
) -> None:
    found, _, _ = ours
    parts = load_model(open_bundle(tiny_bundle("onnxruntime-cpu"), check=False))
    state_shape = next(s.shape for s in parts.sessions["vae_decoder"].inputs if s.name == "state")
    slots = state_shape[1]
    assert isinstance(slots, int)
    latents = found["latents"]
    assert latents.shape[0] == 3
    decoder = parts.sessions["vae_decoder"].bind(
        {"state": (3, slots, *latents.shape[1:]), "image": (3, 64, 64, 3)}
    )
    decoder.buffers["state"][:, 0] = latents
    decoder.run()
    apart = decoder.buffers["image"].astype(int) - found["images"]
    assert np.abs(apart).max() <= 1


def test_the_baseline_generates_the_same_and_tells_the_same(
    ours: tuple[dict[str, Any], float, dict[str, Any]], tiny_checkpoint: Path
) -> None:
    from sdexport.export import baseline

    system = baseline.load(scenario(tiny_checkpoint), {"dtype": "float32"})
    found, seconds = generated(system)
    mine, _, _ = ours
    assert np.abs(found["images"].astype(int) - mine["images"]).max() <= 2
    np.testing.assert_allclose(found["latents"], mine["latents"], atol=2e-3)
    assert found["model_calls"] == len(found["evaluations"]) == mine["model_calls"]
    stages = found["text_encoder"] + sum(found["evaluations"]) + found["vae_decoder"]
    assert 0 < stages <= seconds
    about = system.describe()
    assert about["precision"] == "fp32"
    assert about["bytes"] == sum(
        (tiny_checkpoint / part / "model.safetensors").stat().st_size
        if part == "text_encoder"
        else (tiny_checkpoint / part / "diffusion_pytorch_model.safetensors").stat().st_size
        for part in ("text_encoder", "unet", "vae")
    )


def test_weights_that_cannot_be_told_apart(tmp_path: Path) -> None:
    from sdexport.export.baseline import _bytes

    for part in ("text_encoder", "unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(bytes(10))
    assert _bytes(tmp_path) == 30
    (tmp_path / "unet" / "model.fp16.safetensors").write_bytes(bytes(5))
    assert _bytes(tmp_path) is None
    assert _bytes(tmp_path / "nothing") is None
