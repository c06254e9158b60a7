"""Verifies a bundle against its checkpoint in PyTorch: each engine, and whole images.

Engines are compared with the checkpoint's modules in float32 on the same inputs, images with
diffusers' pipeline for the same prompts and seeds. The result is recorded in the bundle's manifest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdexport import __version__
from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import documents, reading, storage
from sdexport.artifacts.bundle import GRAPHS, Bundle
from sdexport.artifacts.manifest import Comparison, Manifest, Parity
from sdexport.artifacts.onnx_folder import PLAIN, digests_of
from sdexport.backends.session import Array, Engine
from sdexport.backends.slots import BatchInputs, Shape
from sdexport.backends.targets import check_threads
from sdexport.errors import ParityError, UsageError
from sdexport.keywords import explains_keywords
from sdexport.model.native_size import pixel_multiple
from sdexport.model.shapes import Precision
from sdexport.model.spec import BRANCH, ModelSpec
from sdexport.model.step import EMBEDDED_GUIDANCE, condition_shape
from sdexport.pipeline.load import load_model
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.request import Request
from sdexport.pipeline.slot_inputs import slot_inputs
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.progress import SILENT, Progress, stage
from sdexport.sampling import STATE_SLOTS, TorchNoise

if TYPE_CHECKING:
    from sdexport.export.checkpoint import Checkpoint

PROMPTS = ("a red apple", "a photo of an astronaut riding a horse")
NEGATIVE_PROMPT = "blurry"
GUIDANCE = 3.0
STEPS = 10
# Unlike PNDM with few steps, DDIM does not amplify rounding errors, so that the difference is the
# engines' and not the sampler's.
SAMPLER = "ddim"
SEED = 1000
MAX_SIDE = 256
"""The maximum side of compared images in pixels, if the profile allows it: PyTorch in float32 takes
minutes at the full size of a large model."""


VERIFICATION_VERSION = 1
"""Part of `measured_on`: increase it when the comparison changes."""

MANIFEST_BYTES = 1 << 18
"""The maximum size of a manifest, in bytes; the space is checked before the comparison."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The maximum accepted differences of a bundle from PyTorch in float32.

    Attributes:
        precision: the bundle's precision.
        engine: RMS of an engine's difference, relative to the RMS of the reference.
        image_rms: RMS of an image's difference, in the range 0 to 1.
        image_largest: the maximum difference of a pixel, in the range 0 to 255; None if rounding in
            half precision makes single pixels meaningless.
    """

    precision: Precision
    engine: float
    image_rms: float
    image_largest: int | None


TOLERANCES = {
    one.precision: one
    for one in (
        Tolerance(Precision.FP32, engine=1e-3, image_rms=2 / 255, image_largest=2),
        Tolerance(Precision.FP16, engine=0.03, image_rms=0.02, image_largest=None),
        Tolerance(Precision.BF16, engine=0.05, image_rms=0.04, image_largest=None),
    )
}


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """All comparisons of one bundle.

    Attributes:
        size: (width, height) in pixels of the compared images.
        seconds: the time of the verification.
    """

    target: str
    precision: str
    size: tuple[int, int]
    comparisons: tuple[Comparison, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its tolerance."""
        return all(comparison.ok for comparison in self.comparisons)

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        value: dict[str, Any] = documents.to_builtins(self)
        return value | {"ok": self.ok}

    def kept(self, measured_on: str) -> Parity:
        """The report as a manifest keeps it."""
        return Parity(
            ok=self.ok,
            comparisons=self.comparisons,
            size=self.size,
            target=self.target,
            precision=self.precision,
            seconds=self.seconds,
            measured_on=measured_on,
        )


def measured_on(manifest: Manifest) -> str:
    """A digest of everything that determines a bundle's parity, except the checkpoint.

    It covers the bundle's files (engines, tokenizer, scheduler), the compared call and constants,
    and this project's version. The checkpoint is covered by the engines' fingerprints and the
    copied files.
    """
    return reading.digest_of(
        {
            "files": {
                name: file.sha256
                for name, file in manifest.files.items()
                if not name.startswith(f"{GRAPHS}/")
            },
            "call": _compared_call(manifest),
            "constants": [PROMPTS, NEGATIVE_PROMPT, GUIDANCE, STEPS, SAMPLER, SEED],
            "tolerance": asdict(TOLERANCES[manifest.precision]),
            "versions": [VERIFICATION_VERSION, __version__],
        }
    )


def parity_is_stale(manifest: Manifest) -> bool:
    """Whether a manifest has a parity that was measured on something else."""
    return manifest.parity is not None and manifest.parity.measured_on != measured_on(manifest)


def parity_has_passed(manifest: Manifest) -> bool:
    """Whether a manifest has a valid parity within tolerance."""
    return manifest.parity is not None and manifest.parity.ok and not parity_is_stale(manifest)


def _compared_call(manifest: Manifest) -> tuple[int, int, int]:
    """Width and height in pixels, and the batch, of the compared images."""
    profile, multiple = manifest.profile, pixel_multiple(manifest.model.latents.scale)
    width, height = (
        max(limits.min, min(limits.opt, MAX_SIDE) // multiple * multiple)
        for limits in (profile.width, profile.height)
    )
    return width, height, min(max(2, profile.batch.min), profile.batch.max)


def refuse_other_checkpoint(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Raises UsageError if the bundle was not built from `checkpoint`; names the parts that differ.

    Bundles from another tool's ONNX folder, or of an older version, do not record their checkpoint
    and are not checked.
    """
    from sdexport.export.export import plain_parts

    made_from = bundle.manifest.export.made_from
    if made_from is None:
        return
    theirs = checkpoint.digests(made_from)
    differing = [name for name, one in made_from.items() if one.checkpoint != theirs[name]]
    plain = digests_of(plain_parts(checkpoint))
    ours = {
        name: file.sha256
        for name, file in bundle.manifest.files.items()
        if name.split("/")[0] in PLAIN
    }
    differing += sorted(
        {name.split("/")[0] for name in {*plain, *ours} if plain.get(name) != ours.get(name)}
    )
    if differing:
        raise UsageError(
            f"{bundle.path} must have been built from {checkpoint.name}, but "
            f"{', '.join(differing)} differ; give the checkpoint that it was built from, or update "
            f"the bundle with: sdexport compile {checkpoint.path} {bundle.path}"
        )


@explains_keywords()
def verify(
    bundle: Path | str,
    checkpoint: Checkpoint | Path | str,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Compares a bundle with its checkpoint in PyTorch, and records the result in the manifest.

    Args:
        bundle: the bundle's path.
        checkpoint: a diffusers folder, a hub id, or an opened checkpoint.
        threads: number of the engines' processor threads; None lets the runtime choose.
        progress: receives one stage.

    Raises:
        UsageError: `threads` is invalid, or the bundle was built from another checkpoint.
        ParityError: a comparison is out of tolerance, or a result is NaN or infinite; the message
            names the engine and the difference. A result out of tolerance is recorded too.
        FolderError, CheckpointError, MissingExtraError: as `open_bundle` and the export.
        StorageError: the manifest cannot be written.
    """
    from sdexport.export.reference import ReferenceModels

    start = time.perf_counter()
    check_threads(threads)
    opened = bundles.open_bundle(reading.given_path(bundle, "the bundle's path"))
    manifest = opened.manifest
    opened.read(lambda place: storage.check_room(place / bundles.MANIFEST_FILE, MANIFEST_BYTES))
    tolerance = TOLERANCES[manifest.precision]
    reference = ReferenceModels(checkpoint)
    refuse_other_checkpoint(opened, reference.checkpoint)
    loaded = load_model(opened, threads=threads)
    width, height, batch = _compared_call(manifest)
    comparisons: list[Comparison] = []
    stages = 5 if loaded.sessions.get("vae_encoder") is not None else 4
    with stage(progress, "comparing with PyTorch", stages):
        h, w = height // manifest.model.latents.scale, width // manifest.model.latents.scale
        progress.advance(0, "text_encoder")
        prompts = prompts_for(loaded.tokenizer)
        tokens = loaded.tokenizer.encode([NEGATIVE_PROMPT, prompts[0]])
        inputs: dict[str, Array] = {"input_ids": tokens}
        if loaded.model.skippable_layers:
            inputs["clip_skip"] = np.zeros(len(tokens), np.int64)
        ours = _call(loaded.sessions["text_encoder"], inputs, _text_shape(loaded))
        theirs = reference.text_encoder(tokens)
        comparisons.append(_compare_engine("text_encoder", ours, theirs, tolerance))
        progress.advance(1, "denoise_step")
        comparisons.append(_denoise_step(loaded, reference, theirs, (h, w), batch, tolerance))
        progress.advance(1, "vae_decoder")
        comparisons.append(_vae_decoder(loaded, reference, (h, w), tolerance))
        if loaded.sessions.get("vae_encoder") is not None:
            progress.advance(1, "vae_encoder")
            comparisons.append(
                _vae_encoder(
                    loaded.sessions["vae_encoder"],
                    reference,
                    (h, w),
                    manifest.model.latents.scale,
                    tolerance,
                )
            )
        progress.advance(1, f"images, {STEPS} steps by the engines and by PyTorch")
        comparisons.append(_images(loaded, reference, (width, height), batch, tolerance))
        progress.advance(1)
    report = VerifyReport(
        target=manifest.target,
        precision=str(manifest.precision),
        size=(width, height),
        comparisons=tuple(comparisons),
        seconds=round(time.perf_counter() - start, 3),
    )
    bundles.record(opened, parity=report.kept(measured_on(manifest)))
    _raise_failed(report, tolerance)
    return report


def prompts_for(tokenizer: PromptTokenizer) -> tuple[str, ...]:
    """`PROMPTS`, extended by the tokens that the tokenizer has beside CLIP's."""
    learned = " ".join(tokenizer.learned)
    return tuple(f"{prompt} {learned}".rstrip() for prompt in PROMPTS)


def _raise_failed(report: VerifyReport, tolerance: Tolerance) -> None:
    for comparison in report.comparisons:
        if comparison.ok:
            continue
        limit = f"RMS {comparison.allowed:.2g}"
        if comparison.what == "images" and tolerance.image_largest is not None:
            limit += f" and {tolerance.image_largest} of 255"
        raise ParityError(
            f"{comparison.what} must differ from PyTorch by at most {limit} in {report.precision}, "
            f"got RMS {comparison.rms:.3g} and maximum {comparison.largest:.3g}. "
            f"{_remedy(report.precision)}check that the bundle was built from this checkpoint"
        )


def _call(
    engine: Engine, inputs: Mapping[str, Array], output: tuple[str, tuple[int, ...]]
) -> Array:
    """The output of one call of `engine`; `output` is its name and shape."""
    name, shape = output
    binding = engine.bind({key: value.shape for key, value in inputs.items()} | {name: shape})
    for key, value in inputs.items():
        binding.buffers[key][...] = value
    binding.run()
    return binding.buffers[name].copy()


def _text_shape(loaded: LoadedModel) -> tuple[str, tuple[int, ...]]:
    return "last_hidden_state", (2, loaded.model.tokens, loaded.model.embedding_dim)


def _compare_engine(what: str, ours: Array, theirs: Array, tolerance: Tolerance) -> Comparison:
    difference = ours.astype(np.float64) - theirs.astype(np.float64)
    scale = float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64))))
    rms = float(np.sqrt(np.mean(np.square(difference)))) / max(scale, 1e-12)
    _check_finite(what, rms, tolerance.precision)
    return Comparison(
        what, rms, float(np.abs(difference).max()), tolerance.engine, rms <= tolerance.engine
    )


def _check_finite(what: str, rms: float, precision: str) -> None:
    if not np.isfinite(rms):
        raise ParityError(
            f"{what} contains NaN or infinity; {_remedy(precision)}check the checkpoint's weights"
        )


def _remedy(precision: str) -> str:
    """The start of the remedy for a bundle that is not in float32; else empty."""
    return "" if precision == Precision.FP32 else "build with --precision fp32, or "


def _denoise_step(
    loaded: LoadedModel,
    reference: Any,
    embeddings: Array,
    latent_size: tuple[int, int],
    batch: int,
    tolerance: Tolerance,
) -> Comparison:
    """Compares the guided model output of one step, whose update copies the output to slot 0.

    The step runs with the batch of `_images`, repeating one image: for another shape some targets
    would compile the engine a second time.
    """
    shape = (1, loaded.model.latents.channels, *latent_size)
    sample = TorchNoise(SEED).randn(shape)
    timestep = np.array([500.0], np.float32)
    update = np.zeros((1, STATE_SLOTS, STATE_SLOTS + 2), np.float32)
    update[0, 0, STATE_SLOTS] = 1.0
    state = np.zeros((1, STATE_SLOTS, *shape[1:]), np.float32)
    state[:, 0] = sample
    weights = np.zeros((1, STATE_SLOTS), np.float32)
    weights[0, 0] = 1.0
    scale = np.array([GUIDANCE], np.float32)
    embedded = scale - 1 if loaded.model.embeds_guidance else None
    constants = {
        "guidance_rescale": np.zeros(1, np.float32),
        "mask": np.ones((1, 1, *latent_size), np.float32),
        "known": np.zeros((1, 2, *shape[1:]), np.float32),
    } | ({} if embedded is None else {"embedded_guidance": embedded})
    conditions = _conditions(loaded.model, latent_size)
    tables = {
        "timestep": timestep,
        "input_weights": weights,
        "update_weights": update,
        "guidance": scale,
        "known_weights": np.zeros((1, 2), np.float32),
    }
    inputs = BatchInputs(
        np.repeat(state, batch, axis=0),
        {name: np.repeat(table, batch, axis=0)[None] for name, table in tables.items()},
        {name: np.repeat(array, batch, axis=0) for name, array in (constants | conditions).items()},
    )
    with closing(loaded.placed().workspaces()) as workspaces:
        workspace = workspaces(Shape(batch, 2, *latent_size, loaded.model.tokens))
        workspace.embed(np.repeat(embeddings[None].astype(np.float32), batch, axis=0))
        workspace.begin(inputs)
        workspace.advance()
        ours = workspace.latents().copy()
    unguided, guided = (
        reference.unet(
            sample,
            timestep,
            embeddings[branch : branch + 1],
            embedded,
            {
                one.name: conditions[one.name][:, branch]
                if one.per == BRANCH
                else conditions[one.name]
                for one in loaded.model.conditions
            },
        )
        for branch in (0, 1)
    )
    return _compare_engine(
        "denoise_step", ours, unguided + GUIDANCE * (guided - unguided), tolerance
    )


def _conditions(model: ModelSpec, latent_size: tuple[int, int]) -> dict[str, Array]:
    """Random values of the model's conditions, (1, …) or (1, 2, …)."""
    height, width = latent_size
    return {
        one.name: TorchNoise(SEED + 2 + index).randn(
            (1, *condition_shape(one, branches=2, height=height, width=width))
        )
        for index, one in enumerate(model.conditions)
    }


def _vae_decoder(
    loaded: LoadedModel, reference: Any, latent_size: tuple[int, int], tolerance: Tolerance
) -> Comparison:
    """Compares the image of random latents, in the range 0 to 1."""
    latents = TorchNoise(SEED + 1).randn((1, loaded.model.latents.channels, *latent_size))
    state = np.zeros((1, STATE_SLOTS, *latents.shape[1:]), np.float32)
    state[:, 0] = latents
    theirs = reference.decode(latents)
    ours = _call(loaded.sessions["vae_decoder"], {"state": state}, ("image", theirs.shape))
    return _compare_engine("vae_decoder", ours / 255, np.round(theirs * 255) / 255, tolerance)


def _vae_encoder(
    engine: Engine,
    reference: Any,
    latent_size: tuple[int, int],
    latent_scale: int,
    tolerance: Tolerance,
) -> Comparison:
    """Compares the means and log variances of a random smooth image's latents."""
    coarse = TorchNoise(SEED + 2).randn((1, 3, *latent_size))
    pixels = np.tanh(coarse.repeat(latent_scale, axis=2).repeat(latent_scale, axis=3))
    theirs = reference.encode(pixels)
    ours = _call(engine, {"sample": pixels}, ("latent_parameters", theirs.shape))
    return _compare_engine("vae_encoder", ours, theirs, tolerance)


def _image_by_plan(loaded: LoadedModel, reference: Any, request: Request, image: int) -> Array:
    """An image of a request, (height, width, 3) from 0 to 255: PyTorch's models along the plan.

    The loop is `sampling.plan`'s definition in numpy; the request has one text of one piece, and
    nothing to start from.
    """
    inputs = slot_inputs(loaded, request, image)
    tables, constants, state = inputs.tables, inputs.constants, inputs.state
    texts = [request.negative_prompts[image], request.prompts[image]][-request.branches :]
    embeddings = reference.text_encoder(loaded.tokenizer.encode(texts))
    embedded = constants.get(EMBEDDED_GUIDANCE)
    for index in range(inputs.evaluations):
        sample = np.tensordot(tables["input_weights"][index], state, 1)[None]
        outputs = [
            reference.unet(
                sample,
                tables["timestep"][index : index + 1].copy(),
                embeddings[branch : branch + 1],
                None if embedded is None else embedded[None],
                {
                    one.name: constants[one.name][[branch]]
                    if one.per == BRANCH
                    else constants[one.name][None]
                    for one in loaded.model.conditions
                },
            )[0]
            for branch in range(request.branches)
        ]
        guided = outputs[0] + tables["guidance"][index] * (outputs[-1] - outputs[0])
        fresh = np.zeros_like(guided) if inputs.noise is None else inputs.noise[index]
        terms = np.concatenate([state, guided[None], fresh[None]])
        state = np.tensordot(tables["update_weights"][index], terms, 1).astype(np.float32)
    decoded: Array = np.round(reference.decode(state[:1])[0] * 255)
    return decoded


def _images(
    loaded: LoadedModel,
    reference: Any,
    size: tuple[int, int],
    count: int,
    tolerance: Tolerance,
) -> Comparison:
    prompts = prompts_for(loaded.tokenizer)[:count]
    seeds = [SEED + index for index in range(len(prompts))]
    pipeline = Pipeline(loaded)
    request = pipeline.request(
        list(prompts),
        negative_prompt=NEGATIVE_PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        sampler=SAMPLER,
        seed=seeds,
        width=size[0],
        height=size[1],
    )
    *_, last = pipeline.steps(request, watched=False)
    result = last.result
    assert result is not None, "the last step carries the result"
    if loaded.model.conditions:
        # diffusers' pipelines know nothing of a family's own conditions.
        theirs = [_image_by_plan(loaded, reference, request, index) for index in range(len(seeds))]
    else:
        theirs = reference.generate(
            list(prompts),
            seeds=seeds,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            sampler=SAMPLER,
            width=size[0],
            height=size[1],
            negative_prompt=NEGATIVE_PROMPT,
        )
    ours = np.stack([np.asarray(image) for image in result.images]).astype(np.float64)
    difference = ours - np.stack(theirs).astype(np.float64)
    rms = float(np.sqrt(np.mean(np.square(difference / 255), axis=(1, 2, 3))).max())
    largest = float(np.abs(difference).max())
    _check_finite("images", rms, tolerance.precision)
    if ours.max() == 0 and np.stack(theirs).max() > 0:
        raise ParityError(
            "the images are black where PyTorch's are not; "
            f"{_remedy(tolerance.precision)}check that the bundle was built from this checkpoint"
        )
    ok = rms <= tolerance.image_rms and (
        tolerance.image_largest is None or largest <= tolerance.image_largest
    )
    return Comparison("images", rms, largest, tolerance.image_rms, ok)
