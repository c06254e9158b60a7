"""The exported folder: its content, the results of its models, and failing exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sdexport.artifacts import onnx_folder
from sdexport.artifacts.documents import to_builtins
from sdexport.errors import FolderError, ParityError, StorageError, UsageError
from sdexport.export import export_checkpoint
from sdexport.export.export import ExportReport
from sdexport.export.reference import ReferenceModels
from sdexport.model.shapes import COMPONENTS, Precision
from tests.checkpoints import copy_checkpoint

NORMAL = {
    "text_encoder": (
        ["input_ids"],
        ["last_hidden_state", "pooler_output", *(f"hidden_states.{k}" for k in range(3))],
    ),
    "unet": (["sample", "timestep", "encoder_hidden_states"], ["out_sample"]),
    "vae_decoder": (["latent_sample"], ["sample"]),
    "vae_encoder": (["sample"], ["latent_parameters"]),
}


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> ReferenceModels:
    return ReferenceModels(tiny_checkpoint)


def graph(folder: Path, component: str) -> onnx.ModelProto:
    return onnx.load(folder / component / "model.onnx", load_external_data=False)


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


def run(folder: Path, component: str, **inputs: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / component / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class TestFolder:
    """The layout and the graphs."""

    def test_layout(self, tiny_onnx: Path) -> None:
        folder = onnx_folder.open_folder(tiny_onnx)
        assert folder.components == COMPONENTS
        for name in COMPONENTS:
            files = {file.name for file in (tiny_onnx / name).iterdir()}
            assert files == {"model.onnx", "model.onnx.data", "config.json"}
        assert {file.name for file in tiny_onnx.iterdir()} == {
            *COMPONENTS,
            "tokenizer",
            "scheduler",
            "model_index.json",
            "sdexport.json",
        }
        index = json.loads((tiny_onnx / "model_index.json").read_text())
        assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
        assert index["safety_checker"] == index["feature_extractor"] == [None, None]

    def test_the_record(self, tiny_onnx: Path) -> None:
        record = to_builtins(onnx_folder.open_folder(tiny_onnx).record)
        assert record["format"] == onnx_folder.RECORD_FORMAT
        assert (record["precision"], record["opset"]) == ("fp32", 20)
        assert {"sdexport", "torch", "diffusers", "onnxscript"} <= set(record["versions"])
        for name in COMPONENTS:
            one = record["components"][name]
            assert one["parity"]["rel_rms"] < 1e-4
            assert one["seconds"] > 0
            assert one["peak_bytes"] > 0
            assert one["bytes"] == sum(
                (tiny_onnx / name / file).stat().st_size
                for file in ("model.onnx", "model.onnx.data")
            )

    @pytest.mark.parametrize("component", COMPONENTS)
    def test_graphs(self, tiny_onnx: Path, component: str) -> None:
        model = graph(tiny_onnx, component)
        onnx.checker.check_model(tiny_onnx / component / "model.onnx", full_check=True)
        inputs, outputs = NORMAL[component]
        assert [value.name for value in model.graph.input] == inputs
        assert [value.name for value in model.graph.output] == outputs
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        assert not model.functions
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"SplitToSequence", "SequenceAt", "If", "Loop", "Identity"}
        used = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= used
        places = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert places == {"model.onnx.data"}
        assert "/" not in model.producer_name + model.doc_string
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)

    def test_weights_are_stored_once(self, tiny_onnx: Path, tiny_checkpoint: Path) -> None:
        from sdexport.export import open_checkpoint

        checkpoint = open_checkpoint(tiny_checkpoint)
        for name in COMPONENTS:
            data = (tiny_onnx / name / "model.onnx.data").stat().st_size
            assert data <= checkpoint.parameters(name) * 4 * 1.05 + 20_000

    def test_open_dimensions(self, tiny_onnx: Path) -> None:
        unet = graph(tiny_onnx, "unet").graph
        assert shapes([*unet.input, *unet.output]) == {
            "sample": ["batch", 4, "height", "width"],
            "timestep": ["steps"],
            "encoder_hidden_states": ["batch", "tokens", 32],
            "out_sample": ["batch", 4, "height", "width"],
        }
        decoder, encoder = (
            graph(tiny_onnx, f"vae_{what}").graph for what in ("decoder", "encoder")
        )
        pixels = ["batch", 3, "8*height", "8*width"]
        assert shapes(decoder.output) == {"sample": pixels}
        assert shapes(encoder.input) == {"sample": pixels}
        assert shapes(encoder.output) == {"latent_parameters": ["batch", 8, "height", "width"]}
        text = graph(tiny_onnx, "text_encoder").graph
        assert shapes(text.output) == {
            "last_hidden_state": ["batch", 77, 32],
            "pooler_output": ["batch", 32],
            **{f"hidden_states.{layer}": ["batch", 77, 32] for layer in range(3)},
        }


class TestParity:
    """The models compared with diffusers' forward passes, at sizes other than the traced ones."""

    def close(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        assert ours.shape == theirs.shape
        assert np.abs(theirs).max() > 0.01
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("batch", "height", "width", "steps"),
        [(1, 8, 8, 1), (2, 5, 7, 1), (3, 9, 4, 3), (1, 16, 3, 1), (5, 2, 2, 5), (70, 2, 3, 1)],
    )
    def test_unet(
        self,
        tiny_onnx: Path,
        reference: ReferenceModels,
        batch: int,
        height: int,
        width: int,
        steps: int,
    ) -> None:
        sample, text = normal(batch, 4, height, width), normal(batch, 77, 32, seed=1)
        timestep = np.linspace(999.5, 1, steps, dtype=np.float32)
        inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": text}
        (ours,) = run(tiny_onnx, "unet", **inputs)
        self.close(ours, reference.unet(sample, timestep, text))

    @pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 1), (3, 5, 2), (2, 8, 9)])
    def test_vae(
        self, tiny_onnx: Path, reference: ReferenceModels, batch: int, height: int, width: int
    ) -> None:
        latents = normal(batch, 4, height, width) * 0.18215
        (ours,) = run(tiny_onnx, "vae_decoder", latent_sample=latents / np.float32(0.18215))
        images = np.clip(ours / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
        theirs = reference.decode(latents)
        assert images.shape == theirs.shape == (batch, height * 8, width * 8, 3)
        np.testing.assert_allclose(images, theirs, atol=1e-4)
        sample = np.tanh(normal(batch, 3, height * 8, width * 8))
        (ours,) = run(tiny_onnx, "vae_encoder", sample=sample)
        self.close(ours, reference.encode(sample))

    def test_text_encoder(self, tiny_onnx: Path, reference: ReferenceModels) -> None:
        for batch in (1, 2, 7):
            ids = np.random.default_rng(batch).integers(0, 500, (batch, 77))
            ours, pooled, *hidden = run(tiny_onnx, "text_encoder", input_ids=ids)
            self.close(ours, reference.text_encoder(ids))
            for layer, states in enumerate(hidden):
                self.close(states, reference.hidden_states(ids)[layer])
            # With the published ids, the pooled output is the largest token's.
            self.close(pooled, ours[np.arange(batch), ids.argmax(1)])

    def test_openvino_computes_the_same(self, tiny_onnx: Path, reference: ReferenceModels) -> None:
        openvino = pytest.importorskip("openvino")
        sample, text = normal(2, 4, 5, 7), normal(2, 77, 32, seed=1)
        compiled = openvino.Core().compile_model(
            tiny_onnx / "unet" / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        timestep = np.array([321.0], np.float32)
        (ours,) = compiled([sample, timestep, text]).values()
        self.close(ours, reference.unet(sample, timestep, text))


class TestHalf:
    """fp16 and bf16."""

    @pytest.mark.parametrize(
        ("precision", "number"),
        [(Precision.FP16, onnx.TensorProto.FLOAT16), (Precision.BF16, onnx.TensorProto.BFLOAT16)],
    )
    def test_text_encoder(
        self, tiny_checkpoint: Path, tmp_path: Path, precision: Precision, number: int
    ) -> None:
        folder = tmp_path / "onnx"
        report = export_checkpoint(
            tiny_checkpoint, folder, precision=precision, components=["text_encoder"]
        )
        check_half(report, folder, "text_encoder", number)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("precision", "number"),
        [(Precision.FP16, onnx.TensorProto.FLOAT16), (Precision.BF16, onnx.TensorProto.BFLOAT16)],
    )
    def test_unet_and_vae(
        self, tiny_checkpoint: Path, tmp_path: Path, precision: Precision, number: int
    ) -> None:
        others = ("unet", "vae_decoder", "vae_encoder")
        folder = tmp_path / "onnx"
        report = export_checkpoint(tiny_checkpoint, folder, precision=precision, components=others)
        for name in others:
            check_half(report, folder, name, number)
        timestep = graph(folder, "unet").graph.input[1]
        assert timestep.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def check_half(report: ExportReport, folder: Path, component: str, number: int) -> None:
    one = report.components[component]
    assert one.parity is not None
    assert 1e-6 < one.parity["rel_rms"] < one.parity["tolerance"]
    assert one.parity["compared"].startswith("bfloat16 weights" if number == 16 else "float16")
    model = graph(folder, component).graph
    assert {value.type.tensor_type.elem_type for value in model.output} == {number}
    large = [
        tensor
        for tensor in model.initializer
        if tensor.external_data and tensor.data_type != onnx.TensorProto.BOOL  # the causal mask
    ]
    assert {tensor.data_type for tensor in large} == {number}
    data = (folder / component / "model.onnx.data").stat().st_size
    assert data <= one.parameters * 2 * 1.05 + 20_000


class Stub:
    """A double of torch's export, which takes seconds: writes two files, or fails on request."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure
        self.components: list[str] = []

    def __call__(
        self, module: Any, component: str, signature: Any, example: Any, dims: Any, folder: Path
    ) -> Any:
        from sdexport.export.onnx_export import ExportedModel

        self.components.append(component)
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "model.onnx.data").write_bytes(b"weights")
        if self.failure is not None and len(self.components) == 2:
            raise self.failure
        return ExportedModel(parameters=1, bytes=12, nodes=1)


def stub(monkeypatch: pytest.MonkeyPatch, failure: BaseException | None = None) -> Stub:
    double = Stub(failure)
    monkeypatch.setattr("sdexport.export.onnx_export.export_module", double)
    return double


class TestWriting:
    """Destinations, interruptions, disk space."""

    @pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("no")])
    def test_interrupted(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        failure: BaseException,
    ) -> None:
        stub(monkeypatch, failure)
        with pytest.raises(type(failure)):
            export_checkpoint(tiny_checkpoint, tmp_path / "onnx", parity=False)
        assert list(tmp_path.iterdir()) == []

    def test_an_interruption_leaves_the_older_folder(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "onnx"
        stub(monkeypatch)
        export_checkpoint(tiny_checkpoint, folder, parity=False)
        before = (folder / "sdexport.json").read_bytes()
        stub(monkeypatch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(
                tiny_checkpoint, folder, components=["unet", "vae_decoder"], parity=False
            )
        assert (folder / "sdexport.json").read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["onnx"]

    def test_replaced_whole(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "onnx"
        stub(monkeypatch)
        export_checkpoint(tiny_checkpoint, folder, parity=False)
        called = stub(monkeypatch)
        export_checkpoint(tiny_checkpoint, folder, components=("vae_decoder", "unet"), parity=False)
        assert called.components == ["unet", "vae_decoder"]
        assert onnx_folder.OnnxFolder(folder).components == ("unet", "vae_decoder")
        record = to_builtins(onnx_folder.OnnxFolder(folder).record)
        assert record["components"]["unet"]["parity"] is None

    def test_another_folder_is_not_replaced(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(FolderError, match=r"not an ONNX folder \(it contains thesis.txt\)"):
            export_checkpoint(tiny_checkpoint, tmp_path)
        with pytest.raises(FolderError, match="is a file"):
            export_checkpoint(tiny_checkpoint, tmp_path / "thesis.txt")
        own = copy_checkpoint(tiny_checkpoint, tmp_path / "own")
        with pytest.raises(FolderError, match="not an ONNX folder"):
            export_checkpoint(own, own)
        assert (own / "unet" / "config.json").is_file()

    def test_too_little_space(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(StorageError, match=r"needs 0\.0\d GB and 0\.01 GB are free"):
            export_checkpoint(tiny_checkpoint, tmp_path / "deep" / "onnx")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("components", [["unet", "engine"], []])
    def test_unknown_components(
        self, tiny_checkpoint: Path, tmp_path: Path, components: list[str]
    ) -> None:
        with pytest.raises(UsageError, match=r"choose from: text_encoder, unet"):
            export_checkpoint(tiny_checkpoint, tmp_path / "onnx", components=components)

    def test_out_of_tolerance(
        self, tiny_onnx: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The comparison notices other weights, and values that are no numbers."""
        from sdexport.export import open_checkpoint, parity
        from sdexport.export.components import component_of
        from sdexport.export.loading import export_context, load_component

        checkpoint = open_checkpoint(tiny_checkpoint)
        model, of = load_component(checkpoint, "vae_decoder"), export_context(checkpoint)
        cases = parity.reference_cases(component_of(of, "vae_decoder"), model, of)
        folder = tiny_onnx / "vae_decoder"
        assert parity.compare("vae_decoder", folder, cases, Precision.FP32, 1).rel_rms < 1e-4
        cases[1].outputs["sample"] *= 1.01
        with pytest.raises(
            ParityError, match=r"vae_decoder must differ .* 0\.0001 in fp32, got 0\.0099"
        ):
            parity.compare("vae_decoder", folder, cases, Precision.FP32, 1)
        cases[1].inputs["latent_sample"][0, 0, 0, 0] = float("nan")
        with pytest.raises(ParityError, match="sample of the exported vae_decoder has NaN"):
            parity.compare("vae_decoder", folder, cases, Precision.FP32, 1)
        cases[0].outputs["sample"][0] = np.nan
        with pytest.raises(ParityError, match="PyTorch itself"):
            parity.compare("vae_decoder", folder, cases, Precision.FP32, 1)


def test_progress_names_the_components(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    class Heard:
        def __init__(self) -> None:
            self.titles: list[str] = []
            self.open = 0

        def start(self, title: str, total: int | None) -> None:
            self.titles.append(title)
            self.open += 1

        def advance(self, units: int = 1, note: str = "") -> None:
            assert self.open in (1, 2)

        def finish(self) -> None:
            self.open -= 1

    stub(monkeypatch)
    heard = Heard()
    export_checkpoint(tiny_checkpoint, tmp_path / "onnx", parity=False, progress=heard)
    assert heard.titles == [
        "loading PyTorch",
        "exporting",
        *(f"export {name}" for name in COMPONENTS),
    ]
    assert heard.open == 0
    assert capfd.readouterr() == ("", "")


def test_the_exporter_is_quiet(tiny_checkpoint: Path, tmp_path: Path, capfd: Any) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "onnx", components=["vae_encoder"])
    assert capfd.readouterr() == ("", "")
