"""The networks that SDXL's published configs describe have exactly the published tensors."""

import pytest
from flax import traverse_util

from autolora_jax.config import CLIPTextConfig, UNetConfig, VAEConfig
from autolora_jax.weights.networks import shapes_of
from autolora_jax.weights.tables import torch_name
from tests.checkpoint_files import key_list

# Config's folder, key list, config.
PUBLISHED = [
    ("sdxl-base-1.0/unet", "unet", UNetConfig),
    ("sdxl-base-1.0/vae", "vae", VAEConfig),
    ("sdxl-base-1.0/vae_1_0", "vae", VAEConfig),
    ("sdxl-vae-fp16-fix", "vae", VAEConfig),
    ("sdxl-base-1.0/text_encoder", "text_encoder", CLIPTextConfig),
    ("sdxl-base-1.0/text_encoder_2", "text_encoder_2", CLIPTextConfig),
]


@pytest.mark.parametrize("folder, names, config", PUBLISHED)
def test_the_network_has_the_published_tensors(facts, folder, names, config):
    shapes = shapes_of(config.from_file(facts / "configs" / folder / "config.json"))
    leaves = traverse_util.flatten_dict(shapes, sep="/").items()
    ours = {torch_name(path, leaf.ndim): torch_shape(path, leaf.shape) for path, leaf in leaves}
    assert ours == key_list(facts / "keys" / "sdxl-base-1.0" / f"{names}.txt")


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """[kh kw in out] -> [out in kh kw], [in out] -> [out in]."""
    if path.endswith("embedding"):
        return shape
    return shape[:1:-1] + shape[:2] if len(shape) == 4 else shape[::-1]
