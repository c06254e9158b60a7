"""The verb doctor: what works on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from sdexport.cli import terminal
from sdexport.cli.exit_codes import ExitCode
from sdexport.cli.options import Json, Wide

if TYPE_CHECKING:
    from sdexport.backends.doctor import Diagnosis


def doctor(wide: Wide = False, json: Json = False) -> None:
    """Say what works on this machine, and how to get what does not.

    First whether images can be generated and with what, then what is missing, then the machine and
    its targets; with --wide also why each target does not run here, the verbs and the libraries.
    Exit code 1 says that nothing can be generated here.

    \b
    Example:
      sdexport doctor
    """
    from sdexport.backends.doctor import diagnose

    found = diagnose()
    if json:
        terminal.print_json(found.as_json())
    else:
        _show_answer(found)
        _show_machine(found, wide)
        _show_targets(found, wide)
        if wide:
            _show_rest(found)
    if not found.ok:
        raise typer.Exit(ExitCode.FAILED)


def _show_answer(found: Diagnosis) -> None:
    """Whether anything can be generated, and what is missing."""
    auto = found.auto
    reasons: Any = auto["reasons"]
    if found.ok:
        print(f"Ready: {auto['target']} {auto['precision']}")
    else:
        print("Not ready: nothing can be generated on this machine")
    for reason in reasons:
        terminal.print_text(reason, indent="  ")
    for warning in found.warnings:
        terminal.print_text(f"warning: {warning}")
    if found.missing:
        print("\nMissing")
        for names, remedy in found.missing:
            terminal.print_text(f"{names}: {remedy}", indent="  ")
    else:
        print("  nothing is missing")


def _show_machine(found: Diagnosis, wide: bool) -> None:
    memory, cpu = found.memory, found.cpu
    free: Any = found.disk["free"]
    flags: Any = cpu.get("flags", ())
    gpus: Any = found.gpus
    cores, threads = (cpu.get(name) for name in ("cores", "threads"))
    counts = [
        terminal.plural(number, noun) if isinstance(number, int) else f"{number} {noun}s"
        for number, noun in ((cores, "core"), (threads, "thread"))
    ]
    if isinstance(cpu.get("allowed"), float):
        counts.append(f"a control group allows the time of {cpu['allowed']:g}")
    print()
    terminal.print_facts(
        [
            ("sdexport", found.sdexport),
            ("Python", f"{found.python} ({found.executable})" if wide else found.python),
            ("system", found.system),
            ("processor", ", ".join((str(cpu.get("model")), *counts))),
            ("flags", (" ".join(flags) or None) if wide else None),
            *(
                ("GPU", f"{gpu['name']}, {gpu['capability']}, {terminal.size(gpu['bytes'])}")
                for gpu in gpus
            ),
            (
                "memory",
                ", ".join(f"{terminal.size(number)} {name}" for name, number in memory.items())
                or None,
            ),
            (
                "disk",
                None if free is None else f"{terminal.size(free)} free at {found.disk['path']}",
            ),
        ],
        whole=wide,
    )


def _show_targets(found: Diagnosis, wide: bool) -> None:
    print()
    columns = ["target", "runs here", "builds here", "version"]
    rows: list[list[object]] = [
        [
            target.name,
            "yes" if target.works else "no",
            "yes" if target.builds else "no",
            target.version or "-",
        ]
        for target in found.targets
    ]
    if wide:
        columns.append("what it is, or what is missing")
        for row, target in zip(rows, found.targets, strict=True):
            row.append(target.remedy or target.build_remedy or target.description)
    terminal.print_table(columns, rows, whole=wide)
    if not wide:
        print("\nwhy a target does not run, verbs, libraries: sdexport doctor --wide")


def _show_rest(found: Diagnosis) -> None:
    print()
    terminal.print_table(
        ("verb", "state", "how to get it"),
        [(verb.name, "works" if verb.works else "missing", verb.remedy) for verb in found.verbs],
        whole=True,
    )
    print()
    terminal.print_table(
        ("library", "version"),
        [(name, version or "not installed") for name, version in found.libraries.items()],
        whole=True,
    )
