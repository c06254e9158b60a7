"""The verb export: a checkpoint becomes an ONNX folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.complete import complete_checkpoint, complete_component, complete_precision
from sdexport.cli.options import Json
from sdexport.model.shapes import COMPONENTS, Precision, chosen_components


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A diffusers folder or the id of a model on the hub.",
            autocompletion=complete_checkpoint,
        ),
    ],
    onnx_dir: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="ONNX_DIR",
            help="The folder to make; an older one is replaced.",
        ),
    ],
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|fp16|bf16",
            help="Number format of the weights.",
            autocompletion=complete_precision,
        ),
    ] = "fp32",
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(COMPONENTS)}; may be given several times.",
            show_default="all",
            autocompletion=complete_component,
        ),
    ] = None,
    no_parity: Annotated[
        bool, typer.Option("--no-parity", help="Leave out the comparison with PyTorch.")
    ] = False,
    json: Json = False,
) -> None:
    """Export a checkpoint to an ONNX folder.

    The folder has the layout that diffusers and optimum-onnx read and write. Each component is
    compared with PyTorch on the same inputs, and the figures are kept in the folder. Batch, height
    and width stay open. Needs PyTorch: the extras export and onnxruntime.

    \b
    Example:
      sdexport export ./sd15 onnx/sd15 --precision fp16
      sdexport export ./sd15 onnx/sd15 --component unet --component vae_decoder
    """
    chosen = Precision.parse(precision)
    components = chosen_components(component or COMPONENTS)
    from sdexport.export import export_checkpoint

    with terminal.progress(quiet=json) as progress:
        report = export_checkpoint(
            checkpoint,
            onnx_dir,
            precision=chosen,
            components=components,
            parity=not no_parity,
            progress=progress,
        )
    value = report.as_json()
    if json:
        terminal.print_json(value)
        return
    _show_export(onnx_dir, value)


def _show_export(folder: Path, value: Mapping[str, Any]) -> None:
    rows = []
    for name, one in value["components"].items():
        parity = one.get("parity") or {}
        rows.append(
            (
                name,
                terminal.seconds(one["seconds"]),
                terminal.size(one["bytes"]),
                terminal.amount(one["parameters"]),
                f"{parity['rel_rms']:.2g}" if "rel_rms" in parity else "",
                f"{parity['max_abs']:.2g}" if "max_abs" in parity else "",
            )
        )
    notes = (("note", note) for note in value.get("notes", ()))
    terminal.print_facts([("ONNX folder", folder), *notes])
    print()
    columns = ("component", "time", "size", "parameters", "rel. rms", "largest difference")
    terminal.print_table(columns, rows, right=columns[1:])
