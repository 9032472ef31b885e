"""Opening and loading checkpoints: folders, single files, dtypes, shards, variants; what belongs together."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from autolora_jax.config import ConfigError, SchedulerConfig
from autolora_jax.weights import WeightsError, convert_checkpoint, families, open_checkpoint, published
from autolora_jax.weights.checkpoint import overridden
from autolora_jax.weights.published import SDXL_BASE as SDXL
from autolora_jax.weights.rules import flat_shapes
from autolora_jax.weights.tables import export
from tests.checkpoint_files import (
    COMPONENTS,
    DTYPES,
    WEIGHTS,
    cast_folder,
    networks_of,
    single_file_tensors,
    state_dict,
    write_single_file,
)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny folder, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "sdxl"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same_trees(ours, theirs) -> None:
    assert flat_shapes(ours) == flat_shapes(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_folder_loads_what_torch_saved(tiny_folder, component):
    params = open_checkpoint(tiny_folder).load(component)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    loaded, original = export(params), state_dict(tiny_folder, component)
    assert loaded.keys() == original.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(loaded[name], value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_file_and_its_folder_give_the_same_params(folder, tmp_path, dtype):
    cast_folder(folder, dtype)
    file = write_single_file(tmp_path / "model.safetensors", folder)
    one, many = open_checkpoint(file, networks=networks_of(folder)), open_checkpoint(folder)
    for component in COMPONENTS:
        for asked in ("float32", "bfloat16"):
            assert_same_trees(one.load(component, asked), many.load(component, asked))
    kernel = many.load("unet", dtype)["conv_in"]["kernel"]
    stored = state_dict(folder, "unet")["conv_in.weight"]
    assert kernel.dtype == stored.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(np.asarray(kernel), stored.transpose(2, 3, 1, 0))


def test_a_checkpoint_says_what_its_files_say(tiny_folder):
    c = open_checkpoint(str(tiny_folder))
    assert c.networks == networks_of(tiny_folder)
    assert c.family.name == "SDXL"
    assert not c.networks["text_encoder"].with_projection
    assert c.networks["text_encoder_2"].with_projection
    assert c.scheduler.solver == "euler"
    assert c.force_zeros_for_empty_prompt
    assert [p.name for p in c.tokenizers.values()] == ["tokenizer", "tokenizer_2"]


def test_published_configs_are_sdxl(facts):
    """Of the folder whose weights are too large to be here: everything but them."""
    from autolora_jax.weights.diffusers_folder import read_index, read_networks, read_scheduler, tokenizer_folder
    from autolora_jax.weights.hub import LocalFolder

    folder = LocalFolder(facts / "configs" / "sdxl-base-1.0")
    family, index = read_index(folder)
    assert family == families.SDXL and index["force_zeros_for_empty_prompt"] is True
    assert read_networks(folder, family) == SDXL
    assert dataclasses.replace(read_scheduler(folder)) == SchedulerConfig()
    assert tokenizer_folder(folder, family, "tokenizer_2").name == "tokenizer_2"


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("sd3-medium", published.SD3_MEDIUM),
        ("sd3.5-medium", published.SD35_MEDIUM),
        ("sd3.5-large", published.SD35_LARGE),
    ],
)
def test_published_configs_are_sd3(facts, name, networks):
    from autolora_jax.weights.diffusers_folder import read_index, read_networks
    from autolora_jax.weights.hub import LocalFolder

    folder = LocalFolder(facts / "configs" / name)
    family, _ = read_index(folder)
    assert family == families.SD3
    assert read_networks(folder, family) == networks
    assert family.problems(networks, name) == []


# ---- files that hold the same in another way -------------------------------------------------------------------------


def shard(folder: Path, component: str, infix: str = "", index_name: str | None = None) -> Path:
    """Splits a component's weights into two files with an index."""
    stem = WEIGHTS[component]
    path = folder / component / f"{stem}.safetensors"
    tensors = load_file(path)
    path.unlink()
    files = [f"{stem}{infix}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: files[i % 2] for i, name in enumerate(tensors)}
    for file in files:
        save_file({n: v for n, v in tensors.items() if weight_map[n] == file}, path.parent / file)
    index = path.parent / (index_name or f"{stem}.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize(
    ("component", "infix", "index", "variant"),
    [
        ("unet", "", "diffusion_pytorch_model.safetensors.index.json", None),
        ("unet", ".fp16", "diffusion_pytorch_model.safetensors.index.fp16.json", "fp16"),  # as diffusers writes it
        ("text_encoder_2", ".fp16", "model.safetensors.index.fp16.json", None),
        ("text_encoder_2", ".fp16", "model.fp16.safetensors.index.json", None),
    ],
)
def test_shards_load_as_the_whole(folder, tiny_folder, component, infix, index, variant):
    shard(folder, component, infix, index)
    if variant:
        for other in set(COMPONENTS) - {component}:
            path = folder / other / f"{WEIGHTS[other]}.safetensors"
            path.rename(path.with_name(f"{WEIGHTS[other]}.{variant}.safetensors"))
    loaded = open_checkpoint(folder, variant=variant).load(component)
    assert_same_trees(loaded, open_checkpoint(tiny_folder).load(component))


def test_variants_are_taken_when_asked_for_or_alone(folder):
    for component in COMPONENTS:
        plain = folder / component / f"{WEIGHTS[component]}.safetensors"
        half = {k: (v * 2).astype(np.float16) for k, v in load_file(plain).items()}
        save_file(half, plain.with_name(f"{WEIGHTS[component]}.fp16.safetensors"))

    def bias(variant=None):
        return np.asarray(open_checkpoint(folder, variant=variant).load("unet")["conv_in"]["bias"])

    plain = bias()
    np.testing.assert_array_equal(bias("fp16"), (plain * 2).astype(np.float16))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    np.testing.assert_array_equal(bias(), (plain * 2).astype(np.float16))
    with pytest.raises(WeightsError, match=r"text_encoder/ has no safetensors weights of variant 'ema', only .*fp16"):
        open_checkpoint(folder, variant="ema")


def test_names_of_other_versions_load_the_same(folder, tiny_folder):
    """CLIP with and without `text_model.`, position_ids, a projection that is not used; the VAE's old attention."""
    one = state_dict(folder, "text_encoder")
    assert all(name.startswith("text_model.") for name in one)
    extra = {
        "text_model.embeddings.position_ids": np.arange(77, dtype=np.int64)[None],
        "text_projection.weight": np.zeros((32, 32), np.float32),
    }
    save_file({**one, **extra}, folder / "text_encoder" / "model.safetensors")
    two = {name.removeprefix("text_model."): v for name, v in state_dict(folder, "text_encoder_2").items()}
    save_file(two, folder / "text_encoder_2" / "model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = state_dict(folder, "vae")
    for new_name, old_name in old.items():
        vae = {name.replace(f"attentions.0.{new_name}.", f"attentions.0.{old_name}."): v for name, v in vae.items()}
    assert any(".proj_attn." in name for name in vae)
    save_file(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    changed, plain = open_checkpoint(folder), open_checkpoint(tiny_folder)
    for component in ("text_encoder", "text_encoder_2", "vae"):
        assert_same_trees(changed.load(component), plain.load(component))


def test_extra_tensors_of_real_single_files_are_left_out_with_a_reason(tiny_folder, tmp_path):
    extra = {
        "model_ema.decay": np.float32(0.9999),
        "model_ema.diffusion_modelinput_blocks00weight": np.zeros(3, np.float32),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": np.arange(77)[None],
        "conditioner.embedders.1.model.logit_scale": np.float32(4.6),
        "first_stage_model.loss.logvar": np.zeros((), np.float32),
        "denoiser.sigmas": np.zeros(1000, np.float32),
        "alphas_cumprod": np.zeros(1000, np.float32),
    }
    networks = networks_of(tiny_folder)
    file = write_single_file(tmp_path / "extra.safetensors", tiny_folder, extra)
    plain = write_single_file(tmp_path / "plain.safetensors", tiny_folder)
    extended, simple = open_checkpoint(file, networks=networks), open_checkpoint(plain, networks=networks)
    for component in COMPONENTS:
        assert_same_trees(extended.load(component), simple.load(component))


def test_v_prediction_is_read_from_a_single_file(tiny_folder, tmp_path):
    networks = networks_of(tiny_folder)
    marked = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    cases = {
        "epsilon": ({}, None, ("epsilon", False)),
        "marked": (marked, None, ("v_prediction", True)),
        "header": ({}, {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
    }
    for name, (extra, metadata, expected) in cases.items():
        path = write_single_file(tmp_path / f"{name}.safetensors", tiny_folder, extra, metadata)
        scheduler = open_checkpoint(path, networks=networks).scheduler
        assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == expected


# ---- in place of what a checkpoint has -------------------------------------------------------------------------------


def test_the_schedule_is_what_is_said(tiny_folder):
    usual = open_checkpoint(tiny_folder).scheduler
    for given in (
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample", "rescale_betas_zero_snr": True},
        {"rescale_betas_zero_snr": False},
    ):
        assert open_checkpoint(tiny_folder, **given).scheduler == dataclasses.replace(usual, **given)
    with pytest.raises(ConfigError, match="prediction_type = 'v' is not known: there are epsilon, v_prediction"):
        open_checkpoint(tiny_folder, prediction_type="v")
    flow = SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction")
    assert overridden(flow, None, None) == flow
    with pytest.raises(ConfigError, match=r"prediction_type and rescale_betas_zero_snr can't be given for .* a flow"):
        overridden(flow, "epsilon", False)


@pytest.fixture
def other(tiny_folder, tmp_path):
    """The tiny folder with another VAE."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    path = copy / "vae" / f"{WEIGHTS['vae']}.safetensors"
    save_file({name: tensor + np.float32(1) for name, tensor in load_file(path).items()}, path)
    edit_json(copy / "vae" / "config.json", scaling_factor=0.5)
    return copy


@pytest.mark.parametrize("form", ["model", "folder", "diffusers file", "LDM file", "whole file", "converted"])
def test_another_vae(tiny_folder, other, tmp_path, form):
    whole = {name: tensor for name, tensor in single_file_tensors(other).items()}
    path = tmp_path / "vae.safetensors"
    prefix = "first_stage_model."
    if form == "LDM file":
        save_file({n.removeprefix(prefix): np.ascontiguousarray(t) for n, t in whole.items() if prefix in n}, path)
    elif form == "whole file":
        save_file({n: np.ascontiguousarray(t) for n, t in whole.items()}, path)
    elif form == "converted":
        convert_checkpoint(other, path := tmp_path / "converted", "float32")
    else:
        path = {"model": other, "folder": other / "vae"}.get(form) or other / "vae" / f"{WEIGHTS['vae']}.safetensors"
    ours = open_checkpoint(tiny_folder, vae=path)
    assert_same_trees(ours.load("vae"), open_checkpoint(other).load("vae"))
    assert_same_trees(ours.load("text_encoder"), open_checkpoint(tiny_folder).load("text_encoder"))
    alone = path.is_file()  # which says nothing of its config
    assert ours.networks["vae"].scaling_factor == (0.13025 if alone else 0.5)


def test_a_vae_that_does_not_fit_is_refused(tiny_folder, other, tmp_path):
    with pytest.raises(WeightsError, match=r"vae = .*nothing does not exist; give a folder"):
        open_checkpoint(tiny_folder, vae=tmp_path / "nothing")
    with pytest.raises(WeightsError, match=r"tokenizer has neither a VAE's config.json nor vae/config.json"):
        open_checkpoint(tiny_folder, vae=other / "tokenizer")
    with pytest.raises(WeightsError, match="does not fit this network"):
        open_checkpoint(tiny_folder, vae=other / "text_encoder" / f"{WEIGHTS['text_encoder']}.safetensors")
    edit_json(other / "vae" / "config.json", latent_channels=16)
    with pytest.raises(WeightsError, match="does not fit this network"):
        open_checkpoint(tiny_folder, vae=other)


# ---- what belongs together -------------------------------------------------------------------------------------------


def test_an_inpainting_unet_is_refused(folder):
    edit_json(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(
        ConfigError, match=r"in_channels is 9 \(as an inpainting model has\), the VAE's latent_channels 4"
    ):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "text_encoder_2",
            {"hidden_size": 64},
            "cross_attention_dim is 80, the sum of the text encoders' hidden_size 96",
        ),
        ("text_encoder_2", {"projection_dim": 32}, "projection_class_embeddings_input_dim is 96, .* 80"),
        ("vae", {"latent_channels": 16}, "the VAE's latent_channels 16"),
        ("unet", {"block_out_channels": "wide"}, "block_out_channels = 'wide' should be"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not known"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim = 256 is not known"),
    ],
)
def test_configs_that_do_not_fit_are_refused(folder, file, changes, message):
    edit_json(folder / file / "config.json", **changes)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("component", [*COMPONENTS, "tokenizer", "scheduler"])
def test_missing_components_are_named(folder, component):
    shutil.rmtree(folder / component)
    with pytest.raises(WeightsError, match=rf"{folder} lacks the folders {component}, which model_index.json names"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "holds a StableDiffusionPipeline; only SDXL"),
        ({"_class_name": "FluxPipeline"}, "holds a FluxPipeline; only SDXL"),
        ({"text_encoder": [None, None], "tokenizer": [None, None]}, "no text_encoder, tokenizer .*refiner"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "vae is a AutoencoderTiny; supported are"),
        ({"unet": "UNet2DConditionModel"}, "has no unet"),
    ],
)
def test_other_pipelines_are_refused(folder, changes, message):
    edit_json(folder / "model_index.json", **changes)
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(folder)


def test_wrong_weights_are_refused_before_any_is_read(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["stray.weight"] = np.zeros((2, 2), np.float32)
    tensors["conv_in.bias"] = np.zeros(7, np.float32)
    del tensors["conv_out.weight"]
    save_file(tensors, path)
    with pytest.raises(WeightsError) as e:
        open_checkpoint(folder)
    for part in (str(path), "stray.weight [2, 2]", "conv_out/kernel [3, 3, 32, 4]", "conv_in.bias [7]"):
        assert part in str(e.value)


def test_a_single_file_has_no_tokenizers(tiny_folder, tmp_path):
    file = write_single_file(tmp_path / "model.safetensors", tiny_folder)
    networks = networks_of(tiny_folder)
    with pytest.raises(WeightsError, match=r"a single file holds no tokenizers; give tokenizer=.*HF_HUB_OFFLINE"):
        _ = open_checkpoint(file, networks=networks, cache_dir=tmp_path / "cache").tokenizers
    one, two = open_checkpoint(file, networks=networks, tokenizer=tiny_folder).tokenizers.values()
    assert (one, two) == (tiny_folder / "tokenizer", tiny_folder / "tokenizer_2")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"empty has no tokenizer/merges.txt with tokenizer/vocab.json"):
        _ = open_checkpoint(file, networks=networks, tokenizer=empty).tokenizers


@pytest.mark.parametrize(
    "source", ["nothing", "./no/thing", "no/thing.safetensors", "/no/thing", "https://example.org/a/b"]
)
def test_a_path_that_does_not_exist_is_said_so(source):
    with pytest.raises(WeightsError, match="does not exist; give a folder"):
        open_checkpoint(source)


# ---- schedulers ------------------------------------------------------------------------------------------------------


def test_scheduler_files_mean_what_diffusers_makes_of_them(tmp_path):
    import diffusers

    for name, solver in SchedulerConfig.CLASSES.items():
        theirs = getattr(diffusers, name)(**({"clip_sample": False} if solver == "ddim" else {}))
        theirs.save_pretrained(tmp_path)
        path = tmp_path / "scheduler_config.json"
        for silent in (False, True):
            if silent:  # keys at diffusers' defaults may be missing from a file
                path.write_text(
                    json.dumps({"_class_name": name, **({"clip_sample": False} if solver == "ddim" else {})})
                )
            ours = SchedulerConfig.from_file(path)
            assert ours.solver == solver
            for field in dataclasses.fields(ours):
                if field.name in theirs.config:
                    assert getattr(ours, field.name) == theirs.config[field.name]
            assert SchedulerConfig.from_dict(ours.to_dict()) == ours


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5},
            "scheduler 'EDMEulerScheduler' has no betas, so its noise is not known; known are",
        ),
        ({}, "_class_name = None should name a scheduler"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "interpolation_type"),
        ({"_class_name": "EulerDiscreteScheduler", "trained_betas": [0.1]}, "trained_betas"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_min": 0.002}, "sigma_min"),
        ({"_class_name": "DPMSolverMultistepScheduler", "lower_order_final": False}, "lower_order_final"),
        ({"_class_name": "UniPCMultistepScheduler", "beta_start": 0.1, "trained_betas": [0.1]}, "trained_betas"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample = True"),  # its default
        ({"_class_name": "DDIMScheduler", "clip_sample": False, "thresholding": True}, "thresholding"),
        ({"_class_name": "EulerDiscreteScheduler", "beta_start": "0.1"}, "beta_start = '0.1' should be float"),
    ],
)
def test_schedulers_that_would_give_other_images_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        SchedulerConfig.from_dict(raw)


def test_keys_that_a_class_does_not_read_do_not_matter():
    raw = {"_class_name": "EulerDiscreteScheduler", "clip_sample": True, "solver_order": 3, "thresholding": True}
    assert SchedulerConfig.from_dict(raw).solver == "euler"


def test_half_precision_that_overflows_is_refused(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.bias"][3] = 1e5
    save_file(tensors, path)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(
        WeightsError, match=r"decoder\.conv_in\.bias holds 100000, too large for float16; load it as bfloat16"
    ):
        checkpoint.load("vae", jnp.float16)
    assert checkpoint.load("vae", jnp.bfloat16)


def test_single_files_of_the_test_are_as_large_as_their_folder(tiny_folder):
    folder = sum(v.size for c in COMPONENTS for v in state_dict(tiny_folder, c).values())
    assert sum(v.size for v in single_file_tensors(tiny_folder).values()) == folder
