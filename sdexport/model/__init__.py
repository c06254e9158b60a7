"""Describes models: components, precisions, native size and shape profiles."""
