"""The page over several runs, each with its results in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdexport.artifacts import reading
from sdexport.bench import claims, machine_facts, results_file, versus
from sdexport.bench.report import conditions, contact_sheet, html, markdown, rendering, times
from sdexport.bench.report.content import BAD, Column, Row, Table
from sdexport.bench.report.text import NONE, clean, scaled, unit_for, words
from sdexport.bench.results import Results

GPU_COMMANDS = (
    "sdexport compile --recipe engines/emoji-rtx.toml",
    "sdexport bench run engines/emoji-rtx --checkpoint examples/emoji/checkpoint "
    "--scenario benchmarks/scenarios/emoji.toml --against diffusers-fp16 "
    "--report benchmarks/results/emoji-gpu",
)
"""The commands that measure a run on a machine with a GPU."""

NOTE = "note.md"
"""The file beside a run's results with a person's remarks, as Markdown."""

COLUMNS = ("system", "precision", "p50", "speed-up", "interval", "images")
NUMBERS = ("p50", "speed-up", "interval")


@dataclass(frozen=True, slots=True)
class Link:
    """A link to a file of a run."""

    text: str
    target: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run on the page.

    Attributes:
        heading: the scenario's name, and the folder's where it is another.
        summary: what was generated, where and when, one sentence.
        links: to the files of its folder.
        table: the systems.
        findings: sentences on the table.
        note: Markdown of a person's remarks; empty where there are none.
    """

    heading: str
    summary: str
    links: tuple[Link, ...]
    table: Table
    findings: tuple[str, ...]
    note: str


def find(folder: Path) -> list[Path]:
    """The folders below `folder` that hold a run's results, by name."""
    return [one for one in reading.entries(folder) if reading.exists(one / results_file.FILE)]


def page(folders: Sequence[Path]) -> str:
    """The page over runs as Markdown; links are relative to the folder that holds `folders`.

    The text of a `note.md` beside a run's results stands below its table.

    Raises:
        FolderError: a folder holds no results that this version reads.
        MissingExtraError: Jinja2 is not installed.
    """
    runs = [(folder, results_file.read(folder)) for folder in folders]
    return rendering.markdown(
        "runs.md.jinja",
        {
            "on_processors": [_run(*one) for one in runs if not claims.used_gpu(one[1])],
            "on_gpus": [_run(*one) for one in runs if claims.used_gpu(one[1])],
            "gpu_commands": GPU_COMMANDS,
            "no_gpu": Table(
                "Not measured: no GPU was used",
                tuple(Column(name, number=False) for name in COLUMNS),
                (Row((NONE,) * len(COLUMNS)),),
            ),
            "marks": markdown.MARKS,
        },
    )


def _run(folder: Path, results: Results) -> Run:
    name, machine = clean(results.scenario.name or folder.name), results.machine
    gpus = [claims.gpu_name(one) for one in machine.gpus] if claims.used_gpu(results) else []
    where = ", ".join([conditions.processor(machine), *gpus])
    note = folder / NOTE
    return Run(
        heading=name if name == folder.name else f"{name} ({clean(folder.name)})",
        summary=f"{times.generation(results)}; {where}; {clean(results.created)[:10]}.",
        links=_links(folder),
        table=_table(results),
        findings=tuple(_findings(results)),
        note=reading.read_text(note).strip() if reading.exists(note) else "",
    )


def _findings(results: Results) -> list[str]:
    said = []
    if not results.complete:
        said.append("✗ This run was cut short.")
    if machine_facts.is_busy(results.machine):
        said.append("✗ The machine was busy when this run began.")
    if leaders := versus.leaders(results):
        best, *level = leaders
        said.append(f"Fastest: {claims.title(best)}, {claims.ratio(results, best)}.")
        if level:
            said[-1] += f" Not shown to be slower: {words([claims.title(one) for one in level])}."
    return said + [versus.in_words(duel) for duel in versus.duels(results)]


def _links(folder: Path) -> tuple[Link, ...]:
    names = {
        markdown.FILE: "report",
        html.FILE: "one file to download",
        contact_sheet.FILE: "images",
        results_file.FILE: "every measurement",
    }
    return tuple(
        Link(name, f"{folder.name}/{file}")
        for file, name in names.items()
        if reading.exists(folder / file)
    )


def _table(results: Results) -> Table:
    found = claims.working(results)
    factor, unit = unit_for([claims.p50(one) for one in found])
    rows = times.rows(
        results,
        found,
        lambda one: (
            clean(one.precision or NONE),
            scaled(claims.p50(one), factor),
            *claims.ratio_cells(results, one),
            claims.verdict_or_baseline(results, one),
        ),
    )
    rows += tuple(
        Row((claims.title(one), *(NONE,) * 4, claims.ended(one)), BAD)
        for one in results.systems
        if not claims.works(one)
    )
    columns = tuple(
        Column(f"{name}, {unit}" if name == "p50" else name, number=name in NUMBERS)
        for name in COLUMNS
    )
    return Table("One generation; ✗: no speed-up is claimed", columns, rows)
