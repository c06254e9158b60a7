"""Manifests as earlier versions wrote them, made from one of the present format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_format_3(value: Mapping[str, Any]) -> dict[str, Any]:
    """The document of format 3: the model's facts are fields of the manifest."""
    model = value["model"]
    (encoder,) = model["text_encoders"]
    rest = {name: one for name, one in value.items() if name not in ("model", "digest")}
    return rest | {
        "format": 3,
        "latent_channels": model["latents"]["channels"],
        "latent_scale": model["latents"]["scale"],
        "scaling_factor": model["latents"]["scaling_factor"],
        "shift_factor": model["latents"]["shift_factor"],
        "tokens": encoder["tokens"],
        "embedding_dim": encoder["width"],
        "text_layers": encoder["skippable_layers"],
        "embedded_guidance": model["guidance"] == "embedded",
    }


def as_format_2(value: Mapping[str, Any]) -> dict[str, Any]:
    """The document of format 2: another name of a comparison, and no field that says nothing."""
    older = as_format_3(value) | {"format": 2}
    for name in ("builder", "half_check", "stages"):
        if not older[name] or older[name] == {}:
            del older[name]
    for one in (older.get("parity") or {}).get("comparisons", ()):
        if one["what"] == "images":
            one["what"] = "pictures"
    return older
