"""The verb inspect: what is in a bundle, a checkpoint, an ONNX folder or an ONNX file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.complete import complete_folders
from sdexport.cli.options import Json, Wide

if TYPE_CHECKING:
    from sdexport.compiler.inspect import Inspection, Part
    from sdexport.model.shapes import TensorSpec

FAMILY = 4
"""So many tensors whose names differ in numbers only are shown as one line."""

SHAPES = 3
"""Of a family, so many different shapes are named."""


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="PATH",
            help="A bundle, a checkpoint (a diffusers folder), an ONNX folder, or a single .onnx "
            "file.",
            autocompletion=complete_folders,
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
    tensors: Annotated[
        bool,
        typer.Option(
            "--tensors",
            help="Show inputs and outputs too; tensors whose names differ in numbers only are one "
            "line.",
        ),
    ] = False,
    wide: Wide = False,
    json: Json = False,
) -> None:
    """Say what is in a bundle, a checkpoint or an ONNX folder or file.

    First whether a bundle can run here or a checkpoint can be compiled; then components, number
    formats, sizes and cost. FLOP counts one call (a multiplication with its addition is two): of a
    bundle at the size its profile expects and with guidance, of ONNX at one image of 64x64
    latents. With --size or --batch it counts at these, and also the bytes that the call moves at
    least: weights, inputs and outputs. Nothing is run, and of a checkpoint no weights are read.

    \b
    Example:
      sdexport inspect bundles/sd15
      sdexport inspect bundles/sd15 --size 768x512 --batch 4
      sdexport inspect ./sd15
      sdexport inspect onnx/sd15/unet/model.onnx --tensors
    """
    from sdexport.compiler.inspect import inspect as look
    from sdexport.pipeline.checks import size_of

    found = look(path, size=None if size is None else size_of(size), batch=batch)
    if json:
        terminal.print_json(found.as_json())
        return
    _show_answer(found)
    _show_facts(found, wide)
    _show_parts(found, wide)
    if tensors:
        for part in found.parts:
            _show_tensors(part, wide)
    elif any(part.inputs for part in found.parts):
        print("\ninputs and outputs: --tensors")


def _show_answer(found: Inspection) -> None:
    """What it is and whether it is of use here."""
    about: Mapping[str, Any] = found.about
    if found.kind == "bundle":
        engines = f"{about['target']} {about['precision']}"
        if found.ready:
            print(f"Ready: {engines}")
        else:
            print(f"Not ready on this machine: {engines}")
            terminal.print_text(found.why_not, indent="  ")
    elif found.kind == "checkpoint":
        if found.ready:
            print(f"Can be compiled: {about['family']}")
        else:
            print(f"Cannot be compiled: {terminal.on_one_line(str(about['pipeline']))}")
            terminal.print_text(found.why_not, indent="  ")
    else:
        weights = sum(part.parameters or 0 for part in found.parts)
        many = terminal.plural(len(found.parts), "component")
        print(f"{found.kind}: {many}, {terminal.amount(weights)} parameters")
    print()


def _show_facts(found: Inspection, wide: bool) -> None:
    about: Any = found.about
    facts: list[tuple[str, object]] = [
        (found.kind, found.path),
        ("size on disk", terminal.size(found.bytes)),
    ]
    if found.kind == "bundle":
        facts += [
            ("checkpoint", about["name"]),
            ("family", _family(about["model"]["family"])),
            *_profiles(about["profile"]),
            ("guidance", about["default_guidance"]),
            ("parity", _parity(about["parity"])),
        ]
        if wide:
            versions = about["built_with"].items()
            facts += [
                ("library", about["library"]),
                *((name, _option(name, value)) for name, value in about["builder"].items()),
                ("half precision", _half(about["half_check"])),
                ("built with", ", ".join(f"{name} {version}" for name, version in versions)),
                ("fingerprint", about["fingerprint"]),
            ]
    if found.kind == "checkpoint":
        facts += _checkpoint_facts(about)
    terminal.print_facts(facts, whole=wide)
    print()


def _family(name: str) -> str:
    """The title of a family, and the options that only its requests have."""
    from sdexport.errors import UsageError
    from sdexport.model.families import family_named

    try:
        family = family_named(name)
    except UsageError:
        return f"{name} (not registered here)"
    own = ", ".join(f"{one.name}: {one.about}" for one in family.options)
    return f"{family.title}; own options: {own}" if own else family.title


def _checkpoint_facts(about: Mapping[str, Any]) -> list[tuple[str, object]]:
    size, latents, sampler = about["size"], about["latents"], about["sampler"]
    scheduler = about["scheduler"]
    return [
        ("pipeline", about["pipeline"]),
        ("image", size and f"{size[0]}x{size[1]} pixels"),
        ("latents", latents and f"{latents[0]} channels, one for {latents[1]}x{latents[1]} pixels"),
        ("prompt", about["tokens"] and f"{about['tokens']} tokens"),
        ("prediction", about["prediction"]),
        ("scheduler", scheduler and f"{scheduler}{f' (sampler {sampler})' if sampler else ''}"),
        *(("note", note) for note in about["notes"]),
    ]


def _parity(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "not compared with PyTorch"
    image = [one for one in parity.get("comparisons", ()) if one.get("what") == "images"]
    how_far = f"; images differ by RMS {image[0]['rms']:.2g}" if image else ""
    return f"{'passed' if parity.get('ok') else 'FAILED'} against PyTorch{how_far}"


def _show_parts(found: Inspection, wide: bool) -> None:
    """A row a component; a column that no component has a value for is left out."""
    parts = found.parts
    cells: dict[str, list[object]] = {
        "component": [part.name for part in parts],
        "class": [part.kind or None for part in parts],
        "weights": [part.precision for part in parts],
        "opset": [part.opset if wide else None for part in parts],
        "size": [terminal.size(part.bytes) for part in parts],
        "parameters": [_amount(part.parameters) for part in parts],
        "FLOP": [_amount(part.flops) for part in parts],
        "moves": [None if part.moved is None else terminal.size(part.moved) for part in parts],
        "at": [part.flops_at if wide and part.flops is not None else None for part in parts],
        "fingerprint": [part.fingerprint if wide else None for part in parts],
    }
    shown_cells = {
        name: column for name, column in cells.items() if any(c is not None for c in column)
    }
    terminal.print_table(
        list(shown_cells),
        list(zip(*shown_cells.values(), strict=True)),
        right=("opset", "size", "parameters", "FLOP", "moves"),
        below=[part.note for part in parts],
        whole=wide,
    )
    counted = dict.fromkeys(p.flops_at for p in parts if p.flops is not None and p.flops_at)
    if counted and not wide:
        # A text encoder's is shorter: it knows no image's size.
        print(f"\nFLOP of one call: {max(counted, key=len)}")


def _amount(number: int | None) -> str | None:
    return None if number is None else terminal.amount(number)


def _show_tensors(part: Part, wide: bool) -> None:
    if not part.inputs and not part.outputs:
        return
    print(f"\n{part.name}")
    for mark, specs in (("in ", part.inputs), ("out", part.outputs)):
        for line in families(specs):
            terminal.print_text(line, indent=f"  {mark}  ", whole=wide)


def families(specs: Sequence[TensorSpec]) -> Iterator[str]:
    """A line for each tensor, or for `FAMILY` and more whose names differ in numbers only."""
    kin: dict[tuple[str, str], list[TensorSpec]] = {}
    for spec in specs:
        kin.setdefault((re.sub(r"\d+", "#", spec.name), spec.dtype), []).append(spec)
    for (pattern, dtype), members in kin.items():
        if "#" not in pattern or len(members) < FAMILY:
            yield from map(str, members)
            continue
        # Without spaces, so that none is folded.
        shapes = list(dict.fromkeys(f"[{','.join(map(str, one.shape))}]" for one in members))
        more = f" and {len(shapes) - SHAPES} more shapes" if len(shapes) > SHAPES + 1 else ""
        named = shapes[:SHAPES] if more else shapes
        yield (
            f"{members[0].name} … {members[-1].name}: {len(members)} of {dtype}"
            f"{', '.join(named)}{more}"
        )


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
        f"{record['device']}; tried on the CPU at {width}x{height}, "
        f"{terminal.plural(len(record['prompts']), 'prompt')} of "
        f"{terminal.plural(record['steps'], 'step')}: largest value "
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
