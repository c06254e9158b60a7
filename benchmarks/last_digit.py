"""How far an image moves where the sampler's numbers change in their last digit.

    python benchmarks/last_digit.py BUNDLE [--caption robot] [--times 20]

The emoji that a caption names is generated again and again, each time with every number of the
sampler's table multiplied by 1 plus or minus 1.2e-7 at most, generated with a fixed seed: one or
two steps of float32. Printed is the distance of each image's thumbnail to its emoji, the measure of
`examples/emoji/evaluate.py`, and how far the distances lie apart.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import sdexport
from sdexport.sampling.plan import SamplingPlan

EMOJI = Path(__file__).resolve().parent.parent / "examples" / "emoji"
LAST_DIGIT = 1.2e-7
FIRST_SEED = 1000
"""That of the first caption in `evaluate.py`."""


def changed(plan: SamplingPlan, chance: np.random.Generator) -> SamplingPlan:
    """The plan with its weights changed in their last digit."""
    weights = plan.update_weights
    factors = 1 + chance.uniform(-LAST_DIGIT, LAST_DIGIT, weights.shape)
    return replace(plan, update_weights=(weights * factors).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--caption", default="robot")
    parser.add_argument("--times", type=int, default=20)
    given = parser.parse_args()
    sys.path.insert(0, str(EMOJI))
    import data  # type: ignore[import-not-found]  # lies beside the example, not in a package
    import evaluate  # type: ignore[import-not-found]  # likewise

    captions = [one.caption for one in data.load()]
    if given.caption not in captions:
        raise SystemExit(f"{given.caption} is no caption; see {EMOJI.name}/captions.json")
    index = captions.index(given.caption)
    chance = np.random.default_rng(0)
    distances = []
    with sdexport.load(given.bundle) as pipeline:
        request = pipeline.request(
            given.caption,
            seed=FIRST_SEED + index,
            num_inference_steps=50,
            guidance_scale=2.5,
            width=128,
            height=128,
        )
        for number in range(given.times + 1):
            plan = changed(request.plan, chance) if number else request.plan
            for step in pipeline.steps(replace(request, plan=plan)):
                result = step.result
            (scored,) = evaluate.score(result.images, captions, [index])
            distances.append(scored.rmse)
            print(f"{'changed' if number else 'as it is':8} {scored.rmse:.5f}", flush=True)
    print(f"{given.caption}: {min(distances):.5f} to {max(distances):.5f}")


if __name__ == "__main__":
    main()
