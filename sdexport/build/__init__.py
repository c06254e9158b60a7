"""Making bundles: options, engines, and the two ways in (a checkpoint, an ONNX folder)."""

from sdexport.build.checkpoint import compile_checkpoint
from sdexport.build.folder import build_folder
from sdexport.build.options import BuildOptions
from sdexport.build.report import BuildReport, StageRecord

__all__ = ["BuildOptions", "BuildReport", "StageRecord", "build_folder", "compile_checkpoint"]
