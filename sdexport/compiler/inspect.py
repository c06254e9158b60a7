"""What is in a bundle, a checkpoint, an ONNX folder or an ONNX file: tensors, weights, cost.

Nothing is loaded to be run, and nothing imports torch. Reading ONNX needs `onnx`; a
bundle is described without it from its manifest and, for OpenVINO, from the engine's own
description of itself.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdexport.artifacts import documents, reading, storage
from sdexport.artifacts.bundle import ENGINES, Bundle, is_bundle, open_bundle
from sdexport.artifacts.export_record import OPEN, Tensor
from sdexport.artifacts.manifest import EngineRecord
from sdexport.artifacts.onnx_folder import INDEX_FILE, MODEL_FILE, OnnxFolder, open_folder
from sdexport.compiler.store import why_not
from sdexport.errors import FolderError, MissingExtraError, UsageError, shown
from sdexport.extras import install_command
from sdexport.graph.costs import WIDTHS, engine_work
from sdexport.keywords import explains_keywords
from sdexport.model.shapes import COMPONENTS, LARGEST, TensorSpec

if TYPE_CHECKING:
    import onnx

USUAL_SIZE = (512, 512)
"""The size in pixels at which the cost of an ONNX model is counted: SD 1.x's own."""

TOKENS = 77
PIXELS_A_LATENT = 8
"""In ONNX models, which do not tell; a bundle does."""

XML_BYTES = 1 << 28
"""The longest description of an OpenVINO model that is read; SD 1.5's has 5 MB."""

WIDEST = 8
"""Bytes of the widest number: an ONNX file's weights are read as they are."""


@dataclass(frozen=True, slots=True)
class At:
    """What costs are counted for: (width, height) pixels and images; None: what is usual."""

    size: tuple[int, int] | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple | list) else ()
        if self.size is not None and (len(sides) != 2 or any(type(n) is not int for n in sides)):
            raise UsageError(
                f"size must be (width, height), whole numbers of pixels, got {shown(self.size)}"
            )
        if self.batch is not None and type(self.batch) is not int:
            raise UsageError(f"batch must be a whole number of images, got {shown(self.batch)}")
        for name, values in (("size", sides), ("batch", (self.batch or 1,))):
            if any(not 1 <= n <= LARGEST for n in values):
                raise UsageError(
                    f"{name} must be from 1 to {LARGEST}, got {shown(getattr(self, name))}"
                )


@dataclass(frozen=True, slots=True)
class Part:
    """One component or engine.

    Attributes:
        kind: of a checkpoint's component its class, such as `UNet2DConditionModel`; else empty.
        precision: of the weights, such as `fp32`, or `fp16+fp32` where they are mixed.
        opset: of the ONNX operators; None for other formats.
        bytes: of its files on disk.
        flops: floating-point operations of one call (a multiplication with its addition is two)
            at `flops_at`, None if they could not be counted.
        moved: bytes that this call moves at least; None where nobody asked at which size.
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
    moved: int | None = None
    fingerprint: str | None = None
    note: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found at `path`.

    Attributes:
        kind: `bundle`, `checkpoint`, `ONNX folder` or `ONNX file`.
        bytes: of everything that belongs to it on disk.
        about: for a bundle what its manifest says of it, for an ONNX folder what its export
            recorded, for a checkpoint see `compiler.inspect_checkpoint`; empty for a file.
        ready: whether a bundle can run on this machine, or a checkpoint can be compiled; None for
            others. `why_not`: why it is not.
    """

    path: Path
    kind: str
    bytes: int
    parts: tuple[Part, ...]
    about: Mapping[str, object] = field(default_factory=dict)
    ready: bool | None = None
    why_not: str = ""

    def as_json(self) -> dict[str, Any]:
        """The inspection as one JSON object; parts are under `components`."""
        value = asdict(self) | {"path": str(self.path), "about": dict(self.about)}
        value["components"] = value.pop("parts")
        return value


@explains_keywords()
def inspect(
    path: Path | str, *, size: tuple[int, int] | None = None, batch: int | None = None
) -> Inspection:
    """Describes the bundle, checkpoint, ONNX folder or single ONNX file at `path`.

    Args:
        size: (width, height) in pixels to count costs at; None: what a bundle's profile expects,
            for ONNX 512x512.
        batch: images; None likewise, for ONNX one.

    Raises:
        FolderError: it is none of these, or damaged; or a bundle of an earlier version, whose
            costs are known at its expected size alone.
        MissingExtraError: it is ONNX, or costs at a size are wanted, and `onnx` is not installed.
        CheckpointError: a checkpoint's model_index.json or weights are damaged.
        UsageError: no such size or batch, or one was asked for of a checkpoint.
    """
    path, at = reading.given_path(path, "the path to inspect"), At(size, batch)
    kind = reading.kind_of(path)
    is_folder = kind is reading.Kind.FOLDER
    if is_folder and is_bundle(path):
        return _bundle(open_bundle(path, check=False), at)
    if kind is reading.Kind.FILE and path.suffix.lower() == ".onnx":
        part = _onnx(path, path.stem, at)
        return Inspection(path, "ONNX file", part.bytes, (part,))
    if is_folder and any(reading.exists(path / name / MODEL_FILE) for name in COMPONENTS):
        return _folder(open_folder(path), at)
    if is_folder and reading.exists(path / MODEL_FILE):
        part = _onnx(path / MODEL_FILE, path.name, at)
        return Inspection(path, "ONNX file", part.bytes, (part,))
    if is_folder and reading.exists(path / INDEX_FILE):
        if at != At():
            raise UsageError(
                f"{path} is a checkpoint, whose cost at a size is not known before it is exported; "
                "leave out size and batch"
            )
        from sdexport.compiler.inspect_checkpoint import inspect_checkpoint

        return inspect_checkpoint(path)
    raise FolderError(
        f"cannot inspect {path}: {kind} is there. Accepted are a bundle (a folder with "
        "bundle.json), a checkpoint (a diffusers folder with model_index.json), an ONNX folder "
        "(with unet/model.onnx and so on), and a single .onnx file"
    )


def _folder(folder: OnnxFolder, at: At) -> Inspection:
    folder.checked_digests()
    parts = tuple(_onnx(folder.model(name), name, at) for name in folder.components)
    about = documents.to_builtins(folder.about)
    return Inspection(folder.path, "ONNX folder", storage.size_of(folder.path), parts, about)


def _bundle(bundle: Bundle, at: At) -> Inspection:
    manifest = bundle.manifest
    profile = manifest.profile
    width, height = size = at.size or (profile.width.opt, profile.height.opt)
    batch = profile.batch.opt if at.batch is None else at.batch
    parts = []
    for name in sorted(manifest.engines, key=_place):
        engine = manifest.engines[name]
        own = [
            record.bytes for file, record in manifest.files.items() if file.startswith(f"{name}/")
        ]
        seen = _engine(bundle.path / engine.file, engine, name)
        flops, moved = engine.flops, None
        if at != At():
            work = engine_work(bundle, name, size=size, batch=batch, guided=True)
            flops, moved = work.flops, work.moved(WIDTHS[str(manifest.precision)])
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
                flops=flops,
                flops_at=f"batch {batch}, {width}x{height} pixels, guided",
                moved=moved,
                fingerprint=engine.fingerprint,
                note=seen.note,
            )
        )
    about = {
        key: value for key, value in manifest.as_json().items() if key not in ("files", "engines")
    }
    why = why_not(bundle)
    return Inspection(
        bundle.path,
        "bundle",
        storage.size_of(bundle.path),
        tuple(parts),
        about,
        ready=not why,
        why_not=why,
    )


def _place(engine: str) -> int:
    """Where an engine stands in the order of an image's making; unknown ones last."""
    return ENGINES.index(engine) if engine in ENGINES else len(ENGINES)


def _engine(file: Path, record: EngineRecord, name: str) -> Part:
    """What an engine's file says of itself; a note where it cannot be read."""
    try:
        if file.suffix == ".plan":
            return _plan(file, record, name)
        if file.suffix == ".xml":
            return _openvino(file, name)
        if file.suffix == ".onnx":
            return _onnx(file, name, None)
    except MissingExtraError:
        return Part(name, file.name, 0, note="its tensors are shown where onnx is installed")
    return Part(name, file.name, 0, note=f"no description of {file.suffix} files")


def _plan(file: Path, record: EngineRecord, name: str) -> Part:
    """What the build noted of a TensorRT engine, which only a GPU can open."""
    built = record.built
    note = f"as noted when it was built; read back from {built.read_from}"
    if built.not_checked:
        note += f"; not checked: {', '.join(built.not_checked)}"
    if built.activation_bytes is not None:
        note = f"{built.activation_bytes:,} bytes of activations; {note}"
    return Part(name, file.name, 0, _noted(built.inputs), _noted(built.outputs), note=note)


def _noted(tensors: tuple[Tensor, ...]) -> tuple[TensorSpec, ...]:
    """Tensors as a build noted them, with a question mark for an open dimension."""
    return tuple(
        TensorSpec(one.name, one.dtype, tuple("?" if n == OPEN else n for n in one.shape))
        for one in tensors
    )


def _openvino(file: Path, name: str) -> Part:
    """Tensors and weights of an OpenVINO IR, from its XML alone.

    The format is OpenVINO's: layers of type Parameter, Result and Const, joined by edges.
    """
    try:
        root = ElementTree.fromstring(reading.read_bytes(file, XML_BYTES))
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
    except (ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:
        raise FolderError(
            f"{file} cannot be read as an OpenVINO model: {error!r}; build the bundle again"
        ) from error
    return Part(name, file.name, 0, tuple(inputs), tuple(outputs), _named(elements))


def _port(layer: ElementTree.Element, port: str | None) -> TensorSpec:
    """The tensor that leaves `layer` by its output port of this number, or by its only one."""
    found = layer.iterfind("output/port")
    element = next((one for one in found if port is None or one.attrib["id"] == port), None)
    if element is None:
        raise ValueError(f"layer {layer.attrib['id']} has no output {port or ''}")
    name = element.attrib.get("names", "").split(",")[0] or layer.attrib["name"]
    precision = element.attrib["precision"]
    dtypes = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "I64": "int64"}
    dtypes |= {"I32": "int32", "U8": "uint8", "FP64": "float64", "BOOL": "bool"}
    lengths = [int(dim.text or 0) for dim in element.iterfind("dim")]
    return TensorSpec(
        name, dtypes.get(precision, precision.lower()), tuple(n if n >= 0 else "?" for n in lengths)
    )


def _onnx(path: Path, name: str, at: At | None) -> Part:
    """What an ONNX file says of itself, its cost where it is to be counted `at` a size."""
    try:
        import onnx  # noqa: F401  # only whether it is there
    except ModuleNotFoundError:
        raise MissingExtraError(
            "reading ONNX files needs onnx, which is not installed; " + install_command("build")
        ) from None
    from sdexport.graph.proto import read_model

    model = read_model(path)
    weights = [*model.graph.initializer]
    stored = {tensor.name for tensor in weights}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in stored)
    counted = Part(name, path.name, 0) if at is None else _cost(model, inputs, name, at)
    return Part(
        name=name,
        file=path.name,
        bytes=reading.size(path) + _external_bytes(path, weights),
        inputs=inputs,
        outputs=tuple(_spec(value) for value in model.graph.output),
        precision=_precision(weights),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None),
        parameters=sum(_elements(tensor) for tensor in weights if _short(tensor.data_type)),
        flops=counted.flops,
        flops_at=counted.flops_at,
        moved=counted.moved,
        note=counted.note,
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    )
    if not tensor.elem_type or tensor.elem_type not in onnx.TensorProto.DataType.values():
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
    """The size of the data files that a model names, wherever they lie; none of them is read."""
    files = {
        entry.value
        for tensor in weights
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found = (path.parent / name for name in files)
    return sum(reading.size(file) for file in found if reading.is_file(file))


def _cost(model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], name: str, at: At) -> Part:
    """The cost of one call and the size it is for, or why it is not known; nothing else."""
    from sdexport.graph.flops import graph_cost
    from sdexport.graph.traffic import traffic

    width, height = at.size or USUAL_SIZE
    batch = 1 if at.batch is None else at.batch
    if min(width, height) < PIXELS_A_LATENT or (width | height) % PIXELS_A_LATENT or batch < 1:
        raise UsageError(
            f"batch must be at least 1 and both sides multiples of {PIXELS_A_LATENT} pixels, got "
            f"batch {batch} and {width}x{height}"
        )
    latents = (width // PIXELS_A_LATENT, height // PIXELS_A_LATENT)
    shapes = _shapes(inputs, latents, batch)
    try:
        flops = graph_cost(model, shapes).flops
        moved = None if at == At() else traffic(model, shapes, width=WIDEST).least
    except Exception as error:  # Any model may be looked at, also ones that are not ours.
        return Part(name, "", 0, note=f"operations were not counted: {error}")
    # A text encoder knows no image's size.
    where = "" if name.startswith("text_encoder") else f", {latents[0]}x{latents[1]} latents"
    return Part(name, "", 0, flops=flops, flops_at=f"batch {batch}{where}", moved=moved)


def _shapes(
    inputs: tuple[TensorSpec, ...], latents: tuple[int, int], batch: int
) -> dict[str, tuple[int, ...]]:
    """Numbers for symbols: the batch, 77 tokens, (width, height) latents or their pixels.

    By position, not by the symbols' names: every exporter has names of its own. A single dimension
    is the batch where it is called as another input's first one is.
    """
    firsts = {spec.shape[0] for spec in inputs if len(spec.shape) > 1}
    width, height = latents
    shapes = {}
    for spec in inputs:
        pixels = len(spec.shape) == 4 and spec.shape[1] == 3
        scale = PIXELS_A_LATENT if pixels else 1
        rows = batch if len(spec.shape) > 1 or set(spec.shape) & firsts else 1
        usual = {
            2: (rows, TOKENS),
            3: (rows, TOKENS, 1),
            4: (rows, 1, height * scale, width * scale),
        }.get(len(spec.shape), (rows,) + (1,) * (len(spec.shape) - 1))
        shapes[spec.name] = tuple(
            length if isinstance(length, int) else usual[axis]
            for axis, length in enumerate(spec.shape)
        )
    return shapes
