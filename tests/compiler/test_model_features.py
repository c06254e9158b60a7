"""What a model is like reaches all that generates with it, the half-precision check too."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.artifacts.manifest import Manifest
from sdexport.backends import targets
from sdexport.backends.build_request import BuiltEngine, EngineRequest
from sdexport.backends.tensorrt import config, readback
from sdexport.compiler import BuildOptions, build_folder, half_check
from sdexport.compiler import engines as build_engines
from sdexport.compiler import folder as build_folder_module
from sdexport.compiler.dimensions import Dimensions
from sdexport.model.shapes import Precision, Profile, Range
from sdexport.pipeline import load
from sdexport.pipeline.parts import PipelineParts
from sdexport.pipeline.request import Limits
from tests.checkpoints import edit_json, make_tiny_checkpoint

NAMES_OF_PARTS = {one.name for one in fields(PipelineParts)}
NAMES_OF_MANIFEST = set(Manifest.__struct_fields__)
GIVEN = set(inspect.signature(load.parts_of).parameters) - {"manifest"}
"""What `parts_of` is given beside the manifest."""
PLACED = {"device", "bundle"}
"""Fields that are filled in when the engines are placed, and for a bundle that is held."""
NOT_KEPT = {"native_size"}
"""Dimensions that a manifest has as its default size."""


def test_every_part_comes_from_the_manifest_or_is_given() -> None:
    assert NAMES_OF_PARTS - NAMES_OF_MANIFEST == GIVEN | PLACED


def test_every_dimension_is_in_the_manifest() -> None:
    assert {one.name for one in fields(Dimensions)} - NAMES_OF_MANIFEST == NOT_KEPT


def test_every_value_arrives() -> None:
    """Each field that manifest and parts share holds an object of its own, and so do limits."""
    shared = NAMES_OF_PARTS & NAMES_OF_MANIFEST
    values: dict[str, Any] = {name: object() for name in shared}
    others = {
        one.name: None
        for one in structs.fields(Manifest)
        if one.name not in shared and one.required
    }
    parts = load.parts_of(Manifest(**values, **others), **dict.fromkeys(GIVEN))  # type: ignore[arg-type]  # identities alone are looked at
    for name, value in values.items():
        assert getattr(parts, name) is value, name
    for one in fields(Limits):
        if one.name in values:
            assert getattr(parts.limits, one.name) is values[one.name], one.name


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "embedded guidance": {"unet": {"time_cond_proj_dim": 8}},
    "v-prediction": {"scheduler": {"prediction_type": "v_prediction"}},
    "shift": {"vae": {"shift_factor": 0.2}},
    "scaling": {"vae": {"scaling_factor": 0.5}},
    "sample size": {"unet": {"sample_size": 12}},
    "clip skip left out": {"without": "hidden_states"},
    "no VAE encoder": {"without": "vae_encoder"},
    "everything": {
        "unet": {"time_cond_proj_dim": 8, "sample_size": 12},
        "scheduler": {"prediction_type": "v_prediction"},
        "vae": {"shift_factor": 0.2, "scaling_factor": 0.5},
    },
}
OPTIONS = BuildOptions(
    "tensorrt-rtx",
    Precision.FP16,
    Profile(Range(1, 1, 2), Range(64, 64, 64), Range(64, 64, 64)),
    builder=BuilderOptions(("sm89",)),
)


def half_folder(path: Path, feature: dict[str, Any]) -> Path:
    """The ONNX folder, in half precision, of a tiny checkpoint with a feature."""
    import onnx

    from sdexport.export import export_checkpoint

    checkpoint = make_tiny_checkpoint(path / "checkpoint", unet=feature.get("unet"))
    for file, part in (
        ("scheduler/scheduler_config.json", "scheduler"),
        ("vae/config.json", "vae"),
    ):
        edit_json(checkpoint / file, feature.get(part, {}))
    without = feature.get("without")
    components = tuple(
        name for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder") if name != without
    )
    folder = path / "onnx"
    export_checkpoint(
        checkpoint, folder, precision=Precision.FP16, components=components, parity=False
    )
    if without == "hidden_states":
        (folder / "sdexport.json").unlink()
        file = folder / "text_encoder" / "model.onnx"
        model = onnx.load(file, load_external_data=False)
        del model.graph.output[2:]
        file.write_bytes(model.SerializeToString())
    return folder


def pretend(target: targets.Target, request: EngineRequest) -> BuiltEngine:
    """Builds nothing: what is tried here is the check before it."""
    del target
    (request.output / "engine.plan").write_bytes(b"engine")
    return BuiltEngine(Path("engine.plan"))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
@pytest.mark.parametrize(
    ("feature", "real"),
    [
        pytest.param(
            name,
            real,
            marks=[pytest.mark.slow] if real or name != "everything" else [],
            id=f"{name}{' built' if real else ''}",
        )
        for name in FEATURES
        for real in (False, True)
    ],
)
def test_the_half_check_generates_as_the_bundle_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str, real: bool
) -> None:
    for module in (targets, config, readback):
        monkeypatch.setattr(module, "find_gpus", lambda: ((), "no NVIDIA driver is installed"))
    if not real:
        monkeypatch.setattr(build_engines.targets, "build_engine", pretend)
    # A short trial: what is looked at is what it generates with.
    for name in ("MAX_STEPS", "MIN_FULL_SIZE_STEPS", "MIN_STEPS"):
        monkeypatch.setattr(half_check, name, 3)
    tried: list[PipelineParts] = []

    def watched(*arguments: Any, **options: Any) -> PipelineParts:
        tried.append(load.parts_of(*arguments, **options))
        return tried[-1]

    monkeypatch.setattr(build_folder_module, "parts_of", watched)
    folder = half_folder(tmp_path, FEATURES[feature])
    build_folder(folder, tmp_path / "bundle", OPTIONS)
    bundle = bundles.open_bundle(tmp_path / "bundle")
    record: Any = bundle.manifest.half_check
    assert set(record.engines) == set(bundle.manifest.engines)
    (parts,) = tried
    of_the_trial = {"profile", "default_size", "default_guidance"}
    for name in (NAMES_OF_PARTS & NAMES_OF_MANIFEST) - of_the_trial:
        assert getattr(parts, name) == getattr(bundle.manifest, name), name
    assert dict(parts.scheduler_config) == bundle.scheduler_config
    for name in bundles.ENGINES:
        assert (getattr(parts, name) is not None) == (name in bundle.manifest.engines), name
