"""Systems take turns: loaded, warmed up and timed round by round; one that fails is left out.

At most `Effort.at_once` systems are loaded at a time. The baseline is one of them from the first
turn to the last, so that every other system's turns lie between turns of the baseline. Within a
round the others come in a random order, so that the effects of a turn on the next (a warm
processor, a full cache) do not always meet the same system.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sdexport.bench.energy import EnergyMeter
from sdexport.bench.measured import Measured
from sdexport.bench.prepare import prepared_for
from sdexport.bench.process import SystemFailedError, SystemProcess
from sdexport.bench.results import Effort, Turn
from sdexport.bench.results_file import IMAGES, LATENTS
from sdexport.bench.scenario import Scenario
from sdexport.bench.statistics import settled
from sdexport.bench.systems import System
from sdexport.errors import SdexportError
from sdexport.progress import Progress, stage

GENERATED = (IMAGES, LATENTS)
"""The folders of a run, and of its report, that hold what systems generate."""

FIRST = "first"
"""The folder of the first turn's images, which are judged beside the last where they differ."""

MOST_WARMUP = 6
"""The most turns after the first that are warm-up; a system that is not warm then gets a note."""


class Harness:
    """One run; `measured` holds what is known at any moment, also when the run is cut short."""

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
        self._folders: dict[str, dict[str, str]] = {}
        # The same systems come in the same order in every run.
        self._random = random.Random(0)

    def run(self, progress: Progress) -> None:
        """Measures every system; one that fails is left out, and the others go on."""
        baseline, *others = self.measured
        beside = (self._effort.at_once or max(2, len(self.measured))) - 1
        groups = [others[i : i + beside] for i in range(0, len(others), beside)] or [[]]
        for one in self.measured:
            # Before anything is loaded: an export may take all of the memory.
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
        """Has a system convert or export what it is loaded from, unless that was kept."""
        name, timeout = one.system.name, self._effort.timeout
        try:
            with stage(progress, f"prepare {name}"):
                options, one.build_seconds = prepared_for(one.system, self._scenario, timeout)
            self._options[name] = options
        except SystemFailedError as error:
            one.status, one.why = error.status, error.why
        except (SdexportError, OSError) as error:
            one.status, one.why = "failed", f"its preparation cannot be kept: {error}"

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
        first = self._folders_of(one, self._folder / FIRST)
        self._folders[one.system.name] = self._folders_of(one, self._folder)
        generated = process.ask("generate", **first)
        process.rest()
        one.first_seconds = generated["seconds"]
        one.digest = generated["digest"]
        one.model_calls = generated["model_calls"]
        one.batches = generated["batches"] or -(-self._scenario.images // self._scenario.batch)
        one.host_bytes, one.device_bytes = generated["host_bytes"], generated["device_bytes"]

    def _folders_of(self, one: Measured, folder: Path) -> dict[str, str]:
        """Makes the folders of a system's images and latents; by kind their paths."""
        folders = {}
        for kind in GENERATED:
            own = folder / kind / one.system.name
            own.mkdir(parents=True)
            folders[kind] = str(own.resolve())
        return folders

    def _round(self, members: Sequence[Measured], *, warmup: bool = False) -> None:
        """A turn of the baseline, then one of each other."""
        baseline, *others = members
        for one in (baseline, *self._random.sample(others, len(others))):
            self._turn(one, warmup=warmup)

    def _measure(self, members: Sequence[Measured], progress: Progress) -> None:
        """Warm-up, then rounds until every member was measured as long as `Effort` asks for."""
        names = ", ".join(one.system.name for one in members)
        with stage(progress, f"warm up {names}", MOST_WARMUP):
            for _ in range(MOST_WARMUP):
                if all(one.warm for one in members if one.status == "ok"):
                    break
                self._round(members, warmup=True)
                progress.advance()
        unsettled = f"its times did not settle within {MOST_WARMUP} turns of warm-up"
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
        """One turn of a system, unless it has failed."""
        if one.status == "ok":
            self._guarded(one, lambda: self._generate(one, warmup))

    def _generate(self, one: Measured, warmup: bool) -> None:
        process = self._running[one.system.name]
        before, at = self.meter.read(), time.perf_counter() - self.began
        # The images that are judged are those of the last turn.
        generated = process.ask("generate", **self._folders[one.system.name])
        joules = self.meter.between(before, self.meter.read())
        process.rest()
        one.digests.add(generated["digest"])
        one.host_bytes, one.device_bytes = generated["host_bytes"], generated["device_bytes"]
        if warmup:
            one.warmup_seconds.append(generated["seconds"])
            turns = [] if one.first_seconds is None else [one.first_seconds]
            one.warm = one.warm or settled([*turns, *one.warmup_seconds])
            return
        evaluations = generated["evaluations"]
        one.rounds.append(
            Turn(
                at=at,
                total=generated["seconds"],
                text_encoder=generated["text_encoder"],
                evaluations=None if evaluations is None else tuple(evaluations),
                denoise=generated["denoise"],
                vae_decoder=generated["vae_decoder"],
                joules=joules,
            )
        )

    def _end(self, one: Measured) -> None:
        """Ends a system's process, which frees its memory."""
        if one.status == "ok":
            self._running[one.system.name].quit()

    def _guarded(self, one: Measured, action: Callable[[], None]) -> None:
        """Runs `action`; if it fails, the system is left out and the reason noted."""
        try:
            action()
        except SystemFailedError as error:
            process = self._running[one.system.name]
            process.kill()
            one.status, one.why = error.status, error.why
            one.stderr_tail = process.stderr_tail()
