"""A checkpoint's models in PyTorch, one at a time so that memory stays low."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from sdexport.artifacts import reading
from sdexport.errors import CheckpointError
from sdexport.export.checkpoint import FOLDER_OF, Checkpoint
from sdexport.export.silence import quiet_loading
from sdexport.model.shapes import Precision

DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
LONGEST_REASON = 500
"""Characters of a library's message, which may quote all of a value."""
_PRIVATE = ("_name_or_path", "_use_default_values", "transformers_version")


def load_component(
    checkpoint: Checkpoint, component: str, dtype: torch.dtype = torch.float32
) -> Any:
    """The diffusers or transformers model that `component` is a part of, for inference.

    Args:
        checkpoint: an opened one.
        component: of `sdexport.model.shapes.COMPONENTS`; of the VAE, the other half is left out.
        dtype: of the weights, whatever they have on disk.

    Raises:
        CheckpointError: weights are missing, or do not fit the configuration.
    """
    model = load_folder(checkpoint, FOLDER_OF[component], dtype)
    if component == "vae_decoder":
        model.encoder = model.quant_conv = None
    elif component == "vae_encoder":
        model.decoder = model.post_quant_conv = None
    return model


def load_folder(checkpoint: Checkpoint, folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """The whole model in one of the checkpoint's folders; see `load_component`."""
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
                # Attention written out, as transformers' export to ONNX has it as well.
                common["attn_implementation"] = "eager"
                loaded: Any = CLIPTextModel.from_pretrained(path, **common)
                model, info = loaded
            else:
                model_class = UNet2DConditionModel if folder == "unet" else AutoencoderKL
                model, info = model_class.from_pretrained(path, torch_dtype=dtype, **common)
        # Structure and files were found to be in order before: what is left is what only the
        # libraries know of, and safetensors, diffusers and transformers have no common error.
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be loaded: {_reason(error)}; download the checkpoint again"
            ) from error
        _check_loaded(path, info)
    return cast(model, dtype)


def check_models(checkpoint: Checkpoint, components: Iterable[str]) -> None:
    """Sees before anything is exported whether the models can be made, filled and run.

    They are made without memory for their weights (on torch's `meta` device) and run once on
    shapes, so that a configuration that no library can follow is known in seconds.

    Raises:
        CheckpointError: a configuration cannot be followed, or the weights do not fit it.
    """
    from sdexport.export import components as tensors
    from sdexport.export.modules import MODULES

    for component in components:
        folder = FOLDER_OF[component]
        path = checkpoint.path / folder
        wanted = tensors.signature(component, checkpoint.sizes, Precision.FP32).outputs
        with quiet_loading(), torch.inference_mode():
            try:
                model = _made_on_meta(path, folder)
                # Sizes that are too large for memory are the configuration's fault, too.
                inputs = tensors.random_inputs(component, checkpoint.sizes, **tensors.TRACED)
                results = MODULES[component](model)(*(one.to("meta") for one in inputs.values()))
                shapes = [tuple(one.shape) for one in _tensors(results)]
            # As in `load_folder`: a model of other options can fail in every way that code can.
            except Exception as error:
                raise CheckpointError(
                    f"{path / 'config.json'} describes a model that cannot be run: "
                    f"{_reason(error)}; correct it, or download the checkpoint again"
                ) from error
        lengths = tensors.TRACED | {
            f"{checkpoint.sizes.latent_scale}*{side}": checkpoint.sizes.latent_scale
            * tensors.TRACED[side]
            for side in ("height", "width")
        }
        expected = [
            tuple(n if isinstance(n, int) else lengths[n] for n in one.shape) for one in wanted
        ]
        if shapes != expected:
            # Of the first that differs; all are named where their number does.
            pairs = zip(shapes, expected, strict=False)
            given, due = next((pair for pair in pairs if pair[0] != pair[1]), (shapes, expected))
            raise CheckpointError(
                f"{path / 'config.json'} describes a model that gives {given} where "
                f"{due} is due: the number of blocks and block_out_channels do not belong "
                "together; correct it, or download the checkpoint again"
            )


def _made_on_meta(path: Path, folder: str) -> Any:
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
    """Weights that a file lacks would be random numbers: refused."""
    for key, meaning in (("missing_keys", "lacks"), ("mismatched_keys", "has in another shape")):
        names = [str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ()]
        if names:
            raise CheckpointError(
                f"the weights in {path} do not fit config.json: it {meaning} "
                f"{', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''} "
                f"({len(names)} in all); {_remedy(path)}"
            )


def _remedy(folder: Path) -> str:
    """What helps where weights have names that the model does not know.

    transformers changed those of text encoders with 5.6; it reads older names, and older versions
    do not read the newer ones.
    """
    saved = str(reading.read_json(folder / "config.json").get("transformers_version", ""))
    installed = importlib.metadata.version("transformers")
    if _release(saved) > _release(installed):
        return (
            f"it was saved with transformers {saved} and {installed} is installed, which may not "
            "know its names: pip install --upgrade transformers"
        )
    return "download the checkpoint again"


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version; empty where it is none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def config_of(model: Any) -> dict[str, Any]:
    """The model's complete configuration, for `config.json`.

    Options that an old checkpoint leaves out (the VAE's `scaling_factor`) are there with the
    value that they have.
    """
    config = model.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    values = {name: value for name, value in values.items() if name not in _PRIVATE}
    if not hasattr(config, "to_dict"):
        values["_class_name"] = type(model).__name__
    values.pop("dtype", None)
    return values
