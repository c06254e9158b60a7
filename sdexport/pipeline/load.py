"""From a bundle on disk to a pipeline that draws."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

from sdexport import __version__, reading
from sdexport.backends.late import LateEngine
from sdexport.backends.protocol import Engine
from sdexport.backends.targets import AUTO, check_loop, find_target, load_engine, make_device
from sdexport.bundle import Bundle, open_bundle
from sdexport.errors import UsageError
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

    Raises:
        FolderError: no bundle, or a damaged one.
        MissingExtraError: the target's library is not installed.
        EngineError: an engine cannot be loaded.
        UsageError: `threads` is no number of threads, or `loop` no form for this target.
    """
    bundle = open_bundle(reading.given_path(path, "the bundle's path"), check=check)
    return Pipeline(load_parts(bundle, threads=threads, loop=loop))


def limits_of(bundle: Bundle) -> Limits:
    """What requests to this bundle are checked against; needs no engine."""
    manifest = bundle.manifest
    return Limits(
        manifest.profile,
        bundle.scheduler_config,
        manifest.default_guidance,
        manifest.default_size,
        text_layers=manifest.text_layers,
        embedded_guidance=manifest.embedded_guidance,
        takes_images="vae_encoder" in manifest.engines,
        latent_scale=manifest.latent_scale,
    )


def load_parts(bundle: Bundle, *, threads: int | None = None, loop: str = AUTO) -> PipelineParts:
    """The parts of a bundle that is open, its engines loaded; see `load`."""
    if threads is not None and (
        isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
    ):
        raise UsageError(f"threads {threads!r} is not possible; give a whole number >= 1")
    manifest, limits = bundle.manifest, limits_of(bundle)
    target = find_target(manifest.target)
    check_loop(target, loop)
    tokenizer = PromptTokenizer.load(bundle.tokenizer, manifest.tokens)

    def engine(name: str) -> Engine:
        return load_engine(target, name, bundle.engine_file(name), manifest.precision, threads)

    def projection(name: str) -> Engine | None:
        return engine(name) if name in manifest.engines else None

    parts = PipelineParts(
        text_encoder=engine("text_encoder"),
        denoise_step=engine("denoise_step"),
        vae_decoder=engine("vae_decoder"),
        tokenizer=tokenizer,
        scheduler_config=limits.scheduler_config,
        profile=limits.profile,
        latent_channels=manifest.latent_channels,
        tokens=manifest.tokens,
        embedding_dim=manifest.embedding_dim,
        default_guidance=limits.default_guidance,
        default_size=limits.default_size,
        about=_about(bundle),
        latent_scale=manifest.latent_scale,
        vae_encoder=LateEngine("vae_encoder", partial(engine, "vae_encoder"))
        if limits.takes_images
        else None,
        text_projection=projection("text_projection"),
        time_projection=projection("time_projection"),
        text_layers=manifest.text_layers,
        embedded_guidance=manifest.embedded_guidance,
        scaling_factor=manifest.scaling_factor,
        shift_factor=manifest.shift_factor,
    )
    device = make_device(target, parts.engines, loop=loop, cache=bundle.runtime_cache)
    return replace(parts, device=device)


def _about(bundle: Bundle) -> dict[str, Any]:
    """What the images' metadata says of the bundle that drew them."""
    manifest = bundle.manifest
    return {
        "model": manifest.name,
        "fingerprint": manifest.fingerprint,
        "target": manifest.target,
        "library": manifest.library,
        "precision": str(manifest.precision),
        "sdexport": __version__,
    }
