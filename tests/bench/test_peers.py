"""The peers' folders are whole and agree with the harness, as far as no environment is needed."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

PEERS = Path(__file__).parent.parent.parent / "benchmarks" / "peers"
NAMES = sorted(file.parent.name for file in PEERS.glob("*/peer.toml"))
EXACT = re.compile(
    r"[a-z0-9][a-z0-9.-]*(\[[a-z,]+\])?==[0-9][0-9a-z.]*"
    r"|[a-z0-9-]+ @ git\+https://github\.com/[\w./-]+@[0-9a-f]{40}"
)
KEYS = {"title", "url", "licence", "adapter", "python", "device", "imports", "variants"}
OPTIONAL_KEYS = {"optional", "interpreter", "source", "built_last"}


def module(file: Path) -> ModuleType:
    """`file` as a module, with the folder of all peers on the path as the adapters put it."""
    spec = importlib.util.spec_from_file_location(f"peers_{file.parent.name}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.append(str(PEERS))
    try:
        spec.loader.exec_module(loaded)
    finally:
        sys.path[:] = before
    return loaded


def test_there_are_peers() -> None:
    assert {"optimum-onnx", "optimum-intel", "openvino-genai", "stable-diffusion-cpp"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_says_what_the_harness_asks(name: str) -> None:
    about = tomllib.loads((PEERS / name / "peer.toml").read_text(encoding="utf-8"))
    assert set(about) >= KEYS
    assert set(about) - KEYS <= OPTIONAL_KEYS
    assert about["device"] in ("cpu", "cuda")
    assert about["variants"]
    assert all(isinstance(options, dict) and options for options in about["variants"].values())
    assert (PEERS / name / about["adapter"]).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_requirements_are_exact(name: str) -> None:
    lines = (PEERS / name / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not EXACT.fullmatch(line)] == []
    names = [re.split(r"[\[=@ ]", line)[0] for line in pins]
    assert len(set(names)) == len(names)
    about = tomllib.loads((PEERS / name / "peer.toml").read_text(encoding="utf-8"))
    assert set(about.get("built_last", ())) <= set(names)


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_keeps_the_contract(name: str) -> None:
    tree = ast.parse((PEERS / name / "adapter.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert arguments(functions["load"]) == ["scenario", "options"]
    if "prepare" in functions:
        assert arguments(functions["prepare"]) == ["checkpoint", "folder", "options"]
    methods = {
        node.name: node for node in classes["System"].body if isinstance(node, ast.FunctionDef)
    }
    assert arguments(methods["describe"]) == ["self"]
    assert arguments(methods["generate"]) == ["self"]
    assert keys_returned(methods["describe"]) == {
        *("precision", "device", "threads", "versions", "setup", "bytes", "notes")
    }
    assert keys_returned(methods["generate"]) - {"batches"} == {
        *("images", "latents", "text_encoder", "evaluations", "vae_decoder", "model_calls")
    }


def arguments(function: ast.FunctionDef) -> list[str]:
    return [one.arg for one in function.args.args]


def keys_returned(function: ast.FunctionDef) -> set[str]:
    """The keys of the dictionary that `function` returns."""
    (returned,) = (node for node in ast.walk(function) if isinstance(node, ast.Return))
    assert isinstance(returned.value, ast.Dict)
    return {key.value for key in returned.value.keys if isinstance(key, ast.Constant)}


# One level down and no further: below are whole environments.
FILES = [*sorted(PEERS.glob("*.py")), *sorted(PEERS.glob("*/*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_nothing_of_sdexport_is_imported(file: Path) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert "sdexport" not in names


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_sampler_is_refused_with_those_there_are(name: str) -> None:
    adapter = module(PEERS / name / "adapter.py")
    scenario = {"sampler": "nothing", "guidance": 7.5, "batch": 1, "seeds": [0]}
    with pytest.raises(ValueError, match=r"'nothing'.* euler"):
        adapter.load(scenario, {})


def checkpoint(folder: Path, prefix: str) -> Path:
    """The files of a checkpoint that matter here, with one weight of two numbers."""
    data = np.array([1, 2], np.float16).tobytes()
    tensor = {"dtype": "F16", "shape": [2], "data_offsets": [0, len(data)]}
    names = {"__metadata__": {"format": "pt"}, f"{prefix}final_layer_norm.bias": tensor}
    text = json.dumps(names).encode()
    for part in ("text_encoder", "unet"):
        (folder / part).mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "text_encoder" / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + data
    )
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "U"]}
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_weights_get_the_names_that_older_libraries_know(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    source = checkpoint(tmp_path / "new", "")
    copy = Path(exports().readable_copy(str(source), tmp_path / "copy"))
    assert copy == tmp_path / "copy"
    weights = load_file(copy / "text_encoder" / "model.safetensors")
    assert list(weights) == ["text_model.final_layer_norm.bias"]
    assert weights["text_model.final_layer_norm.bias"].tolist() == [1, 2]
    assert (copy / "unet" / "config.json").resolve() == source / "unet" / "config.json"
    assert list(load_file(source / "text_encoder" / "model.safetensors")) == [
        "final_layer_norm.bias"
    ]


def test_a_checkpoint_of_the_usual_names_is_read_as_it_is(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "usual", "text_model.")
    assert exports().readable_copy(str(source), tmp_path / "copy") == str(source)
    assert exports().readable_copy("someone/a-model", tmp_path / "copy") == "someone/a-model"
    assert not (tmp_path / "copy").exists()


def test_parts_that_are_not_there_are_taken_out_of_the_index(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "text_model.")
    index = json.loads((source / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (source / "model_index.json").write_text(json.dumps(index))
    copy = Path(exports().readable_copy(str(source), tmp_path / "copy"))
    assert json.loads((copy / "model_index.json").read_text())["safety_checker"] == [None, None]
    assert json.loads((source / "model_index.json").read_text()) == index


def shared() -> ModuleType:
    return module(PEERS / "shared.py")


def exports() -> ModuleType:
    return module(PEERS / "exports.py")


def test_peers_take_a_thread_for_every_physical_core() -> None:
    from sdexport.backends.host.device import physical_cores

    assert shared().threads_of({"threads": None}) == physical_cores()
    assert shared().threads_of({"threads": 7}) == 7


# diffusers hands a tensor of torch to numpy.
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize("name", sorted(shared().SAMPLERS))
def test_peers_get_the_baselines_scheduler(name: str) -> None:
    import diffusers

    from sdexport.export.reference import sampler_for

    config = {
        **{"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012},
        **{"beta_schedule": "scaled_linear", "steps_offset": 1, "use_karras_sigmas": True},
    }
    kind, changes = shared().diffusers_sampler(name)
    theirs, baselines = (
        getattr(diffusers, kind).from_config(config, **changes),
        sampler_for(name, config),
    )
    assert type(theirs) is type(baselines)
    for one in (theirs, baselines):
        one.set_timesteps(7)
    assert theirs.timesteps.tolist() == baselines.timesteps.tolist()
    ours = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert ours == {
        key: value for key, value in baselines.config.items() if not key.startswith("_")
    }


def test_a_timed_pipeline_generates_what_the_baseline_generates(tiny_checkpoint: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from sdexport.export import baseline

    scenario = {
        "checkpoint": str(tiny_checkpoint),
        "prompts": ["a dog", "a cat", "a bird"],
        "negative_prompt": "",
        **{"seeds": [3, 5, 7], "width": 64, "height": 64, "batch": 2, "threads": None},
        **{"steps": 3, "sampler": "ddim", "guidance": 4.0},
    }
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_checkpoint,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    timed = module(PEERS / "pipelines.py").TimedPipeline(pipeline, scenario, ("vae", "decode"))
    expected = baseline.load(scenario, {"dtype": "float32"}).generate()
    for _ in range(2):  # nothing of the first generation is counted again
        images, latents, taken = timed.generate()
        assert (images == expected["images"]).all()
        assert (latents == expected["latents"]).all()
        # Two batches; a call of the text encoder for each branch.
        assert {stage: len(calls) for stage, calls in taken.items()} == {
            **{"text_encoder": 4, "unet": 2 * 3, "vae_decoder": 2}
        }
        assert all(seconds > 0 for calls in taken.values() for seconds in calls)


# diffusers hands a tensor of torch to np.array.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("euler", "EulerDiscreteScheduler"), ("dpmpp-2m", "DPMSolverMultistepScheduler")],
)
def test_noise_levels_for_stable_diffusion_cpp_are_those_of_diffusers(
    tmp_path: Path, spacing: str | None, steps: int, sampler: str, scheduler: str
) -> None:
    import diffusers

    config = {
        **{"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012},
        **{"beta_schedule": "scaled_linear", "steps_offset": 1},
    }
    if spacing is not None:
        config["timestep_spacing"] = spacing
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    ours = module(PEERS / "stable-diffusion-cpp" / "adapter.py").noise_levels(
        tmp_path, sampler, steps
    )
    theirs = getattr(diffusers, scheduler).from_config(config)
    theirs.set_timesteps(steps)
    # Theirs are of float32, where 1 - 0.99915 has four digits fewer.
    np.testing.assert_allclose(ours, theirs.sigmas.numpy(), rtol=1e-4)


def test_a_size_that_is_not_compiled_in_is_refused(tmp_path: Path) -> None:
    adapter = module(PEERS / "stable-diffusion-cpp" / "adapter.py")
    (tmp_path / "unet").mkdir()
    config = {"block_out_channels": [64, 128, 192], "layers_per_block": 1}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unet has block_out_channels .*\[64, 128, 192\]"):
        adapter.prepare(str(tmp_path), str(tmp_path), {"weights": "f16"})


@pytest.mark.parametrize(
    ("prompts", "batch", "together"),
    [
        (["a"], 1, 1),
        (["a", "a", "b", "b"], 2, 2),
        (["a", "b"], 2, 1),
        (["a", "a", "a"], 2, 1),
    ],
)
def test_genai_generates_together_what_has_one_prompt(
    prompts: list[str], batch: int, together: int
) -> None:
    adapter = module(PEERS / "openvino-genai" / "adapter.py")
    assert adapter.images_together({"prompts": prompts, "batch": batch}) == together


def test_steps_are_told_apart_from_other_progress() -> None:
    between = module(PEERS / "stable-diffusion-cpp" / "adapter.py").between
    loading = [(0.0, 0, 1130), (0.5, 1, 1130)]
    assert between([*loading, (1.0, 0, 2), (3.0, 1, 2), (6.0, 2, 2)], 2) == [2.0, 3.0]


def test_setup_names_the_peers_it_knows() -> None:
    done = subprocess.run(
        [sys.executable, PEERS / "setup.py", "nobody"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no peer 'nobody'; known are " + ", ".join(NAMES) in done.stderr
