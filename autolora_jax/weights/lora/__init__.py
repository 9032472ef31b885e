"""LoRA files: which layers of a model they change, and by what. Begin with `files.read_lora`."""
