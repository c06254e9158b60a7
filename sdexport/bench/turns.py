"""Systems take turns: loaded, warmed up and timed round by round, whatever becomes of one of them.

At most so many are loaded at a time; the baseline is one of them from the first turn to the last,
so that every other's turns lie between turns of the baseline. Within a round the others come in an
random order: what a system leaves behind (a warm processor, a full cache) would else be
found by the same one every time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdexport.bench.energy import EnergyMeter
from sdexport.bench.prepare import prepared_for
from sdexport.bench.process import SystemFailedError, SystemProcess
from sdexport.bench.scenario import Scenario
from sdexport.bench.statistics import settled
from sdexport.bench.systems import System
from sdexport.errors import SdexportError, UsageError
from sdexport.progress import Progress, stage

DRAWN = {"images": "images", "latents": "latents"}
"""What systems generate → the folder, of a run and of its report, that holds it."""

FIRST = "first"
"""The folder of the first images, which are judged beside the last where they differ."""

MOST_WARMUP = 6
"""Turns after the first that may be warm-up; what is not warm by then is told of."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is measured.

    Attributes:
        rounds, seconds: at least so many turns, and so many seconds of them, of every system.
        at_once: systems that are loaded at a time, the baseline one of them; None: all.
        timeout: seconds that any one answer may take.
    """

    rounds: int = 10
    seconds: float = 10.0
    at_once: int | None = None
    timeout: float = 900.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"rounds {self.rounds} is not possible; at least 1 is")
        if not self.seconds >= 0:
            raise UsageError(f"seconds {self.seconds:g} is not possible; 0 or more is")
        if self.at_once is not None and self.at_once < 2:
            raise UsageError(
                f"at once {self.at_once} is not possible; the baseline and one other, 2, is the "
                "least"
            )
        if not self.timeout > 0:
            raise UsageError(f"timeout {self.timeout:g} is not possible; more than 0 seconds is")


@dataclass(slots=True)
class Turn:
    """One generation of the scenario: `at` seconds after the run began, `total` seconds long.

    Attributes:
        text_encoder, denoise, vae_decoder: seconds, None where the system does not tell; between
            the first and the last lies `denoise`, which is asked of those that tell no more.
        evaluations: seconds of every call of the model, likewise.
        joules: that the machine used meanwhile, None where it does not tell.
    """

    at: float
    total: float
    text_encoder: float | None
    evaluations: list[float] | None
    vae_decoder: float | None
    joules: float | None
    denoise: float | None = None


@dataclass(slots=True)
class Measured:
    """What is known of one system so far.

    Attributes:
        status: `ok`, or how it ended: `crashed`, `hung`, `failed`; `why` says more.
        images: that it generates in a turn.
        group: which of the groups that were loaded together it was in; the baseline is in all.
        about: what its adapter says of it.
        warm: its turns have settled, at some time.
        model_calls, batches: of one generation.
        digests: of the images of every turn but the first; the last one's are kept.
    """

    system: System
    images: int
    group: int = 0
    status: str = "ok"
    why: str = ""
    stderr_tail: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    build_seconds: float | None = None
    load_seconds: float | None = None
    first_seconds: float | None = None
    warmup_seconds: list[float] = field(default_factory=list)
    rounds: list[Turn] = field(default_factory=list)
    warm: bool = False
    model_calls: int | None = None
    batches: int | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    digest: str | None = None
    digests: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def enough(self, effort: Effort) -> bool:
        """Whether it was measured as long as was asked for."""
        total = sum(turn.total for turn in self.rounds)
        return len(self.rounds) >= effort.rounds and total >= effort.seconds


class Harness:
    """One run: what was measured is in `measured` at any moment, also when the run is cut short."""

    def __init__(
        self, systems: Sequence[System], scenario: Scenario, effort: Effort, folder: Path
    ) -> None:
        """The first of `systems` is the baseline; images and latents go into `folder`."""
        self.measured = [Measured(system, scenario.images) for system in systems]
        self.began = time.perf_counter()
        self.meter = EnergyMeter()
        self._scenario = scenario
        self._effort = effort
        self._folder = folder
        self._running: dict[str, SystemProcess] = {}
        self._options: dict[str, dict[str, Any]] = {}
        self._places: dict[str, dict[str, str]] = {}
        # Always the same order of the same systems: a run can be repeated.
        self._chance = random.Random(0)

    def run(self, progress: Progress) -> None:
        """Measures every system; one that fails is left behind, and the rest goes on."""
        baseline, *others = self.measured
        beside = (self._effort.at_once or max(2, len(self.measured))) - 1
        groups = [others[i : i + beside] for i in range(0, len(others), beside)] or [[]]
        for one in self.measured:
            # Before anything is loaded: an export takes as much memory as there may be.
            self._prepare(one, progress)
        with ExitStack() as held:
            self._load(baseline, held, progress)
            for number, members in enumerate(groups):
                with ExitStack() as stack:
                    for one in members:
                        one.group = number
                        self._load(one, stack, progress)
                    self._measure([baseline, *members], progress)
                    for one in members:
                        self._end(one)
            self._end(baseline)

    def _prepare(self, one: Measured, progress: Progress) -> None:
        """Has a system convert or export what it is loaded from, where it is not there yet."""
        name, timeout = one.system.name, self._effort.timeout
        try:
            with stage(progress, f"prepare {name}"):
                options, one.build_seconds = prepared_for(one.system, self._scenario, timeout)
            self._options[name] = options
        except SystemFailedError as error:
            one.status, one.why = error.status, error.why
        except (SdexportError, OSError) as error:
            one.status, one.why = "failed", f"its preparation could not be kept: {error}"

    def _load(self, one: Measured, stack: ExitStack, progress: Progress) -> None:
        """Starts and loads a system and has it generate for the first time."""
        if one.status != "ok":
            return
        name, timeout = one.system.name, self._effort.timeout
        options = self._options[name]
        with stage(progress, f"load {name}"):
            try:
                process = stack.enter_context(SystemProcess(one.system, timeout))
            except SystemFailedError as error:
                one.status, one.why = error.status, error.why
                return
            self._running[name] = process
            self._guarded(one, lambda: self._begin(one, process, options))

    def _begin(self, one: Measured, process: SystemProcess, options: dict[str, Any]) -> None:
        loaded = process.ask("load", scenario=self._scenario.for_adapter(), options=options)
        one.load_seconds, one.about = loaded["seconds"], loaded["about"]
        first = self._places_of(one, self._folder / FIRST)
        self._places[one.system.name] = self._places_of(one, self._folder)
        generated = process.ask("generate", **first)
        process.rest()
        one.first_seconds = generated["seconds"]
        one.digest = generated["digest"]
        one.model_calls = generated["model_calls"]
        one.batches = generated["batches"] or -(-self._scenario.images // self._scenario.batch)
        one.host_bytes, one.device_bytes = generated["host_bytes"], generated["device_bytes"]

    def _places_of(self, one: Measured, folder: Path) -> dict[str, str]:
        """Where a system's images and latents go, which are made here."""
        places = {}
        for kind, kept in DRAWN.items():
            place = folder / kept / one.system.name
            place.mkdir(parents=True)
            places[kind] = str(place.resolve())
        return places

    def _round(self, members: Sequence[Measured], *, warmup: bool = False) -> None:
        """A turn of the baseline, then one of each other."""
        baseline, *others = members
        for one in (baseline, *self._chance.sample(others, len(others))):
            self._turn(one, warmup=warmup)

    def _measure(self, members: Sequence[Measured], progress: Progress) -> None:
        """Warm-up, then rounds until every member was measured as long as was asked for."""
        names = ", ".join(one.system.name for one in members)
        with stage(progress, f"warm up {names}", MOST_WARMUP):
            for _ in range(MOST_WARMUP):
                if all(one.warm for one in members if one.status == "ok"):
                    break
                self._round(members, warmup=True)
                progress.advance()
        unsettled = f"its times had not settled after {MOST_WARMUP} turns of warm-up"
        for one in members:
            if one.status == "ok" and not one.warm and unsettled not in one.notes:
                one.notes.append(unsettled)
        with stage(progress, f"measure {names}", self._effort.rounds):
            while alive := [one for one in members if one.status == "ok"]:
                if all(one.enough(self._effort) for one in alive):
                    break
                self._round(members)
                progress.advance()
            # The last turns of the others lie between two of the baseline's as well.
            self._turn(members[0])

    def _turn(self, one: Measured, *, warmup: bool = False) -> None:
        """One turn of a system that is still there."""
        if one.status == "ok":
            self._guarded(one, lambda: self._generate(one, warmup))

    def _generate(self, one: Measured, warmup: bool) -> None:
        process = self._running[one.system.name]
        before, at = self.meter.read(), time.perf_counter() - self.began
        # The images that are judged are those of the last turn.
        generated = process.ask("generate", **self._places[one.system.name])
        joules = self.meter.between(before, self.meter.read())
        process.rest()
        one.digests.add(generated["digest"])
        one.host_bytes, one.device_bytes = generated["host_bytes"], generated["device_bytes"]
        if warmup:
            one.warmup_seconds.append(generated["seconds"])
            turns = [] if one.first_seconds is None else [one.first_seconds]
            one.warm = one.warm or settled([*turns, *one.warmup_seconds])
            return
        stages = {
            name: generated[name]
            for name in ("text_encoder", "evaluations", "denoise", "vae_decoder")
        }
        one.rounds.append(Turn(at, generated["seconds"], **stages, joules=joules))

    def _end(self, one: Measured) -> None:
        """Lets a system go, and its memory with it."""
        if one.status == "ok":
            self._running[one.system.name].quit()

    def _guarded(self, one: Measured, action: Callable[[], None]) -> None:
        """Does something with a system; if that fails, it is left behind with the reason."""
        try:
            action()
        except SystemFailedError as error:
            process = self._running[one.system.name]
            process.kill()
            one.status, one.why = error.status, error.why
            one.stderr_tail = process.stderr_tail()
