"""Opens a Stable Diffusion checkpoint and checks its structure and files before loading weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sdexport.artifacts import documents, reading
from sdexport.artifacts.onnx_folder import INDEX_FILE
from sdexport.errors import (
    CheckpointDocumentError,
    CheckpointError,
    DocumentError,
    FolderError,
    UsageError,
    shown,
)
from sdexport.export.config_keys import READ, check_keys
from sdexport.export.libraries import require_libraries
from sdexport.export.weights import Weights, find_weights
from sdexport.model.configs import (
    DEFAULT_SAMPLE_SIZE,
    ModelIndex,
    TextConfig,
    UNetConfig,
    VaeConfig,
)
from sdexport.model.families import Configs, spec_of
from sdexport.model.spec import Component, ModelSpec
from sdexport.pipeline.tokenizer import PromptTokenizer, text_length
from sdexport.sampling import compile_plan, pipeline_config

T = TypeVar("T")

ACCEPTED = "a diffusers folder of Stable Diffusion 1.x or 2.x (with model_index.json), or a hub id"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

MODELS = {
    "text_encoder": ("CLIPTextModel", "model"),
    "unet": ("UNet2DConditionModel", "diffusion_pytorch_model"),
    "vae": ("AutoencoderKL", "diffusion_pytorch_model"),
}
"""By folder: the class that model_index.json must name, and the stem of the weights' file names."""

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
LIBRARIES = ("diffusers", "transformers")

AGAIN = "; download the checkpoint again, or correct the file"

TRIAL_STEPS, TRIAL_SAMPLER = 4, "ddim"
"""The plan that is compiled to check whether a scheduler's options are supported."""

WEIGHT_FORMATS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
"""The suffixes of files of weights; only the selected files of them are read."""

FOREIGN_PARTS = ("text_encoder_2", "text_encoder_3", "transformer", "prior", "controlnet", "unet_2")
"""Parts that only other kinds of models have."""

NOT_EXPORTED = {
    "safety_checker": "images are not checked",
    "feature_extractor": "it serves the safety checker",
    "image_encoder": "IP-Adapter is not supported",
}
"""Parts of a checkpoint that are not exported, and what their absence means."""

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
"""The known pipeline classes of diffusers; others are used as the first one."""

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint, whose structure and files have been checked.

    Attributes:
        name: the folder's name or the hub id, for users.
        path: the diffusers folder on disk.
        weights: by folder: `text_encoder`, `unet`, `vae`.
        model: the model's specification; `configs`: the configurations that say so.
        notes: lines for users: what is not exported or ignored, and what was selected.
    """

    name: str
    path: Path
    weights: Mapping[str, Weights]
    model: ModelSpec
    configs: Configs
    notes: tuple[str, ...] = ()

    @property
    def index(self) -> dict[str, object]:
        """The content of model_index.json."""
        return reading.read_json(self.path / INDEX_FILE)

    @property
    def scheduler_config(self) -> dict[str, object]:
        """The content of scheduler_config.json, with the class that model_index.json names.

        diffusers uses that class, whichever class saved the file.
        """
        return _scheduler_config(self.path, self.index)

    def folder(self, component: str) -> str:
        """The checkpoint's folder of `component`."""
        return self._component(component).folder

    def _component(self, name: str) -> Component:
        return next(one for one in self.model.components if one.name == name)

    def files(self, component: str) -> list[Path]:
        """Every file that loading `component` can read.

        All files of its folder except hidden files and weights in other formats and variants:
        diffusers and transformers may read further ones, such as the configuration of an adapter.
        """
        folder = self.path / self.folder(component)
        chosen = self.weights[self.folder(component)].files
        return [
            file
            for file in reading.files_below(folder)
            if file in chosen or not (file.name.startswith(".") or file.suffix in WEIGHT_FORMATS)
        ]

    def digests(self, components: Iterable[str]) -> dict[str, dict[str, str]]:
        """The SHA-256 of each file by component and path in the checkpoint."""
        found: dict[str, dict[str, str]] = {}
        for name in components:
            same = [other for other in found if self.folder(other) == self.folder(name)]
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
        """The number of parameters of `component`, from its files' headers."""
        wanted = self._component(component).weights or ("",)
        elements = self.weights[self.folder(component)].elements
        return sum(count for name, count in elements.items() if name.startswith(wanted))


def open_checkpoint(checkpoint: Path | str) -> Checkpoint:
    """The checkpoint at a path or of a hub id; executes none of its code and rejects pickles.

    Raises:
        CheckpointError: it is missing, incomplete, damaged or of another structure; the message
            names the part, what is accepted and the remedy.
        MissingExtraError: `checkpoint` is a hub id and diffusers is not installed.
    """
    path = reading.given_path(checkpoint, "the checkpoint")
    name = str(checkpoint)
    try:
        kind = reading.kind_of(path)
        if kind is reading.Kind.FOLDER:
            # The manifest is UTF-8, a folder's name need not be.
            name = os.fsencode(reading.resolved(path).name).decode(errors="replace")
            return _open_folder(path, name)
    except CheckpointError:
        raise
    except DocumentError as error:
        raise CheckpointDocumentError(f"{error}{AGAIN}") from error
    except FolderError as error:
        raise CheckpointError(str(error)) from error
    if kind is reading.Kind.FILE:
        raise CheckpointError(
            f"{path} is {kind}; accepted is {ACCEPTED}. Convert a single-file checkpoint with "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if kind is not reading.Kind.NOTHING:
        raise CheckpointError(f"{path} is {kind}; accepted is {ACCEPTED}")
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name} does not exist; accepted is {ACCEPTED}")
    folder = _download(name)
    try:
        return _open_folder(folder, name)
    except CheckpointError:
        raise
    except DocumentError as error:
        raise CheckpointDocumentError(f"{error}{AGAIN}") from error
    except FolderError as error:
        raise CheckpointError(str(error)) from error


def _download(name: str) -> Path:
    """Downloads the safetensors files of a hub id; returns the folder in diffusers' cache."""
    require_libraries()
    from diffusers import DiffusionPipeline

    unused: dict[str, Any] = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    try:
        folder = DiffusionPipeline.download(name, use_safetensors=True, **unused)
    except Exception as error:  # the hub's client passes on its HTTP library's errors
        # The text after the first sentence is advice for programmers.
        said = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
        reason = said or type(error).__name__
        raise CheckpointError(
            f"there is no folder {name}, and downloading it from the hub failed: {reason}; "
            f"accepted is {ACCEPTED} with safetensors weights. Check the name and the network"
        ) from error
    return Path(folder)


def _open_folder(path: Path, name: str) -> Checkpoint:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"the path of the checkpoint must be UTF-8, which safetensors needs, got "
            f"{str(path)!a}: rename the folder, or make a link with another name"
        ) from None
    if not reading.is_file(path / INDEX_FILE):
        raise CheckpointError(
            f"{path} is not a checkpoint: {INDEX_FILE} is missing; accepted is {ACCEPTED}"
        )
    index = _read(path / INDEX_FILE)
    documents.convert(index, ModelIndex, str(path / INDEX_FILE))
    notes = _check_structure(path, index)
    for part in (*MODELS, "tokenizer", "scheduler"):
        if not reading.is_folder(path / part):
            raise CheckpointError(
                f"{path} is incomplete: the folder {part}/ is missing; download the checkpoint "
                "again"
            )
    configs = {part: _read(path / part / "config.json") for part in MODELS}
    if isinstance(configs["text_encoder"].get("text_config"), dict):
        configs["text_encoder"] = configs["text_encoder"]["text_config"]
    for part, config in configs.items():
        notes += check_keys(path / part / "config.json", part, config)
    typed = _read_configs(path, configs)
    notes += _check_tokenizer(path / "tokenizer", typed)
    notes += _check_scheduler(path, index)
    if configs["unet"].get("sample_size") is None:
        notes.append(
            f"unet/config.json: sample_size is missing; {DEFAULT_SAMPLE_SIZE} latents per side are "
            "used, where diffusers requires a size"
        )
    weights = {part: find_weights(path / part, stem) for part, (_, stem) in MODELS.items()}
    notes += _not_exported_notes(path, index, weights)
    return Checkpoint(name, path, weights, spec_of(typed), typed, tuple(notes))


def _read(path: Path) -> dict[str, Any]:
    if not reading.exists(path):
        raise CheckpointError(f"{path} is missing; download the checkpoint again")
    try:
        return reading.read_json(path)
    except DocumentError:
        raise
    except FolderError as error:
        raise CheckpointError(f"{error}; or download the checkpoint again") from error


def _check_structure(path: Path, index: Mapping[str, Any]) -> list[str]:
    """Checks that the parts are those of Stable Diffusion; returns notes on ignored entries.

    Raises:
        CheckpointError: a part is missing, or is of another kind.
    """
    pipeline = index.get("_class_name")
    foreign = [name for name in FOREIGN_PARTS if _class_of(index, name)]
    if foreign:
        raise CheckpointError(
            f"{path} is a {pipeline} with {', '.join(foreign)}, which Stable Diffusion 1.x does "
            f"not have; accepted is {ACCEPTED}"
        )
    for part, (wanted, _) in MODELS.items():
        found = _class_of(index, part)
        if found != wanted:
            raise CheckpointError(
                f"{path} is a {pipeline} whose {part} must be a {wanted}, got {found or 'none'}; "
                f"accepted is {ACCEPTED}"
            )
    tokenizer = _class_of(index, "tokenizer")
    if tokenizer not in TOKENIZERS:
        raise CheckpointError(
            f"the tokenizer of {path} must be a {' or '.join(TOKENIZERS)}, got {tokenizer}"
        )
    custom = {name: value[0] for name, value in index.items() if _class_of(index, name)}
    for name, library in custom.items():
        if name in (*MODELS, "tokenizer", "scheduler") and library not in LIBRARIES:
            raise CheckpointError(
                f"the {name} of {path} must be a class of {' or '.join(LIBRARIES)}, got one of "
                f"{shown(library)}: this project does not run a checkpoint's code"
            )
    further = [name for name in custom if name not in READ["index"]]
    if further and pipeline not in PIPELINES:
        raise CheckpointError(
            f"{path} is a {pipeline} with {', '.join(further)}, which Stable Diffusion 1.x does "
            f"not have; accepted is {ACCEPTED}"
        )
    notes = check_keys(path / INDEX_FILE, "index", index)
    if pipeline not in PIPELINES:
        notes.append(f"{INDEX_FILE} names the pipeline {pipeline}; it is used as a {PIPELINES[0]}")
    return notes


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    value = index.get(part)
    return value[1] if isinstance(value, list) and len(value) == 2 else None


def _check_tokenizer(folder: Path, configs: Configs) -> list[str]:
    lacking = [name for name in ("vocab.json", "merges.txt") if not reading.is_file(folder / name)]
    if lacking and not reading.is_file(folder / "tokenizer.json"):
        raise CheckpointError(
            f"{folder} must contain tokenizer.json, or vocab.json with merges.txt; missing: "
            f"{', '.join(lacking)}. Download the checkpoint again"
        )
    tokenizer = PromptTokenizer.load(folder, configs.tokens)
    vocabulary = configs.text_encoder.vocab_size
    if tokenizer.largest_id >= vocabulary:
        raise CheckpointError(
            f"the tokenizer in {folder} has {tokenizer.largest_id + 1} tokens, but the text "
            f"encoder embeddings for {vocabulary}: tokens were added only to the tokenizer. "
            "Save both with StableDiffusionPipeline.save_pretrained(FOLDER)"
        )
    file = folder / "tokenizer_config.json"
    return check_keys(file, "tokenizer", _read(file)) if reading.exists(file) else []


def _scheduler_config(path: Path, index: Mapping[str, Any]) -> dict[str, object]:
    config = reading.read_json(path / "scheduler" / "scheduler_config.json", infinite=True)
    return config | {"_class_name": _class_of(index, "scheduler")}


def _check_scheduler(path: Path, index: Mapping[str, Any]) -> list[str]:
    """Checks that the scheduler's options are supported; returns a note if only others' are.

    Raises:
        CheckpointError: neither the scheduler nor `TRIAL_SAMPLER` can use the options.
    """
    file = path / "scheduler" / "scheduler_config.json"
    if not reading.exists(file):
        raise CheckpointError(
            f"{path / 'scheduler'} is incomplete: scheduler_config.json is missing; download the "
            "checkpoint again"
        )
    if _class_of(index, "scheduler") is None:
        raise CheckpointError(
            f"{path / INDEX_FILE} must name a scheduler; download the checkpoint again"
        )
    config = pipeline_config(_scheduler_config(path, index))
    try:
        compile_plan(config, None, TRIAL_STEPS)
    except UsageError as own:
        try:
            compile_plan(config, TRIAL_SAMPLER, TRIAL_STEPS)
        except UsageError:
            said = str(own).removeprefix(f"{file.name}: ")
            raise CheckpointDocumentError(f"{file}: {said}") from own
        return [
            f"the checkpoint's own scheduler is not supported ({own}); generate with another "
            "sampler"
        ]
    return []


def _not_exported_notes(
    path: Path, index: Mapping[str, Any], weights: Mapping[str, Weights]
) -> list[str]:
    """Notes on everything in the folder that is not exported, one line each."""
    notes = [
        f"not exported: {name}; {means}"
        for name, means in NOT_EXPORTED.items()
        if _class_of(index, name) or reading.exists(path / name)
    ]
    for part, found in weights.items():
        taken = {file.name for file in found.files}
        others = [
            entry.name
            for entry in reading.entries(path / part)
            if entry.name not in taken and _holds_weights(entry)
        ]
        if found.variant is not None or others:
            which = ", ".join(file.name for file in found.files)
            rest = f"; not used: {', '.join(others)}" if others else ""
            notes.append(f"{part}: the weights are {which}{rest}")
    used = {*MODELS, *NOT_EXPORTED, "tokenizer", "scheduler"}
    further = [
        entry.name
        for entry in reading.entries(path)
        if entry.name not in used and _holds_weights(entry)
    ]
    if further:
        notes.append(
            f"not exported: {', '.join(further)}; diffusers does not load it by itself either. To "
            "export it, load it in diffusers, fuse it, and save the pipeline"
        )
    return notes


def _holds_weights(entry: Path) -> bool:
    """Whether a file, or a file in a folder, contains weights or an adapter."""
    files = [entry]
    if reading.is_folder(entry) and not entry.name.startswith("."):
        files = reading.entries(entry)
    return any(f.suffix in WEIGHT_FORMATS or f.name == ADAPTER_FILE for f in files)


def _read_configs(path: Path, configs: Mapping[str, Mapping[str, Any]]) -> Configs:
    def typed(part: str, kind: type[T]) -> T:
        return documents.convert(configs[part], kind, str(path / part / "config.json"))

    unet, vae = typed("unet", UNetConfig), typed("vae", VaeConfig)
    text = typed("text_encoder", TextConfig)
    taken, made = unet.in_channels, unet.out_channels
    if taken != vae.latent_channels:
        raise CheckpointError(
            f"the UNet of {path} must take {vae.latent_channels} channels, got {taken}: it is an "
            f"inpainting or instruction model; accepted is {ACCEPTED} that generates from text"
        )
    if made != taken:
        raise CheckpointError(
            f"the UNet of {path} must return as many channels as it takes ({taken}), got "
            f"out_channels {made}; accepted is {ACCEPTED}"
        )
    for width in unet.embedding_widths:
        if width != text.hidden_size:
            raise CheckpointError(
                f"the UNet's cross_attention_dim must be the text encoder's hidden_size in {path}, "
                f"got {width} and {text.hidden_size}: these are parts of different models; "
                "download the checkpoint again"
            )
    return Configs(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokens=text_length(path / "tokenizer", text.max_position_embeddings),
        # The export has all hidden states as outputs.
        skippable_layers=text.num_hidden_layers,
        raw=configs,
    )
