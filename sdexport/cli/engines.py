"""The verbs about bundles that were built: engines list, engines prune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.options import Json, Wide

if TYPE_CHECKING:
    from sdexport.compiler.store import Stored

Folder = Annotated[
    Path,
    typer.Argument(
        parser=given_path, metavar="DIR", help="A folder with bundles, up to three levels below it."
    ),
]

engines = typer.Typer(
    name="engines",
    rich_markup_mode=None,
    no_args_is_help=False,
    help="""List the bundles that were built, and remove some.

    \b
    Example:
      sdexport engines list bundles
    """,
)


@engines.command("list")
def list_engines(folder: Folder = Path("engines"), wide: Wide = False, json: Json = False) -> None:
    """List bundles: size, age, target, whether they run here.

    Also listed are damaged bundles, and what builds that were killed left behind.

    \b
    Example:
      sdexport engines list bundles
    """
    from sdexport.compiler.store import stored_in

    found = stored_in(folder)
    if json:
        terminal.print_json([one.as_json() for one in found])
        return
    if not found:
        print(f"no bundle in {terminal.on_one_line(str(folder))}")
        return
    runs = sum(one.runs for one in found)
    whole = sum(one.bytes for one in found)
    terminal.print_text(
        f"{_counted(found)} in {folder}, {terminal.size(whole)}; "
        f"{runs or 'none'} can run on this machine"
    )
    print()
    if wide:
        terminal.print_table(
            ("bundle", "size", "age", "target", "precision", "profiles", "GPUs", "runs here"),
            [
                (
                    one.path,
                    terminal.size(one.bytes),
                    age(one.age_days),
                    one.target or one.kind,
                    one.precision,
                    ", ".join(one.profiles),
                    ", ".join(one.capabilities),
                    "yes" if one.runs else f"no: {one.why}",
                )
                for one in found
            ],
            right=("size", "age"),
            whole=True,
        )
        return
    terminal.print_table(
        ("bundle", "engines", "size", "age", "runs here"),
        [
            (
                one.path,
                f"{one.target} {one.precision}".strip() or one.kind,
                terminal.size(one.bytes),
                age(one.age_days),
                "yes" if one.runs else "no",
            )
            for one in found
        ],
        right=("size", "age"),
        below=["" if one.runs else one.why for one in found],
    )
    print("\nprofiles and GPUs: sdexport engines list --wide")


def _counted(found: Sequence[Stored]) -> str:
    """`2 bundles`, `1 bundle and 1 leftover`."""
    bundles = sum(one.kind == "bundle" for one in found)
    others = {kind: sum(one.kind == kind for one in found) for kind in ("damaged", "leftover")}
    parts = [terminal.plural(bundles, "bundle")]
    if others["damaged"]:
        parts.append(terminal.plural(others["damaged"], "damaged one"))
    if others["leftover"]:
        parts.append(terminal.plural(others["leftover"], "leftover"))
    return " and ".join((", ".join(parts[:-1]), parts[-1]) if len(parts) > 1 else parts)


@engines.command("prune")
def prune_engines(
    folder: Folder = Path("engines"),
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS", help="Remove bundles built longer ago.", show_default="none for age"
        ),
    ] = None,
    cannot_run: Annotated[
        bool, typer.Option("--cannot-run", help="Remove bundles that cannot run on this machine.")
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Remove; without it, only what would be removed is said."),
    ] = False,
    wide: Wide = False,
    json: Json = False,
) -> None:
    """Remove bundles that are old or cannot run here.

    What builds that were killed left behind goes as well. Only files that a bundle's manifest names
    are removed. A bundle that holds anything else, or that is damaged, is left. Without --yes
    nothing is removed.

    \b
    Example:
      sdexport engines prune bundles --older-than 30
      sdexport engines prune bundles --cannot-run --yes
    """
    from sdexport.compiler.store import prune

    done = prune(folder, older_days=older_than, cannot_run=cannot_run, remove=yes)
    if json:
        terminal.print_json({"removed": yes, "entries": [one.as_json() for one in done]})
        return
    if not done:
        print(f"nothing to remove in {terminal.on_one_line(str(folder))}")
        return
    going = sum(not one.kept for one in done)
    freed = terminal.size(sum(one.frees for one in done))
    left = f"; {len(done) - going} left" if len(done) > going else ""
    said = "removed" if yes else "would remove"
    print(f"{said} {going} of {len(done)}, {freed} {'freed' if yes else 'to free'}{left}\n")
    reasons = [one.kept or "; ".join(t for t in (one.reason, one.note) if t) for one in done]
    columns, right = ("bundle", "", "size"), ("size",)
    rows = [
        (one.stored.path, "left" if one.kept else said, terminal.size(one.stored.bytes))
        for one in done
    ]
    if wide:
        because = [(*row, reason) for row, reason in zip(rows, reasons, strict=True)]
        terminal.print_table((*columns, "because"), because, right=right, whole=True)
    else:
        terminal.print_table(columns, rows, right=right, below=reasons)
    if not yes and going:
        print("\nto remove: repeat with --yes")


def age(days: float) -> str:
    """An age for people: `3 h`, `12 days`."""
    if days < 1 / 24:
        return f"{days * 24 * 60:.0f} min"
    return f"{days * 24:.0f} h" if days < 2 else terminal.plural(round(days), "day")
