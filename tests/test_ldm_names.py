"""The LDM/sgm layout: names computed from the config, against published key lists and diffusers' own converters."""

import dataclasses

import numpy as np
import pytest
import torch

from autolora_jax.config import UNetConfig, VAEConfig
from autolora_jax.models.networks import shapes_of
from autolora_jax.weights import ldm
from autolora_jax.weights.published import SDXL_BASE as SDXL
from autolora_jax.weights.rules import examine, flat_shapes
from autolora_jax.weights.tables import stages_for, torch_name
from tests.checkpoint_files import COMPONENTS, key_list, networks_of, single_file_tensors, state_dict

SINGLE = "single_file_sd_xl_base_1.0.txt"


def names(config) -> list[str]:
    return [torch_name(path, len(shape)) for path, shape in flat_shapes(shapes_of(config)).items()]


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_published_tensor_of_the_folder_has_its_place(facts, component):
    published = key_list(facts / "keys" / "sdxl-base-1.0" / f"{component}.txt")
    config = SDXL[component]
    found = examine(published, stages_for(config), shapes_of(config))
    assert found.problems == []
    assert found.dropped == {}
    assert len(found.assignments) == len(published)


def test_every_published_tensor_of_the_single_file_has_its_place(facts):
    published = key_list(facts / "keys" / "sdxl-base-1.0" / SINGLE)
    assigned, dropped = 0, set()
    for component, prefix in ldm.PREFIXES.items():
        config = SDXL[component]
        mine = {name.removeprefix(prefix): shape for name, shape in published.items() if name.startswith(prefix)}
        stages = (*ldm.stages_for(component, config, names(config)), *stages_for(config))
        found = examine(mine, stages, shapes_of(config))
        assert found.problems == []
        assigned += len({a.source for a in found.assignments})
        dropped |= {prefix + name for name in found.dropped}
    assert assigned + len(dropped) == len(published) == 2515
    assert {name.rsplit(".", 1)[-1] for name in dropped} == {"position_ids", "logit_scale"}


def test_unet_modules_have_kohyas_names(facts):
    """The complete kohya -> diffusers table of SDXL, made by another program."""
    rows = (facts / "lora" / "kohya_to_diffusers_map_sdxl.tsv").read_text().splitlines()[1:]
    unet = [row.split("\t") for row in rows if row.startswith("lora_unet_")]
    assert len(unet) == 788
    for kohya, _, module, _ in unet:
        assert "lora_unet_" + ldm.ldm_module_name(module, UNetConfig()).replace(".", "_") == kohya


def test_names_follow_the_config_not_sdxl():
    deep = UNetConfig(
        block_out_channels=(32, 64, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=4,
    )
    expected = {
        "down_blocks.3.attentions.0.proj_in": "input_blocks.7.1.proj_in",
        "down_blocks.2.downsamplers.0.conv": "input_blocks.6.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.3.1.conv",  # this level has no attention before it
        "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0": (
            "output_blocks.5.1.transformer_blocks.0.attn1.to_out.0"
        ),
        "up_blocks.3.resnets.1.conv_shortcut": "output_blocks.7.0.skip_connection",
    }
    for module, name in expected.items():
        assert ldm.ldm_module_name(module, deep) == name
    assert ldm.ldm_vae_module_name("decoder.up_blocks.0.resnets.0.conv1", VAEConfig(block_out_channels=(32, 32))) == (
        "decoder.up.1.block.0.conv1"
    )


@pytest.mark.parametrize(
    "name", ["down_blocks.0", "down_blocks.0.resnets.0.nothing", "up_blocks.9.upsamplers.0.conv", ""]
)
def test_other_modules_are_refused(name):
    with pytest.raises(ValueError, match="is not a module of this UNet"):
        ldm.ldm_module_name(name, UNetConfig())


@pytest.mark.parametrize("config", [SDXL["unet"], SDXL["vae"]])
def test_no_two_modules_share_a_name(config):
    [*_, stage] = ldm.stages_for("unet" if config is SDXL["unet"] else "vae", config, names(config))
    assert len(stage) == len(set(stage.values())) == len(names(config))


def test_diffusers_reads_the_tests_single_file_as_its_own_folder(tiny_folder, tiny_pipeline):
    """So the single files that other tests write are what other programs understand, not just what we do."""
    from diffusers.loaders import single_file_utils as theirs

    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in single_file_tensors(tiny_folder).items()}
    pipe = tiny_pipeline
    converted = {
        "unet": theirs.convert_ldm_unet_checkpoint(dict(tensors), dict(pipe.unet.config)),
        "vae": theirs.convert_ldm_vae_checkpoint(dict(tensors), dict(pipe.vae.config)),
        "text_encoder_2": theirs.convert_open_clip_checkpoint(
            pipe.text_encoder_2, dict(tensors), prefix="conditioner.embedders.1.model."
        ),
    }
    for component, found in converted.items():
        original = state_dict(tiny_folder, component)
        assert found.keys() == original.keys()
        for name, value in original.items():
            np.testing.assert_array_equal(found[name].numpy().reshape(value.shape), value)


def test_the_depths_of_a_config_change_no_name(tiny_folder):
    config = networks_of(tiny_folder)["unet"]
    shallow = dataclasses.replace(config, transformer_layers_per_block=(1, 1, 1))
    module = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    assert ldm.ldm_module_name(module, config) == ldm.ldm_module_name(module, shallow)
