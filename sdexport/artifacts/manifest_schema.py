"""What `bundle.json` may hold, as a JSON Schema; `bundle.Manifest` says what it means."""

from __future__ import annotations

from typing import Any

from sdexport.model.shapes import COMPONENTS

LARGEST = 1 << 24
"""Of a length in pixels, tokens or channels: far beyond any model, and no product overflows."""

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 1 << 62}
_LENGTH = {"type": "integer", "minimum": 1, "maximum": LARGEST}
_FACTOR = {"type": "number", "minimum": -1e30, "maximum": 1e30}
_RANGE = {"type": "array", "items": _LENGTH, "minItems": 3, "maxItems": 3}
_SIZE = {"type": "array", "items": _LENGTH, "minItems": 2, "maxItems": 2}
_RANGES = {"batch": _RANGE, "height": _RANGE, "width": _RANGE}
_SPEC = {
    "type": "object",
    "required": ["name", "dtype", "shape"],
    "properties": {
        "name": _TEXT,
        "dtype": _TEXT,
        "shape": {"type": "array", "items": {"type": "integer"}},
    },
}
_SPECS = {"type": "array", "items": _SPEC}

RELATIVE_FILE = {
    "type": "string",
    # No backslash or NUL; no name of dots alone; neither absolute nor empty.
    "pattern": r"(?!\.+(/|$))[^\\/\0]+(/(?!\.+(/|$))[^\\/\0]+)*",
}
"""The name of a file in a bundle, below the bundle's own folder."""

_COMPARISON = {
    "type": "object",
    "required": ["what", "rms", "largest", "allowed", "ok"],
    "properties": {
        "what": _TEXT,
        "rms": {"type": "number"},
        "largest": {"type": "number"},
        "allowed": {"type": "number"},
        "ok": {"type": "boolean"},
    },
}
_PARITY = {
    "type": ["object", "null"],
    "required": ["ok"],
    "properties": {
        "ok": {"type": "boolean"},
        "comparisons": {"type": "array", "items": _COMPARISON},
        "size": _SIZE,
        "target": _TEXT,
        "precision": _TEXT,
        "seconds": {"type": "number"},
    },
}
_HALF_ENGINE = {
    "type": "object",
    "required": ["kept_float32", "largest", "rms"],
    "properties": {
        "kept_float32": _COUNT,
        "largest": {"type": ["number", "string"]},
        "rms": {"type": ["number", "string"]},
    },
}
_HALF_CHECK = {
    "type": ["object", "null"],
    "required": ["engines", "size", "device", "prompts", "steps", "limit"],
    "properties": {
        "engines": {"type": "object", "additionalProperties": _HALF_ENGINE},
        "size": _SIZE,
        "device": _TEXT,
        "prompts": {"type": "array"},
        "steps": _COUNT,
        "limit": {"type": "number"},
    },
}

MADE_FROM: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"enum": list(COMPONENTS)},
    "additionalProperties": {
        "type": "object",
        "required": ["checkpoint"],
        "properties": {"checkpoint": {"type": "object", "additionalProperties": _TEXT}},
    },
}
"""What the export record says each component was made from; digests by path in the checkpoint."""

MANIFEST: dict[str, Any] = {
    "type": "object",
    "required": [
        *("name", "target", "library", "precision", "profile", "default_size", "engines"),
        *("latent_channels", "latent_scale", "tokens", "embedding_dim", "text_layers"),
        *("embedded_guidance", "scaling_factor", "shift_factor", "default_guidance", "parity"),
        *("files", "export", "built_with"),
    ],
    "properties": {
        "name": _TEXT,
        "target": _TEXT,
        "library": _TEXT,
        "precision": {"enum": ["fp32", "fp16", "bf16"]},
        "profile": {
            "type": "object",
            "required": ["batch", "height", "width"],
            "properties": {
                **_RANGES,
                "others": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["batch", "height", "width"],
                        "properties": _RANGES,
                        "additionalProperties": False,
                    },
                },
            },
            "additionalProperties": False,
        },
        "default_size": _SIZE,
        "latent_channels": _LENGTH,
        "latent_scale": _LENGTH,
        "tokens": _LENGTH,
        "embedding_dim": _LENGTH,
        "text_layers": _COUNT,
        "embedded_guidance": {"type": "boolean"},
        "scaling_factor": _FACTOR,
        "shift_factor": _FACTOR,
        "default_guidance": _FACTOR,
        "parity": _PARITY,
        "half_check": _HALF_CHECK,
        "export": {"type": "object", "properties": {"made_from": MADE_FROM}},
        "built_with": {"type": "object", "additionalProperties": _TEXT},
        "builder": {
            "type": "object",
            "properties": {
                "compute_capabilities": {
                    "type": "array",
                    "items": {"type": "string", "pattern": r"sm[0-9]{2,3}"},
                },
                "workspace": _COUNT,
                "hardware_compatibility": _TEXT,
                "version_compatible": {"type": "boolean"},
                "strip_weights": {"type": "boolean"},
            },
        },
        "stages": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "seconds"],
                "properties": {"name": _TEXT, "seconds": {"type": "number"}},
            },
        },
        "engines": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["file", "fingerprint", "parameters", "flops"],
                "properties": {
                    "file": RELATIVE_FILE,
                    "fingerprint": _TEXT,
                    "parameters": _COUNT,
                    "flops": _COUNT,
                    "built": {
                        "type": "object",
                        "properties": {
                            "inputs": _SPECS,
                            "outputs": _SPECS,
                            "activation_bytes": {"type": ["integer", "null"]},
                            "not_checked": {"type": "array", "items": _TEXT},
                        },
                    },
                },
                "additionalProperties": False,
            },
        },
        "files": {
            "type": "object",
            "propertyNames": RELATIVE_FILE,
            "additionalProperties": {
                "type": "object",
                "required": ["bytes", "sha256"],
                "properties": {
                    "bytes": _COUNT,
                    "sha256": {"type": "string", "pattern": "[0-9a-f]{64}"},
                },
                "additionalProperties": False,
            },
        },
    },
}
