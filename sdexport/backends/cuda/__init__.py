"""The CUDA driver API, and the denoising loop on a GPU."""
