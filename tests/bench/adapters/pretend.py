"""A system that pretends to generate: takes as long as it is told, and goes wrong as it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

FOREVER = 600


class Pretend:
    """Options: `seconds` a turn, `goes` wrong in turn `turn`, `noise`, `pids` (a file to note).

    Also `says` (what describe() says instead) and `tells` (what generate() says instead).
    """

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        self.scenario, self.options, self.turn = scenario, options, 0
        if "pids" in options:
            child = subprocess.Popen(["sleep", str(FOREVER)])
            with Path(options["pids"]).open("a") as file:
                file.write(f"{os.getpid()} {child.pid}\n")
        print("a library prints something")
        if options.get("turn") == 0:
            self._go_wrong()

    def describe(self) -> dict[str, Any]:
        return {
            "precision": "fp32",
            "device": "cpu",
            "threads": np.int64(1),
            "versions": {"pretend": "1"},
            "setup": [f"pretend in {Path.cwd()}/somewhere"],
            "bytes": 1000,
            "notes": [],
        } | self.options.get("says", {})

    def generate(self) -> dict[str, Any]:
        self.turn += 1
        if self.turn == self.options.get("turn"):
            self._go_wrong()
        if "pids" in self.options:
            with Path(f"{self.options['pids']}-turns").open("a") as file:
                file.write(".")
        time.sleep(self.options.get("seconds", 0.002))
        if self.turn == 1:
            time.sleep(self.options.get("cold", 0))
        shape = (len(self.scenario["seeds"]), self.scenario["height"], self.scenario["width"], 3)
        images = np.zeros(shape, np.uint8) + 10 * np.arange(shape[2], dtype=np.uint8)[:, None]
        if self.options.get("goes") == "astray" and self.turn == 1:
            images = 255 - images
        if self.options.get("noise"):
            images = np.random.default_rng(self.turn).integers(0, 256, shape).astype(np.uint8)
        if self.options.get("goes") == "small":
            images = images[:, ::2]
        return {
            "images": images,
            "latents": np.ones((shape[0], 4, 2, 2), np.float32),
            "text_encoder": 1e-4 if self.options.get("stages", True) else None,
            "evaluations": [1e-4, 2e-4] if self.options.get("stages", True) else None,
            "vae_decoder": 1e-4 if self.options.get("stages", True) else None,
            "model_calls": 2,
        } | self.options.get("tells", {})

    def _go_wrong(self) -> None:
        kind = self.options["goes"]
        print(f"about to go wrong: {kind}", file=sys.stderr, flush=True)
        if kind == "raise":
            raise ValueError("the model is made of cheese")
        if kind == "exit":
            os._exit(3)
        if kind == "forked":
            if os.fork() == 0:
                time.sleep(FOREVER)
            os._exit(4)
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang":
            time.sleep(FOREVER)


def prepare(checkpoint: str, folder: str, options: dict[str, Any]) -> None:
    if options.get("goes") == "prepare":
        raise OSError("no converter here")
    (Path(folder) / "model.txt").write_text(checkpoint)


def load(scenario: dict[str, Any], options: dict[str, Any]) -> Pretend:
    if "prepared" in options:
        assert (Path(options["prepared"]) / "model.txt").read_text() == scenario["checkpoint"]
    return Pretend(scenario, options)
