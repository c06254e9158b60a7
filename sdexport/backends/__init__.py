"""Builds ONNX models into engines and runs engines; one folder per runtime."""
