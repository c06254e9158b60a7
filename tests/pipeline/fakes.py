"""Engines of plain numpy that keep to the protocol and write down what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.backends.session import Sessions
from sdexport.errors import EngineError
from sdexport.model.shapes import Profile, Range, TensorSpec
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.request import RequestBounds
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.sampling import STATE_SLOTS
from tests.specs import make_spec

Array = np.ndarray[Any, Any]
Compute = Callable[[Mapping[str, Array]], None]

TOKENS, DIM, CHANNELS = 77, 3, 4

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


@dataclass
class FakeBinding:
    engine: FakeEngine
    buffers: dict[str, Array]

    def run(self) -> None:
        inputs = {spec.name: self.buffers[spec.name].copy() for spec in self.engine.inputs}
        self.engine.log.append((self.engine.name, self, inputs))
        if self.engine.failure is not None:
            raise self.engine.failure
        self.engine.compute(self.buffers)


@dataclass
class FakeEngine:
    """An engine whose fresh buffers hold NaN: what is read before it is written shows."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    compute: Compute
    log: list[tuple[str, FakeBinding, dict[str, Array]]]
    bound: list[FakeBinding] = field(default_factory=list)
    failure: Exception | None = None
    optional: tuple[str, ...] = ()

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> FakeBinding:
        buffers = {}
        for spec in (*self.inputs, *self.outputs):
            if spec.name not in shapes:
                raise EngineError(f"{self.name}: {spec.name} is missing")
            shape = shapes[spec.name]
            assert len(shape) == len(spec.shape), spec
            array = (shared or {}).get(spec.name)
            if array is None:
                array = np.empty(shape, spec.dtype)
                array.fill(np.nan if array.dtype.kind == "f" else 99)
            assert array.shape == shape, spec
            assert array.dtype == spec.dtype, spec
            assert array.flags.c_contiguous, spec
            buffers[spec.name] = array
        assert set(shapes) == set(buffers), "an unknown name was bound"
        self.bound.append(FakeBinding(self, buffers))
        return self.bound[-1]


def _specs(**tensors: tuple[str, Sequence[int | str]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(n, dtype, tuple(dims)) for n, (dtype, dims) in tensors.items())


def encode_text(buffers: Mapping[str, Array]) -> None:
    ids = buffers["input_ids"].astype(np.float32)
    out = buffers["last_hidden_state"]
    skipped = buffers.get("clip_skip", np.zeros(len(ids), np.int64))
    for dim in range(out.shape[2]):
        out[:, :, dim] = np.sin(ids * (dim + 1)) / (2 + skipped[:, None])


def encode_image(buffers: Mapping[str, Array]) -> None:
    """Means: the pixels of each latent's upper left corner; deviations: a tenth, all over."""
    pixels, out = buffers["sample"][:, :, ::8, ::8], buffers["latent_parameters"]
    out[:, :3], out[:, 3] = pixels, pixels.mean(1)
    out[:, CHANNELS:] = 2 * np.log(0.1)


def model(sample: Array, timestep: float, embeddings: Array) -> Array:
    """A stand-in for the UNet on one sample: (C, h, w), a number and (tokens, dim)."""
    meaning = np.float32((embeddings * np.arange(1, len(embeddings) + 1)[:, None]).mean())
    return np.tanh(sample * np.float32(0.5) + meaning + np.float32(timestep / 1000))


def denoise(buffers: Mapping[str, Array]) -> None:
    """Sample by sample, so that a sample's result cannot depend on its batch."""
    for b, state in enumerate(buffers["state"]):
        sample = np.tensordot(buffers["input_weights"][b], state, 1)
        texts = buffers["text_embeddings"][b]
        outputs = [model(sample, float(buffers["timestep"][b]), text) for text in texts]
        guided = outputs[0] + buffers["guidance"][b] * (outputs[-1] - outputs[0])
        share = buffers["guidance_rescale"][b]
        guided = guided * (1 + share * (outputs[-1].std() / max(guided.std(), 1e-15) - 1))
        terms = np.concatenate([state, guided[None], buffers["noise"][b][None]])
        after = np.tensordot(buffers["update_weights"][b], terms, 1)
        known = np.tensordot(buffers["known_weights"][b], buffers["known"][b], 1)
        mask = buffers["mask"][b]
        after[0] = mask * after[0] + (1 - mask) * known
        buffers["next_state"][b] = after


def decode_image(buffers: Mapping[str, Array]) -> None:
    latents = buffers["state"][:, 0, :3].transpose(0, 2, 3, 1)
    pixels = np.clip(np.nan_to_num(latents) * 40 + 128, 0, 255).round().astype(np.uint8)
    buffers["image"][...] = pixels.repeat(8, axis=1).repeat(8, axis=2)


@dataclass
class Fakes:
    """The engines with one log of their runs, in order."""

    log: list[tuple[str, FakeBinding, dict[str, Array]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text_encoder = FakeEngine(
            "text_encoder",
            _specs(input_ids=("int64", "nt"), clip_skip=("int64", "n")),
            _specs(last_hidden_state=("float32", "ntd")),
            encode_text,
            self.log,
        )
        self.denoise_step = FakeEngine(
            "denoise_step",
            _specs(
                state=("float32", ("b", STATE_SLOTS, *"chw")),
                noise=("float32", "bchw"),
                timestep=("float32", "b"),
                input_weights=("float32", "bk"),
                update_weights=("float32", "bkn"),
                guidance=("float32", "b"),
                guidance_rescale=("float32", "b"),
                mask=("float32", "bohw"),
                known=("float32", "btchw"),
                known_weights=("float32", "bt"),
                text_embeddings=("float32", "brtd"),
            ),
            _specs(next_state=("float32", ("b", STATE_SLOTS, *"chw"))),
            denoise,
            self.log,
        )
        self.vae_decoder = FakeEngine(
            "vae_decoder",
            _specs(state=("float32", "bkchw")),
            _specs(image=("uint8", "bhwc")),
            decode_image,
            self.log,
        )

        self.vae_encoder = FakeEngine(
            "vae_encoder",
            _specs(sample=("float32", "bohw")),
            _specs(latent_parameters=("float32", "bchw")),
            encode_image,
            self.log,
        )

    def names(self) -> list[str]:
        """The engines in the order in which they ran."""
        return [name for name, _, _ in self.log]

    def loaded(
        self,
        tokenizer: PromptTokenizer,
        *,
        about: Mapping[str, Any] | None = None,
        without: tuple[str, ...] = (),
        model: Mapping[str, Any] | None = None,
        **bounds: Any,
    ) -> LoadedModel:
        """A loaded model of these engines, but those that are left out."""
        spec = make_spec(
            channels=CHANNELS,
            tokens=TOKENS,
            width=DIM,
            native_size=(32, 32),
            **({"skippable_layers": 3} | dict(model or {})),
        )
        names = ("text_encoder", "denoise_step", "vae_decoder", "vae_encoder")
        engines = {name: getattr(self, name) for name in names if name not in without}
        values: dict[str, Any] = {
            "model": spec,
            "profile": Profile(Range(1, 1, 4), Range(16, 32, 64), Range(16, 32, 64)),
            "scheduler_config": SCHEDULER,
            "default_guidance": 7.5,
            "default_size": (32, 32),
            "takes_images": "vae_encoder" in engines,
        }
        return LoadedModel(
            RequestBounds(**(values | bounds)),
            Sessions(spec, engines),
            tokenizer,
            about={"model": "fake", "precision": "bf16", "sdexport": "0.0"} | dict(about or {}),
        )


__all__ = ["CHANNELS", "DIM", "SCHEDULER", "STATE_SLOTS", "TOKENS", "Fakes", "make_tokenizer"]


def make_tokenizer(folder: Path) -> Path:
    """A small CLIP tokenizer in the form of Stable Diffusion 1.x: vocab.json and merges.txt."""
    import json

    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [
        "a p",
        "ap p",
        "l e</w>",
        "app le</w>",
        "r e",
        "re d</w>",
        "i t</w>",
        "c a",
        "ca t</w>",
    ]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    text = "\n".join(["#version: 0.2", *merges]) + "\n"
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    begin, end = ({"content": f"<|{word}oftext|>"} | plain for word in ("start", "end"))
    special = {"bos_token": begin, "eos_token": end, "unk_token": end}
    special["pad_token"] = "<|endoftext|>"  # type: ignore[assignment]  # as Stable Diffusion has it
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    config = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
