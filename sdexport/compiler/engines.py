"""Makes the engines' graphs of an ONNX folder, and builds them one by one for the target."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from msgspec import convert

from sdexport.artifacts import reading, storage
from sdexport.artifacts.bundle import graph_name
from sdexport.artifacts.manifest import Built, EngineRecord
from sdexport.artifacts.onnx_folder import MODEL_FILE, OnnxFolder
from sdexport.backends import targets
from sdexport.backends.build_request import EngineRequest
from sdexport.compiler.options import Choice
from sdexport.compiler.report import Stopwatch
from sdexport.compiler.shapes import call_shapes, projected_shapes, shape_ranges
from sdexport.graph.decode_image import decode_image
from sdexport.graph.denoise_step import core_step, denoise_step
from sdexport.graph.flops import graph_cost
from sdexport.graph.projections import text_projection, time_projection
from sdexport.graph.proto import extract_weights, load_graph, save_graph, weights_files
from sdexport.graph.select_hidden_state import select_hidden_state
from sdexport.graph.select_outputs import select_outputs
from sdexport.graph.skeleton import Call, shapes_at, skeleton
from sdexport.graph.split_unet import CannotSplitError, split_unet
from sdexport.graph.vector_timestep import vector_timestep
from sdexport.model.shapes import Profile
from sdexport.model.spec import ModelSpec
from sdexport.progress import Progress, stage
from sdexport.sampling import STATE_SLOTS

COMPONENT_OF = {
    "text_encoder": "text_encoder",
    "text_projection": "unet",
    "time_projection": "unet",
    "denoise_step": "unet",
    "vae_decoder": "vae_decoder",
    "vae_encoder": "vae_encoder",
}
"""The component of the ONNX folder by engine."""

PROJECTIONS = ("text_projection", "time_projection")
"""The additional engines of a split UNet; see `graph.split_unet`."""


def _passes(
    model: ModelSpec,
) -> Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]]:
    """The graph pass from component to engine, by engine."""
    return {
        "text_encoder": lambda graph: select_outputs(
            select_hidden_state(graph), ("last_hidden_state",)
        ),
        "denoise_step": lambda graph: denoise_step(
            vector_timestep(graph), slots=STATE_SLOTS, conditions=model.conditions
        ),
        "vae_decoder": lambda graph: decode_image(
            graph,
            slots=STATE_SLOTS,
            scaling_factor=model.latents.scaling_factor,
            shift_factor=model.latents.shift_factor,
        ),
        "vae_encoder": lambda graph: select_outputs(graph, ("latent_parameters",)),
    }


@dataclass(frozen=True, slots=True)
class Graphs:
    """The engines' graphs, and why the UNet was not split although the target needs it."""

    models: Mapping[str, onnx.ModelProto]
    unsplit_reason: str = ""


def make_graphs(folder: OnnxFolder, model: ModelSpec, engines: Collection[str]) -> Graphs:
    """The graphs of `engines`; the UNet is split if they include projections.

    Raises:
        FolderError: a model is damaged or of another kind.
    """
    passes, because = _passes(model), ""
    models: dict[str, onnx.ModelProto] = {}
    if not set(PROJECTIONS).isdisjoint(engines):
        try:
            split = split_unet(vector_timestep(load_graph(folder.model("unet"))), model.conditions)
        except CannotSplitError as error:
            because = f"in one piece: {error}"
        else:
            models["text_projection"] = text_projection(split)
            models["time_projection"] = time_projection(split)
            models["denoise_step"] = core_step(
                split, slots=STATE_SLOTS, conditions=model.conditions
            )
    for name in engines:
        if name in passes and name not in models:
            models[name] = passes[name](load_graph(folder.model(COMPONENT_OF[name])))
    return Graphs(models, because)


def prepare_graphs(
    folder: OnnxFolder,
    work: Path,
    model: ModelSpec,
    engines: Collection[str],
    *,
    consume: bool = False,
) -> str:
    """Writes the graph of every engine to `work/ENGINE/model.onnx`, with its weights beside it.

    Args:
        consume: whether `folder` is temporary; its weights are then moved instead of copied, which
            saves disk space.

    Returns:
        The reason why the UNet could not be split; empty otherwise.

    Raises:
        FolderError: a model is damaged or of another kind.
        StorageError: `work` cannot be written.
    """
    made = make_graphs(folder, model, engines)
    with storage.explained(work):
        for name, graph in made.models.items():
            source = folder.model(COMPONENT_OF[name]).parent
            (work / name).mkdir(parents=True)
            if "text_projection" in made.models and COMPONENT_OF[name] == "unet":
                # Three engines share the UNet's file of weights: each extracts its own.
                extract_weights(graph, source, work / name)
            else:
                transfer_weights(graph, source, work / name, consume=consume)
            save_graph(graph, work / name / MODEL_FILE)
        if consume and "text_projection" in made.models:
            unet = folder.model("unet")
            for name in weights_files(load_graph(unet)):
                (unet.parent / name).unlink()
    return made.unsplit_reason


def build_engines(
    work: Path,
    destination: Path,
    choice: Choice,
    model: ModelSpec,
    profile: Profile,
    fingerprints: Mapping[str, str],
    stopwatch: Stopwatch,
    progress: Progress,
) -> dict[str, EngineRecord]:
    """Builds the graphs that `prepare_graphs` wrote to `work`; returns the engines' records.

    Engines of `fingerprints` without a graph in `work` are skipped. The content of `work` is
    consumed.

    Raises:
        EngineError: the target's library rejected a graph; names the engine.
        StorageError: `destination` cannot be written.
    """
    records: dict[str, EngineRecord] = {}
    wanted = {name: one for name, one in fingerprints.items() if (work / name).is_dir()}
    with stage(progress, "building engines", len(wanted)):
        for name, fingerprint in wanted.items():
            progress.advance(0, name)
            with stopwatch.stage(f"build {name}"), storage.explained(destination):
                graph = write_skeleton(
                    load_graph(work / name / MODEL_FILE), name, model, destination
                )
                cost = graph_cost(graph, shapes_at(graph, optimum_call(profile)))
                output = destination / name
                output.mkdir()
                built = targets.build_engine(
                    choice.target,
                    EngineRequest(
                        name=name,
                        model=work / name / MODEL_FILE,
                        output=output,
                        precision=choice.precision,
                        shapes=shape_ranges(name, model, profile),
                        options=choice.builder,
                        progress=progress,
                    ),
                )
                storage.remove_tree(work / name)
            records[name] = EngineRecord(
                file=f"{name}/{built.file.name}",
                fingerprint=fingerprint,
                parameters=cost.parameters,
                flops=cost.flops,
                built=convert(built.facts, Built),
            )
            progress.advance(1, name)
    return records


def optimum_call(profile: Profile) -> Call:
    """The call at a profile's optimum, with guidance."""
    return Call(profile.height.opt, profile.width.opt, profile.batch.opt)


def write_skeleton(
    graph: onnx.ModelProto, engine: str, model: ModelSpec, bundle: Path
) -> onnx.ModelProto:
    """Writes the skeleton of an engine's graph into the folder `bundle`, and returns it."""

    def shapes_of(call: Call) -> dict[str, tuple[int, ...]]:
        shapes = call_shapes(engine, model, **asdict(call))
        there = {entry.name for entry in graph.graph.input}
        own = {name: shape for name, shape in shapes.items() if name in there}
        return own | projected_shapes(graph, model, call)

    found = skeleton(graph, shapes_of)
    path = bundle / graph_name(engine)
    path.parent.mkdir(exist_ok=True)
    save_graph(found, path)
    return found


def transfer_weights(model: onnx.ModelProto, source: Path, work: Path, *, consume: bool) -> None:
    """Copies the files of weights of `model` from `source` to `work`; moves them with `consume`.

    Raises:
        FolderError: a file is missing, or outside the folder.
    """
    for name in weights_files(model):
        reading.require_file(source / name)
        if consume:
            (source / name).rename(work / name)
        else:
            storage.copy_file(source / name, work / name)
