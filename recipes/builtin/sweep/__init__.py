"""The effect that AutoLoRA is about, measured on the built-in model: Table 1 of arXiv 2410.03941 in small."""
