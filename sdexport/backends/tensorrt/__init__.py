"""The targets tensorrt and tensorrt-rtx, whose libraries have the same Python API."""
