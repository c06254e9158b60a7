"""From a prompt to a picture: tokens, embeddings, the denoising loop, the decoded image."""
