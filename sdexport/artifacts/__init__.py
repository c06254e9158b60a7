"""What lies on disk: bundles, ONNX folders, recipes, and how they are read and written."""
