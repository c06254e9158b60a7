"""optimum-onnx's folders: what is recorded of a real one, and this project's made like it.

python -m tests.compiler.optimum FOLDER     records FOLDER, which optimum-cli exported
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RECORD = Path(__file__).parent / "data" / "optimum-onnx-0.1.0.json"
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def described(entry: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, element type and dimensions of an input or output."""
    tensor = entry.type.tensor_type
    return {
        "name": entry.name,
        "dtype": TensorProto.DataType.Name(tensor.elem_type),
        "shape": [
            one.dim_value if one.HasField("dim_value") else one.dim_param
            for one in tensor.shape.dim
        ],
    }


def describe(folder: Path) -> dict[str, Any]:
    """The structure of an ONNX folder: files, configurations' keys, and the models' ends."""
    models = {}
    for name in COMPONENTS:
        model = onnx.load(folder / name / "model.onnx", load_external_data=False)
        models[name] = {
            "opset": model.opset_import[0].version,
            "inputs": [described(entry) for entry in model.graph.input],
            "outputs": [described(entry) for entry in model.graph.output],
        }
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {
        "files": [file.relative_to(folder).as_posix() for file in files],
        "keys": {
            file.relative_to(folder).as_posix(): sorted(json.loads(file.read_text()))
            for file in files
            if file.suffix == ".json" and file.name != "vocab.json"
        },
        "models": models,
    }


def rewrite(folder: Path) -> None:
    """Gives this project's ONNX folder the structure of optimum's, in place.

    Names, types and dimensions of the ends and the files are as they are recorded; opset and nodes
    stay. The weights are inside the models, as optimum has them below 2 GB.
    """
    record = json.loads(RECORD.read_text())
    for name, recorded in record["models"].items():
        path = folder / name / "model.onnx"
        model = onnx.load(path)
        (folder / name / "model.onnx.data").unlink()
        graph = model.graph
        if name == "unet":
            _scalar_timestep(graph)
        for side in ("inputs", "outputs"):
            entries = getattr(graph, side[:-1])
            kept = {entry.name: entry for entry in entries}
            ends = []
            for one in recorded[side]:
                assert one["name"] in kept, f"{name} has no {one['name']}"
                kind = TensorProto.DataType.Value(one["dtype"])
                ends.append(helper.make_tensor_value_info(one["name"], kind, one["shape"]))
            del entries[:]
            entries.extend(ends)
        onnx.save(model, path)
    for file in folder.rglob("*"):
        if file.is_file() and file.relative_to(folder).as_posix() not in record["files"]:
            file.unlink()


def _scalar_timestep(graph: onnx.GraphProto) -> None:
    """A list of one, of the number that the timestep is then."""
    for node in graph.node:
        node.input[:] = ["timestep_list" if name == "timestep" else name for name in node.input]
    nodes = list(graph.node)
    del graph.node[:]
    axes = numpy_helper.from_array(np.array([0]), "timestep_axes")
    graph.initializer.append(axes)
    graph.node.append(
        helper.make_node("Unsqueeze", ["timestep", "timestep_axes"], ["timestep_list"], "list")
    )
    graph.node.extend(nodes)


if __name__ == "__main__":
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(describe(Path(sys.argv[1])), indent=1) + "\n")
