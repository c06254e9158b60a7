"""What is in an ONNX file, an ONNX folder or a bundle: tensors, precision, weights, cost.

Nothing is loaded to be run. Reading ONNX needs `onnx`; a bundle is described without it from its
manifest and, for OpenVINO, from the engine's own description of itself.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdexport import storage
from sdexport.bundle import ENGINES, Bundle, EngineRecord, is_bundle, open_bundle
from sdexport.errors import FolderError, MissingExtraError
from sdexport.onnx_folder import MODEL_FILE, OnnxFolder, open_folder
from sdexport.spec import COMPONENTS, TensorSpec

if TYPE_CHECKING:
    import onnx

LATENT_SIDE = 64
"""Latents a side at which the cost of an ONNX model is counted: 512 pixels, SD 1.x's own size."""

TOKENS = 77
PIXELS_A_LATENT = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One component or engine.

    Attributes:
        precision: of the weights, such as `fp32`, or `fp16+fp32` where they are mixed.
        opset: of the ONNX operators; None for other formats.
        bytes: of its files on disk.
        flops: floating-point operations of one call (a multiplication with its addition is two)
            at `flops_at`, None if they could not be counted.
        note: why something is not known, else empty.
    """

    name: str
    file: str
    bytes: int
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    precision: str | None = None
    opset: int | None = None
    parameters: int | None = None
    flops: int | None = None
    flops_at: str | None = None
    fingerprint: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found at `path`.

    Attributes:
        kind: `bundle`, `ONNX folder` or `ONNX file`.
        bytes: of everything that belongs to it on disk.
        about: for a bundle what its manifest says of it, for an ONNX folder what its export
            recorded; empty for a file.
    """

    path: Path
    kind: str
    bytes: int
    parts: tuple[Part, ...]
    about: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The inspection as one JSON object; parts are under `components`."""
        value = asdict(self) | {"path": str(self.path), "about": dict(self.about)}
        value["components"] = value.pop("parts")
        return value


def inspect(path: Path | str) -> Inspection:
    """Describes the bundle, ONNX folder or single ONNX file at `path`.

    Raises:
        FolderError: it is none of these, or damaged.
        MissingExtraError: it is ONNX and `onnx` is not installed.
    """
    path = Path(path)
    if path.is_dir() and is_bundle(path):
        return _bundle(open_bundle(path, check=False))
    if path.is_file() and path.suffix.lower() == ".onnx":
        part = _onnx(path, path.stem)
        return Inspection(path, "ONNX file", part.bytes, (part,))
    if path.is_dir() and any((path / name / MODEL_FILE).is_file() for name in COMPONENTS):
        return _folder(open_folder(path))
    if path.is_dir() and (path / MODEL_FILE).is_file():
        part = _onnx(path / MODEL_FILE, path.name)
        return Inspection(path, "ONNX file", part.bytes, (part,))
    what = "nothing is there" if not path.exists() else "it is none of these"
    raise FolderError(
        f"cannot inspect {path}: {what}. Accepted are a bundle (a folder with bundle.json), "
        "an ONNX folder (with unet/model.onnx and so on), and a single .onnx file"
    )


def _folder(folder: OnnxFolder) -> Inspection:
    parts = tuple(_onnx(folder.model(name), name) for name in folder.components)
    return Inspection(
        folder.path, "ONNX folder", storage.size_of(folder.path), parts, folder.record
    )


def _bundle(bundle: Bundle) -> Inspection:
    manifest = bundle.manifest
    profile = manifest.profile
    at = f"batch {profile.batch.opt}, {profile.width.opt}x{profile.height.opt} pixels, guided"
    parts = []
    for name in sorted(manifest.engines, key=_place):
        engine = manifest.engines[name]
        own = [
            record.bytes for file, record in manifest.files.items() if file.startswith(f"{name}/")
        ]
        seen = _engine(bundle.path / engine.file, engine, name)
        parts.append(
            Part(
                name=name,
                file=engine.file,
                bytes=sum(own),
                inputs=seen.inputs,
                outputs=seen.outputs,
                precision=seen.precision,
                opset=seen.opset,
                parameters=engine.parameters,
                flops=engine.flops,
                flops_at=at,
                fingerprint=engine.fingerprint,
                note=seen.note,
            )
        )
    about = {
        key: value for key, value in manifest.as_json().items() if key not in ("files", "engines")
    }
    return Inspection(bundle.path, "bundle", storage.size_of(bundle.path), tuple(parts), about)


def _place(engine: str) -> int:
    """Where an engine stands in the order of a picture's making; unknown ones last."""
    return ENGINES.index(engine) if engine in ENGINES else len(ENGINES)


def _engine(file: Path, record: EngineRecord, name: str) -> Part:
    """What an engine's file says of itself; a note where it cannot be read."""
    try:
        if file.suffix == ".plan":
            return _plan(file, record, name)
        if file.suffix == ".xml":
            return _openvino(file, name)
        if file.suffix == ".onnx":
            return _onnx(file, name, cost=False)
    except MissingExtraError:
        return Part(name, file.name, 0, note="its tensors are shown where onnx is installed")
    return Part(name, file.name, 0, note=f"no description of {file.suffix} files")


def _plan(file: Path, record: EngineRecord, name: str) -> Part:
    """What the build noted of a TensorRT engine, which only a GPU can open."""
    built: Any = record.built
    inputs, outputs = (
        tuple(
            TensorSpec(one["name"], one["dtype"], tuple("?" if n < 0 else n for n in one["shape"]))
            for one in built.get(which, ())
        )
        for which in ("inputs", "outputs")
    )
    activations = built.get("activation_bytes")
    note = f"as noted when it was built; read back from {built.get('read_from')}"
    if activations is not None:
        note = f"{activations:,} bytes of activations; {note}"
    return Part(name, file.name, 0, inputs, outputs, note=note)


def _openvino(file: Path, name: str) -> Part:
    """Tensors and weights of an OpenVINO IR, from its XML alone.

    The format is OpenVINO's: layers of type Parameter, Result and Const, joined by edges.
    """
    try:
        root = ElementTree.parse(file).getroot()
        layers = {layer.attrib["id"]: layer for layer in root.iterfind("layers/layer")}
        sources = {
            edge.attrib["to-layer"]: (edge.attrib["from-layer"], edge.attrib["from-port"])
            for edge in root.iterfind("edges/edge")
        }
        inputs, outputs, elements = [], [], dict[str, int]()
        for key, layer in layers.items():
            if layer.attrib["type"] == "Parameter":
                inputs.append(_port(layer, None))
            elif layer.attrib["type"] == "Result":
                source, port = sources[key]
                outputs.append(_port(layers[source], port))
            elif layer.attrib["type"] == "Const" and (data := layer.find("data")) is not None:
                short = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}.get(
                    data.attrib["element_type"]
                )
                if short is not None:
                    width = 4 if short == "fp32" else 2
                    elements[short] = elements.get(short, 0) + int(data.attrib["size"]) // width
    except (ElementTree.ParseError, OSError, KeyError, ValueError) as error:
        raise FolderError(
            f"{file} is no readable OpenVINO model: {error!r}; build the bundle again"
        ) from error
    return Part(name, file.name, 0, tuple(inputs), tuple(outputs), _named(elements))


def _port(layer: ElementTree.Element, port: str | None) -> TensorSpec:
    """The tensor that leaves `layer` by its output port of this number, or by its only one."""
    element = next(
        one for one in layer.iterfind("output/port") if port is None or one.attrib["id"] == port
    )
    name = element.attrib.get("names", "").split(",")[0] or layer.attrib["name"]
    precision = element.attrib["precision"]
    dtypes = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "I64": "int64"}
    dtypes |= {"I32": "int32", "U8": "uint8", "FP64": "float64", "BOOL": "bool"}
    lengths = [int(dim.text or 0) for dim in element.iterfind("dim")]
    return TensorSpec(
        name, dtypes.get(precision, precision.lower()), tuple(n if n >= 0 else "?" for n in lengths)
    )


def _onnx(path: Path, name: str, *, cost: bool = True) -> Part:
    try:
        import onnx
    except ModuleNotFoundError:
        raise MissingExtraError(
            'reading ONNX files needs onnx, which is not installed; pip install "sdexport[build]"'
        ) from None
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no types

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise FolderError(f"{path} is no readable ONNX model: {error}; make it again") from error
    if not model.HasField("graph"):
        raise FolderError(f"{path} is no ONNX model: it holds no graph; make it again")
    weights = [*model.graph.initializer]
    stored = {tensor.name for tensor in weights}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in stored)
    flops, at, note = _cost(model, inputs, name) if cost else (None, None, "")
    return Part(
        name=name,
        file=str(path.name),
        bytes=path.stat().st_size + _external_bytes(path, weights),
        inputs=inputs,
        outputs=tuple(_spec(value) for value in model.graph.output),
        precision=_precision(weights),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None),
        parameters=sum(_elements(tensor) for tensor in weights if _short(tensor.data_type)),
        flops=flops,
        flops_at=at,
        note=note,
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    )
    if not tensor.elem_type:
        return TensorSpec(value.name, "unknown", shape)
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return TensorSpec(
        value.name, {"float": "float32", "double": "float64"}.get(dtype, dtype), shape
    )


def _short(data_type: int) -> str | None:
    """The short name of a floating-point type; None for whole numbers, which are no weights."""
    return {1: "fp32", 10: "fp16", 11: "fp64", 16: "bf16"}.get(data_type)


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for length in tensor.dims:
        count *= length
    return count


def _precision(weights: list[onnx.TensorProto]) -> str | None:
    """The types of the weights; below a hundredth of them all, a type is not worth a name."""
    elements: dict[str, int] = {}
    for tensor in weights:
        if (name := _short(tensor.data_type)) is not None:
            elements[name] = elements.get(name, 0) + _elements(tensor)
    return _named(elements)


def _named(elements: Mapping[str, int]) -> str | None:
    """`fp32`, or `fp16+fp32` where both hold at least a hundredth of the weights."""
    total = sum(elements.values())
    return "+".join(sorted(n for n, count in elements.items() if count * 100 >= total)) or None


def _external_bytes(path: Path, weights: list[onnx.TensorProto]) -> int:
    """The size of the data files beside the model that its weights lie in."""
    files = {
        entry.value
        for tensor in weights
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found = (path.parent / name for name in files)
    return sum(file.stat().st_size for file in found if file.is_file())


def _cost(
    model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], name: str
) -> tuple[int | None, str | None, str]:
    """FLOPs of one call, the size they are for, and why they are not known."""
    from sdexport.graph.flops import count

    try:
        flops = count(model, _usual_shapes(inputs)).flops
    except Exception as error:  # Any model may be looked at, also ones that are not ours.
        return None, None, f"operations were not counted: {error}"
    at = f"batch 1, {LATENT_SIDE}x{LATENT_SIDE} latents"
    # A text encoder knows no picture's size.
    return flops, "batch 1" if name.startswith("text_encoder") else at, ""


def _usual_shapes(inputs: tuple[TensorSpec, ...]) -> dict[str, tuple[int, ...]]:
    """Numbers for symbols: batch 1, 77 tokens, `LATENT_SIDE` latents or the pixels they stand for.

    By position, not by the symbols' names: every exporter has names of its own.
    """
    shapes = {}
    for spec in inputs:
        pixels = len(spec.shape) == 4 and spec.shape[1] == 3
        side = LATENT_SIDE * (PIXELS_A_LATENT if pixels else 1)
        last = {2: (1, TOKENS), 3: (1, TOKENS, 1), 4: (1, 1, side, side)}
        usual = last.get(len(spec.shape), (1,) * len(spec.shape))
        shapes[spec.name] = tuple(
            length if isinstance(length, int) else usual[axis]
            for axis, length in enumerate(spec.shape)
        )
    return shapes
