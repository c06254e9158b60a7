"""From a prompt to an image: tokens, embeddings, the denoising loop, the decoded image."""
