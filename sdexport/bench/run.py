"""A whole run: systems measured in turns, images judged, results and report written."""

from __future__ import annotations

import datetime
import importlib.util
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.artifacts.bundle import open_bundle
from sdexport.bench import (
    contact_sheet,
    judging,
    machine_facts,
    report_html,
    report_markdown,
    results,
)
from sdexport.bench.roofline import Possible
from sdexport.bench.scenario import Scenario, make_scenario
from sdexport.bench.systems import System
from sdexport.bench.turns import DRAWN, Effort, Harness
from sdexport.errors import CheckpointError, MissingExtraError, UsageError
from sdexport.extras import install_command
from sdexport.pipeline.load import limits_of
from sdexport.pipeline.request import make_request
from sdexport.progress import SILENT, Progress, stage
from sdexport.sampling import sampler_of_config

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def scenario_for(
    bundle: Path, checkpoint: str, *given: dict[str, Any], prompt: str = "a red apple"
) -> Scenario:
    """The scenario of what was given; what is left open is what `bundle` was built for.

    Raises:
        UsageError: a value cannot be served.
        FolderError: no bundle.
    """
    limits = limits_of(open_bundle(bundle, check=False))
    width, height = limits.default_size
    usual = {
        "prompts": [prompt],
        "size": f"{width}x{height}",
        "sampler": sampler_of_config(limits.scheduler_config).name,
        "guidance": limits.default_guidance,
    }
    return make_scenario(checkpoint, usual, *given)


def check(systems: Sequence[System], scenario: Scenario) -> None:
    """Sees to it that every bundle can generate the scenario and was made of such a checkpoint.

    Raises:
        UsageError: a bundle cannot generate it.
        CheckpointError: the checkpoint is of another structure than a bundle.
    """
    for system in systems:
        if system.kind != "bundle":
            continue
        path = Path(system.options["bundle"])
        bundle = open_bundle(path, check=False)
        limits = limits_of(bundle)
        try:
            make_request(
                limits,
                list(scenario.prompts),
                seed=list(scenario.seeds),
                num_inference_steps=scenario.steps,
                sampler=scenario.sampler,
                guidance_scale=scenario.guidance,
                width=scenario.width,
                height=scenario.height,
            )
        except UsageError as error:
            raise UsageError(f"{path.name} cannot generate this scenario: {error}") from error
        largest = limits.profile.serving(height=scenario.height, width=scenario.width).batch.max
        if scenario.batch > largest:
            raise UsageError(
                f"{path.name} generates at most {largest} images together, got {scenario.batch}; "
                f"give --batch {largest} or less, or build it with a larger batch"
            )
        _check_checkpoint(path.name, bundle.manifest.embedding_dim, scenario.checkpoint)


def _check_checkpoint(name: str, width: int, checkpoint: str) -> None:
    place = reading.given_path(checkpoint, "the checkpoint")
    if not reading.exists(place):
        if HUB_ID.fullmatch(checkpoint):
            return  # diffusers will say.
        raise CheckpointError(
            f"no checkpoint at {checkpoint}; give the diffusers folder or hub id that the bundle "
            "was made of"
        )
    if not reading.exists(place / "model_index.json"):
        raise CheckpointError(
            f"{checkpoint} is no checkpoint: it has no model_index.json; give the diffusers folder "
            "or hub id that the bundle was made of"
        )
    own = reading.read_json(place / "text_encoder" / "config.json").get("hidden_size")
    if own != width:
        raise CheckpointError(
            f"{checkpoint} does not fit the bundle {name}: its text encoder is {own} wide, the "
            f"bundle's {width}; give the checkpoint that the bundle was made of"
        )


def run(
    systems: Sequence[System],
    scenario: Scenario,
    effort: Effort,
    folder: Path,
    *,
    command: str,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measures `systems` (the baseline first) and writes results and images into `folder`.

    What was measured before Ctrl-C is written as well.

    Returns:
        What `results.json` holds; `complete` is False where the run was cut short.

    Raises:
        UsageError, CheckpointError: the scenario cannot be generated; nothing was begun.
        StorageError: `folder` cannot be written.
        KeyboardInterrupt: before anything was measured.
    """
    check(systems, scenario)
    with (
        _ended_like_interrupted(),
        storage.sole_writer(folder),
        storage.scratch_folder(folder, "run") as work,
    ):
        machine = machine_facts.machine_facts() | {"load_before": machine_facts.load_average()}
        with stage(progress, "measure the machine's ceilings"):
            possible = _possible(systems, scenario)
        harness = Harness(systems, scenario, effort, work)
        interrupted = False
        try:
            harness.run(progress)
        except KeyboardInterrupt:
            interrupted = True
        if interrupted and not any(one.rounds for one in harness.measured):
            raise KeyboardInterrupt
        machine["load_after"] = machine_facts.load_average()
        found = {
            "schema": results.SCHEMA,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "complete": False,
            "effort": {
                "rounds": effort.rounds,
                "seconds": effort.seconds,
                "at_once": effort.at_once,
                "timeout": effort.timeout,
            },
            "scenario": scenario.as_json(),
            "machine": machine | {"energy_sources": harness.meter.sources},
            "ceilings": None if possible is None else possible.ceilings,
            "ceilings_problem": "" if possible is None else possible.problem,
            "baseline": systems[0].name,
            "systems": [results.system_json(one, harness.measured[0]) for one in harness.measured],
        }
        # What took hours is kept before it is judged: that may be cut short as well.
        _put_in_place(work, folder)
        results.write(found, folder)
        with stage(progress, "judge the images"):
            _judge(found, judging.Images(folder, work, systems[0].name, scenario), possible)
        found["complete"] = not interrupted
        results.write(found, folder)
    return found


def _possible(systems: Sequence[System], scenario: Scenario) -> Possible | None:
    """What is possible by the first bundle, whose graphs are counted; None where there is none."""
    for system in systems:
        if system.kind == "bundle":
            path = Path(system.options["bundle"])
            target = open_bundle(path, check=False).manifest.target
            return Possible(path, scenario, "cpu" if target.endswith("-cpu") else "cuda")
    return None


def _judge(found: dict[str, Any], images: judging.Images, possible: Possible | None) -> None:
    """Says of every system what its images and its times are worth."""
    for value in found["systems"]:
        value["fidelity"] = images.judge(value["name"], value["precision"])
        if possible is not None:
            value["limit"] = possible.reached(value, found["systems"][0])


def _put_in_place(work: Path, folder: Path) -> None:
    """Images and latents of this run in the place of an earlier run's; its results go first."""
    with storage.explained(folder):
        (folder / results.FILE).unlink(missing_ok=True)
        for kept in DRAWN.values():
            storage.remove_tree(folder / kept)
            if (work / kept).is_dir():
                (work / kept).rename(folder / kept)


def write_report(found: dict[str, Any], folder: Path) -> None:
    """Writes what people read into `folder`, from results and images alone.

    Raises:
        MissingExtraError: a library that reports need is not installed.
        StorageError: the place cannot be written.
    """
    for writer in (contact_sheet, report_markdown, report_html):
        writer.write(found, folder)


def require_report_libraries() -> None:
    """Says what reports need before anything is measured for one.

    Raises:
        MissingExtraError: names the libraries and the extra that brings them.
    """
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"reports need {' and '.join(missing)}, not installed here; {install_command('bench')}"
        )


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """A request to end (SIGTERM) is taken as Ctrl-C is: children end, what was measured is kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, where no signal arrives
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
