"""TensorRT and TensorRT for RTX: one module serves both, since their Python API is the same."""
