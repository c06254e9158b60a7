"""A results.json of every kind of system, made up: no figure in it was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROMPTS = ["red apple", "snowman", "slice of pizza"]
SEEDS = [1, 2, 3]
EVALUATIONS = 6
SIDE = 64


def results(*, gpu: bool = False) -> dict[str, Any]:
    """JSON values of all that a run can give: systems that work, and every way to fail."""
    rng = np.random.default_rng(5)
    slow = _system(rng, "diffusers", "diffusers eager float32", "diffusers", "fp32", 1.75)
    slow["ratio"] = {"median": 1.0, "low": 1.0, "high": 1.0, "confidence": 0.95, "pairs": 12}
    slow["fidelity"] = _image("same", [(None, 1.0, 0, 1.0, 0.0)] * 3, "it is the baseline")
    quick = _system(rng, "emoji-bf16", "sdexport openvino-cpu bf16", "bundle", "bf16", 0.42)
    quick["ratio"] = {"median": 4.17, "low": 4.02, "high": 4.28, "confidence": 0.95, "pairs": 12}
    quick["fidelity"] = _image("close", [(41.2, 0.995, 33, 0.9996, 0.04)] * 3, "")
    quick["fidelity"]["recognised"] = {"of": 3, "right": 3, "wrong": []}
    quick["roofline"] = _roofline(0.91)
    exact = _system(rng, "emoji-fp32", "sdexport onnxruntime-cpu fp32", "bundle", "fp32", 0.9)
    exact["ratio"] = {"median": 1.94, "low": 1.88, "high": 2.01, "confidence": 0.95, "pairs": 12}
    exact["fidelity"] = _image("same", [(88.0, 1.0, 1, 1.0, 0.0)] * 3, "")
    exact["roofline"] = _roofline(0.74)
    peer = _system(rng, "openvino-genai-bf16", "OpenVINO GenAI (bf16)", "peer", "bf16", 0.55)
    peer["ratio"] = {"median": 3.18, "low": 3.05, "high": 3.3, "confidence": 0.95, "pairs": 12}
    peer["fidelity"] = _image(
        "different", [(12.0, 0.41, 251, None, 1.3)] * 3, "image 0 (red apple): SSIM 0.410"
    )
    _forget_stages(peer)
    peer["setup"] = ["openvino_genai.Text2ImagePipeline(models, 'CPU')", "reshaped to 64×64"]
    peer["peak_device_bytes"] = None
    even = _system(rng, "diffusers-compile", "diffusers, torch.compile", "diffusers", "fp32", 1.74)
    even["ratio"] = {"median": 1.005, "low": 0.98, "high": 1.03, "confidence": 0.95, "pairs": 12}
    even["fidelity"] = _image("same", [(90.0, 1.0, 1, 1.0, 0.0)] * 3, "")
    even["group"] = 1
    even["first_seconds"] = 61.3
    unknown = _system(rng, "stable-diffusion.cpp", "stable-diffusion.cpp", "peer", "fp32", 2.4)
    unknown["ratio"] = {"median": 0.73, "low": 0.7, "high": 0.75, "confidence": 0.95, "pairs": 12}
    unknown["fidelity"] = None
    _forget_stages(unknown)
    systems = [
        slow,
        quick,
        exact,
        peer,
        even,
        unknown,
        _broken("optimum-onnx", "crashed", "ended with signal 11 (SIGSEGV) in round 3"),
        _broken("optimum-intel-int8", "hung", "no answer for 120 s while generating"),
        _broken("stable-fast", "failed", "ImportError: no module named 'xformers'"),
        _broken("optimum-intel-late", "ok", ""),
    ]
    if gpu:
        card = _system(rng, "emoji-rtx", "sdexport tensorrt-rtx fp16", "bundle", "fp16", 0.05)
        card |= {"device": "cuda", "peak_device_bytes": 1_740_000_000}
        for turn in card["rounds"]:
            turn["joules"] = 9.1
        card["ratio"] = {"median": 35.0, "low": 33.0, "high": 36.5, "confidence": 0.95, "pairs": 12}
        card["fidelity"] = _image("close", [(40.0, 0.99, 40, 0.999, 0.05)] * 3, "")
        systems.append(card)
    return {
        "schema": 2,
        "created": "2026-11-25T03:00:00+00:00",
        "complete": True,
        "effort": {"rounds": 10, "seconds": 10.0, "at_once": None, "timeout": 900.0},
        "command": "sdexport bench run emoji-bf16 emoji-fp32 --checkpoint checkpoint --rounds 12",
        "scenario": {
            "name": "made up for a test",
            "checkpoint": "checkpoint",
            "prompts": PROMPTS,
            "negative_prompt": "",
            "seeds": SEEDS,
            "width": SIDE,
            "height": SIDE,
            "batch": 1,
            "steps": EVALUATIONS - 1,
            "sampler": "pndm",
            "guidance": 2.5,
            "threads": 2,
        },
        "machine": {
            "system": "Linux 6.1",
            "processor": "A Processor That Does Not Exist",
            "cores": 2,
            "flags": ["avx2", "avx512_bf16", "avx512f"],
            "memory_bytes": 24 * 2**30,
            "gpus": [{"name": "A GPU That Does Not Exist"}] if gpu else [],
            "load_before": [0.1, 0.3, 0.4],
            "load_after": [2.0, 1.7, 1.1],
            "python": "3.11.9",
            "libraries": {"numpy": "2.4.6", "openvino": "2026.4.1"},
            "thread_settings": {"OMP_NUM_THREADS": "2", "KMP_AFFINITY": "granularity=fine"},
        },
        "peaks": {
            "compute": {
                "fp32": _product(1.8e11),
                "bf16": _product(4.0e11),
            },
            "memory": {
                "bytes_per_second": 3.1e10,
                "how": "a copy of 512 MiB",
                "operations": {"copy": [3.1e10, 3.0e10]},
            },
        },
        "baseline": "diffusers",
        "systems": systems,
    }


def _system(
    rng: np.random.Generator, name: str, title: str, kind: str, precision: str, seconds: float
) -> dict[str, Any]:
    rounds, at = [], 0.0
    for _ in range(12):
        total = seconds * float(1 + 0.01 * rng.standard_normal() + 0.02 * rng.exponential())
        each = total * 0.95 / EVALUATIONS
        rounds.append(
            {
                "at": at,
                "total": total,
                "text_encoder": total * 0.01,
                "evaluations": [each] * EVALUATIONS,
                "vae_decoder": total * 0.03,
            }
        )
        at += total + 3
    totals = np.array([one["total"] for one in rounds])

    def summed(share: float) -> dict[str, float]:
        return {
            "p50": float(np.percentile(totals, 50)) * share,
            "p90": float(np.percentile(totals, 90)) * share,
            "p99": float(np.percentile(totals, 99)) * share,
            "mean": float(totals.mean()) * share,
            "stdev": float(totals.std(ddof=1)) * share,
            "min": float(totals.min()) * share,
            "max": float(totals.max()) * share,
        }

    return {
        "name": name,
        "title": title,
        "kind": kind,
        "status": "ok",
        "why": "",
        "stderr_tail": [],
        "group": 0,
        "precision": precision,
        "device": "cpu",
        "threads": 2,
        "versions": {"torch": "2.13.0"} if kind == "diffusers" else {"openvino": "2026.4.1"},
        "setup": ["set up as its documentation recommends", "channels last"],
        "notes": [],
        "bytes": 25_000_000,
        "build_seconds": 12.5 if kind == "bundle" else None,
        "load_seconds": 1.2,
        "first_seconds": seconds * 1.6,
        "warmup_seconds": [seconds * 1.1, seconds],
        "rounds": rounds,
        "model_calls": EVALUATIONS,
        "peak_host_bytes": 800_000_000,
        "peak_device_bytes": None,
        "summary": {
            "total": summed(1),
            "text_encoder": summed(0.01),
            "evaluation": summed(0.95 / EVALUATIONS),
            "vae_decoder": summed(0.03),
            "rest": summed(0.01),
            "images_per_second": 1 / float(totals.mean()),
        },
        "ratio": None,
        "fidelity": None,
        "roofline": None,
    }


def _product(speed: float) -> dict[str, Any]:
    return {
        "flops_per_second": speed,
        "library": "openvino",
        "size": 2048,
        "samples": [speed],
        "others": [],
    }


def _forget_stages(system: dict[str, Any]) -> None:
    """As a peer does that tells only of whole images."""
    for one in system["rounds"]:
        one |= {"text_encoder": None, "evaluations": None, "vae_decoder": None}
    for stage in ("text_encoder", "evaluation", "vae_decoder", "rest"):
        system["summary"][stage] = None
    system["model_calls"] = None


def _image(
    verdict: str, images: list[tuple[float | None, float, int, float | None, float]], why: str
) -> dict[str, Any]:
    names = ("psnr", "ssim", "largest", "latent_cosine", "relative")
    return {
        "verdict": verdict,
        "why": why,
        "images": [
            {"prompt": prompt, "seed": seed} | dict(zip(names, figures, strict=True))
            for prompt, seed, figures in zip(PROMPTS, SEEDS, images, strict=True)
        ],
        "recognised": None,
    }


def _roofline(share: float) -> dict[str, Any]:
    def stage(flops: float, size: float, part: float) -> dict[str, Any]:
        return {
            "flops": int(flops),
            "bytes": int(size),
            "seconds": 0.01,
            "flops_per_second": 4e11 * part,
            "share_of_compute": part,
            "share_of_bandwidth": 0.2,
            "bound": "compute" if part > 0.5 else "memory",
        }

    return {
        "text_encoder": stage(1.3e8, 4e6, share * 0.4),
        "evaluation": stage(2.4e9, 3e7, share),
        "vae_decoder": stage(2.5e9, 2e7, share * 0.9)
        | {"note": "a note on this stage", "bound": None, "share_of_bandwidth": None},
        "total": stage(2.0e10, 2e8, share * 0.95),
    }


def _broken(name: str, status: str, why: str) -> dict[str, Any]:
    """A system that did not come to its figures: it may know nothing of itself."""
    return {
        "name": name,
        "title": name,
        "kind": "peer",
        "status": status,
        "why": why,
        "stderr_tail": ["the last that was written"],
        "group": 0,
        "precision": None,
        "device": None,
        "threads": None,
        "versions": {},
        "setup": [],
        "notes": [],
        "bytes": None,
        "build_seconds": None,
        "load_seconds": None,
        "first_seconds": None,
        "warmup_seconds": [],
        "rounds": [],
        "model_calls": None,
        "peak_host_bytes": None,
        "peak_device_bytes": None,
        "summary": None,
        "ratio": None,
        "fidelity": None,
        "roofline": None,
    }


def image(index: int) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3): one of several discs on white."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    inside = (x - 32) ** 2 + (y - 30 - 3 * index) ** 2 < (12 + 5 * index) ** 2
    colour = np.array([(200, 20, 20), (20, 120, 220), (240, 180, 30)][index % 3])
    return np.where(inside[..., None], colour, 255).astype(np.uint8)


def write_images(found: dict[str, Any], folder: Path) -> None:
    """As the harness leaves them: images/<system>/<k>.png of each that works."""
    rng = np.random.default_rng(1)
    for system in found["systems"]:
        if system["status"] != "ok" or system["fidelity"] is None:
            continue
        own = folder / "images" / system["name"]
        own.mkdir(parents=True)
        verdict = system["fidelity"]["verdict"]
        for index in range(len(found["scenario"]["prompts"])):
            pixels = image(index).astype(int)
            if verdict == "close":
                pixels = pixels + rng.integers(-3, 4, pixels.shape)
            elif verdict == "different":
                pixels = rng.integers(0, 256, pixels.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(own / f"{index}.png")
