"""What is compared with diffusers: every scheduler class with each of its options in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sdexport.sampling import Sampler, find_sampler, stable_diffusion_config
from sdexport.sampling.schedulers import SchedulerOptions

Array = npt.NDArray[Any]
COSINE = {"beta_schedule": "squaredcos_cap_v2"}


@dataclass(frozen=True)
class Case:
    """One scheduler class with one change to Stable Diffusion's (or its own) configuration.

    scheduler  the class in diffusers
    label      what is changed, for a table
    config     the whole configuration, as `from_config` and `compile_plan` get it
    run        further arguments of `compile_plan`
    set_timesteps, step  the same for diffusers
    own        whether timesteps or sigmas are given, so that there is one count of steps
    """

    scheduler: str
    label: str
    config: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    set_timesteps: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    own: bool = False

    @property
    def sampler(self) -> Sampler:
        """The sampler that the class's name finds."""
        return find_sampler(self.scheduler)


def base_config(sampler: Sampler) -> dict[str, Any]:
    """Stable Diffusion 1.5's configuration, or the class's own for other kinds of model."""
    if sampler.family != "diffusion":
        return {"_class_name": sampler.scheduler.name}
    config = stable_diffusion_config() | {"_class_name": sampler.scheduler.name}
    # Each class's own spacing, as its config file would have it.
    config["timestep_spacing"] = sampler.scheduler.reads.get("timestep_spacing", "linspace")
    return config


def cases(scheduler: str) -> Iterator[Case]:
    """All cases of a diffusers class, its plain configuration first."""
    sampler = find_sampler(scheduler)
    options = sampler.scheduler
    base = base_config(sampler)
    for change in _changes(options):
        label = ", ".join(f"{key}={_short(value)}" for key, value in change.items())
        label = label or "as published"
        yield Case(scheduler, label, base | change)
    yield from _runs(scheduler, options, base)


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 10:
        return f"{len(value)} numbers"
    return str(value)


def _changes(options: SchedulerOptions) -> Iterator[dict[str, Any]]:
    """Each option's other values alone, and the pairs that act on each other."""
    reads, accepts = options.reads, options.accepts
    yield {}
    many = {
        "num_train_timesteps": [500],
        "steps_offset": [0],
        "beta_schedule": [v for v in accepts.get("beta_schedule", ()) if v != "scaled_linear"],
        "lambda_min_clipped": [-5.1],
        "flow_shift": [],
        "shift": [3.0],
        "sigma_min": [],
        "shift_terminal": [],
        "timestep_scaling": [7.0],
        "original_inference_steps": [100],
        "sigma_data": [1.0],
        "rho": [5.0],
        "disable_corrector": [[0, 2]],
        "timestep_type": [],
        "time_shift_type": [],
        "use_dynamic_shifting": [],
        "trained_betas": [],
        "noise_sampler_seed": [],
        "upscale_mode": [],
        "sigma_max": [],
        "clip_sample": [],
    }
    for option, default in reads.items():
        values = many.get(option)
        if values is None and option in accepts:
            values = [value for value in accepts[option] if value not in (default, None)]
        elif values is None and isinstance(default, bool):
            values = [not default]
        for value in values or ():
            change = {option: value}
            if value in ("dpmsolver", "sde-dpmsolver"):
                change["final_sigmas_type"] = "sigma_min"
            if value == "flow_prediction":
                change["use_flow_sigmas"] = True
            yield change
    yield from _combinations(options)


def _combinations(options: SchedulerOptions) -> Iterator[dict[str, Any]]:
    reads = options.reads
    spacings = [f"use_{name}_sigmas" for name in options.spacings]
    if "trained_betas" in reads and "beta_start" in reads:
        yield {"trained_betas": np.linspace(0.001, 0.015, 1000).tolist()}
    if "steps_offset" in reads:
        yield COSINE | {"timestep_spacing": "trailing"}
    if "rescale_betas_zero_snr" in reads:
        yield {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        }
    for spacing in spacings:
        if "final_sigmas_type" in reads:
            yield {spacing: True, "final_sigmas_type": "sigma_min"}
        if "prediction_type" in reads:
            yield {spacing: True, "prediction_type": "v_prediction"}
        if "beta_schedule" in reads:
            yield {spacing: True} | COSINE
    if "interpolation_type" in reads:
        yield {
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
            "use_karras_sigmas": True,
            "sigma_min": 0.002,
            "sigma_max": 700.0,
        }
    if "set_alpha_to_one" in reads and "trailing" in options.accepts.get("timestep_spacing", ()):
        yield {"set_alpha_to_one": True, "timestep_spacing": "trailing"}
    if "use_flow_sigmas" in reads:
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        yield flow | {"flow_shift": 3.0}
        if "solver_order" in reads:
            yield flow | {"flow_shift": 3.0, "solver_order": 3}
        if "shift_terminal" in reads:
            yield flow | {"shift_terminal": 0.02, "final_sigmas_type": "sigma_min"}
            yield flow | {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 100.0}
    elif "shift_terminal" in reads:
        yield {"shift": 3.0, "shift_terminal": 0.02}
    algorithms = options.accepts.get("algorithm_type", ())
    solvers = options.accepts.get("solver_type", (None,))
    orders = [o for o in options.accepts.get("solver_order", ()) if o != 2]
    for algorithm in algorithms:
        final = {"final_sigmas_type": "sigma_min"} if str(algorithm).endswith("dpmsolver") else {}
        for solver in solvers if len(algorithms) > 1 else ():
            for order in (*orders, 2):
                if "solver_order" in reads and (algorithm, order) != ("sde-dpmsolver", 3):
                    yield {
                        "algorithm_type": algorithm,
                        "solver_type": solver,
                        "solver_order": order,
                    } | final
        for prediction in ("v_prediction", "sample"):
            if prediction in options.accepts.get("prediction_type", ()) and len(algorithms) > 1:
                yield {"algorithm_type": algorithm, "prediction_type": prediction} | final
    if "predict_x0" in reads:
        final = {"final_sigmas_type": "sigma_min"}
        for order in (1, 2, 3):
            for solver in ("bh1", "bh2"):
                yield {"solver_order": order, "solver_type": solver} | final
                yield {"solver_order": order, "solver_type": solver, "predict_x0": False} | final
        yield {"lower_order_final": False, "solver_order": 3} | final
        yield {"predict_x0": False, "prediction_type": "v_prediction"} | final
        yield {"predict_x0": False, "prediction_type": "sample"} | final
    if "predictor_order" in reads:
        for predictor, corrector in ((1, 1), (3, 2), (2, 3), (3, 4), (4, 4)):
            for algorithm in ("data_prediction", "noise_prediction"):
                yield {
                    "predictor_order": predictor,
                    "corrector_order": corrector,
                    "algorithm_type": algorithm,
                }
    if "lower_order_final" in reads and 3 in orders:
        yield {"lower_order_final": False, "solver_order": 3} | (
            {"final_sigmas_type": "sigma_min"} if "final_sigmas_type" in reads else {}
        )


TIMESTEPS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
"""Align Your Steps for Stable Diffusion (2404.14507), as diffusers' `AysSchedules` has it."""
SIGMAS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]


def _runs(scheduler: str, options: SchedulerOptions, base: dict[str, Any]) -> Iterator[Case]:
    """Arguments that are no part of a config: η, own timesteps, own sigmas, a shift."""
    if scheduler in ("DDIMScheduler", "TCDScheduler"):
        for eta in (0.3, 1.0):
            yield Case(scheduler, f"eta={eta}", base, {"eta": eta}, step={"eta": eta})
    flow = "shift" in options.reads
    if "timesteps" in options.own:
        given = {"timesteps": TIMESTEPS}
        yield Case(scheduler, "timesteps of one's own", base, given, given, own=True)
    if "sigmas" in options.own and not flow and "use_flow_sigmas" not in options.reads:
        given = {"sigmas": SIGMAS}
        yield Case(scheduler, "sigmas of one's own", base, given, given, own=True)
    if "sigmas" in options.own and (flow or "use_flow_sigmas" in options.reads):
        sigmas = np.linspace(1, 0.1, 8)
        extra = {} if flow else {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        yield Case(
            scheduler,
            "sigmas of one's own",
            base | extra,
            {"sigmas": sigmas.tolist()},
            {"sigmas": sigmas},
            own=True,
        )
    if "use_dynamic_shifting" in options.reads:
        for kind in options.accepts["time_shift_type"]:
            if kind == "linear" and not flow and "shift_terminal" not in options.reads:
                continue  # diffusers' assertion fails
            extra = {} if flow else {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
            extra |= {"use_dynamic_shifting": True, "time_shift_type": kind}
            label = f"use_dynamic_shifting=True, mu=0.9, time_shift_type={kind}"
            yield Case(scheduler, label, base | extra, {"mu": 0.9}, {"mu": 0.9})
