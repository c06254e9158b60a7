"""From a bundle on disk to a pipeline that generates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from sdexport import __version__, memory
from sdexport.artifacts import reading
from sdexport.artifacts.builder_options import BuiltFor
from sdexport.artifacts.bundle import ENGINES, Bundle, open_bundle
from sdexport.artifacts.manifest import Manifest
from sdexport.backends.lazy_session import LazySession
from sdexport.backends.session import Engine, Sessions
from sdexport.backends.targets import (
    AUTO,
    Target,
    check_device,
    check_loop,
    check_threads,
    find_target,
    load_engine,
    make_device,
)
from sdexport.errors import EngineError, SdexportError
from sdexport.keywords import explains_keywords
from sdexport.model.families import family_named
from sdexport.model.shapes import Precision
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.request import RequestBounds
from sdexport.pipeline.tokenizer import PromptTokenizer


@explains_keywords()
def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    check: bool = True,
    loop: str = AUTO,
    device: int | None = None,
) -> Pipeline:
    """The pipeline of the bundle at `path`, its engines loaded for the target it was built for.

    Args:
        path: a folder that `sdexport compile` or `sdexport build` made.
        threads: processor threads an engine; None takes the physical cores, or as many as a
            control group allows. On a GPU it means nothing.
        check: compare every file's digest with the manifest first.
        loop: how the denoising loop runs on a GPU: `whole-loop` launches a batch's evaluations as
            one CUDA graph, `step-graph` each as one, `eager` each kernel by itself; `auto` takes
            the whole loop for `generate` and a graph a step for `stream`. See docs/cuda.md.
        device: the number of the GPU, as CUDA counts those that CUDA_VISIBLE_DEVICES shows; None
            takes the first that runs the bundle's engines. For targets on a GPU alone.

    Raises:
        FolderError: no bundle, or a damaged one.
        MissingExtraError: the target's library is not installed.
        EngineError: an engine cannot be loaded, or memory is too small for the weights.
        UsageError: `threads` is not a number of threads, `loop` not a form for this target,
            `device` not one of its GPUs, or the model's family is not registered.
    """
    place = reading.given_path(path, "the bundle's path")
    for retry in (True, False):
        bundle = open_bundle(place, check=check)
        try:
            return Pipeline(load_model(bundle, threads=threads, loop=loop, device=device))
        except SdexportError:
            # Another was built in its place: the message would be about what is gone.
            replaced = bundle.replaced
            bundle.close()
            if not (replaced and retry):
                raise
    raise AssertionError("the second time it was loaded or said why not")


def request_bounds(bundle: Bundle) -> RequestBounds:
    """What requests to this bundle are checked against; needs no engine."""
    return manifest_bounds(bundle.manifest, bundle.scheduler_config)


def manifest_bounds(manifest: Manifest, scheduler_config: Mapping[str, Any]) -> RequestBounds:
    """What requests to the bundle of a manifest are checked against."""
    return RequestBounds(
        model=manifest.model,
        profile=manifest.profile,
        scheduler_config=scheduler_config,
        default_guidance=manifest.default_guidance,
        default_size=manifest.default_size,
        takes_images="vae_encoder" in manifest.engines,
    )


def load_model(
    bundle: Bundle,
    *,
    threads: int | None = None,
    loop: str = AUTO,
    device: int | None = None,
) -> LoadedModel:
    """The model of a bundle that is open, its engines loaded; see `load`."""
    check_threads(threads)
    manifest = bundle.manifest
    family_named(manifest.model.family)
    target = find_target(manifest.target)
    check_loop(target, loop)
    check_device(target, device)
    _check_memory(manifest, target)

    model = manifest.model
    tokenizer = bundle.read(lambda _: PromptTokenizer.load(bundle.tokenizer, model.tokens))

    def engine(name: str) -> Engine:
        built = BuiltFor.of(manifest.builder)
        # What it takes from the disk is what was opened, also when that lies elsewhere by now.
        return bundle.read(
            lambda _: load_engine(
                target,
                name,
                bundle.engine_file(name),
                manifest.precision,
                threads,
                built=built,
                device=device,
            )
        )

    engines = {
        name: LazySession(name, partial(engine, name)) if name == "vae_encoder" else engine(name)
        for name in ENGINES
        if name in manifest.engines
    }
    sessions = Sessions(model, engines)
    return LoadedModel(
        bounds=request_bounds(bundle),
        sessions=sessions,
        tokenizer=tokenizer,
        about=_about(bundle),
        device=make_device(target, sessions, loop=loop, cache=bundle.runtime_cache),
        bundle=bundle,
    )


def _check_memory(manifest: Manifest, target: Target) -> None:
    """Checks that memory suffices for the weights of the engines that are loaded at once.

    What is needed beside them (activations, what the runtime packs anew) is not counted, so that
    little is refused that could run. A GPU says itself when its memory is too small.

    Raises:
        EngineError: the message says what is needed and what is free, in GB.
    """
    if target.gpu:
        return
    width = 4 if manifest.precision is Precision.FP32 else 2
    records = (one for name, one in manifest.engines.items() if name != "vae_encoder")
    needed = sum(one.parameters for one in records) * width
    free = memory.available_bytes()
    if free is not None and free < needed:
        fewer = ", or build the bundle with --precision bf16" if width == 4 else ""
        raise EngineError(
            f"the engines' weights take {needed / 1e9:.2f} GB of memory and {free / 1e9:.2f} GB "
            f"are free; end other programs, or raise the container's limit{fewer}"
        )


def _about(bundle: Bundle) -> dict[str, Any]:
    """What the images' metadata says of the bundle that generated them."""
    manifest = bundle.manifest
    return {
        "model": manifest.name,
        "fingerprint": manifest.fingerprint,
        "target": manifest.target,
        "library": manifest.library,
        "precision": str(manifest.precision),
        "sdexport": __version__,
    }
