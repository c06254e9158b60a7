"""Opening a Stable Diffusion checkpoint: what it is made of, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport import reading
from sdexport.errors import CheckpointError, FolderError
from sdexport.export.libraries import require_libraries
from sdexport.export.weights import Weights, find_weights
from sdexport.onnx_folder import INDEX_FILE

ACCEPTED = "a diffusers folder of Stable Diffusion 1.x or 2.x (with model_index.json), or a hub id"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

FOLDER_OF = {
    "text_encoder": "text_encoder",
    "unet": "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
}
"""The checkpoint's folder that a component is made of."""

MODELS = {
    "text_encoder": ("CLIPTextModel", "model"),
    "unet": ("UNet2DConditionModel", "diffusion_pytorch_model"),
    "vae": ("AutoencoderKL", "diffusion_pytorch_model"),
}
"""Folder → the class that it must name, and what its weights' files are called."""

VAE_PARTS = {
    "vae_decoder": ("decoder.", "post_quant_conv."),
    "vae_encoder": ("encoder.", "quant_conv."),
}
WEIGHT_FORMATS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
"""How files of weights end, of which those that were chosen are read and no others."""

FOREIGN = ("text_encoder_2", "text_encoder_3", "transformer", "prior", "controlnet", "unet_2")
"""Parts that Stable Diffusion 1.x does not have."""

UNET_OFF = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_embedding_dim",
)
"""Options of the UNet that bring inputs which Stable Diffusion 1.x does not have."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that the components share, from the checkpoint's configurations.

    Attributes:
        latent_channels: of a latent; `latent_scale` is the pixels of its side.
        tokens: of a prompt; `vocabulary` is the number of different ones.
        embedding_dim: of a token's embedding.
        text_layers: of the text encoder.
        guidance_width: of the embedding of the guidance scale that a guidance-distilled UNet
            takes (diffusers' `time_cond_proj_dim`); 0 for others.
    """

    latent_channels: int
    latent_scale: int
    tokens: int
    vocabulary: int
    embedding_dim: int
    text_layers: int
    guidance_width: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose structure and files were found to be in order.

    Attributes:
        name: for people: the folder's name or the hub id.
        path: the diffusers folder on disk.
        weights: by folder: `text_encoder`, `unet`, `vae`.
    """

    name: str
    path: Path
    weights: Mapping[str, Weights]
    sizes: Sizes

    @property
    def index(self) -> dict[str, object]:
        """What model_index.json says."""
        return reading.read_json(self.path / INDEX_FILE)

    @property
    def scheduler_config(self) -> dict[str, object]:
        """What scheduler_config.json says."""
        return reading.read_json(self.path / "scheduler" / "scheduler_config.json", infinite=True)

    def files(self, component: str) -> list[Path]:
        """Every file that loading `component` may read.

        All of its folder but other formats and variants of the weights, which are never opened,
        and hidden files: diffusers and transformers decide what else of it they look at (a
        configuration of an adapter, for one).
        """
        folder = self.path / FOLDER_OF[component]
        chosen = self.weights[FOLDER_OF[component]].files
        return [
            file
            for file in reading.files_below(folder)
            if file in chosen or not (file.name.startswith(".") or file.suffix in WEIGHT_FORMATS)
        ]

    def digests(self, components: Iterable[str]) -> dict[str, dict[str, str]]:
        """The SHA-256 of each file of each component, by its path in the checkpoint."""
        found: dict[str, dict[str, str]] = {}
        for name in components:
            same = [other for other in found if FOLDER_OF[other] == FOLDER_OF[name]]
            found[name] = (
                found[same[0]]
                if same
                else {
                    file.relative_to(self.path).as_posix(): reading.digest(file)
                    for file in self.files(name)
                }
            )
        return found

    def parameters(self, component: str) -> int:
        """The number of weights of `component`, from its files' headers."""
        wanted = VAE_PARTS.get(component, ("",))
        elements = self.weights[FOLDER_OF[component]].elements
        return sum(count for name, count in elements.items() if name.startswith(wanted))


def open_checkpoint(checkpoint: Path | str) -> Checkpoint:
    """The checkpoint at a path or of a hub id; nothing of it is executed, and pickles are refused.

    Raises:
        CheckpointError: none, incomplete, damaged or of another structure; the message names the
            part, what is accepted and the remedy.
        MissingExtraError: a hub id, and diffusers is not installed.
    """
    path = reading.given_path(checkpoint, "the checkpoint")
    kind = reading.kind_of(path)
    if kind is reading.Kind.FOLDER:
        return _open_folder(path, reading.resolved(path).name)
    if kind is not reading.Kind.NOTHING:
        raise CheckpointError(
            f"{path} is {kind}; accepted is {ACCEPTED}. Convert a single-file checkpoint with "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    name = str(checkpoint)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"there is no checkpoint at {name}; accepted is {ACCEPTED}")
    return _open_folder(_download(name), name)


def _download(name: str) -> Path:
    """The folder in diffusers' cache with the safetensors files of a hub id."""
    require_libraries()
    from diffusers import DiffusionPipeline

    unused: dict[str, Any] = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    try:
        folder = DiffusionPipeline.download(name, use_safetensors=True, **unused)
    except Exception as error:  # the hub's client passes on its HTTP library's errors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"there is no folder {name}, and it could not be downloaded from the hub: {reason}; "
            f"accepted is {ACCEPTED} with safetensors weights. Check the name and the network"
        ) from error
    return Path(folder)


def _open_folder(path: Path, name: str) -> Checkpoint:
    if not reading.exists(path / INDEX_FILE):
        raise CheckpointError(f"{path} is no checkpoint: it has no {INDEX_FILE}; accepted is "
                              f"{ACCEPTED}")  # fmt: skip
    index = _read(path / INDEX_FILE)
    _check_structure(path, index)
    for part in (*MODELS, "tokenizer", "scheduler"):
        if not reading.is_folder(path / part):
            raise CheckpointError(
                f"{path} lacks its {part}: there is no folder {part}/; download the checkpoint "
                "again"
            )
    if not reading.exists(path / "scheduler" / "scheduler_config.json"):
        raise CheckpointError(
            f"{path / 'scheduler'} has no scheduler_config.json; download the checkpoint again"
        )
    _check_tokenizer(path / "tokenizer")
    configs = {part: _read(path / part / "config.json") for part in MODELS}
    sizes = _read_sizes(path, configs)
    weights = {part: find_weights(path / part, stem) for part, (_, stem) in MODELS.items()}
    return Checkpoint(name, path, weights, sizes)


def _read(path: Path) -> dict[str, Any]:
    if not reading.exists(path):
        raise CheckpointError(f"{path} is missing; download the checkpoint again")
    try:
        return reading.read_json(path)
    except FolderError as error:
        raise CheckpointError(f"{error}; or download the checkpoint again") from error


def _check_structure(path: Path, index: Mapping[str, Any]) -> None:
    """Whether model_index.json speaks of Stable Diffusion 1.x's parts and no others."""
    pipeline = index.get("_class_name")
    foreign = [name for name in FOREIGN if _class_of(index, name)]
    if foreign:
        raise CheckpointError(
            f"{path} is a {pipeline} with {', '.join(foreign)}, which is not the structure of "
            f"Stable Diffusion 1.x; accepted is {ACCEPTED}"
        )
    for part, (wanted, _) in MODELS.items():
        found = _class_of(index, part)
        if found != wanted:
            raise CheckpointError(
                f"{path} is a {pipeline} whose {part} is {found or 'missing'} where a {wanted} is "
                f"needed; accepted is {ACCEPTED}"
            )


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    value = index.get(part)
    return value[1] if isinstance(value, list) and len(value) == 2 else None


def _check_tokenizer(folder: Path) -> None:
    lacking = [name for name in ("vocab.json", "merges.txt") if not reading.exists(folder / name)]
    if lacking and not reading.exists(folder / "tokenizer.json"):
        raise CheckpointError(
            f"{folder} lacks {' and '.join(lacking)}; accepted is tokenizer.json, or vocab.json "
            "with merges.txt. Download the checkpoint again"
        )


def _read_sizes(path: Path, configs: Mapping[str, Mapping[str, Any]]) -> Sizes:
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    text = text.get("text_config") or text
    for option in UNET_OFF:
        if unet.get(option) is not None:
            raise CheckpointError(
                f"{path / 'unet' / 'config.json'} has {option} {unet[option]!r}, which Stable "
                f"Diffusion 1.x does not have; accepted is {ACCEPTED}"
            )
    # What is missing has diffusers' or transformers' own default: older checkpoints leave it out.
    sizes = Sizes(
        latent_channels=vae.get("latent_channels", 4),
        latent_scale=2 ** (len(vae.get("block_out_channels", ())) - 1),
        tokens=text.get("max_position_embeddings", 77),
        vocabulary=text.get("vocab_size", 49408),
        embedding_dim=text.get("hidden_size", 512),
        text_layers=text.get("num_hidden_layers", 12),
        guidance_width=unet.get("time_cond_proj_dim") or 0,
    )
    channels, width = unet.get("in_channels", 4), unet.get("cross_attention_dim")
    if channels != sizes.latent_channels:
        raise CheckpointError(
            f"the UNet of {path} takes {channels} channels and a latent has "
            f"{sizes.latent_channels}: an inpainting or instruction model; accepted is {ACCEPTED} "
            "that draws from text"
        )
    if width != sizes.embedding_dim:
        raise CheckpointError(
            f"the UNet of {path} takes embeddings of {width} numbers and the text encoder gives "
            f"{sizes.embedding_dim}: these parts do not belong together; download the checkpoint "
            "again"
        )
    return sizes
