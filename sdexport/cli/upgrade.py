"""The verb upgrade: a bundle of an earlier format becomes one of the present format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.options import Json


def upgrade(
    bundle: Annotated[
        Path, typer.Argument(parser=given_path, metavar="BUNDLE", help="The bundle to upgrade.")
    ],
    json: Json = False,
) -> None:
    """Bring a bundle of an earlier version to the present format.

    Only bundle.json is written anew, in one step; engines and all other files stay, so nothing is
    built. A bundle whose engines this version cannot run, one of a newer version, and a damaged
    one are refused with what to do.

    \b
    Example:
      sdexport upgrade bundles/sd15
    """
    from sdexport.artifacts.upgrade import upgrade as bring

    done = bring(bundle)
    if json:
        terminal.print_json(done.as_json())
    elif done.before == done.after:
        print(f"{done.bundle} has format {done.after} already; nothing was changed")
    else:
        print(f"{done.bundle} was upgraded from format {done.before} to {done.after}:")
        for change in done.changes:
            print(f"  {change}")
