"""The CUDA driver API, and a denoising loop on a GPU over it."""
