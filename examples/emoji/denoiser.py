"""Train the text encoder and the UNet on cached latents, and sample from them.

Latents are float32 of shape (n, 4, 16, 16), times the scaling factor; token ids int64 (n, 77).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sdexport  # noqa: F401 - turns the telemetry of what follows off

# isort: split
import torch
from data import Emoji
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from fitting import Group, Schedule, batch_indices, fit
from models import LATENT, LATENT_CHANNELS, TEXT_TOKENS, TEXT_WIDTH, scheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

VARIANT_SHARES = torch.tensor([0.5, 0.25, 0.25])  # of Emoji.variants
EMPTY_SHARE = 0.1  # of prompts, for classifier-free guidance
TIMESTEP_POWER = 0.8  # favours the noisy steps, at which text decides
SNR_FLOOR, SNR_CEILING = 0.05, 3.0
TEXT_RATE = 0.15  # of the UNet's learning rate

GLOBAL_CODE = 64  # principal components
GRID_FIRST = 10  # the first of the tokens that predict a grid cell


@dataclass(frozen=True)
class Prompts:
    """Token ids of every variant of every caption; the last row is the empty prompt."""

    ids: Tensor
    eos: int

    @classmethod
    def of(cls, emoji: list[Emoji], tokenizer: CLIPTokenizer) -> Prompts:
        """Tokenize the three variants of each emoji, and the empty prompt."""
        texts = [text for one in emoji for text in one.variants] + [""]
        encoded = tokenizer(
            texts,
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        return cls(encoded["input_ids"], tokenizer.eos_token_id)

    @property
    def empty(self) -> Tensor:
        """The empty prompt's ids (1, 77)."""
        return self.ids[-1:]

    def plain(self, emoji: Tensor) -> Tensor:
        """Return the ids of the bare captions of these emoji."""
        return self.ids[3 * emoji]

    def drawn(self, emoji: Tensor, empty: Tensor) -> Tensor:
        """Return the ids of a random variant for each emoji, or of the empty prompt where told."""
        variant = torch.multinomial(VARIANT_SHARES, len(emoji), replacement=True)
        return self.ids[torch.where(empty, len(self.ids) - 1, 3 * emoji + variant)]


def pretrain_text(
    text_encoder: CLIPTextModel, latents: Tensor, prompts: Prompts, schedule: Schedule, state: Path
) -> None:
    """Teach the text encoder that its tokens linearly predict the image's latents.

    This stands in for CLIP's contrastive training: with an untrained encoder the UNet does not
    bind words to images in the time there is.  The tokens from the end of the text on predict
    the latents' principal components, tokens 10 to 73 one cell each of an 8x8 grid.
    """
    count = len(latents)
    centred = latents - latents.mean(0)
    left, singular, _ = torch.linalg.svd(centred.flatten(1), full_matrices=False)
    code = left[:, :GLOBAL_CODE] * singular[:GLOBAL_CODE]
    code = code / code.std(0).sqrt()  # halves, in the exponent, the components' spread
    code = code / code.std()
    cells = centred.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5)
    grid = cells.reshape(count, 64, 16)
    grid = grid / grid.std()
    # The empty prompt stands for the mean image.
    code = torch.cat([code, torch.zeros(1, GLOBAL_CODE)])
    grid = torch.cat([grid, torch.zeros(1, 64, 16)])
    with torch.no_grad():
        # CLIP's initial embeddings are too small to tell words apart within these few steps.
        for name, parameter in text_encoder.named_parameters():
            if "embedding" in name:
                parameter.normal_(std=0.3 if "token" in name else 0.1)
    code_head, grid_head = nn.Linear(TEXT_WIDTH, GLOBAL_CODE), nn.Linear(TEXT_WIDTH, 16)
    positions = torch.arange(TEXT_TOKENS)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = batch_indices(step, schedule.batch, count, schedule.seed)
        empty = torch.rand(len(chosen)) < 1 / count
        ids = prompts.drawn(chosen, empty)
        wanted = torch.where(empty, count, chosen)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text_encoder(input_ids=ids).last_hidden_state
        hidden = hidden.float()
        ended = positions >= (ids == prompts.eos).int().argmax(1)[:, None]
        code_errors = (code_head(hidden) - code[wanted][:, None]).square().mean(-1)
        code_loss = code_errors[ended].mean()
        tokens = hidden[:, GRID_FIRST : GRID_FIRST + 64]
        grid_loss = (grid_head(tokens) - grid[wanted]).square().mean()
        return code_loss + grid_loss, {"code": code_loss.item(), "grid": grid_loss.item()}

    fit(schedule, [Group.of(text_encoder, code_head, grid_head)], step_loss, state)


def train(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: Tensor,
    prompts: Prompts,
    schedule: Schedule,
    state: Path,
) -> None:
    """Train the UNet, and the text encoder at a lower rate, to predict the noise."""
    alphas = scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    # Predicting noise at high signal-to-noise ratio is easy to improve and matters little.
    weights = snr.clamp(SNR_FLOOR, SNR_CEILING) / snr
    batch = schedule.batch

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = batch_indices(step, batch, len(latents), schedule.seed)
        ids = prompts.drawn(chosen, torch.rand(batch) < EMPTY_SHARE)
        # One timestep from each of `batch` equal parts, so that steps are alike in difficulty.
        uniform = (torch.randperm(batch) + torch.rand(batch)) / batch
        timesteps = (uniform**TIMESTEP_POWER * len(alphas)).long().clamp(max=len(alphas) - 1)
        alpha = alphas[timesteps][:, None, None, None]
        noise = torch.randn(batch, LATENT_CHANNELS, LATENT, LATENT)
        noisy = alpha.sqrt() * latents[chosen] + (1 - alpha).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text_encoder(input_ids=ids).last_hidden_state
            predicted = unet(noisy, timesteps, hidden, return_dict=False)[0]
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        high = timesteps >= 600
        clean_errors = (errors.detach() / snr[timesteps])[high]  # of the latents it implies
        figures = {"noise": errors.mean().item(), "clean": clean_errors.mean().item()}
        return (errors * weights[timesteps]).mean(), figures

    groups = [Group.of(unet), Group.of(text_encoder, scale=TEXT_RATE)]
    fit(schedule, groups, step_loss, state)


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    embed: Callable[[Tensor], Tensor],
    prompts: Prompts,
    chosen: Tensor,
    *,
    steps: int,
    guidance: float,
    seed: int,
) -> Tensor:
    """Return latents that the UNet makes for the plain captions of the chosen emoji.

    `embed` gives the hidden states of token ids.  The sampler is DPM-Solver++(2M), Lu et al. 2022.
    """
    solver = DPMSolverMultistepScheduler.from_config(scheduler().config)
    solver.set_timesteps(steps)
    count = len(chosen)
    hidden = embed(torch.cat([prompts.empty.expand(count, -1), prompts.plain(chosen)]))
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, LATENT_CHANNELS, LATENT, LATENT, generator=generator)
    for timestep in solver.timesteps:
        with torch.autocast("cpu", torch.bfloat16):
            both = unet(latents.repeat(2, 1, 1, 1), timestep, hidden, return_dict=False)[0]
        free, bound = both.float().chunk(2)
        noise = free + guidance * (bound - free)
        latents = solver.step(noise, timestep, latents, return_dict=False)[0]
    return latents
