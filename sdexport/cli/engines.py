"""The verbs about bundles that were built: engines list, engines prune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.options import Json

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
def list_engines(folder: Folder = Path("engines"), json: Json = False) -> None:
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
        print(f"no bundle in {folder}")
        return
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
    )


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
        print(f"nothing to remove in {folder}")
        return
    said = "removed" if yes else "would remove"
    terminal.print_table(
        ("what", "", "size", "because"),
        [
            (
                one.stored.path,
                "left" if one.kept else said,
                terminal.size(one.stored.bytes),
                one.kept or "; ".join(text for text in (one.reason, one.note) if text),
            )
            for one in done
        ],
        right=("size",),
    )
    freed = sum(one.frees for one in done)
    print(f"\n{terminal.size(freed)} {'freed' if yes else 'to free: repeat with --yes'}")


def age(days: float) -> str:
    """An age for people: `3 h`, `12 days`."""
    if days < 1 / 24:
        return f"{days * 24 * 60:.0f} min"
    return f"{days * 24:.0f} h" if days < 2 else f"{days:.0f} days"
