"""Finished images with what is needed to generate them again, and how they are saved."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdexport.artifacts.reading import given_path, is_folder
from sdexport.artifacts.storage import check_room, explained, free_bytes, write_bytes
from sdexport.backends.slots import Floats
from sdexport.errors import SdexportError, StorageError, UsageError, shown
from sdexport.pipeline.checks import index_of, sequence_of
from sdexport.pipeline.prompts import WEIGHTS
from sdexport.pipeline.request import LATENT, NUMPY, Request
from sdexport.sampling import find_sampler

ESCAPED = str.maketrans({mark: f"\\{mark}" for mark in "()[]\\"})

TEXT_BYTES = 1 << 16
"""Of a file's metadata beside its prompts."""

CHARACTER_BYTES = 16
"""Of a character of a prompt, which the metadata has twice and may have to escape."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a request took; a caller's time between steps is not counted.

    Attributes:
        total: from the first token to the last image; with what the first request of a size
            takes: buffers, and with some runtimes an engine compiled for it.
        text_encoder, denoise, vae_decoder: the stages, over all batches.
        evaluations: the engine call of every evaluation, in order; what `denoise` has beyond their
            sum is the loop: weights written, noise drawn. Empty where a device ran the loop as one
            piece.
    """

    total: float
    text_encoder: float
    denoise: float
    vae_decoder: float
    evaluations: tuple[float, ...]

    @property
    def rest(self) -> float:
        """What lies between the stages: buffers bound and engines compiled."""
        return self.total - self.text_encoder - self.denoise - self.vae_decoder

    def as_json(self) -> dict[str, Any]:
        """The timings as JSON values."""
        return asdict(self) | {"evaluations": list(self.evaluations)}


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The images of one request.

    Attributes:
        images: in the order of the request, as its `output_type` says: a list of RGB images
            (PIL); an array (images, height, width, 3) float32 from 0 to 1; or the latents, an array
            (images, C, h, w) float32 as diffusers' pipelines give them (scaled, not decoded).
        seeds: of every image.
        parameters: what was generated: the request and, under `about`, the engines; JSON values.
        timings: how long it took.
        warnings: what a user should know: texts that did not fit, values without effect.
    """

    images: Any
    seeds: tuple[int, ...]
    parameters: Mapping[str, Any]
    timings: Timings
    warnings: tuple[str, ...] = ()

    def metadata(self, index: int) -> dict[str, str]:
        """The texts that image `index` carries as PNG: `parameters` and `sdexport`.

        Raises:
            UsageError: there is no such image.
        """
        number = index_of(index)
        if number is None or not 0 <= number < len(self.images):
            raise UsageError(
                f"index must be a whole number from 0 to {len(self.images) - 1}, one of the "
                f"images, got {shown(index)}"
            )
        own = image_parameters(self.parameters, number)
        return {
            "parameters": infotext(own),
            "sdexport": json.dumps(own, ensure_ascii=False, sort_keys=True),
        }

    def _check_saved(self) -> None:
        if not isinstance(self.images, list):
            raise UsageError(
                "images can be saved with output_type 'pil', and this result's are an array; "
                "generate them with that, or save the array yourself"
            )

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes the images as PNG files, each aside and then into place.

        Args:
            path: the file of a single image; several are numbered: `stem-000.png`, `stem-001.png`.
                Folders that are missing are made, `.png` is added where there is no suffix.

        Returns:
            The files, in the order of the images.

        Raises:
            UsageError: the path is a folder or its suffix names another format.
            StorageError: the place cannot be written.
        """
        self._check_saved()
        files = output_files(given_path(path, "the image's path"), len(self.images))
        failed = self.save_as(files)
        if failed:
            saved = [str(file) for file in files if file not in failed]
            raise StorageError(
                "; ".join(f"{file} was not saved: {reason}" for file, reason in failed.items())
                + (f"; saved are: {', '.join(saved)}" if saved else "")
                + "; the result still holds the images: save it elsewhere"
            )
        return files

    def save_as(self, files: Sequence[Path]) -> dict[Path, SdexportError]:
        """Writes one file an image; returns those that could not be written, and why.

        Raises:
            UsageError: not as many paths as images, or the images are arrays.
        """
        self._check_saved()
        several = sequence_of(files)
        if (
            several is None
            or len(several) != len(self.images)
            or not all(isinstance(one, Path) for one in several)
        ):
            raise UsageError(
                f"files must be a list of {len(self.images)} paths of pathlib, one an image, got "
                f"{shown(files)}"
            )
        failed: dict[Path, SdexportError] = {}
        for index, (file, image) in enumerate(zip(files, self.images, strict=True)):
            try:
                _write(file, png(image, self.metadata(index)))
            except SdexportError as error:
                failed[file] = error
        return failed


def images_as(output_type: str, images: Sequence[Image.Image], latents: Sequence[Floats]) -> Any:
    """What a result holds for an output type; see `Result.images`.

    Args:
        images: of all but "latent".
        latents: for "latent", those of each batch: (images, C, h, w).
    """
    if output_type == LATENT:
        return np.concatenate(latents)
    if output_type == NUMPY:
        return np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    return list(images)


def output_files(path: Path, images: int) -> list[Path]:
    """The names under which `images` images are saved at `path`; see `Result.save`.

    Raises:
        UsageError: the path is a folder or its suffix names another format.
        FolderError: the system does not tell what is there.
    """
    if is_folder(path) or not path.name:
        raise UsageError(f"{path} is a folder; name a file in it, for example {path / 'image.png'}")
    if path.suffix == "":
        path = path.with_name(path.name + ".png")
    if path.suffix.lower() != ".png":
        raise UsageError(
            f"{path} names the format {shown(path.suffix)}; images are saved as PNG, "
            f"for example {path.with_suffix('.png').name}"
        )
    if images == 1:
        files = [path]
    else:
        stem, suffix = path.stem, path.suffix
        files = [path.with_name(f"{stem}-{index:03d}{suffix}") for index in range(images)]
    # Once more, with what was added to the name.
    return [given_path(file, "the image's path") for file in files]


def check_place(files: Sequence[Path], request: Request) -> None:
    """Sees before anything is generated that the images can be saved; makes their folder.

    Args:
        files: of `output_files`.
        request: what is to be generated.

    Raises:
        StorageError: one of them is there and may not be replaced, the folder cannot be made or
            written, or its disk is too full.
    """
    with _told(files[0].parent):
        files[0].parent.mkdir(parents=True, exist_ok=True)
    targets = [_checked_target(file) for file in files]
    needed = _largest_bytes(request)
    folders: dict[Path, list[Path]] = {}
    for target in targets:
        folders.setdefault(target.parent, []).append(target)
    for folder, own in folders.items():
        # The longest name is the one that the system may refuse.
        longest = max(own, key=lambda file: len(os.fsencode(file)))
        with _told(longest):
            check_room(longest, needed)
            free = free_bytes(folder)
        if free < len(own) * needed:
            raise StorageError(
                f"{len(own)} image{'s' * (len(own) > 1)} may take {len(own) * needed >> 10} KiB "
                f"in {folder}, where {free >> 10} KiB are free; free some space or choose another "
                "place"
            )


def _checked_target(file: Path) -> Path:
    """The file that is written for `file`: where a link leads."""
    with _told(file):
        if file.is_symlink() and not file.exists():
            raise StorageError(f"{file} is a link to nothing; choose another name")
        if not file.exists():
            return file
        if not file.is_file():
            raise StorageError(f"{file} is there and is not a file; choose another name")
        if not file.stat().st_mode & stat.S_IWUSR:
            raise StorageError(f"{file} is there and is read-only; choose another name")
        return _target(file)


def _target(file: Path) -> Path:
    # A link stays a link: what it leads to is replaced.
    return file.resolve() if file.is_symlink() else file


def _largest_bytes(request: Request) -> int:
    """What an image's file takes at most: an image of noise takes as much as its pixels."""
    texts = zip(request.prompts, request.negative_prompts, strict=True)
    longest = max(len(prompt) + len(negative) for prompt, negative in texts)
    pixels = request.height * (3 * request.width + 1)
    return pixels + pixels // 1000 + TEXT_BYTES + CHARACTER_BYTES * longest


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever the system refuses is a user's error that names `path`."""
    try:
        with explained(path):
            yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; choose another place"
        ) from error


def png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """The image as a PNG file that carries `texts` (tEXt where Latin-1 holds them, else iTXt)."""
    info = PngInfo()
    for key, text in texts.items():
        # A name that is not UTF-8 cannot be written as text; its bytes are shown.
        info.add_text(key, text.encode(errors="backslashreplace").decode())
    # Encoded in memory, because Pillow hides the system's reason when a file cannot be written.
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with _told(path):
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, content)


def parameters_of(request: Request, about: Mapping[str, Any]) -> dict[str, Any]:
    """A request as JSON values, with what is known of the engines under `about`."""
    return {
        "prompts": list(request.prompts),
        "negative_prompts": list(request.negative_prompts),
        "seeds": list(request.seeds),
        "steps": request.num_inference_steps,
        "evaluations": request.plan.evaluations,
        "guidance": request.guidance_scale,
        "sampler": request.sampler,
        "noise": request.noise,
        "width": request.width,
        "height": request.height,
        "guidance_rescale": request.guidance_rescale,
        "guidance_interval": list(request.guidance_interval),
        "prompt_syntax": request.prompt_syntax,
        "clip_skip": request.clip_skip,
        **_given(request),
        **({"model_options": dict(request.model_options)} if request.model_options else {}),
        **_sources_of(request),
        "about": dict(about),
    }


def _given(request: Request) -> dict[str, Any]:
    """What a request has beyond texts and seeds: levels, and the SHA-256 of arrays."""
    levels = {"eta": request.eta, "timesteps": request.timesteps, "sigmas": request.sigmas}
    said = {name: list(v) if isinstance(v, tuple) else v for name, v in levels.items()}
    arrays = {
        "latents": request.latents,
        "prompt_embeds": request.prompt_embeds,
        "negative_prompt_embeds": request.negative_prompt_embeds,
    }
    digests = {
        name: [hashlib.sha256(one.tobytes()).hexdigest() for one in array]
        for name, array in arrays.items()
        if array is not None
    }
    return {name: value for name, value in said.items() if value is not None} | digests


def _sources_of(request: Request) -> dict[str, Any]:
    """What the images start from: the SHA-256 of the pixels of each image and mask as used."""
    if not request.sources:
        return {}
    return {
        "strength": request.strength,
        "fit": request.fit,
        "images": [source.digests[0] for source in request.sources],
        "masks": [source.digests[1] for source in request.sources],
    }


def image_parameters(parameters: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What concerns image `index` alone: the lists of a request's parameters become one value."""
    own = dict(parameters)
    for many, one in (
        ("prompts", "prompt"),
        ("negative_prompts", "negative_prompt"),
        ("seeds", "seed"),
        ("images", "image"),
        ("masks", "mask"),
        *((name, name) for name in ("latents", "prompt_embeds", "negative_prompt_embeds")),
    ):
        if many in own:
            own[one] = own.pop(many)[index]
    return own


def infotext(own: Mapping[str, Any]) -> str:
    """The parameters of one image in the form that AUTOMATIC1111's web UI writes and reads."""
    about = own.get("about", {})
    guidance = float(own["guidance"])
    values = {
        "Steps": own["steps"],
        "Sampler": find_sampler(own["sampler"]).title,
        "CFG scale": int(guidance) if guidance.is_integer() else guidance,
        "Seed": own["seed"],
        "Size": f"{own['width']}x{own['height']}",
        "Denoising strength": own.get("strength"),
        # The web UI counts from 1, which leaves no layer out.
        "Clip skip": own["clip_skip"] + 1 if own.get("clip_skip") else None,
        "Model": about.get("model"),
        # The web UI's own word for it; its default is a GPU's.
        "RNG": "CPU" if own.get("noise") == "torch-cpu" else None,
        "Version": f"sdexport {about['sdexport']}" if "sdexport" in about else None,
    }
    # The web UI reads brackets as weights, so those that are text are marked as such.
    literal = own.get("prompt_syntax") != WEIGHTS
    prompt, negative = (
        text.translate(ESCAPED) if literal else text
        for text in (own["prompt"], own["negative_prompt"])
    )
    lines = [prompt]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in values.items() if v is not None))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    """Quotes as the web UI does: text that holds the separators is written as JSON."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text
