"""Passes from ONNX to ONNX; they change a graph's structure and never read external weights."""

GRAPH_VERSION = 5
"""Part of every engine's fingerprint: increase it when a pass changes the graphs that it makes."""
