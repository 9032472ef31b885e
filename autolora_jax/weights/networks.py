"""The older name of models.networks, which programs of others import from."""

from autolora_jax.models.networks import Networks, network_of, shapes_of

__all__ = ["Networks", "network_of", "shapes_of"]
