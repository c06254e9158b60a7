"""The command that installs an extra of this project, as it can be given on this machine today."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "sdexport"
EXPORT = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "onnx",
    "onnxscript",
    # An exported graph is run once and compared with PyTorch.
    "onnxruntime",
)
"""What reading, exporting and comparing checkpoints imports."""

EXPORT_EXTRAS = ("export", "onnxruntime")
"""The extras that bring `EXPORT`. ONNX Runtime is one of its own, because its build for GPUs has
the same import name."""

BUILD = ("onnx",)
"""What building engines from an ONNX folder imports, whatever the target."""


def install_command(*extras: str) -> str:
    """The command that adds `extras` to what is installed.

    No index has this project: it is installed again from where it came, a checkout or a wheel.
    Where that is no longer there, the libraries of the extras are named instead.
    """
    names = f"[{','.join(extras)}]"
    # A checkout that is on the path stands before the installed package, and says no origin.
    found = importlib.metadata.distributions(name=DISTRIBUTION)
    texts = [text for one in found if (text := one.read_text("direct_url.json")) is not None]
    if not texts:
        checkout = Path(__file__).parent.parent
        if (checkout / "pyproject.toml").exists():
            return f'pip install -e "{checkout}{names}"'
        return f'pip install "{DISTRIBUTION}{names}"'
    origin = json.loads(texts[0])
    url = urlsplit(origin["url"])
    place = Path(unquote(url.path))
    if url.scheme == "file" and place.exists():
        editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return f'pip install {editable}"{place}{names}"'
    if url.scheme != "file":
        return f'pip install "{DISTRIBUTION}{names} @ {origin["url"]}"'
    wanted = " ".join(f'"{requirement}"' for requirement in requirements(*extras))
    return f"pip install {wanted}"


def requirements(*extras: str) -> list[str]:
    """What `extras` require beside the base, as `name>=version`."""
    found = []
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        named = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if named and named[1] in extras and requirement not in found:
            found.append(requirement)
    return found


def missing(modules: tuple[str, ...]) -> list[str]:
    """Those of `modules` that are not installed; none of them is imported."""
    return [name for name in modules if not _is_installed(name)]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # Its package is missing, or it has no specification.
        return False
