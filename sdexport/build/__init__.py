"""Making bundles: options, engines, and the two ways in (a checkpoint, an ONNX folder)."""

from sdexport.errors import MissingExtraError
from sdexport.extras import BUILD, EXPORT_EXTRAS, install_command

try:
    from sdexport.build.checkpoint import compile_checkpoint
    from sdexport.build.folder import build_folder
    from sdexport.build.options import BuildOptions
    from sdexport.build.report import BuildReport, StageRecord
except ModuleNotFoundError as error:
    # The graph stage imports them at its top: here it is said for every name of this package.
    if error.name not in BUILD:
        raise
    raise MissingExtraError(
        f"building engines needs {error.name}, which is not installed; from a checkpoint: "
        f"{install_command(*EXPORT_EXTRAS)}; from an ONNX folder: {install_command('build')}"
    ) from None

__all__ = ["BuildOptions", "BuildReport", "StageRecord", "build_folder", "compile_checkpoint"]
