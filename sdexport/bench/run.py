"""A whole run: systems measured in turns, images compared, results and report written."""

from __future__ import annotations

import datetime
import importlib.util
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec

from sdexport.artifacts import reading, storage
from sdexport.artifacts.bundle import open_bundle
from sdexport.backends.host.device import default_threads, physical_cores
from sdexport.bench import judging, machine_facts, results_file
from sdexport.bench.measured import system_result
from sdexport.bench.report import contact_sheet, html, markdown
from sdexport.bench.results import Effort, Results, SystemResult
from sdexport.bench.roofline.run import RunRoofline
from sdexport.bench.scenario import Scenario, ScenarioOptions, make_scenario
from sdexport.bench.systems import System
from sdexport.bench.turns import GENERATED, Harness
from sdexport.errors import CheckpointError, MissingExtraError, UsageError
from sdexport.extras import install_command
from sdexport.pipeline.load import request_bounds
from sdexport.pipeline.make_request import make_request
from sdexport.progress import SILENT, Progress, stage
from sdexport.sampling import sampler_of_config

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def scenario_for(
    bundle: Path, checkpoint: str, *options: ScenarioOptions, prompt: str = "a red apple"
) -> Scenario:
    """The scenario that `options` describe; the defaults are those of `bundle`.

    Args:
        options: later ones take precedence over earlier ones.
        prompt: the default.

    Raises:
        UsageError: a value that no system can generate.
        FolderError: `bundle` is not a bundle.
    """
    bounds = request_bounds(open_bundle(bundle, check=False))
    width, height = bounds.default_size
    defaults = ScenarioOptions(
        prompts=(prompt,),
        size=f"{width}x{height}",
        sampler=sampler_of_config(bounds.scheduler_config).name,
        guidance=bounds.default_guidance,
        # Not every system sees control groups: all of them get what one allows.
        threads=default_threads() if default_threads() < physical_cores() else None,
    )
    return make_scenario(checkpoint, defaults, *options)


def check(systems: Sequence[System], scenario: Scenario) -> None:
    """Checks that every bundle can generate the scenario and was built from such a checkpoint.

    Raises:
        UsageError: a bundle cannot generate the scenario.
        CheckpointError: the checkpoint has another structure than a bundle.
    """
    for system in systems:
        if system.kind != "bundle":
            continue
        path = Path(system.options["bundle"])
        bundle = open_bundle(path, check=False)
        bounds = request_bounds(bundle)
        try:
            make_request(
                bounds,
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
        largest = bounds.profile.serving(height=scenario.height, width=scenario.width).batch.max
        if scenario.batch > largest:
            raise UsageError(
                f"batch must be at most {largest} for the bundle {path.name}, got "
                f"{scenario.batch}; give --batch {largest} or build it with a larger batch"
            )
        _check_checkpoint(path.name, bundle.manifest.model.embedding_dim, scenario.checkpoint)


def _check_checkpoint(name: str, width: int, checkpoint: str) -> None:
    place = reading.given_path(checkpoint, "the checkpoint")
    if not reading.exists(place):
        if HUB_ID.fullmatch(checkpoint):
            return  # diffusers loads it, or names the error.
        raise CheckpointError(
            f"{checkpoint} does not exist; give the diffusers folder or hub id that the bundle "
            "was built from"
        )
    if not reading.exists(place / "model_index.json"):
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint: model_index.json is missing; give the diffusers "
            "folder or hub id that the bundle was built from"
        )
    own = reading.read_json(place / "text_encoder" / "config.json").get("hidden_size")
    if own != width:
        raise CheckpointError(
            f"{checkpoint} does not match the bundle {name}: its text encoder's hidden_size is "
            f"{own}, the bundle's {width}; give the checkpoint that the bundle was built from"
        )


def run(
    systems: Sequence[System],
    scenario: Scenario,
    effort: Effort,
    folder: Path,
    *,
    command: str,
    progress: Progress = SILENT,
) -> Results:
    """Measures `systems` (the baseline first) and writes results and images into `folder`.

    After Ctrl-C, what was measured until then is written.

    Args:
        command: the command line, for the results.

    Returns:
        The results; `complete` is False where the run was cut short.

    Raises:
        UsageError, CheckpointError: the scenario cannot be generated; nothing was started.
        StorageError: `folder` cannot be written.
        KeyboardInterrupt: before anything was measured.
    """
    check(systems, scenario)
    with (
        _ended_like_interrupted(),
        storage.sole_writer(folder),
        storage.scratch_folder(folder, "run") as work,
    ):
        machine = machine_facts.machine_facts()
        with stage(progress, "measure the machine's peaks"):
            roofline = _roofline(systems, scenario)
        harness = Harness(systems, scenario, effort, work)
        interrupted = False
        try:
            harness.run(progress)
        except KeyboardInterrupt:
            interrupted = True
        if interrupted and not any(one.rounds for one in harness.measured):
            raise KeyboardInterrupt
        found = Results(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=command,
            complete=False,
            effort=effort,
            scenario=scenario.without_path(),
            machine=msgspec.structs.replace(
                machine,
                load_after=machine_facts.load_average(),
                energy_sources=tuple(harness.meter.sources),
            ),
            peaks=None if roofline is None else roofline.peaks,
            roofline_problem="" if roofline is None else roofline.problem,
            baseline=systems[0].name,
            systems=tuple(system_result(one, harness.measured[0]) for one in harness.measured),
        )
        # Measuring takes hours: it is kept before images are compared, which may be cut short too.
        _put_in_place(work, folder)
        results_file.write(found, folder)
        with stage(progress, "compare the images"):
            images = judging.Images(folder, work, systems[0].name, scenario)
            judged = tuple(
                _judged(one, found.systems[0], images, roofline) for one in found.systems
            )
        found = msgspec.structs.replace(found, systems=judged, complete=not interrupted)
        results_file.write(found, folder)
    return found


def _roofline(systems: Sequence[System], scenario: Scenario) -> RunRoofline | None:
    """The roofline by the graphs of the first bundle; None without a bundle."""
    for system in systems:
        if system.kind == "bundle":
            path = Path(system.options["bundle"])
            target = open_bundle(path, check=False).manifest.target
            return RunRoofline(path, scenario, "cpu" if target.endswith("-cpu") else "cuda")
    return None


def _judged(
    system: SystemResult,
    baseline: SystemResult,
    images: judging.Images,
    roofline: RunRoofline | None,
) -> SystemResult:
    """The result of a system with its fidelity and its shares of the machine's peaks."""
    return msgspec.structs.replace(
        system,
        fidelity=images.judge(system.name, system.precision),
        roofline=None if roofline is None else roofline.of_system(system, baseline),
    )


def _put_in_place(work: Path, folder: Path) -> None:
    """Replaces an earlier run's images and latents; its results and sheet are removed first."""
    with storage.explained(folder):
        for file in (results_file.FILE, contact_sheet.FILE):
            (folder / file).unlink(missing_ok=True)
        for kept in GENERATED:
            storage.remove_tree(folder / kept)
            if (work / kept).is_dir():
                (work / kept).rename(folder / kept)


def write_report(found: Results, folder: Path) -> None:
    """Writes the report of `found` and of the images in `folder`, as HTML and as Markdown.

    Raises:
        MissingExtraError: a library that reports need is not installed.
        StorageError: the folder cannot be written.
    """
    contact_sheet.write(found, folder)
    markdown.write(found, folder)
    html.write(found, folder)


def require_report_libraries() -> None:
    """Checks that the libraries of reports are installed, before anything is measured.

    Raises:
        MissingExtraError: names the missing libraries and the extra that installs them.
    """
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"reports need {' and '.join(missing)}, which is not installed; "
            f"{install_command('bench')}"
        )


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Treats SIGTERM as Ctrl-C: children end, and what was measured is kept."""

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
