"""Train a small checkpoint of Stable Diffusion 1.x's structure on 256 emoji, from start to end.

Each stage leaves its result in the work folder; a run goes on at the stage, and within it at the
step, that was reached.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sdexport  # noqa: F401 - turns the telemetry of what follows off

# isort: split
import assemble
import autoencoder
import data
import denoiser
import models
import tokenizer
import torch
from fitting import Schedule, save
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).parent
THREADS = 2

SAMPLE_ROUNDS = 2  # images sampled for each caption
SAMPLE_BATCH = 64
SAMPLE_STEPS = 20
SAMPLE_GUIDANCE = 2.5


@dataclass(frozen=True)
class Work:
    """The folder of intermediate results, and what may be found in it."""

    folder: Path

    def progress(self, stage: str) -> Path:
        """Return where a stage keeps its unfinished state."""
        return self.folder / f"{stage}.progress.pt"

    def result(self, stage: str) -> Path:
        """Return where a stage leaves what it made."""
        return self.folder / f"{stage}.pt"

    def done(self, stage: str) -> bool:
        """Return whether a stage's result is there."""
        return self.result(stage).exists()

    def load(self, stage: str) -> dict[str, Any]:
        """Return what a stage made."""
        made: dict[str, Any] = torch.load(self.result(stage), weights_only=True)
        return made

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.folder / "tokenizer"


@dataclass(frozen=True)
class Dataset:
    """The emoji, their images (256, 3, 128, 128) in -1..1, and their captions' token ids."""

    emoji: list[data.Emoji]
    images: Tensor
    prompts: denoiser.Prompts
    vocabulary: int
    bos: int

    @classmethod
    def prepare(cls, work: Work) -> Dataset:
        """Draw the images and write the tokenizer."""
        emoji = data.load()
        drawn = torch.from_numpy(data.draw_all(emoji)).permute(0, 3, 1, 2)
        tokenizer.write([one.caption for one in emoji], work.tokenizer)
        clip = CLIPTokenizer.from_pretrained(work.tokenizer)
        prompts = denoiser.Prompts.of(emoji, clip)
        images = drawn.float().div(127.5).sub(1).contiguous()
        return cls(emoji, images, prompts, len(clip), clip.bos_token_id)

    def text_encoder(self) -> CLIPTextModel:
        """Return an untrained text encoder for this tokenizer."""
        return models.text_encoder(self.vocabulary, self.bos, self.prompts.eos)


def train_vae(work: Work, dataset: Dataset, steps: int) -> None:
    """Leave the whitened autoencoder and the images' scaled latents."""
    torch.manual_seed(0)
    vae = models.autoencoder()
    schedule = Schedule("vae", steps, batch=4, learning_rate=1e-3, warmup=150, floor=0.02)
    autoencoder.train(vae, dataset.images, schedule, work.progress("vae"))
    autoencoder.whiten(vae, dataset.images)
    latents = autoencoder.encode(vae, dataset.images) * models.SCALING_FACTOR
    print(f"vae: {autoencoder.quality(vae, dataset.images):.2f} dB", flush=True)
    save({"vae": vae.state_dict(), "latents": latents}, work.result("vae"))


def train_text(work: Work, dataset: Dataset, steps: int) -> None:
    """Leave the text encoder, pre-trained to predict the latents."""
    latents = work.load("vae")["latents"]
    torch.manual_seed(1)
    text_encoder = dataset.text_encoder()
    schedule = Schedule(
        "text", steps, batch=48, learning_rate=2e-3, warmup=30, floor=0.03, ema=0.99, seed=1
    )
    denoiser.pretrain_text(text_encoder, latents, dataset.prompts, schedule, work.progress("text"))
    save({"text_encoder": text_encoder.state_dict()}, work.result("text"))


def train_unet(work: Work, dataset: Dataset, steps: int) -> None:
    """Leave the UNet and the text encoder, trained together."""
    latents = work.load("vae")["latents"]
    torch.manual_seed(2)
    unet = models.unet()
    text_encoder = dataset.text_encoder()
    text_encoder.load_state_dict(work.load("text")["text_encoder"])
    schedule = Schedule(
        "unet", steps, batch=16, learning_rate=1e-3, warmup=60, weight_decay=1e-3, seed=2
    )
    denoiser.train(unet, text_encoder, latents, dataset.prompts, schedule, work.progress("unet"))
    trained = {"unet": unet.state_dict(), "text_encoder": text_encoder.state_dict()}
    save(trained, work.result("unet"))


def sample(work: Work, dataset: Dataset) -> None:
    """Leave latents that the UNet makes for each caption, (rounds, count, 4, 16, 16)."""
    trained = work.load("unet")
    unet, text_encoder = models.unet().eval(), dataset.text_encoder().eval()
    unet.load_state_dict(trained["unet"])
    text_encoder.load_state_dict(trained["text_encoder"])

    def embed(ids: Tensor) -> Tensor:
        hidden: Tensor = text_encoder(input_ids=ids).last_hidden_state
        return hidden

    progress = work.progress("samples")
    made: list[Tensor] = torch.load(progress, weights_only=True) if progress.exists() else []
    batches = torch.arange(len(dataset.emoji)).split(SAMPLE_BATCH) * SAMPLE_ROUNDS
    for i in range(len(made), len(batches)):
        latents = denoiser.sample(
            unet,
            embed,
            dataset.prompts,
            batches[i],
            steps=SAMPLE_STEPS,
            guidance=SAMPLE_GUIDANCE,
            seed=i,
        )
        made.append(latents)
        save(made, progress)
        print(f"samples {i + 1}/{len(batches)}", flush=True)
    samples = torch.cat(made).unflatten(0, (SAMPLE_ROUNDS, -1))
    save({"samples": samples}, work.result("samples"))


def train_decoder(work: Work, dataset: Dataset, steps: int) -> None:
    """Leave the autoencoder with its decoder trained further on the UNet's samples."""
    before = work.load("vae")
    samples = work.load("samples")["samples"]
    vae = models.autoencoder()
    vae.load_state_dict(before["vae"])
    schedule = Schedule("decoder", steps, batch=4, learning_rate=5e-4, ema=0.99, seed=3)
    autoencoder.sharpen(
        vae, dataset.images, before["latents"], samples, schedule, work.progress("decoder")
    )
    print(f"decoder: {autoencoder.quality(vae, dataset.images):.2f} dB", flush=True)
    save({"vae": vae.state_dict()}, work.result("decoder"))


def write_checkpoint(work: Work, dataset: Dataset, output: Path) -> None:
    """Write the pipeline from the stages' results."""
    vae, unet, text_encoder = models.autoencoder(), models.unet(), dataset.text_encoder()
    trained = work.load("unet")
    vae.load_state_dict(work.load("decoder")["vae"])
    unet.load_state_dict(trained["unet"])
    text_encoder.load_state_dict(trained["text_encoder"])
    assemble.write(vae, text_encoder, unet, work.tokenizer, output)


def main() -> None:
    """Run the stages that are not yet done, then write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae-steps", type=int, default=3600)
    parser.add_argument("--text-steps", type=int, default=700)
    parser.add_argument("--unet-steps", type=int, default=4000)
    parser.add_argument("--decoder-steps", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=HERE / "work", metavar="DIR")
    parser.add_argument("--output", type=Path, default=HERE / "checkpoint", metavar="DIR")
    options = parser.parse_args()

    torch.set_num_threads(THREADS)
    options.work.mkdir(parents=True, exist_ok=True)
    work = Work(options.work)
    try:
        dataset = Dataset.prepare(work)
    except data.MissingPackageError as error:
        raise SystemExit(str(error)) from None
    if not work.done("vae"):
        train_vae(work, dataset, options.vae_steps)
    if not work.done("text"):
        train_text(work, dataset, options.text_steps)
    if not work.done("unet"):
        train_unet(work, dataset, options.unet_steps)
    if not work.done("samples"):
        sample(work, dataset)
    if not work.done("decoder"):
        train_decoder(work, dataset, options.decoder_steps)
    write_checkpoint(work, dataset, options.output)


if __name__ == "__main__":
    main()
