"""Every scheduler of diffusers, with each of its options, against its plan: docs/sampler_parity.md.

    python benchmarks/sampler_parity.py                     # a linear model, about three minutes
    python benchmarks/sampler_parity.py --unet CHECKPOINT   # a checkpoint's UNet, five minutes
    python benchmarks/sampler_parity.py --random            # random configurations, five minutes

Each scheduler class runs step by step on a linear model that predicts for a Gaussian target, and
its plan runs in the numpy interpreter; every sample of the way is compared, relative to the
largest number so far. In float64 diffusers' own tables are made float64 as well, which leaves the
arithmetic alone to be compared; in float32 diffusers is as it comes. Results are kept in
benchmarks/results/sampler_parity.json case by case, and a run takes up where the last one ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sampler_cases import Case, cases
from benchmarks.sampler_random import PER_CLASS, cases_of
from benchmarks.sampler_table import write_table
from benchmarks.sampler_verdicts import verdict
from benchmarks.scheduler_trajectory import Trajectory, run_scheduler
from sdexport.errors import UsageError
from sdexport.sampling import compile_plan, interpret, samplers
from sdexport.sampling.registry import scheduler_classes

Array = npt.NDArray[Any]
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "sampler_parity.json"
RANDOM = HERE / "results" / "sampler_random.json"
STEPS = (1, 2, 5, 20, 50)
SHAPE, UNET_SHAPE = (1, 1, 3, 5), (1, 4, 16, 16)


def linear_model(family: str) -> Callable[[Array, float], Array]:
    """Elementwise and linear in the sample, like a model of a Gaussian target."""

    def model(sample: Array, timestep: float) -> Array:
        number = sample.dtype.type
        time_ = {"edm": np.tanh(timestep / 2) / 2 + 0.5, "sines": timestep}
        u = time_.get(family, timestep / 1000)
        return np.asarray(number(0.9 * u + 0.05) * sample + number(0.3 * np.cos(3 * u)))

    return model


def ours(case: Case, steps: int | None, model: Any, noise: list[Array]) -> Trajectory | str:
    exact = noise[0].dtype == np.float64
    try:
        plan = compile_plan(case.config, case.scheduler, steps, exact=exact, **case.run)
    except UsageError as error:
        return f"refused: {str(error).split(';')[0].split('. ')[0]}"
    draws = iter(noise[1:])
    samples = tuple(interpret(plan, noise[0], model, lambda _: next(draws)))
    return Trajectory(samples, tuple(map(float, plan.timesteps)), np.array(plan.noise_levels))


def theirs(case: Case, steps: int | None, model: Any, noise: list[Array]) -> Trajectory | str:
    # diffusers' pipelines pass an η of 0 where a scheduler takes one.
    step = case.step or ({"eta": 0.0} if case.scheduler in ("TCDScheduler",) else {})
    try:
        return run_scheduler(
            case.scheduler, case.config, steps, model, noise,
            set_timesteps=case.set_timesteps, step=step,
        )  # fmt: skip
    except Exception as error:  # whatever diffusers raises is a result
        return f"{type(error).__name__}: {str(error)[:80]}"


def distance(one: Trajectory, other: Trajectory) -> float:
    """The largest difference of any sample, relative to the largest number of `other` so far."""
    if len(one.samples) != len(other.samples):
        return float("inf")
    worst = largest = 0.0
    for mine, expected in zip(one.samples, other.samples, strict=True):
        largest = max(largest, float(np.abs(expected).max()))
        difference = float(np.abs(mine - expected).max())
        worst = max(worst, difference / largest if difference else 0.0)
        if not np.isfinite(difference):
            return float("nan")
    return worst


def compare(case: Case, model_name: str, model: Callable[[Array, float], Array]) -> dict[str, Any]:
    """The distances of a case for each count of steps and precision, and what went otherwise."""
    row: dict[str, Any] = {"scheduler": case.scheduler, "case": case.label, "model": model_name}
    row["steps"] = {}
    shape = SHAPE if model_name == "linear" else UNET_SHAPE
    for steps in (None,) if case.own else STEPS:
        random = np.random.default_rng(0)
        double = [random.standard_normal(shape) for _ in range(2 * (steps or 10) + 9)]
        single = [each.astype(np.float32) for each in double]
        double = [each.astype(np.float64) for each in single]
        noises = {"float64": double, "float32": single}
        if model_name != "linear":
            del noises["float64"]  # a UNet has float32 weights
        mine = {name: ours(case, steps, model, noise) for name, noise in noises.items()}
        their = {name: theirs(case, steps, model, noise) for name, noise in noises.items()}
        cell: dict[str, Any] = {}
        for precision in noises:
            a, b = mine[precision], their[precision]
            if isinstance(a, str) or isinstance(b, str):
                cell[precision] = {
                    "ours": a if isinstance(a, str) else "draws",
                    "diffusers": b if isinstance(b, str) else _finite(b),
                }
                continue
            cell[precision] = (
                distance(a, b) if _finite(b) == "draws" else {"ours": "draws", "diffusers": "NaN"}
            )
            if isinstance(cell[precision], float) and b.levels is not None:
                gap = np.abs(a.levels - b.levels).max() / max(1.0, np.abs(b.levels).max())
                if gap > 1e-6:
                    cell[precision] = {
                        "ours": f"off by {gap:.0e} in add_noise",
                        "diffusers": "draws",
                    }
        truth = their.get("float64")
        if isinstance(truth, Trajectory) and _finite(truth) == "draws":
            # Where float32 differs, which of the two is further from diffusers' float64?
            if isinstance(their["float32"], Trajectory):
                cell["theirs"] = distance(their["float32"], truth)
            if isinstance(mine["float32"], Trajectory):
                cell["ours"] = distance(mine["float32"], truth)
        row["steps"][str(steps or len(next(iter(case.run.values()))))] = cell
    return row


def _finite(trajectory: Trajectory) -> str:
    return "draws" if all(np.isfinite(each).all() for each in trajectory.samples) else "NaN"


def unet_model(checkpoint: str) -> Callable[[Array, float], Array]:
    """A checkpoint's UNet with one prompt's embeddings, in PyTorch and float32."""
    from sdexport.export.reference import ReferenceModels
    from sdexport.pipeline.tokenizer import PromptTokenizer

    models = ReferenceModels(checkpoint)
    tokenizer = PromptTokenizer.load(Path(checkpoint) / "tokenizer")
    embeddings = models.text_encoder(tokenizer.encode(["red apple"]))

    def model(sample: Array, timestep: float) -> Array:
        at = np.array([timestep], np.float32)
        return np.asarray(models.unet(sample.astype(np.float32), at, embeddings), sample.dtype)

    return model


def all_cases() -> Iterator[Case]:
    """Every case of every class."""
    for name in dict.fromkeys(s.diffusers for s in samplers()):
        if name is not None:
            yield from cases(name)


def run_random() -> list[dict[str, Any]]:
    """What became of the random cases: a row a class."""
    rows = []
    for name in scheduler_classes():
        verdicts = [verdict(case) for case in cases_of(name, PER_CLASS)]
        equal = [each.distance for each in verdicts if each.kind == "equal" and each.distance]
        rows.append({
            "scheduler": name,
            "kinds": Counter(each.kind for each in verdicts),
            "reasons": Counter(
                each.text.split(";")[0] for each in verdicts if each.kind == "different"
            ),
            "float64": max((each["float64"] for each in equal), default=0.0),
            "float32": max((each["float32"] for each in equal), default=0.0),
            "median32": float(np.median([each["float32"] for each in equal])) if equal else 0.0,
        })  # fmt: skip
        print(name, dict(rows[-1]["kinds"]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--afresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--table", action="store_true", help="write the table of what there is")
    parser.add_argument("--random", action="store_true", help="the random configurations alone")
    parser.add_argument("--unet", metavar="CHECKPOINT", help="also with this checkpoint's UNet")
    arguments = parser.parse_args()
    import diffusers
    import torch

    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    RESULTS.parent.mkdir(exist_ok=True)
    if arguments.random:
        _save(run_random(), RANDOM)
        write_table(json.loads(RESULTS.read_text()), json.loads(RANDOM.read_text()))
        return
    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    if RESULTS.exists() and not arguments.afresh:
        for row in json.loads(RESULTS.read_text()):
            known[row["scheduler"], row["case"], row["model"]] = row
    unet = unet_model(arguments.unet) if arguments.unet else None
    saved, rows = time.perf_counter(), []
    for case in all_cases():
        models = {"linear": linear_model(case.sampler.family)}
        if case.label == "as published" and case.sampler.family == "diffusion" and unet:
            models["UNet"] = unet
        for name in ("linear", "UNet"):
            key = (case.scheduler, case.label, name)
            if key not in known and name in models and not arguments.table:
                known[key] = compare(case, name, models[name])
                if time.perf_counter() - saved > 5:
                    saved = time.perf_counter()
                    _save(list(known.values()))
                    print(f"{len(known)} cases, last {' '.join(key)[:90]}", flush=True)
            if key in known:
                rows.append(known[key])
    _save(rows)
    write_table(json.loads(RESULTS.read_text()), json.loads(RANDOM.read_text()))


def _save(rows: list[dict[str, Any]], path: Path = RESULTS) -> None:
    lines = ",\n".join(json.dumps(_short(row), separators=(",", ":")) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return float(f"{value:.2g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
