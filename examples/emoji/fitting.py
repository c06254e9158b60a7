"""The training loop that every stage shares: AdamW, cosine rate, moving average, resumption.

A step is a pure function of its number: the random generator is seeded anew for each, so a run
that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAVE_EVERY = 60.0  # seconds
LOG_EVERY = 100  # steps

# From a step's number to its loss and further figures to log.
Step = Callable[[int], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Schedule:
    """How one stage is trained; `batch` is images a step, rates are AdamW's."""

    name: str
    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    floor: float = 0.01
    ema: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of `step`: linear warm-up times a cosine down to the floor."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        warm = min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * warm * (self.floor + (1 - self.floor) * cosine)

    def decay(self, step: int) -> float:
        """Return the moving average's decay, short at first so that it forgets the start."""
        return min(self.ema, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate, `scale` times the schedule's."""

    parameters: tuple[nn.Parameter, ...]
    scale: float = 1.0

    @classmethod
    def of(cls, *modules: nn.Module, scale: float = 1.0) -> Group:
        """Return the group of all parameters of `modules`."""
        return cls(tuple(p for module in modules for p in module.parameters()), scale)


def batch_indices(step: int, batch: int, count: int, seed: int) -> Tensor:
    """Return the int64 indices (batch,) of a step, each epoch being a fresh permutation."""
    per_epoch = count // batch
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return order[position * batch : (position + 1) * batch]


def save(state: Any, path: Path) -> None:
    """Write `state` aside and move it into place, so that `path` is always whole."""
    aside = path.with_suffix(".part")
    torch.save(state, aside)
    aside.replace(path)


def fit(schedule: Schedule, groups: Iterable[Group], step_loss: Step, state: Path) -> None:
    """Train the groups' parameters in place, leaving them at their moving average.

    `state` holds the progress; where it exists, training goes on from it.
    """
    groups = tuple(groups)
    parameters: list[Tensor] = [p for group in groups for p in group.parameters]
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters), "scale": group.scale} for group in groups],
        lr=schedule.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    average = [p.detach().clone() for p in parameters]
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        with torch.no_grad():
            torch._foreach_copy_(parameters, saved["parameters"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first = saved["average"], saved["step"]
        print(f"{schedule.name}: resumed at step {first}", flush=True)

    def store(step: int) -> None:
        values = [p.detach() for p in parameters]
        progress = {"parameters": values, "average": average, "step": step}
        save(progress | {"optimizer": optimizer.state_dict()}, state)

    log = _Log(schedule, first)
    stored = time.monotonic()
    for step in range(first, schedule.steps):
        torch.manual_seed(schedule.seed * 1_000_003 + step)
        for options in optimizer.param_groups:
            options["lr"] = schedule.rate(step) * options["scale"]
        loss, figures = step_loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        norm = nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - schedule.decay(step))
        log.add(step, {"loss": loss.item(), **figures, "gradient": norm.item()})
        if time.monotonic() - stored > SAVE_EVERY:
            store(step + 1)
            stored = time.monotonic()
    if first < schedule.steps:
        store(schedule.steps)
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)


class _Log:
    """Prints one line each LOG_EVERY steps: means since the last line, speed, time left."""

    def __init__(self, schedule: Schedule, first: int) -> None:
        self.schedule = schedule
        self.totals: dict[str, float] = {}
        self.first = self.previous = first
        self.started = time.monotonic()

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{self.schedule.name}: {name} is {value} at step {step}")
            self.totals[name] = self.totals.get(name, 0.0) + value
        done = step + 1
        if done % LOG_EVERY and done != self.schedule.steps:
            return
        seconds = (time.monotonic() - self.started) / (done - self.first)
        means = {name: total / (done - self.previous) for name, total in self.totals.items()}
        print(
            f"{self.schedule.name} {done}/{self.schedule.steps}",
            *(f"{name} {mean:.4f}" for name, mean in means.items()),
            f"{self.schedule.batch / seconds:.1f} images/s",
            f"{(self.schedule.steps - done) * seconds / 60:.1f} min left",
            flush=True,
        )
        self.totals, self.previous = {}, done
