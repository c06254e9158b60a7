"""Loads a checkpoint's models in PyTorch, one at a time to save memory."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from sdexport.artifacts import reading
from sdexport.errors import CheckpointError
from sdexport.export.checkpoint import Checkpoint
from sdexport.export.components import ExportContext, component_of
from sdexport.export.components.component import TRACED
from sdexport.export.silence import quiet_loading
from sdexport.model.shapes import Precision

DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
LONGEST_REASON = 500
"""The maximum number of characters quoted from a library's message."""
_PRIVATE = ("_name_or_path", "_use_default_values", "transformers_version")


def load_component(
    checkpoint: Checkpoint, component: str, dtype: torch.dtype = torch.float32
) -> Any:
    """The diffusers or transformers model that contains `component`, for inference.

    Args:
        checkpoint: an opened checkpoint.
        component: a name of `sdexport.model.shapes.COMPONENTS`; the other half of a VAE is removed.
        dtype: the weights' dtype in memory.

    Raises:
        CheckpointError: weights are missing, or contradict the configuration.
    """
    model = load_folder(checkpoint, checkpoint.folder(component), dtype)
    component_of(export_context(checkpoint), component).trim(model)
    return model


def export_context(checkpoint: Checkpoint) -> ExportContext:
    """What the components of a checkpoint are exported from."""
    return ExportContext(checkpoint.model, checkpoint.configs)


def load_folder(checkpoint: Checkpoint, folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """The whole model of one of the checkpoint's folders; see `load_component`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    common: dict[str, Any] = {
        "use_safetensors": True,
        "local_files_only": True,
        "low_cpu_mem_usage": True,
        "output_loading_info": True,
        "variant": checkpoint.weights[folder].variant,
    }
    path = checkpoint.path / folder
    with quiet_loading():
        try:
            if folder == "text_encoder":
                # Attention as matrix products, as in transformers' own export to ONNX.
                common["attn_implementation"] = "eager"
                loaded: Any = CLIPTextModel.from_pretrained(path, **common)
                model, info = loaded
            else:
                model_class = UNet2DConditionModel if folder == "unet" else AutoencoderKL
                model, info = model_class.from_pretrained(path, torch_dtype=dtype, **common)
        # Structure and files were checked before; safetensors, diffusers and transformers have no
        # common class of errors for what is left.
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be loaded: {_reason(error)}; download the checkpoint again"
            ) from error
        _check_loaded(path, info)
    return cast(model, dtype)


def check_models(checkpoint: Checkpoint, components: Iterable[str]) -> None:
    """Checks that the models of `components` can be created and run.

    They are created on torch's `meta` device, without memory for weights, and run once on shapes
    only, so that an unusable configuration is found within seconds.

    Raises:
        CheckpointError: a configuration is invalid.
    """
    context, scale = export_context(checkpoint), checkpoint.model.latents.scale
    for component in components:
        folder = checkpoint.folder(component)
        path = checkpoint.path / folder
        exported = component_of(context, component)
        wanted = exported.signature(context, Precision.FP32).outputs
        with quiet_loading(), torch.inference_mode():
            try:
                model = _create_on_meta(path, folder)
                # A configuration can also name sizes that are too large for memory.
                inputs = exported.inputs(context, TRACED)
                results = exported.module(model)(*(one.to("meta") for one in inputs.values()))
                shapes = [tuple(one.shape) for one in _tensors(results)]
            # A model with invalid options can raise any exception.
            except Exception as error:
                raise CheckpointError(
                    f"{path / 'config.json'} describes a model that cannot be run: "
                    f"{_reason(error)}; correct it, or download the checkpoint again"
                ) from error
        lengths = {
            "batch": TRACED.batch,
            "height": TRACED.height,
            "width": TRACED.width,
            f"{scale}*height": scale * TRACED.height,
            f"{scale}*width": scale * TRACED.width,
        }
        expected = [
            tuple(n if isinstance(n, int) else lengths[n] for n in one.shape) for one in wanted
        ]
        if shapes != expected:
            # Names the first output that differs, or all if their number differs.
            pairs = zip(shapes, expected, strict=False)
            given, due = next((pair for pair in pairs if pair[0] != pair[1]), (shapes, expected))
            raise CheckpointError(
                f"{path / 'config.json'} describes a model whose output must have the shape {due}, "
                f"got {given}: the number of blocks contradicts block_out_channels; correct it, or "
                "download the checkpoint again"
            )


def _create_on_meta(path: Path, folder: str) -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if folder == "text_encoder":
            config = CLIPTextConfig.from_pretrained(path, attn_implementation="eager")
            return CLIPTextModel(config).eval()
        model_class: Any = UNet2DConditionModel if folder == "unet" else AutoencoderKL
        return model_class.from_config(model_class.load_config(path)).eval()


def _tensors(results: Any) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _reason(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def cast(model: Any, dtype: torch.dtype) -> Any:
    """`model` with its weights in `dtype`, for inference."""
    with quiet_loading():
        return model.to(dtype).eval().requires_grad_(False)


def _check_loaded(path: Path, info: Mapping[str, Any]) -> None:
    """Raises CheckpointError if weights are missing, which would stay random numbers."""
    for key, meaning in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        names = [str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ()]
        if names:
            raise CheckpointError(
                f"the weights in {path} contradict config.json: {meaning} are "
                f"{', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''} "
                f"({len(names)} in all); {_remedy(path)}"
            )


def _remedy(folder: Path) -> str:
    """The remedy for weights with names that the model does not have.

    transformers 5.6 changed the names of text encoders' weights; it also reads the older names, but
    older versions do not read the newer ones.
    """
    saved = str(reading.read_json(folder / "config.json").get("transformers_version", ""))
    installed = importlib.metadata.version("transformers")
    if _release(saved) > _release(installed):
        return (
            f"it was saved with transformers {saved}, whose names the installed {installed} may "
            "not read: pip install --upgrade transformers"
        )
    return "download the checkpoint again"


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version; empty if `version` is not one."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def config_of(model: Any) -> dict[str, Any]:
    """The model's complete configuration for `config.json`.

    Options that an old checkpoint does not have (the VAE's `scaling_factor`) are included with
    their default values.
    """
    config = model.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    values = {name: value for name, value in values.items() if name not in _PRIVATE}
    if not hasattr(config, "to_dict"):
        values["_class_name"] = type(model).__name__
    values.pop("dtype", None)
    return values
