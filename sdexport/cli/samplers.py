"""The verb samplers: how images can be generated, and what that costs."""

from __future__ import annotations

from typing import Annotated

import typer

from sdexport.cli import terminal
from sdexport.cli.options import Json
from sdexport.errors import UsageError


def samplers(
    steps: Annotated[
        int, typer.Option(metavar="N", help="The steps to count evaluations for.")
    ] = 50,
    json: Json = False,
) -> None:
    """List the samplers: their names and what they cost.

    Each equals a scheduler of diffusers, or of k-diffusion where diffusers has none. Every name
    and alias is accepted by sdexport generate --sampler, in any case; with a spacing of sigmas
    behind it where any are listed (heun-karras, "DPM++ 2M Exponential"); a diffusers class's name
    leaves its options to the checkpoint's config. Order says how the error falls with the step;
    evaluations are calls of the model; noise says whether fresh noise is drawn after the start.
    Samplers for edm, flow and sines models are refused for Stable Diffusion.

    \b
    Example:
      sdexport samplers
      sdexport generate bundles/sd15 "a fox" --sampler dpmpp-2m-karras --steps 20
    """
    from sdexport import sampling

    if steps < 1:
        raise UsageError(f"steps {steps} is not possible; give a whole number >= 1")
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
    terminal.print_table(
        ("name", "title", "spacings", "diffusers", "order", "evaluations", "noise", "origin"),
        [
            (
                sampler.name,
                sampler.title,
                ", ".join(sampler.scheduler.spacings) or "-",
                (sampler.diffusers or "-").removesuffix("Scheduler"),
                sampler.order,
                sampler.evaluations(steps),
                "yes" if sampler.draws_noise else "no",
                sampler.origin if "." not in sampler.origin else f"arXiv {sampler.origin}",
            )
            for sampler in known
        ],
        right=("order", "evaluations"),
    )
