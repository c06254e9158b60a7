"""The verb doctor: what works on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from sdexport.cli import terminal
from sdexport.cli.options import (
    Json,
)

if TYPE_CHECKING:
    from sdexport.backends.doctor import Diagnosis


FAILED = 1


def doctor(json: Json = False) -> None:
    """Say what works on this machine, and how to get what does not.

    Shows versions, targets, verbs, processor, memory and disk. Exit code 1 says that nothing can
    be generated here.

    \b
    Example:
      sdexport doctor
    """
    from sdexport.backends.doctor import diagnose

    found = diagnose()
    if json:
        terminal.print_json(found.as_json())
    else:
        _show_diagnosis(found)
    if not found.ok:
        raise typer.Exit(FAILED)


def _show_diagnosis(found: Diagnosis) -> None:
    memory, cpu, auto = found.memory, found.cpu, found.auto
    free: Any = found.disk["free"]
    reasons: Any = auto["reasons"]
    flags: Any = cpu.get("flags", ())
    gpus: Any = found.gpus
    terminal.print_facts(
        [
            ("sdexport", found.sdexport),
            ("Python", f"{found.python} ({found.executable})"),
            ("system", found.system),
            (
                "processor",
                f"{cpu.get('model')}, {cpu.get('cores')} cores, {cpu.get('threads')} threads",
            ),
            ("flags", " ".join(flags) or None),
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
            ("auto means", " ".join(str(auto[name]) for name in ("target", "precision"))),
            *(("because", reason) for reason in reasons),
        ]
    )
    for warning in found.warnings:
        print(f"warning: {warning}")
    print()
    terminal.print_table(
        ("target", "runs here", "builds here", "version", "what it is, or what is missing"),
        [
            (
                target.name,
                "yes" if target.works else "no",
                "yes" if target.builds else "no",
                target.version,
                target.remedy or target.build_remedy or target.description,
            )
            for target in found.targets
        ],
    )
    print()
    terminal.print_table(
        ("verb", "state", "how to get it"),
        [(verb.name, "works" if verb.works else "missing", verb.remedy) for verb in found.verbs],
    )
    print()
    terminal.print_table(
        ("library", "version"),
        [(name, version or "not installed") for name, version in found.libraries.items()],
    )
