"""AutoLoRA guidance for LoRA-tuned text-to-image diffusion models, in JAX."""
