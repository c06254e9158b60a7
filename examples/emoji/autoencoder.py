"""Train the autoencoder, whiten its latents, and at the end sharpen its decoder.

Images are float32 of shape (n, 3, 128, 128) in -1..1, latents (n, 4, 16, 16).
"""

from __future__ import annotations

from pathlib import Path

import sdexport  # noqa: F401 - turns the telemetry of what follows off

# isort: split
import torch
from diffusers import AutoencoderKL
from fitting import Group, Schedule, batch_indices, fit
from models import LATENT, LATENT_CHANNELS, SCALING_FACTOR
from torch import Tensor, nn
from torch.nn import functional

KL_START, KL_END, KL_GROWTH = 1e-6, 1e-5, 1.002
SHIFT = 8  # pixels, of the augmentation


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return L1 + L2 + gradient + pooled colour, each weighted, as one number."""
    error = output.float() - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    # Means over 8x8 pixels are what one latent must carry.  Without the extra weight on their
    # hue, reds decode as orange.
    pooled = functional.avg_pool2d(error, 8)
    hue = pooled - pooled.mean(1, keepdim=True)
    colour = pooled.abs().mean() + 2 * hue.abs().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * edges + colour


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, dB."""
    error = (output.float().clamp(-1, 1) - target) / 2
    return -10 * error.square().mean((1, 2, 3)).log10()


def augmented(images: Tensor) -> Tensor:
    """Return the images, a quarter of them shifted and half of those mirrored."""
    result = images.clone()
    for i in (torch.rand(len(images)) < 0.25).nonzero().flatten().tolist():
        padded = functional.pad(images[i], (SHIFT,) * 4, value=1.0)  # white
        top, left = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
        height, width = images.shape[-2:]
        shifted = padded[:, top : top + height, left : left + width]
        result[i] = shifted.flip(-1) if torch.rand(()) < 0.5 else shifted
    return result


def train(vae: AutoencoderKL, images: Tensor, schedule: Schedule, state: Path) -> None:
    """Train encoder and decoder from scratch."""
    with torch.no_grad():
        # A small posterior deviation at first: with SD's own the sampled noise drowns the signal
        # and training collapses.
        assert vae.quant_conv is not None
        vae.quant_conv.weight[LATENT_CHANNELS:].mul_(0.1)
        vae.quant_conv.bias[LATENT_CHANNELS:].fill_(-5.0)
    probe = nn.Conv2d(LATENT_CHANNELS, 3, 1)
    vae.train()

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = batch_indices(step, schedule.batch, len(images), schedule.seed)
        target = augmented(images[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            sample = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
            output = vae.decode(sample).sample
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        rebuilt = reconstruction_loss(output, target)
        # A linear probe to each patch's mean colour keeps hue within the UNet's easy reach.
        probed = (probe(mean) - functional.avg_pool2d(target, 8)).abs().mean()
        loss = rebuilt + probed + min(KL_END, KL_START * KL_GROWTH**step) * kl
        quality = psnr(output.detach(), target).mean().item()
        return loss, {"psnr": quality, "probe": probed.item(), "kl": kl.item()}

    fit(schedule, [Group.of(vae, probe)], step_loss, state)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the images' mean latents, before the scaling factor."""
    vae.eval()
    return torch.cat([vae.encode(batch).latent_dist.mean for batch in images.split(16)])


@torch.no_grad()
def quality(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the mean PSNR of the images after encoding and decoding, dB."""
    vae.eval()
    batches = images.split(16)
    outputs = [vae.decode(vae.encode(batch).latent_dist.mean).sample for batch in batches]
    return psnr(torch.cat(outputs), images).mean().item()


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions beside it.

    After this the scaling factor is Stable Diffusion's own: latents times 0.18215 have a mean of
    0 and a deviation of 1 over the images.
    """
    latents = encode(vae, images)
    mean = latents.mean((0, 2, 3))
    deviation = latents.std((0, 2, 3))
    gain = 1 / SCALING_FACTOR / deviation
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None
    assert after is not None
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight /= gain[None, :, None, None]
    means, logvars = slice(LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
    before.weight[means] *= gain[:, None, None, None]
    before.bias[means] = (before.bias[means] - mean) * gain
    before.bias[logvars] += 2 * gain.log()


def sharpen(
    vae: AutoencoderKL,
    images: Tensor,
    latents: Tensor,
    sampled: Tensor,
    schedule: Schedule,
    state: Path,
) -> None:
    """Train the decoder alone on what it will be given: the denoiser's samples.

    `latents` are the images' own, scaled, (count, 4, 16, 16); `sampled` the denoiser's, scaled,
    (rounds, count, 4, 16, 16).  Half of each batch are samples, half the true latents with a
    little noise, which keeps the decoder from fitting the samples' accidents.
    """
    assert vae.post_quant_conv is not None
    half = schedule.batch // 2
    vae.train()

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = batch_indices(step, schedule.batch, len(images), schedule.seed)
        rounds = torch.randint(0, len(sampled), (schedule.batch,))
        inputs = sampled[rounds, chosen]
        deviation = 0.15 * torch.rand(half, 1, 1, 1)
        noise = torch.randn(half, LATENT_CHANNELS, LATENT, LATENT)
        inputs[half:] = latents[chosen[half:]] + deviation * noise
        target = images[chosen]
        with torch.autocast("cpu", torch.bfloat16):
            output = vae.decode(inputs / SCALING_FACTOR).sample
        each = psnr(output.detach(), target)
        figures = {"sampled": each[:half].mean().item(), "true": each[half:].mean().item()}
        return reconstruction_loss(output, target), figures

    fit(schedule, [Group.of(vae.decoder, vae.post_quant_conv)], step_loss, state)
