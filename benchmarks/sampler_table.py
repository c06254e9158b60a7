"""The table of `sampler_parity.py`, in Markdown: docs/sampler_parity.md."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sdexport.sampling import samplers

TABLE = Path(__file__).resolve().parent.parent / "docs" / "sampler_parity.md"
LIMITS = {"float64": 1e-9, "float32": 1e-5}

NOT_SAMPLERS = {
    "AmusedScheduler": "draws discrete tokens",
    "BlockRefinementScheduler": "draws discrete tokens",
    "CMStochasticIterativeScheduler": "for consistency models of pixels; clips the sample, which "
    "is not linear",
    "CogVideoXDDIMScheduler": "for video models with their own SNR shift",
    "CogVideoXDPMScheduler": "for video models with their own SNR shift",
    "ConsistencyDecoderScheduler": "belongs to a decoder, not to a denoising loop",
    "DDIMInverseScheduler": "inverts an image to noise, generates none",
    "DDPMWuerstchenScheduler": "for Würstchen's continuous timesteps",
    "DPMSolverMultistepInverseScheduler": "inverts an image to noise, generates none",
    "EntropyBoundScheduler": "draws discrete tokens",
    "DiscreteDDIMScheduler": "draws discrete tokens",
    "FlowMapEulerDiscreteScheduler": "for flow-map models, which get a second timestep",
    "HeliosDMDScheduler": "for that video model alone",
    "HeliosScheduler": "for that video model alone",
    "KarrasVeScheduler": "deprecated; draws noise before the evaluation, for pixels",
    "LTXEulerAncestralRFScheduler": "for video models",
    "MiniMaxH3Scheduler": "for that model alone",
    "PiflowScheduler": "goes through many small steps of a policy that the model puts out",
    "RePaintScheduler": "goes back and forth in time; inpainting here blends after each step",
    "RFD4ProteinaScheduler": "for proteins",
    "ScoreSdeVeScheduler": "a predictor and corrector with a step size from norms: not linear",
    "ScoreSdeVpScheduler": "deprecated",
    "SCMScheduler": "for SANA-Sprint's angles",
    "UnCLIPScheduler": "for unCLIP's pixels; clips the sample, which is not linear",
    "VQDiffusionScheduler": "draws discrete tokens",
}
"""Scheduler classes that have no plan, and why."""

NOTES: dict[tuple[str, str], str] = {
    ("DPMSolverSDEScheduler", ""): "diffusers' noise comes from torchsde's Brownian tree, which is "
    "not reproduced: the scheduler was given a Brownian path made of the same draws instead. The "
    "distribution at the end is checked in tests/sampling/test_plan_properties.py",
    ("CosineDPMSolverMultistepScheduler", ""): "diffusers' noise comes from torchsde's Brownian "
    "tree, which is not reproduced: the scheduler was given the same independent draws instead, "
    "which is the same distribution",
    ("KDPM2DiscreteScheduler", ""): "at 2 steps diffusers' float32 loses digits to cancellation",
    ("KDPM2AncestralDiscreteScheduler", ""): "at 2 steps diffusers' float32 loses sigma_down, "
    "(sigma_next² - sigma_up²)^½, to cancellation, and with it the middle's timestep",
    ("IPNDMScheduler", ""): "diffusers divides by 1e-8 in the first step, where the signal is "
    "zero, which magnifies its own rounding",
    ("UniPCMultistepScheduler", "solver_type=bh1"): "diffusers multiplies -infinity by zero in the "
    "last step to zero noise (`alpha_t * B_h * pred_res`); the plan takes the limit",
    ("UniPCMultistepScheduler", "predict_x0=False"): "diffusers multiplies zero by infinity in the "
    "last step to zero noise (`sigma_t * h_phi_1 * m0`); the plan takes the limit",
    ("UniPCMultistepScheduler", "lower_order_final=False"): "diffusers divides by zero in the last "
    "step to zero noise (`rk` is zero)",
}


HEAD = """# Plans against diffusers' schedulers

Made by `python benchmarks/sampler_parity.py`; do not edit. Each scheduler class of diffusers 0.42.1
runs step by step with Stable Diffusion 1.5's configuration (or its own, for other kinds of model)
and one change at a time, at 1, 2, 5, 20 and 50 steps, and its plan runs in the numpy interpreter
with the same noise. The figures are the largest difference of any sample on the way, relative to
the largest number so far; the weights of `add_noise` are compared as well. The limits are 1e-9 in
float64, where diffusers' tables are made float64 too, and 1e-5 in float32, where diffusers is as it
comes. The model is linear and predicts for a Gaussian target; rows that say UNet have the emoji
checkpoint's in float32. A note says what is otherwise, and why.

"""


def note_of(row: dict[str, Any]) -> str:
    """Why a row of the table is not simply equal."""
    label = "" if row["case"] == "as published" else row["case"]
    for (name, start), text in NOTES.items():
        if name == row["scheduler"] and (label.startswith(start) if start else not label):
            return text
    return ""


def kind_of(cell: dict[str, Any], precision: str) -> str:
    """What became of one trajectory."""
    value = cell[precision]
    if isinstance(value, dict):
        if value["diffusers"] != "draws":
            return "diffusers fails or gives NaN"
        return "refused, with the reason"
    if value <= LIMITS[precision]:
        return "within the limit"
    own = cell.get("theirs", 0.0)
    plan = cell.get("ours", 1.0)
    if precision == "float32" and (plan <= LIMITS[precision] or plan <= own):
        return "in float32, the plan is closer to diffusers' float64 than diffusers' float32 is"
    if precision == "float32" and own > LIMITS[precision]:
        return "in float32, both are off diffusers' float64 by rounding"
    return "otherwise"


def words_of(row: dict[str, Any]) -> list[str]:
    """What is not within the limits, in words, the same for several counts of steps once."""
    said: dict[str, list[str]] = {}
    for steps, cell in row["steps"].items():
        for precision in LIMITS:
            if precision not in cell or kind_of(cell, precision) == "within the limit":
                continue
            value = cell[precision]
            if isinstance(value, dict):
                text = f"diffusers: {value['diffusers']}" if value["diffusers"] != "draws" else ""
                if value["ours"] != "draws":
                    text = "; ".join(filter(None, [text, f"the plan is {value['ours']}"]))
            elif precision == "float32":
                own = cell.get("theirs", 0.0)
                plan = cell.get("ours", 0.0)
                text = f"float32 from float64: diffusers {own:.0e}, the plan {plan:.0e}"
            else:
                text = f"{value:.0e} in float64"
            said.setdefault(text, []).append(steps)
    return [
        f"{', '.join(dict.fromkeys(steps))} step{'s' * (steps != ['1'])}: {text}"
        for text, steps in said.items()
    ]


RANDOM_HEAD = """## Random configurations

Made by `python benchmarks/sampler_parity.py --random`, and asserted by
`tests/sampling/test_random.py` (a few of each class always, all of them in the slow tests). Each
case draws every parameter of the class's constructor in diffusers, 1 to 60 steps, a strength, eta,
mu, timesteps or sigmas; every third configuration is another class's, as `from_config` takes it.
What both refuse are options that contradict each other, or that a class does not know.

- equal: timesteps, evaluations, `add_noise` and every sample within the limits above; in float32
  the plan may be up to twice as far from diffusers' float64 as diffusers' own float32 is.
- roots: equal to diffusers with square roots that are rounded to the nearest. torch takes Intel
  MKL's on x86, whose last bit differs from processor to processor; where a noise level lies on a
  training step's, that bit decides whether the timestep is cut off below it.
- here: refused here alone, for the reasons in [samplers.md](samplers.md): clipping, thresholding, a
  learned variance, and the like.
- limit: diffusers gives NaN, and the plan takes the limit of the same formula.

| class | equal | roots | refused by both | here | limit | float64 | float32 (median) |
|---|---|---|---|---|---|---|---|
"""

COLUMNS = (
    "equal",
    "equal but for MKL's roots",
    "refused by both",
    "refused here",
    "fails in diffusers",
)


def random_table(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of the table of random configurations."""
    lines = [
        f"| {row['scheduler']} | "
        + " | ".join(str(row["kinds"].get(kind, 0)) for kind in COLUMNS)
        + f" | {row['float64']:.0e} | {row['float32']:.0e} ({row['median32']:.0e}) |"
        for row in sorted(rows, key=lambda row: str(row["scheduler"]))
    ]
    totals = [sum(row["kinds"].get(kind, 0) for row in rows) for kind in COLUMNS]
    lines.append(f"| all | {' | '.join(map(str, totals))} | | |")
    return [*RANDOM_HEAD.rstrip().splitlines(), *lines, ""]


def write_table(rows: list[dict[str, Any]], random: list[dict[str, Any]]) -> None:
    """Writes the page from the rows of the results."""
    kinds = Counter(
        kind_of(cell, precision)
        for row in rows
        for cell in row["steps"].values()
        for precision in LIMITS
        if precision in cell
    )
    classes = dict.fromkeys(row["scheduler"] for row in rows)
    lines = [
        f"{len(classes)} classes, {len(rows)} cases, {kinds.total()} trajectories, of which:",
        "",
        *(f"- {count}: {kind}" for kind, count in kinds.most_common()),
        "",
    ]
    lines += random_table(random)
    for name in sorted(classes):
        lines += [f"## {name}", "", "| case | float64 | float32 | note |", "|---|---|---|---|"]
        lines += [_line(row) for row in rows if row["scheduler"] == name]
        lines.append("")
    lines += ["## Not in diffusers", ""]
    lines += [
        f"- {sampler.title} (`{sampler.name}`) is k-diffusion's, and compared with its algorithm "
        "in tests/sampling/test_k_diffusion.py."
        for sampler in samplers()
        if not sampler.in_diffusers
    ]
    lines += ["", "## Classes without a plan", ""]
    lines += [f"- {name}: {reason}." for name, reason in sorted(NOT_SAMPLERS.items())]
    TABLE.write_text(HEAD + "\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    worst = {
        precision: [
            cell[precision]
            for cell in row["steps"].values()
            if isinstance(cell.get(precision), float)
        ]
        for precision in LIMITS
    }
    figures = [f"{max(values):.0e}" if values else "-" for values in worst.values()]
    case = row["case"] if len(row["case"]) < 130 else row["case"][:60] + " …"
    if row["model"] != "linear":
        case += f", {row['model']}"
    words = words_of(row)
    note = note_of(row) if words or row["case"] == "as published" else ""
    text = "; ".join(filter(None, [note, *words[:4], "…" if len(words) > 4 else ""]))
    return f"| {case} | {' | '.join(figures)} | {text} |"
