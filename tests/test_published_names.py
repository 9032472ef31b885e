"""The networks that published configs describe have exactly the published tensors, and their files lead into them."""

import pytest
from flax import traverse_util

from autolora_jax.config import CLIPTextConfig, MMDiTConfig, T5Config, UNetConfig, VAEConfig
from autolora_jax.models.networks import shapes_of
from autolora_jax.weights.rules import examine
from autolora_jax.weights.tables import stages_for, torch_name
from tests.checkpoint_files import key_list

# Config's folder, key list, config.
PUBLISHED = [
    ("sdxl-base-1.0/unet", "sdxl-base-1.0/unet", UNetConfig),
    ("sdxl-base-1.0/vae", "sdxl-base-1.0/vae", VAEConfig),
    ("sdxl-base-1.0/vae_1_0", "sdxl-base-1.0/vae", VAEConfig),
    ("sdxl-vae-fp16-fix", "sdxl-base-1.0/vae", VAEConfig),
    ("sdxl-base-1.0/text_encoder", "sdxl-base-1.0/text_encoder", CLIPTextConfig),
    ("sdxl-base-1.0/text_encoder_2", "sdxl-base-1.0/text_encoder_2", CLIPTextConfig),
]
# SD3.5's text encoders are SD3's, Large's VAE is Medium's.
for _model, _vae in (("sd3-medium", "sd3-medium"), ("sd3.5-medium", "sd3.5-medium"), ("sd3.5-large", "sd3.5-medium")):
    PUBLISHED += [
        (f"{_model}/transformer", f"{_model}/transformer", MMDiTConfig),
        (f"{_model}/vae", f"{_vae}/vae", VAEConfig),
        (f"{_model}/text_encoder", "sd3-medium/text_encoder", CLIPTextConfig),
        (f"{_model}/text_encoder_2", "sd3-medium/text_encoder_2", CLIPTextConfig),
        (f"{_model}/text_encoder_3", "sd3-medium/text_encoder_3", T5Config),
    ]


@pytest.mark.parametrize("folder, names, config", PUBLISHED)
def test_the_network_has_the_published_tensors(facts, folder, names, config):
    config = config.from_file(facts / "configs" / folder / "config.json")
    shapes = shapes_of(config)
    leaves = traverse_util.flatten_dict(shapes, sep="/").items()
    ours = {torch_name(path, leaf.ndim): torch_shape(path, leaf.shape) for path, leaf in leaves}
    published = key_list(facts / "keys" / f"{names}.txt")
    assert ours == published
    found = examine(published, stages_for(config), shapes)
    assert not found.problems and not found.dropped


def test_single_files_of_t5_have_its_embeddings_twice(facts):
    published = key_list(facts / "keys/sd3-medium/t5xxl_fp16_single.txt")
    found = examine(published, stages_for(T5Config()), shapes_of(T5Config()))
    assert not found.problems and list(found.dropped) == ["encoder.embed_tokens.weight"]


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """[kh kw in out] -> [out in kh kw], [in out] -> [out in]; tables stay as they are."""
    if path.endswith(("embedding", "pos_embed")):
        return shape
    return shape[:1:-1] + shape[:2] if len(shape) == 4 else shape[::-1]
