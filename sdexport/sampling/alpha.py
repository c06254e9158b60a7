"""The table of ᾱ by timestep for DDIM, DDPM, PNDM, LCM and TCD."""

from __future__ import annotations

import math

from sdexport.errors import UsageError
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.training import alphas_cumprod


class AlphaTable:
    """ᾱ by training step; timesteps below 0 have the final ᾱ."""

    def __init__(self, config: ScheduleConfig, final: float | None = None) -> None:
        self._table = alphas_cumprod(config.training)
        first = 1.0 if config.set_alpha_to_one else float(self._table[0])
        self._final = first if final is None else final

    def __call__(self, timestep: int) -> float:
        if timestep < 0:
            return self._final
        if timestep >= len(self._table):
            raise UsageError(
                f"this many steps with the config's steps_offset reach timestep {timestep}, the "
                f"training schedule ends at {len(self._table) - 1}. Ask for fewer steps."
            )
        return float(self._table[timestep])

    def level(self, timestep: int) -> tuple[float, float]:
        """(√ᾱ, √(1-ᾱ)): the weights of the clean sample and of noise at a timestep."""
        alpha_bar = self(timestep)
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
