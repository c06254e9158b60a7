"""ONNX to engines, and engines on bound buffers; one file a runtime."""
