"""From a bundle on disk to a pipeline that generates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

from sdexport import __version__
from sdexport.artifacts import reading
from sdexport.artifacts.builder_options import BuiltFor
from sdexport.artifacts.bundle import Bundle, open_bundle
from sdexport.artifacts.manifest import Manifest
from sdexport.backends.lazy_session import LazySession
from sdexport.backends.session import Engine
from sdexport.backends.targets import (
    AUTO,
    check_device,
    check_loop,
    check_threads,
    find_target,
    load_engine,
    make_device,
)
from sdexport.errors import SdexportError
from sdexport.keywords import explains_keywords
from sdexport.pipeline.parts import PipelineParts
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.request import Limits
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
        threads: processor threads an engine; None leaves it to the runtime. On a GPU it means
            nothing.
        check: compare every file's digest with the manifest first.
        loop: how the denoising loop runs on a GPU: `whole-loop` launches a batch's evaluations as
            one CUDA graph, `step-graph` each as one, `eager` each kernel by itself; `auto` takes
            the whole loop for `generate` and a graph a step for `stream`. See docs/cuda.md.
        device: the number of the GPU, as CUDA counts those that CUDA_VISIBLE_DEVICES shows; None
            takes the first that runs the bundle's engines. For targets on a GPU alone.

    Raises:
        FolderError: no bundle, or a damaged one.
        MissingExtraError: the target's library is not installed.
        EngineError: an engine cannot be loaded.
        UsageError: `threads` is not a number of threads, `loop` not a form for this target, or
            `device` not one of its GPUs.
    """
    place = reading.given_path(path, "the bundle's path")
    for retry in (True, False):
        bundle = open_bundle(place, check=check)
        try:
            return Pipeline(load_parts(bundle, threads=threads, loop=loop, device=device))
        except SdexportError:
            # Another was built in its place: the message would be about what is gone.
            replaced = bundle.replaced
            bundle.close()
            if not (replaced and retry):
                raise
    raise AssertionError("the second time it was loaded or said why not")


def limits_of(bundle: Bundle) -> Limits:
    """What requests to this bundle are checked against; needs no engine."""
    manifest = bundle.manifest
    return Limits(
        manifest.profile,
        bundle.scheduler_config,
        manifest.default_guidance,
        manifest.default_size,
        latent_channels=manifest.latent_channels,
        tokens=manifest.tokens,
        embedding_dim=manifest.embedding_dim,
        text_layers=manifest.text_layers,
        embedded_guidance=manifest.embedded_guidance,
        takes_images="vae_encoder" in manifest.engines,
        latent_scale=manifest.latent_scale,
    )


def load_parts(
    bundle: Bundle,
    *,
    threads: int | None = None,
    loop: str = AUTO,
    device: int | None = None,
) -> PipelineParts:
    """The parts of a bundle that is open, its engines loaded; see `load`."""
    check_threads(threads)
    manifest = bundle.manifest
    target = find_target(manifest.target)
    check_loop(target, loop)
    check_device(target, device)

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

    def optional(name: str) -> Engine | None:
        return engine(name) if name in manifest.engines else None

    parts = parts_of(
        manifest,
        tokenizer=bundle.read(lambda _: PromptTokenizer.load(bundle.tokenizer, manifest.tokens)),
        scheduler_config=bundle.scheduler_config,
        about=_about(bundle),
        text_encoder=engine("text_encoder"),
        denoise_step=engine("denoise_step"),
        vae_decoder=engine("vae_decoder"),
        vae_encoder=LazySession("vae_encoder", partial(engine, "vae_encoder"))
        if "vae_encoder" in manifest.engines
        else None,
        text_projection=optional("text_projection"),
        time_projection=optional("time_projection"),
    )
    placed = make_device(target, parts.engines, loop=loop, cache=bundle.runtime_cache)
    return replace(parts, device=placed, bundle=bundle)


def parts_of(
    manifest: Manifest,
    *,
    tokenizer: PromptTokenizer,
    scheduler_config: Mapping[str, Any],
    about: Mapping[str, Any],
    text_encoder: Engine,
    denoise_step: Engine,
    vae_decoder: Engine,
    vae_encoder: Engine | None,
    text_projection: Engine | None,
    time_projection: Engine | None,
) -> PipelineParts:
    """The parts of the model that `manifest` is about, on the processor until they are placed.

    The one place where they are made, for whoever has engines. What a manifest and the parts both
    have by name is handed over by name, so that no field can be forgotten.
    """
    shared = {one.name for one in fields(PipelineParts)} & set(Manifest.__struct_fields__)
    model: dict[str, Any] = {name: getattr(manifest, name) for name in shared}
    return PipelineParts(
        **model,
        tokenizer=tokenizer,
        scheduler_config=scheduler_config,
        about=about,
        text_encoder=text_encoder,
        denoise_step=denoise_step,
        vae_decoder=vae_decoder,
        vae_encoder=vae_encoder,
        text_projection=text_projection,
        time_projection=time_projection,
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
