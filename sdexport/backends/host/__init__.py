"""Buffers and the denoising loop in the memory of the processor."""
