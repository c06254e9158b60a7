"""`sdexport compile`, `export` and `build`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sdexport.errors import MissingExtraError, ParityError
from sdexport.model.shapes import COMPONENTS, Precision, Range, Ranges
from sdexport.progress import Progress, stage
from tests.cli.doubles import Ran

Run = Callable[..., Ran]

REPORT = {
    "bundle": "somewhere",
    "target": "openvino-cpu",
    "precision": "bf16",
    "reasons": ["it is there", "it is fast"],
    "outcome": "built",
    "notes": ["not exported: safety_checker"],
    "reused": False,
    "fingerprint": "0123456789abcdef" * 4,
    "bytes": 12_345_678,
    "stages": [{"name": "export", "seconds": 61.2, "peak_bytes": 5_000_000_000}],
    "parity": {
        "ok": True,
        "comparisons": [{"what": "images", "rms": 0.001, "largest": 1.0}],
    },
}


class Maker:
    """Remembers how it was called, reports progress, and returns a report."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.failure: Exception | None = None

    def __call__(self, *arguments: Any, progress: Progress, **options: Any) -> SimpleNamespace:
        self.calls.append((arguments, options))
        with stage(progress, "making", 2):
            progress.advance(1, "unet")
            print("a library prints something")
            if self.failure is not None:
                raise self.failure
        return SimpleNamespace(as_json=lambda: self.report)


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Maker:
    maker = Maker(REPORT)
    monkeypatch.setattr("sdexport.compiler.compile_checkpoint", maker)
    return maker


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Maker:
    maker = Maker(REPORT | {"parity": None, "outcome": "updated: scheduler"})
    monkeypatch.setattr("sdexport.compiler.build_folder", maker)
    return maker


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> Maker:
    maker = Maker(
        {
            "components": {
                "unet": {
                    "seconds": 12.3,
                    "bytes": 3_400_000_000,
                    "parameters": 860_000_000,
                    "parity": {"max_abs": 1e-4, "rel_rms": 2e-6},
                },
                "vae_decoder": {"seconds": 1, "bytes": 5, "parameters": 7, "parity": None},
            }
        }
    )
    # The whole module, because the real one needs torch when it is used.
    double = ModuleType("sdexport.export")
    double.export_checkpoint = maker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sdexport.export", double)
    return maker


def options_of(maker: Maker) -> Any:
    """The BuildOptions of the only call."""
    ((arguments, _),) = maker.calls
    return arguments[2]


def test_compile(run: Run, compiling: Maker, tmp_path: Path) -> None:
    ended = run("compile", "someone/model", tmp_path / "bundle")
    assert ended.code == 0
    ((arguments, options),) = compiling.calls
    assert arguments[0] == "someone/model"
    assert arguments[1] == tmp_path / "bundle"
    assert options == {"components": COMPONENTS, "onnx": None, "verify": True, "force": False}
    assert (arguments[2].target, arguments[2].precision) == ("auto", None)
    assert (arguments[2].profile, arguments[2].guidance) == (None, 7.5)
    for said in ("somewhere", "openvino-cpu", "it is fast", "12.3 MB", "61.2 s", "passed"):
        assert said in ended.out
    assert "a library prints" not in ended.out


def test_every_option_arrives(run: Run, compiling: Maker, tmp_path: Path) -> None:
    ended = run(
        "compile", "c", "b", "--target", "onnxruntime-cpu", "--precision", "BF16", "--batch", "2",
        "--height", "64:128:256", "--width", "64:256", "--guidance", "0", "--onnx",
        tmp_path / "onnx", "--no-verify", "--force",
    )  # fmt: skip
    assert ended.code == 0
    ((_, options),) = compiling.calls
    assert options["onnx"] == tmp_path / "onnx"
    assert (options["verify"], options["force"]) == (False, True)
    made = options_of(compiling)
    assert (made.target, made.precision, made.guidance) == (
        "onnxruntime-cpu", Precision.BF16, 0.0,
    )  # fmt: skip
    assert made.profile.batch == Range(2, 2, 2)
    assert made.profile.height == Range(64, 128, 256)
    assert made.profile.width == Range(64, 64, 256)


@pytest.mark.parametrize("option", ["batch", "height", "width"])
def test_a_range_left_out_is_left_to_the_build(
    run: Run, compiling: Maker, building: Maker, option: str
) -> None:
    for verb, made in (("compile", compiling), ("build", building)):
        assert run(verb, "someone/model", "b", f"--{option}", "8:16:24").code == 0
        assert options_of(made).profile == Ranges(**{option: Range(8, 16, 24)})


def recipe(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_names_everything(run: Run, compiling: Maker, tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        'checkpoint = "./model"\ntarget = "openvino-cpu"\nprecision = "fp32"\nguidance = 2.5\n'
        'components = ["vae_decoder", "unet", "text_encoder"]\n'
        '[profile]\nbatch = "1:1:8"\nheight = [64, 128, 256]\nwidth = 128\n',
    )
    assert run("compile", "--recipe", path).code == 0
    ((arguments, options),) = compiling.calls
    assert arguments[0] == str(tmp_path / "model")
    assert arguments[1] == tmp_path / "small"
    assert options["components"] == ("text_encoder", "unet", "vae_decoder")
    made = options_of(compiling)
    assert (made.target, made.precision, made.guidance) == ("openvino-cpu", Precision.FP32, 2.5)
    assert made.profile == Ranges(Range(1, 1, 8), Range(64, 128, 256), Range(128, 128, 128))


def test_options_go_before_the_recipe(run: Run, compiling: Maker, tmp_path: Path) -> None:
    path = recipe(
        tmp_path, 'checkpoint = "./model"\ntarget = "openvino-cpu"\nguidance = 2.5\n'
        '[profile]\nbatch = 4\nwidth = 128\n',
    )  # fmt: skip
    ended = run(
        "compile", "other", "there", "--recipe", path, "--target", "auto", "--guidance", 0,
        "--batch", 1, "--precision", "fp32",
    )  # fmt: skip
    assert ended.code == 0
    ((arguments, _),) = compiling.calls
    assert arguments[:2] == ("other", Path("there"))
    made = options_of(compiling)
    assert (made.target, made.precision, made.guidance) == ("auto", Precision.FP32, 0.0)
    assert (made.profile.batch, made.profile.width) == (Range(1, 1, 1), Range(128, 128, 128))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CHECKPOINT is missing"),
        (["c"], "BUNDLE is missing"),
        (["c", "b", "--precision", "int3"], "fp32, fp16, bf16"),
        (["c", "b", "--batch", "many"], "--batch"),
        (["c", "b", "--height", "8:4"], "--height"),
        (["c", "b", "--width", "100"], "multiple of 8"),
        (["c", "b", "--guidance", "-1"], "guidance"),
        (["--recipe", "nothing.toml"], "no recipe at nothing.toml"),
    ],
)
def test_what_cannot_be_compiled(
    run: Run, compiling: Maker, arguments: list[str], said: str
) -> None:
    ended = run("compile", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert said in ended.err
    assert compiling.calls == []


@pytest.mark.parametrize("kind", [MissingExtraError, ParityError])
def test_a_refusal_is_a_users_error(run: Run, compiling: Maker, kind: type[Exception]) -> None:
    compiling.failure = kind("it cannot be; do that")
    ended = run("compile", "c", "b")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith("error: it cannot be; do that\n")


@pytest.mark.parametrize("verb", ["compile", "build"])
def test_json_is_one_document(run: Run, compiling: Maker, building: Maker, verb: str) -> None:
    ended = run(verb, "a", "b", "--json")
    assert ended.code == 0
    assert ended.document["target"] == "openvino-cpu"
    assert ended.err == "a library prints something\n"


def test_build(run: Run, building: Maker, tmp_path: Path) -> None:
    ended = run("build", tmp_path / "onnx", "b", "--target", "openvino-cpu", "--force")
    assert ended.code == 0
    ((arguments, options),) = building.calls
    assert arguments[:2] == (tmp_path / "onnx", Path("b"))
    assert options == {"force": True}
    assert "updated: scheduler" in ended.out
    assert "not compared" in ended.out


def test_export(run: Run, exporting: Maker, tmp_path: Path) -> None:
    ended = run(
        "export", "c", tmp_path / "onnx", "--precision", "fp16", "--component", "unet",
        "--component", "vae_decoder", "--no-parity",
    )  # fmt: skip
    assert ended.code == 0
    ((arguments, options),) = exporting.calls
    assert arguments == ("c", tmp_path / "onnx")
    assert options == {
        "precision": Precision.FP16,
        "components": ("unet", "vae_decoder"),
        "parity": False,
    }
    assert "860 M" in ended.out
    assert "2e-06" in ended.out


def test_export_by_itself_takes_everything(run: Run, exporting: Maker) -> None:
    assert run("export", "c", "o", "--json").document == json.loads(json.dumps(exporting.report))
    ((_, options),) = exporting.calls
    assert options == {"precision": Precision.FP32, "components": COMPONENTS, "parity": True}


@pytest.mark.parametrize("options", [["--component", "controlnet"], ["--precision", "fp8"]])
def test_what_cannot_be_exported(run: Run, exporting: Maker, options: list[str]) -> None:
    ended = run("export", "c", "o", *options)
    assert ended.code == 2
    assert "choose" in ended.err
    assert exporting.calls == []


RTX = (
    'checkpoint = "./model"\ntarget = "tensorrt-rtx"\nprecision = "fp16"\nguidance = 2.5\n'
    "[[profile]]\nheight = 512\nwidth = 512\n[[profile]]\nbatch = 1\nheight = 768\nwidth = 768\n"
    '[builder]\ncompute_capabilities = ["sm86", "sm89"]\noptimization_level = 2\n'
)


def test_a_recipe_for_gpus(run: Run, building: Maker, tmp_path: Path) -> None:
    assert run("build", "onnx", "b", "--recipe", recipe(tmp_path, RTX)).code == 0
    made = options_of(building)
    assert (made.target, made.precision, made.guidance) == ("tensorrt-rtx", Precision.FP16, 2.5)
    assert made.builder.compute_capabilities == ("sm86", "sm89")
    assert made.builder.optimization_level == 2
    assert made.half_check is True
    small, large = (Range(side, side, side) for side in (512, 768))
    second = Ranges(Range(1, 1, 1), large, large)
    assert made.profile == Ranges(None, small, small, others=(second,))


def test_capabilities_go_before_the_recipe(run: Run, compiling: Maker, tmp_path: Path) -> None:
    ended = run(
        "compile", "--recipe", recipe(tmp_path, RTX), "--compute-capability", "12.0",
        "--compute-capability", "sm89", "--no-half-check",
    )  # fmt: skip
    assert ended.code == 0
    made = options_of(compiling)
    assert made.builder.compute_capabilities == ("sm89", "sm120")
    assert made.builder.optimization_level == 2
    assert made.half_check is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--height", "512"], "--height was given beside .* several profiles"),
        (["--compute-capability", "ada"], "must be written as sm89 or 8.9"),
    ],
)
def test_what_does_not_go_with_a_recipe(
    run: Run, compiling: Maker, tmp_path: Path, arguments: list[str], said: str
) -> None:
    ended = run("compile", "--recipe", recipe(tmp_path, RTX), *arguments)
    assert ended.code == 2
    assert re.search(said, ended.err)


def test_a_recipe_does_not_lie_in_the_bundle(run: Run, compiling: Maker, tmp_path: Path) -> None:
    path = recipe(tmp_path, 'checkpoint = "somewhere"')
    ended = run("compile", "--recipe", path, "sd15", tmp_path)
    assert ended.code == 2
    assert "is replaced whole, and the recipe" in ended.err
    assert path.exists()
