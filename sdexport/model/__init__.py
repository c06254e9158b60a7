"""What a model is: its components, precisions, sizes and shape profiles."""
