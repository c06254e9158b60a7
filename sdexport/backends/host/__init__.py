"""Buffers and the denoising loop in host memory."""
