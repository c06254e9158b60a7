"""What a model is like reaches all that generates with it, the half-precision check too."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.backends import targets
from sdexport.backends.build_request import BuiltEngine, EngineRequest
from sdexport.backends.tensorrt import config, readback
from sdexport.compiler import BuildOptions, build_folder, half_check
from sdexport.compiler import engines as build_engines
from sdexport.compiler import folder as build_folder_module
from sdexport.model.shapes import Precision, Profile, Range
from sdexport.pipeline.loaded_model import LoadedModel
from tests.checkpoints import edit_json, make_tiny_checkpoint

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
    tried: list[LoadedModel] = []

    def watched(*arguments: Any, **options: Any) -> LoadedModel:
        tried.append(LoadedModel(*arguments, **options))
        return tried[-1]

    monkeypatch.setattr(build_folder_module, "LoadedModel", watched)
    folder = half_folder(tmp_path, FEATURES[feature])
    build_folder(folder, tmp_path / "bundle", OPTIONS)
    bundle = bundles.open_bundle(tmp_path / "bundle")
    record: Any = bundle.manifest.half_check
    assert set(record.engines) == set(bundle.manifest.engines)
    (loaded,) = tried
    assert loaded.model == loaded.sessions.model == bundle.manifest.model
    assert dict(loaded.bounds.scheduler_config) == bundle.scheduler_config
    assert set(loaded.sessions.engines) == set(bundle.manifest.engines)
