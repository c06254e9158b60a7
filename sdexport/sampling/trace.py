"""Traces a sampler, written as arithmetic on latents, into the tables of a plan.

The sampler runs once on symbols. A `Linear` is a weighted sum of symbols; a symbol is the start
sample, a model output, noise, or a value that the sampler keeps. A symbol that a later evaluation
needs gets a slot of the state. All numbers are float64, cast once at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdexport.sampling.plan import STATE_SLOTS, SamplingPlan


class TraceError(ValueError):
    """A sampler misused the tracer: a defect of the sampler."""


@dataclass(frozen=True, eq=False, slots=True)
class Symbol:
    """A latent that is created in `evaluation` (-1: the start sample); equal only to itself.

    `definition` is set for kept values: older symbols and the evaluation's own output and noise.
    """

    evaluation: int
    definition: Mapping[Symbol, float] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """An immutable weighted sum of symbols, with +, − and × and ÷ by a number."""

    terms: Mapping[Symbol, float]

    def __add__(self, other: Linear) -> Linear:
        terms = dict(self.terms)
        for symbol, weight in other.terms.items():
            terms[symbol] = terms.get(symbol, 0.0) + weight
        return Linear(terms)

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Linear:
        return Linear({symbol: weight * factor for symbol, weight in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Linear:
        return self * (1.0 / divisor)

    def __neg__(self) -> Linear:
        return self * -1.0


@dataclass(slots=True)
class _Evaluation:
    timestep: float
    model_input: Linear
    level: tuple[float, float]
    output: Symbol
    noise: Symbol | None = None
    sample: Symbol | None = None


class Tracer:
    """The interface with which a sampler is written; each evaluation ends with `advance`.

    A sampler calls `start` once and then, for every evaluation, `evaluate`, perhaps `noise` and
    `keep`, and `advance`. Misuse raises `TraceError`: it is a defect of the sampler.
    """

    def __init__(self) -> None:
        self._evaluations: list[_Evaluation] = []
        self._start: Symbol | None = None
        self._initial_scale = 1.0

    def start(self, scale: float) -> Linear:
        """The start sample: `scale` × unit noise."""
        if self._start is not None:
            raise TraceError("a sampler must call start only once")
        self._start = Symbol(evaluation=-1)
        self._initial_scale = scale
        return Linear({self._start: 1.0})

    def evaluate(self, model_input: Linear, timestep: float, level: tuple[float, float]) -> Linear:
        """The (guided) model output for an input and a timestep, in training steps.

        `level` are the weights of clean latents and unit noise that diffusers' `add_noise` mixes
        for this evaluation.
        """
        if self._evaluations and self._evaluations[-1].sample is None:
            raise TraceError("the evaluation before has not advanced to a sample")
        output = Symbol(evaluation=len(self._evaluations))
        self._evaluations.append(_Evaluation(timestep, model_input, level, output))
        return Linear({output: 1.0})

    def noise(self) -> Linear:
        """Fresh unit noise; once an evaluation, after it."""
        current = self._current()
        if current.noise is not None:
            raise TraceError("an evaluation must call noise only once")
        current.noise = Symbol(evaluation=current.output.evaluation)
        return Linear({current.noise: 1.0})

    def keep(self, value: Linear) -> Linear:
        """The same value as one symbol, so that it takes one slot if a later evaluation uses it."""
        return Linear({self._define(value): 1.0})

    def advance(self, sample: Linear) -> Linear:
        """Declares the sample after this evaluation, which goes to slot 0; returns it."""
        current = self._current()
        if current.sample is not None:
            raise TraceError("an evaluation must call advance only once")
        current.sample = self._define(sample)
        return Linear({current.sample: 1.0})

    def _current(self) -> _Evaluation:
        if not self._evaluations:
            raise TraceError("a sampler must call evaluate first")
        return self._evaluations[-1]

    def _define(self, value: Linear) -> Symbol:
        now = self._current().output.evaluation
        definition: dict[Symbol, float] = {}
        for symbol, weight in value.terms.items():
            # A value kept in this same evaluation is in no slot yet: write it out.
            parts = {symbol: 1.0}
            if symbol.evaluation == now and symbol.definition is not None:
                parts = dict(symbol.definition)
            for part, share in parts.items():
                definition[part] = definition.get(part, 0.0) + weight * share
        return Symbol(now, definition)

    def plan(
        self,
        sampler: str,
        steps: int,
        skipped: int = 0,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> SamplingPlan:
        """The tables of what has been traced; `TraceError` where `STATE_SLOTS` are too few."""
        count, slots = len(self._evaluations), STATE_SLOTS
        input_weights = np.zeros((count, slots))
        update_weights = np.zeros((count, slots, slots + 2))
        needed = self._needed_after()
        if self._start is None:
            raise TraceError(f"sampler {sampler} has no start sample")
        place = {self._start: 0}
        for i, evaluation in enumerate(self._evaluations):
            for symbol, weight in evaluation.model_input.terms.items():
                input_weights[i, place[symbol]] += weight
            columns = {**place, evaluation.output: slots}
            if evaluation.noise is not None:
                columns[evaluation.noise] = slots + 1
            place = _allocate(needed[i], evaluation.sample, place, sampler)
            for symbol, slot in place.items():
                for part, weight in _written_out(symbol, i).items():
                    update_weights[i, slot, columns[part]] += weight
        return SamplingPlan(
            sampler=sampler,
            steps=steps,
            skipped=skipped,
            timesteps=np.array([e.timestep for e in self._evaluations], dtype),
            input_weights=input_weights.astype(dtype),
            update_weights=update_weights.astype(dtype),
            draws_noise=np.array([e.noise is not None for e in self._evaluations], np.bool_),
            noise_levels=np.array([e.level for e in self._evaluations], dtype).reshape(count, 2),
            initial_scale=float(self._initial_scale),
        )

    def _needed_after(self) -> list[list[Symbol]]:
        """Symbols that must survive each evaluation, oldest first (liveness, backwards)."""
        result: list[list[Symbol]] = []
        later: dict[Symbol, None] = {}
        for i in reversed(range(len(self._evaluations))):
            evaluation = self._evaluations[i]
            if evaluation.sample is None:
                raise TraceError(f"evaluation {i} has not advanced to a sample")
            survivors = {**later, evaluation.sample: None}
            result.append(sorted(survivors, key=lambda symbol: symbol.evaluation))
            later = dict.fromkeys(evaluation.model_input.terms)
            for symbol in survivors:
                parts = _written_out(symbol, i)
                later.update(dict.fromkeys(part for part in parts if part.evaluation < i))
        return result[::-1]


def _written_out(symbol: Symbol, evaluation: int) -> Mapping[Symbol, float]:
    """A surviving symbol as weights of the slots, the output and the noise of `evaluation`."""
    if symbol.evaluation == evaluation and symbol.definition is not None:
        return symbol.definition
    return {symbol: 1.0}


def _allocate(
    needed: list[Symbol], sample: Symbol | None, before: Mapping[Symbol, int], sampler: str
) -> dict[Symbol, int]:
    """The slots after an evaluation: 0 is the sample, kept symbols stay, new ones fill the rest."""
    others = [symbol for symbol in needed if symbol is not sample]
    if len(others) >= STATE_SLOTS:
        raise TraceError(
            f"sampler {sampler} keeps {len(others) + 1} latents between evaluations, "
            f"the state has {STATE_SLOTS} slots"
        )
    place = {symbol: before[symbol] for symbol in others if before.get(symbol, 0) > 0}
    free = [slot for slot in range(1, STATE_SLOTS) if slot not in place.values()]
    place.update(zip((s for s in others if s not in place), free, strict=False))
    if sample is not None:
        place[sample] = 0
    return place
