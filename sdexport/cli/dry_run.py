"""The screen of `sdexport compile --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdexport.cli import terminal

if TYPE_CHECKING:
    from sdexport.compiler import CompilePlan


def show_plan(plan: CompilePlan, json: bool) -> None:
    """Prints what a compilation would do, the answer first, and its estimates with their basis."""
    if json:
        terminal.print_json(plan.as_json())
        return
    engines = f"{plan.target} {plan.precision}"
    answers = {
        "built": f"Would build: {engines}",
        "reused": f"Nothing to do: {engines} is up to date",
    }
    answer = answers.get(plan.outcome, f"Would bring up to date: {engines}; {plan.outcome}")
    terminal.print_text(answer)
    print("  a dry run: nothing was written\n")
    compared = "yes" if plan.verify else "no"
    terminal.print_facts(
        [
            ("bundle", plan.bundle),
            ("export", ", ".join(plan.export) or "nothing"),
            ("build", ", ".join(plan.build) or "nothing"),
            ("reuse", ", ".join(plan.reuse) or "nothing"),
            ("update", ", ".join(plan.update) or None),
            ("compare with PyTorch", compared),
            *(("because", reason) for reason in plan.reasons),
            *(("note", note) for note in plan.notes),
        ]
    )
    taken = plan.estimate
    if not taken.seconds:
        return
    print()
    terminal.print_text(f"Estimates, from {taken.basis}:")
    print()
    terminal.print_table(
        ("stage", "about"),
        [(title, terminal.about(number)) for title, number in taken.seconds.items()],
        right=("about",),
    )
    print()
    terminal.print_facts(
        [
            ("time", f"about {terminal.about(taken.total_seconds)}"),
            ("memory", _of(taken.memory_bytes, plan.free_memory, "available")),
            (
                "disk while building",
                _of(taken.disk_bytes, plan.free_disk, "free") if taken.disk_bytes else None,
            ),
            ("ONNX folder", f"about {terminal.size(taken.onnx_bytes)}" if plan.export else None),
            ("bundle in the end", f"about {terminal.size(taken.bundle_bytes)}"),
        ]
    )


def _of(needed: int, free: int | None, what: str) -> str:
    """`about 1.2 GB; 22 GB available`, and a warning where that is too little."""
    text = f"about {terminal.size(needed)}"
    if free is None:
        return text
    enough = "" if needed <= free else ", which may not be enough"
    return f"{text}; {terminal.size(free)} {what}{enough}"
