"""The verbs `bench run`, `bench report` and `bench compare`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from sdexport.artifacts.reading import entries, given_path, is_folder
from sdexport.artifacts.storage import temporary_folder
from sdexport.cli import terminal
from sdexport.cli.exit_codes import ExitCode
from sdexport.cli.options import Json

if TYPE_CHECKING:
    from sdexport.bench.results import Results, SystemResult


class RunsByDefault(typer.core.TyperGroup):
    """A group whose verb `run` may be left out: `bench BUNDLE` is `bench run BUNDLE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `run` first unless the first word is a verb of the group."""
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


bench = typer.Typer(
    name="bench",
    cls=RunsByDefault,
    rich_markup_mode=None,
    no_args_is_help=False,
    help="""Compare bundles with PyTorch and other systems.

    Times, memory and images.

    The verb run may be left out.

    \b
    Example:
      sdexport bench bundles/sd15 --checkpoint ./sd15 --report results
    """,
)


@bench.command("run")
def run_bench(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            parser=given_path, metavar="BUNDLE", help="Folders from sdexport compile or build."
        ),
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="CHECKPOINT",
            help="What they were built from: a diffusers folder or the id of a model on the hub.",
            show_default=False,
        ),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another system; may be given several times: diffusers-channels-last, "
            "diffusers-bf16, diffusers-fp16, diffusers-compile, diffusers-compile-bf16, a bundle, "
            "or a peer of benchmarks/peers, as NAME or NAME:VARIANT. The baseline, diffusers in "
            "float32, is always measured.",
            show_default="the baseline only",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="DIR",
            help="Folder of results.json, the report and the images. Files of an earlier run "
            "are replaced.",
            show_default="not kept",
        ),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="FILE",
            help="A TOML file of what to generate, see docs/benchmarks.md. Options on the command "
            "line take precedence over it.",
            show_default="none",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What to generate; may be given several times, for several images a turn.",
            show_default="a red apple",
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            "--negative-prompt",
            "-n",
            metavar="TEXT",
            help="What the images should not show.",
            show_default="none",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Image k has the seed N + k, from k = 0.", show_default="0"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="In pixels.", show_default="the bundle's"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Images generated together.", show_default="1"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the sampler.", show_default="50")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A sampler that sdexport samplers lists.",
            show_default="the checkpoint's",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="SCALE", help="Guidance scale.", show_default="the bundle's"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Processor threads of every system.",
            show_default="each system's own default",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Least number of turns of every system.")
    ] = 10,
    seconds: Annotated[
        float,
        typer.Option(metavar="S", help="Least sum of the turns of every system, in seconds."),
    ] = 10.0,
    at_once: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Systems loaded at a time, where memory is short; the baseline is one of them.",
            show_default="all",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="Seconds that preparing, loading or one turn may take; a system that takes longer "
            "is ended, and the others go on.",
        ),
    ] = 900.0,
    json: Json = False,
) -> None:
    """Measure bundles, the baseline and other systems in turns.

    Every system runs in a process of its own. If one fails, the others go on, and the exit code is
    1. Ctrl-C ends all of them and keeps the measurements. The baseline needs PyTorch: install the
    extras export, onnxruntime and bench.

    \b
    Example:
      sdexport bench run engines/emoji --checkpoint examples/emoji/checkpoint \\
        --scenario benchmarks/scenarios/emoji.toml --report results
    """
    from sdexport.artifacts.documents import to_builtins
    from sdexport.bench.paths import shown_command
    from sdexport.bench.results import Effort
    from sdexport.bench.run import require_report_libraries, run, scenario_for, write_report
    from sdexport.bench.scenario import ScenarioOptions, read_scenario, with_seed, without_seeds
    from sdexport.bench.systems import find_systems

    options = ScenarioOptions(
        prompts=tuple(prompt) if prompt else None,
        negative_prompt=negative_prompt,
        size=size,
        batch=batch,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        threads=threads,
    )
    of_file = ScenarioOptions() if scenario is None else read_scenario(scenario)
    if prompt:
        # The seeds of a file belong to its prompts.
        of_file = without_seeds(of_file)
    systems = find_systems(bundles, against or [])
    chosen = scenario_for(bundles[0], checkpoint, of_file, options)
    if seed is not None:
        chosen = with_seed(chosen, seed)
    effort = Effort(rounds, seconds, at_once, timeout)
    if report is not None:
        require_report_libraries()
    with ExitStack() as stack:
        folder = report or stack.enter_context(temporary_folder())
        progress = stack.enter_context(terminal.progress(quiet=json))
        found = run(
            systems,
            chosen,
            effort,
            folder,
            command=f"sdexport {shown_command(sys.argv[1:])}",
            progress=progress,
        )
        if report is not None:
            write_report(found, folder)
    if json:
        terminal.print_json(to_builtins(found))
    else:
        _show_results(found)
        if report is not None:
            print(f"\n{report}")
    if not found.complete:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if any(one.status != "ok" for one in found.systems):
        raise typer.Exit(ExitCode.FAILED)


def _show_results(found: Results) -> None:
    from sdexport.bench import claims, machine_facts

    scenario, machine = found.scenario, found.machine
    terminal.print_facts(
        [
            ("scenario", scenario.name),
            ("size", f"{scenario.width}x{scenario.height}"),
            ("images a turn", scenario.images),
            ("sampler", f"{scenario.sampler}, {scenario.steps} steps"),
            ("guidance", f"{scenario.guidance:g}"),
            ("processor", machine.processor),
        ]
    )
    print()
    columns = (
        *("system", "precision", "turns", "p50", "p90", "evaluation", "speed-up"),
        *("images", "peak memory"),
    )
    terminal.print_table(columns, [_row(found, one) for one in found.systems], right=columns[2:7])
    if machine_facts.is_busy(machine) and machine.load_before:
        terminal.say(
            f"caution: the machine was busy before the run (load {machine.load_before[0]:g} on "
            f"{machine.cores} cores)"
        )
    for one in found.systems:
        if (problem := claims.problem(found, one)) is not None:
            terminal.say(f"warning: no speed-up is claimed for {one.name}: {problem}")
        for note in one.notes:
            terminal.say(f"note: {one.name}: {note}")


def _row(found: Results, one: SystemResult) -> tuple[object, ...]:
    from sdexport.bench import claims

    summary = one.summary
    shown: list[str | None] = [None, None, None]
    if summary is not None:
        times = (summary.total.p50, summary.total.p90)
        each = None if summary.evaluation is None else summary.evaluation.p50
        shown = [None if time is None else terminal.seconds(time) for time in (*times, each)]
    return (
        one.name,
        one.precision,
        len(one.rounds),
        *shown,
        claims.ratio(found, one),
        claims.verdict(one) if claims.works(one) else claims.ended(one).upper(),
        None if one.peak_host_bytes is None else terminal.size(one.peak_host_bytes),
    )


@bench.command("report")
def report_bench(
    folder: Annotated[
        Path,
        typer.Argument(parser=given_path, metavar="DIR", help="A folder from sdexport bench run."),
    ],
    json: Json = False,
) -> None:
    """Write the report of an earlier run again, from its results and images.

    \b
    Example:
      sdexport bench report results
    """
    from sdexport.bench.results_file import read
    from sdexport.bench.run import require_report_libraries, write_report

    require_report_libraries()
    found = read(folder)
    if not is_folder(folder):
        folder = folder.parent  # Of its results.json.
    write_report(found, folder)
    files = [file for file in entries(folder) if file.name.startswith("report.")]
    if json:
        terminal.print_json({"files": files})
        return
    for file in files:
        print(file)


@bench.command("compare")
def compare_bench(
    old: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="OLD",
            help="A folder from sdexport bench run, the earlier one.",
        ),
    ],
    new: Annotated[Path, typer.Argument(parser=given_path, metavar="NEW", help="The later one.")],
    least: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="The smallest change of speed that counts; two processes of one program differ by "
            "2 %.",
        ),
    ] = 0.02,
    json: Json = False,
) -> None:
    """List systems that became slower, generate other images, or need more memory.

    The exit code is 1 if there is any. Both runs must have the same scenario.

    \b
    Example:
      sdexport bench compare results/before results/after
    """
    from sdexport.bench.compare import compare

    found = compare(old, new, least=least)
    if json:
        terminal.print_json(found.as_json())
    else:
        columns = ("system", "", "new speed / old", "total before", "after", "what became worse")
        terminal.print_table(
            columns,
            [
                (
                    change.name,
                    change.verdict,
                    None
                    if change.speed is None
                    else f"{change.speed:.3f} ({change.low:.3f} to {change.high:.3f})",
                    *(terminal.seconds(one) for one in change.stages.get("total", ())),
                    *([None, None] if "total" not in change.stages else []),
                    "; ".join(change.worse),
                )
                for change in found.changes
            ],
            right=columns[2:5],
        )
        for caution in found.cautions:
            terminal.say(f"caution: {caution}")
        for change in found.changes:
            for note in change.notes:
                terminal.say(f"note: {change.name}: {note}")
    if found.worse:
        raise typer.Exit(ExitCode.FAILED)
