"""The verb samplers: how images can be generated, and what that costs."""

from __future__ import annotations

from typing import Annotated

import typer

from sdexport.cli import terminal
from sdexport.cli.options import Json, Wide
from sdexport.errors import UsageError


def samplers(
    steps: Annotated[
        int, typer.Option(metavar="N", help="The steps to count evaluations for.")
    ] = 50,
    wide: Wide = False,
    json: Json = False,
) -> None:
    """List the samplers: their names and what they cost.

    Each equals a scheduler of diffusers, or of k-diffusion where diffusers has none. Every name
    and alias is accepted by sdexport generate --sampler, in any case; with a spacing of sigmas
    behind it where any are listed (heun-karras, "DPM++ 2M Exponential"); a diffusers class's name
    leaves its options to the checkpoint's config. Order says how the error falls with the step;
    evaluations are calls of the model; noise says whether fresh noise is drawn after the start.
    Samplers for edm, flow and sines models are refused for Stable Diffusion. With --wide also
    spacings, diffusers' class, further names and where a sampler comes from.

    \b
    Example:
      sdexport samplers
      sdexport generate bundles/sd15 "a fox" --sampler dpmpp-2m-karras --steps 20
    """
    from sdexport import sampling

    if steps < 1:
        raise UsageError(f"--steps must be at least 1, got {steps}")
    known = sampling.samplers()
    if json:
        terminal.print_json(
            [
                {
                    "name": sampler.name,
                    "title": sampler.title,
                    "aliases": sampler.aliases,
                    "diffusers": sampler.diffusers,
                    "spacings": sampler.scheduler.spacings,
                    "order": sampler.order,
                    "steps": steps,
                    "evaluations": sampler.evaluations(steps),
                    "draws_noise": sampler.draws_noise,
                    "family": sampler.family,
                    "origin": sampler.origin,
                }
                for sampler in known
            ]
        )
        return
    print(
        f"{len(known)} samplers for sdexport generate --sampler NAME, as {known[0].name}; "
        f"{terminal.plural(steps, 'step')} each\n"
    )
    columns = ["name", "title", "order", "evaluations", "noise", "models"]
    rows = [
        [
            sampler.name,
            sampler.title,
            sampler.order,
            sampler.evaluations(steps),
            "yes" if sampler.draws_noise else "no",
            sampler.family,
        ]
        for sampler in known
    ]
    if wide:
        columns += ["spacings", "diffusers", "origin", "further names"]
        for row, sampler in zip(rows, known, strict=True):
            row += [
                ", ".join(sampler.scheduler.spacings) or "-",
                (sampler.diffusers or "-").removesuffix("Scheduler"),
                sampler.origin if "." not in sampler.origin else f"arXiv {sampler.origin}",
                ", ".join(sampler.aliases) or "-",
            ]
    terminal.print_table(columns, rows, right=("order", "evaluations"), whole=wide)
    if not wide:
        print("\nspacings, diffusers' names, papers: sdexport samplers --wide")
