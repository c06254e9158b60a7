"""The target openvino-cpu."""
