"""The page over several runs' results, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading
from sdexport.bench import (
    claims,
    contact_sheet,
    machine_facts,
    report_html,
    report_markdown,
    report_results,
    versus,
)
from sdexport.bench import results as documents
from sdexport.bench.claims import Results
from sdexport.bench.report_blocks import BAD, BASELINE, PLAIN, Column, Row, Table
from sdexport.bench.report_markdown import escape, table_lines
from sdexport.bench.report_text import NONE, clean, scaled, unit_for, words

INTRODUCTION = """\
# Results

Each folder here is one run of `sdexport bench run` with its `results.json`, which holds every
measurement, and the reports made of it. Read a run's own conditions before its figures: times of
different machines, or of one machine on different days, are not to be compared with each other.
This page is made by `python scripts/results_page.py`."""

GPU_COMMANDS = (
    "sdexport compile --recipe engines/emoji-rtx.toml",
    "sdexport bench run engines/emoji-rtx --checkpoint examples/emoji/checkpoint "
    "--scenario benchmarks/scenarios/emoji.toml --against diffusers-fp16 "
    "--report benchmarks/results/emoji-gpu",
)
"""What fills the table of GPUs on a machine that has one."""

NOTE = "note.md"
"""What a person has to say of a run, where it lies beside the results."""

COLUMNS = ("system", "precision", "p50", "times faster", "interval", "image")


def find(folder: Path) -> list[Path]:
    """The folders below `folder` that hold a run's results, by name."""
    return [place for place in reading.entries(folder) if reading.exists(place / documents.FILE)]


def page(folders: Sequence[Path]) -> str:
    """The page over runs as Markdown; links are relative to the folder that holds `folders`.

    What a `note.md` says beside a run's results stands below its table.

    Raises:
        FolderError: a folder holds no results of this schema.
    """
    runs = [(folder, documents.read(folder)) for folder in folders]
    lines = [INTRODUCTION, "", "## On processors"]
    lines += _runs([run for run in runs if not claims.used_gpu(run[1])])
    lines += ["", "## On GPUs"]
    on_gpus = [run for run in runs if claims.used_gpu(run[1])]
    lines += _runs(on_gpus) if on_gpus else _no_gpu()
    return "\n".join(lines) + "\n"


def _runs(runs: Sequence[tuple[Path, Results]]) -> list[str]:
    if not runs:
        return ["", "None so far."]
    lines: list[str] = []
    for folder, results in runs:
        machine: Mapping[str, Any] = results.get("machine") or {}
        gpus = [claims.gpu_name(one) for one in machine.get("gpus") or []]
        places = [clean(machine.get("processor") or "unknown processor")]
        places += [f"{machine['cores']} cores"] if machine.get("cores") else []
        where = ", ".join([*places, *(gpus if claims.used_gpu(results) else [])])
        day = clean(results.get("created", ""))[:10]
        lines += [
            "",
            f"### {escape(_heading(folder, results))}",
            "",
            escape(f"{report_results.generation(results)}; {where}; {day}.") + _links(folder),
            "",
            *table_lines(_table(results)),
        ]
        lines += [line for said in _findings(results) for line in ("", escape(said))]
        if reading.exists(folder / NOTE):
            lines += ["", reading.read_text(folder / NOTE).strip()]
    return lines


def _heading(folder: Path, results: Results) -> str:
    """The scenario's name, and the folder's where it is another one."""
    name = clean(results["scenario"].get("name") or folder.name)
    return name if name == folder.name else f"{name} ({clean(folder.name)})"


def _findings(results: Results) -> list[str]:
    """What a reader of the table should know besides."""
    said = []
    if results.get("complete") is False:
        said.append("✗ This run was cut short.")
    if machine_facts.is_busy(results.get("machine") or {}):
        said.append("✗ The machine was not quiet when this run began.")
    if leaders := versus.leaders(results):
        best, *level = leaders
        said.append(f"Fastest: {claims.title(best)}, {claims.ratio(results, best)}.")
        if level:
            said[-1] += f" Not shown to be slower: {words([claims.title(one) for one in level])}."
    return said + [versus.in_words(duel) for duel in versus.duels(results)]


def _links(folder: Path) -> str:
    names = {
        report_markdown.FILE: "report",
        report_html.FILE: "one file to download",
        contact_sheet.FILE: "images",
        documents.FILE: "every measurement",
    }
    there = [
        f"[{name}]({folder.name}/{file})"
        for file, name in names.items()
        if reading.exists(folder / file)
    ]
    return " " + ", ".join(there)


def _table(results: Results) -> Table:
    found = claims.working(results)
    factor, unit = unit_for([one["summary"]["total"]["p50"] for one in found])
    rows = [
        Row(
            (
                claims.title(one),
                clean(one.get("precision") or NONE),
                scaled(one["summary"]["total"]["p50"], factor),
                *claims.ratio_cells(results, one),
                "baseline" if claims.is_baseline(results, one) else claims.verdict(one),
            ),
            BASELINE
            if claims.is_baseline(results, one)
            else (PLAIN if claims.problem(results, one) is None else BAD),
        )
        for one in found
    ]
    rows += [
        Row((claims.title(one), *(NONE,) * 4, claims.ended(one)), BAD)
        for one in results["systems"]
        if not claims.works(one)
    ]
    names = [f"{name}, {unit}" if name == "p50" else name for name in COLUMNS]
    columns = [Column(name, number=name[:3] in ("p50", "tim", "int")) for name in names]
    return Table("One generation; ✗: no speed-up is claimed", tuple(columns), tuple(rows))


def _no_gpu() -> list[str]:
    empty = Table(
        "Not measured: no GPU was used",
        tuple(Column(name, number=False) for name in COLUMNS),
        (Row((NONE,) * len(COLUMNS)),),
    )
    return [
        "",
        "No GPU was used for anything on this page. On a machine that has one, this fills the "
        "table; `engines/` has recipes for other sizes and GPUs:",
        "",
        *(f"    {command}" for command in GPU_COMMANDS),
        "",
        *table_lines(empty),
    ]
