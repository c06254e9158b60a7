"""Exports checkpoints to ONNX; the only room that uses PyTorch, which its functions import."""

from sdexport.export.checkpoint import Checkpoint, open_checkpoint
from sdexport.export.export import export_checkpoint
from sdexport.export.report import ComponentReport, ExportReport

__all__ = [
    "Checkpoint",
    "ComponentReport",
    "ExportReport",
    "export_checkpoint",
    "open_checkpoint",
]
