"""A built-in stand-in for SDXL, small enough for any machine."""

from autolora_jax.demo.standin import standin_lora, standin_model

__all__ = ["standin_lora", "standin_model"]
