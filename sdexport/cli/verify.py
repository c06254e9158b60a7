"""The verb verify: a bundle is compared with its checkpoint in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.complete import complete_bundle, complete_checkpoint
from sdexport.cli.exit_codes import ExitCode, NegativeAnswerError
from sdexport.cli.options import Json
from sdexport.errors import ParityError


def verify(
    bundle: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="BUNDLE",
            help="A folder of sdexport compile or build.",
            autocompletion=complete_bundle,
        ),
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="CHECKPOINT",
            help="What it was built from: a diffusers folder or the id of a model on the hub.",
            show_default=False,
            autocompletion=complete_checkpoint,
        ),
    ],
    json: Json = False,
) -> None:
    """Compare a bundle with its checkpoint in PyTorch.

    Engine by engine and by whole images. The figures are kept in the bundle. Exit code 1 says
    that the bundle generates something else than PyTorch. Needs PyTorch: the
    extras export and onnxruntime.

    \b
    Example:
      sdexport verify bundles/sd15 --checkpoint ./sd15
    """
    from sdexport.artifacts.bundle import open_bundle
    from sdexport.artifacts.documents import to_builtins
    from sdexport.compiler.verify import verify as compare

    before = open_bundle(bundle, check=False).manifest.parity
    try:
        with terminal.progress(quiet=json) as progress:
            value: Mapping[str, Any] = compare(bundle, checkpoint, progress=progress).as_json()
    except ParityError as error:
        # The figures were kept before the bundle was refused; those of an earlier run say nothing.
        kept = open_bundle(bundle, check=False).manifest.parity
        value = to_builtins(kept) if kept is not None and kept != before else {"comparisons": []}
        value = {**value, "ok": False, "error": str(error)}
        if value["comparisons"] and not json:
            _show_comparisons(value)
        raise NegativeAnswerError(str(error), value) from error
    if json:
        terminal.print_json(value)
    else:
        _show_comparisons(value)
    if not value["ok"]:
        raise typer.Exit(ExitCode.FAILED)


def _show_comparisons(value: Mapping[str, Any]) -> None:
    width, height = value["size"]
    terminal.print_facts(
        [
            ("target", value["target"]),
            ("precision", value["precision"]),
            ("compared at", f"{width}x{height} pixels"),
            ("time", terminal.seconds(value["seconds"])),
        ]
    )
    print()
    columns = ("component", "rel. rms", "largest difference", "tolerance", "ok")
    terminal.print_table(
        columns,
        [
            (
                one["what"],
                f"{one['rms']:.3g}",
                f"{one['largest']:.3g}" + (" of 255" if one["what"] == "images" else ""),
                f"{one['allowed']:.3g}",
                "yes" if one["ok"] else "NO",
            )
            for one in value["comparisons"]
        ],
        right=columns[1:4],
    )
