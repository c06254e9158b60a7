"""Passes from ONNX to ONNX; they touch structure only and never read external weights."""

GRAPH_VERSION = 5
"""Part of every engine's fingerprint: raise it when a pass makes another graph than before."""
