"""The verb inspect: what is in a bundle, an ONNX folder or an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.options import (
    Json,
)
from sdexport.errors import UsageError, shown

if TYPE_CHECKING:
    from sdexport.compiler.inspect import Inspection


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="PATH",
            help="A bundle, an ONNX folder, or a single .onnx file.",
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT", help="Count costs at this size in pixels.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Count costs for so many images.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Say what is in a bundle, an ONNX folder or an ONNX file.

    Tensors, number formats, opset, size and cost. FLOP counts one call (a multiplication with its
    addition is two): of a bundle at the size its profile expects and with guidance, of ONNX at one
    image of 64x64 latents. With --size or --batch it counts at these, and also the bytes that
    the call moves at least: weights, inputs and outputs. Nothing is run.

    \b
    Example:
      sdexport inspect bundles/sd15
      sdexport inspect bundles/sd15 --size 768x512 --batch 4
      sdexport inspect onnx/sd15/unet/model.onnx --json
    """
    from sdexport.compiler.inspect import inspect as look

    found = look(path, size=None if size is None else _pixels(size), batch=batch)
    if json:
        terminal.print_json(found.as_json())
        return
    _show_inspection(found)


def _pixels(text: str) -> tuple[int, int]:
    """(width, height) of WIDTHxHEIGHT."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"size {shown(text)} is no size; write WIDTHxHEIGHT, for example 512x512")
    return int(width), int(height)


def _show_inspection(found: Inspection) -> None:
    about = found.about
    facts: list[tuple[str, object]] = [
        (found.kind, found.path),
        ("size on disk", terminal.size(found.bytes)),
    ]
    if found.kind == "bundle":
        profile: Any = about["profile"]
        versions: Any = about["built_with"]
        parity: Any = about["parity"]
        builder: Any = about["builder"]
        facts += [
            ("checkpoint", about["name"]),
            ("target", about["target"]),
            ("library", about["library"]),
            ("precision", about["precision"]),
            *_profiles(profile),
            *((name, _option(name, value)) for name, value in builder.items()),
            ("half precision", _half(about["half_check"])),
            ("guidance", about["default_guidance"]),
            ("built with", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ("fingerprint", about["fingerprint"]),
            (
                "parity",
                "not compared with PyTorch"
                if parity is None
                else ("passed" if parity.get("ok") else "FAILED"),
            ),
        ]
    terminal.print_facts(facts)
    print()
    columns = ("component", "weights", "opset", "size", "parameters", "FLOP", "moves", "at")
    terminal.print_table(
        columns,
        [
            (
                part.name,
                part.precision,
                part.opset,
                terminal.size(part.bytes),
                None if part.parameters is None else terminal.amount(part.parameters),
                None if part.flops is None else terminal.amount(part.flops),
                None if part.moved is None else terminal.size(part.moved),
                part.flops_at,
            )
            for part in found.parts
        ],
        right=columns[2:7],
    )
    for part in found.parts:
        print(f"\n{part.name}")
        for spec in part.inputs:
            print(f"  in   {spec}")
        for spec in part.outputs:
            print(f"  out  {spec}")
        if part.note:
            print(f"  {part.note}")


def _option(name: str, value: Any) -> str:
    if name == "workspace":
        return terminal.size(value)
    return ", ".join(value) if isinstance(value, list) else str(value)


def _half(record: Any) -> str | None:
    """One line on what running the half-precision graphs on the CPU showed; None without it."""
    if record is None:
        return None
    engines = record["engines"].values()
    width, height = record["size"]
    kept = sum(engine["kept_float32"] for engine in engines)
    return (
        f"{record['device']}; tried on the CPU at {width}x{height}, {len(record['prompts'])} "
        f"prompts of {record['steps']} steps: largest value "
        f"{max(float(engine['largest']) for engine in engines):,.0f} of {record['limit']:,.0f}, "
        f"{kept} kept in float32, relative RMS error up to "
        f"{max(engine['rms'] for engine in engines):.2g}"
    )


def _profiles(profile: Mapping[str, Any]) -> list[tuple[str, object]]:
    """The lines about what is served, several profiles with a number each."""
    every = [profile, *profile.get("others", ())]
    return [
        (name if len(every) == 1 else f"{name} {index}", ":".join(map(str, one[name])))
        for index, one in enumerate(every, 1)
        for name in ("batch", "height", "width")
    ]
