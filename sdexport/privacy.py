"""Telemetry of the libraries that this project uses, turned off before one of them is imported.

`sdexport/__init__.py` calls `turn_off`, so whatever the package imports comes after it, and child
processes inherit the settings. The standard library alone is used here: what runs in another
environment (the peers of the benchmark) loads this file by its path.
"""

from __future__ import annotations

import os
import sys

SETTINGS = {
    # ONNX Runtime 1.32 and newer: a device id and a database of events in the home.
    "ORT_DISABLE_TELEMETRY": "1",
    # huggingface_hub, and through it diffusers, transformers and optimum.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    # https://donottrack.sh, which more and more tools read.
    "DO_NOT_TRACK": "1",
}
"""The environment variables that libraries read, and the values that turn their telemetry off."""

HIDDEN = "openvino_telemetry"
"""The module through which OpenVINO and NNCF send events; no variable turns it off. Both go on
without it where it cannot be imported."""


def turn_off() -> None:
    """Sets `SETTINGS`, whatever they were, and keeps `HIDDEN` from being imported."""
    os.environ.update(SETTINGS)
    # None is how Python marks a module that cannot be imported. One that is already there was
    # imported by somebody else, who decides what it does.
    sys.modules.setdefault(HIDDEN, None)  # type: ignore[arg-type]


def silenced(code: str) -> list[str]:
    """The arguments with which an interpreter that inherits `SETTINGS` runs `code`."""
    return ["-c", f"import sys; sys.modules[{HIDDEN!r}] = None; {code}"]
