"""Merged checkpoints: they predict what the model with its LoRAs predicts, here and in diffusers."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from safetensors.numpy import save_file

from autolora_jax import CFG, AutoLoRAPipeline, lora
from autolora_jax.lora import Truncation, extract, write_merged
from autolora_jax.lora.merged_checkpoint import merged_leaves
from autolora_jax.models.mmdit import SD3Transformer2DModel
from autolora_jax.weights import WeightsError, describe, open_checkpoint
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.tables import export_leaf
from tests import checkpoint_files, reference_sd3
from tests.checkpoint_files import COMPONENTS, cast_folder, networks_of, write_single_file
from tests.lora_reference import good, merged, random_lora, saved
from tests.lycoris_reference import applied, names_of, tensors_of, trained
from tests.parity import error, normal
from tests.programs import autolora
from tests.tuned_folders import assert_same_deltas, deltas_of, dense, prediction

SAME = 1e-6  # of a tensor's largest value; seen: 1.5e-7
CLOSE = 2e-5  # of the largest prediction; seen: 1.3e-6 in torch, 2.9e-6 here
SCALES = (0.75, -0.5)


class Merged:
    """Two LoRAs merged into the tiny SDXL."""

    def __init__(self, pipe: StableDiffusionXLPipeline, base: Path, folder: Path) -> None:
        self.made = [random_lora(pipe, seed, convolutions=True, ranks=(seed + 1,)) for seed in (1, 2)]
        self.checkpoint = open_checkpoint(base)
        targets = targets_of(self.checkpoint.networks)
        paths = [made.save(folder / f"{i}.safetensors", "kohya_sgm") for i, made in enumerate(self.made)]
        self.files = [read_lora(path, targets) for path in paths]
        self.loras = list(zip(self.files, SCALES, strict=True))
        self.folder = write_merged(self.checkpoint, self.loras, folder / "merged")


@pytest.fixture(scope="module")
def both(tiny_pipeline, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return Merged(tiny_pipeline, tiny_folder, tmp_path_factory.mktemp("merged"))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {f"{c}.{name}": x for c in COMPONENTS for name, x in checkpoint_files.state_dict(folder, c).items()}


# ---- weights and predictions -----------------------------------------------------------------------------------------


def test_every_weight_is_the_sum(both: Merged, tiny_folder: Path):
    before, after = tensors(tiny_folder), tensors(both.folder)
    assert after.keys() == before.keys()
    deltas = [deltas_of(made) for made in both.made]
    for name, weight in before.items():
        component, _, module = name.removesuffix(".weight").partition(".")
        changes = [
            scale * d[component, module] for d, scale in zip(deltas, SCALES, strict=True) if (component, module) in d
        ]
        if changes and name.endswith(".weight"):
            assert error(after[name], sum(changes, weight.astype(np.float64))) < SAME, name
        else:
            np.testing.assert_array_equal(after[name], weight)


def test_diffusers_loads_it_and_predicts_the_same(both: Merged, tiny_pipeline: StableDiffusionXLPipeline):
    theirs = StableDiffusionXLPipeline.from_pretrained(both.folder)
    with merged(tiny_pipeline, *zip(both.made, SCALES, strict=True)):
        wanted = prediction(tiny_pipeline)
    assert error(prediction(tiny_pipeline), wanted) > 0.1
    assert error(prediction(theirs), wanted) < CLOSE
    assert theirs.scheduler.config.items() >= {"beta_end": 0.012, "prediction_type": "epsilon"}.items()
    assert theirs.tokenizer("the cat").input_ids == tiny_pipeline.tokenizer("the cat").input_ids
    vae = torch.from_numpy(normal(0, 1, 4, 4, 4))
    with torch.no_grad():
        assert torch.equal(theirs.vae.decode(vae).sample, tiny_pipeline.vae.decode(vae).sample)


def test_the_orbax_form_holds_the_same_in_the_dtype_asked_for(both: Merged, tmp_path: Path):
    told: list[tuple[int, int, str]] = []
    out = write_merged(
        both.checkpoint, both.loras, tmp_path / "out", "orbax", "bfloat16", lambda *said: told.append(said)
    )
    ours, theirs = open_checkpoint(out), open_checkpoint(both.folder)
    assert ours.networks == theirs.networks and ours.scheduler == theirs.scheduler
    for component in COMPONENTS:
        dtype = "float32" if component == "vae" else "bfloat16"  # it overflows in half precision
        a, b = ours.load(component, dtype), theirs.load(component, dtype)
        jax.tree.map(np.testing.assert_array_equal, a, b)
        assert describe(out).components[component].dtypes.keys() == {dtype}
    assert [said[0] for said in told] == [0, 1, 2, 3, 4] and told[-1] == (4, 4, "")


def test_the_builtin_model_draws_with_its_lora_merged_as_with_it_beside(tmp_path: Path):
    exact = ["--format", "orbax", "--dtype", "float32"]  # its weights are stored in float16
    result = autolora("merge", "builtin", "builtin:character:0.8", "--out", tmp_path / "zib", *exact)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'zib'}\n"
    images = []
    for source, scale in (("builtin", 0.8), (tmp_path / "zib", 0.0)):
        pipe = AutoLoRAPipeline.from_pretrained(source, dtype="float32", devices=jax.devices()[:1])
        pipe.load_lora("builtin:character")  # at scale 0 for the other: one compiled program serves both
        call = dict(seeds=3, guidance=CFG(5.0), num_inference_steps=2, height=32, width=32, output_type="latent")
        images.append(pipe("a zib", lora_scale=scale, **call).images)
    assert error(images[1], images[0]) < CLOSE
    bare = pipe("a zib", lora_scale=1.0, **call).images
    assert error(bare, images[0]) > 0.01


def test_sd3_predicts_the_same(tmp_path: Path):
    base = tmp_path / "sd3"
    reference_sd3.tiny_sd3(base, "sd3.5").save_pretrained(base)
    checkpoint = open_checkpoint(base)
    module = "lora_unet_joint_blocks_1_x_block_attn_qkv"  # three layers of ours
    last = "lora_unet_final_layer_adaLN_modulation_1"  # whose halves stand in the other order there
    halves = {
        f"{module}.lora_down.weight": normal(0, 4, 32) / 4,
        f"{module}.lora_up.weight": normal(1, 96, 4) / 4,
        f"{last}.lora_down.weight": normal(2, 4, 32) / 4,
        f"{last}.lora_up.weight": normal(3, 64, 4) / 4,
    }
    save_file(halves, tmp_path / "lora.safetensors")
    file = read_lora(tmp_path / "lora.safetensors", targets_of(checkpoint.networks))
    out = write_merged(checkpoint, [(file, 0.7)], tmp_path / "out")
    config = checkpoint.networks["transformer"]
    network = SD3Transformer2DModel(config=config)
    inputs = (normal(4, 2, 16, 16, 16), np.float32([900, 30]), normal(5, 2, 9, 96), normal(6, 2, 80))
    run = jax.jit(lambda params, delta: network.apply({"params": params, "lora": delta}, *map(jnp.asarray, inputs)))
    tree = lora.attach(file)[0]["transformer"]
    predictions = [
        run(params, lora.at_scale(tree, np.float32([scale])))
        for params, scale in (
            (checkpoint.load("transformer"), 0.7),
            (open_checkpoint(out).load("transformer"), 0.0),
            (checkpoint.load("transformer"), 0.0),
        )
    ]
    assert error(predictions[1], predictions[0]) < CLOSE < 0.1 < error(predictions[2], predictions[0])
    theirs = StableDiffusion3Pipeline.from_pretrained(out).transformer
    x, t, told, pooled = (torch.from_numpy(x) for x in inputs)
    with torch.no_grad():
        wanted = theirs(x.permute(0, 3, 1, 2), told, pooled, t).sample
    assert error(predictions[0], wanted) < CLOSE


@pytest.mark.parametrize("kind", ["loha", "lokr", "full", "dora", "dora of inputs", "norm"])
def test_every_kind_of_lora_is_merged_as_lycoris_applies_it(
    tiny_pipeline, tiny_folder: Path, tmp_path: Path, kind: str
):
    names = {
        "norm": "lora_unet_down_blocks_1_resnets_0_norm1",
        "full": "lora_unet_down_blocks_1_resnets_0_conv1",
        "dora": "lora_unet_down_blocks_1_resnets_0_conv1",
    }
    name = names.get(kind, "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k")
    layer = names_of(tiny_pipeline, "unet")[name]
    module = trained(kind, name, layer, seed=1)
    save_file(tensors_of(module), tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tiny_folder)
    file = read_lora(tmp_path / "a.safetensors", targets_of(checkpoint.networks))
    [where] = file.layers
    found = {
        export_leaf(path, leaf)[0].rpartition(".")[2]: leaf_in_torch
        for path, leaf in merged_leaves(checkpoint, "unet", [(file, 0.6)], np.dtype("float32"))
        if path.rpartition("/")[0] == where.path
        for leaf_in_torch in [export_leaf(path, leaf)[1]]
    }
    size = layer.weight.shape[1] if layer.weight.ndim > 1 else layer.weight.shape[0]
    x = torch.from_numpy(normal(0, 2, size, 6, 6) if layer.weight.ndim != 2 else normal(0, 2, 5, size))
    with torch.no_grad():
        base = layer(x)
        with applied(module, 0.6):
            wanted = layer(x)
        ours = torch.func.functional_call(layer, {k: torch.from_numpy(v.copy()) for k, v in found.items()}, x)
    assert error(ours.numpy(), wanted.numpy()) < CLOSE < 0.05 < error(base.numpy(), wanted.numpy())


# ---- round trips and dtypes ------------------------------------------------------------------------------------------


def test_what_was_merged_can_be_extracted_again(both: Merged, tmp_path: Path):
    out = write_merged(both.checkpoint, [(both.files[0], 0.75)], tmp_path / "out")
    trees, report = extract(both.checkpoint, open_checkpoint(out), Truncation(max_error=1e-5))
    assert report.fits.ranks.keys() == {2} and not report.left_out
    wanted = {key: 0.75 * delta for key, delta in deltas_of(both.made[0]).items()}
    assert_same_deltas(dense(trees), wanted, SAME)


def test_scale_0_is_the_base_and_dtypes_stay(both: Merged, tiny_folder: Path, tmp_path: Path):
    half = Path(shutil.copytree(tiny_folder, tmp_path / "half"))
    cast_folder(half, "float16")
    out = write_merged(open_checkpoint(half), [(both.files[0], 0.0)], tmp_path / "out")
    before, after = tensors(half), tensors(out)
    for name, weight in before.items():
        assert after[name].dtype == np.float16
        np.testing.assert_array_equal(after[name], weight)
    exact = tensors(write_merged(open_checkpoint(half), [(both.files[0], 0.5)], tmp_path / "exact", dtype="float32"))
    (component, module), delta = next(iter(deltas_of(both.made[0]).items()))
    name = f"{component}.{module}.weight"
    assert exact[name].dtype == np.float32  # and not rounded on the way
    assert error(exact[name], before[name].astype(np.float64) + 0.5 * delta) < SAME
    raw = (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert (8 + int.from_bytes(raw[:8], "little")) % 8 == 0


def test_a_single_file_is_merged_into_a_folder(both: Merged, tiny_folder: Path, tmp_path: Path):
    file = write_single_file(tmp_path / "model.safetensors", tiny_folder)
    checkpoint = open_checkpoint(file, networks=networks_of(tiny_folder), tokenizer=tiny_folder)
    out = write_merged(checkpoint, both.loras, tmp_path / "out")
    for component in COMPONENTS:
        wanted, found = (checkpoint_files.state_dict(folder, component) for folder in (both.folder, out))
        assert wanted.keys() == found.keys()
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(found[name], tensor)


# ---- what is refused -------------------------------------------------------------------------------------------------


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_values_that_half_precision_can_not_hold_leave_nothing(both: Merged, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"with its LoRAs: text_encoder .* holds .*, too large for float16"):
        write_merged(both.checkpoint, [(both.files[0], 1e6)], tmp_path / "out", dtype="float16")
    assert left_in(tmp_path) == []


def test_a_bias_for_a_layer_without_one_can_not_be_merged(tiny_folder: Path, tmp_path: Path):
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.diff": normal(0, 64, 80), f"{name}.diff_b": normal(0, 64)}, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tiny_folder)
    file = read_lora(tmp_path / "a.safetensors", targets_of(checkpoint.networks))
    with pytest.raises(ValueError, match="adds a bias to a layer that has none"):
        write_merged(checkpoint, [(file, 1.0)], tmp_path / "out")
    assert left_in(tmp_path) == ["a.safetensors"]


def test_words_that_come_with_a_lora_are_not_lost_silently(tiny_folder: Path, tmp_path: Path):
    words = {"bundle_emb.zib.clip_l": normal(0, 1, 32), "bundle_emb.zib.clip_g": normal(1, 1, 48)}
    checkpoint = open_checkpoint(tiny_folder)
    path = saved(tmp_path / "a.safetensors", {**good(), **words})
    file = read_lora(path, targets_of(checkpoint.networks))
    with pytest.raises(
        ValueError, match=r"a.safetensors brings words of its own \(zib\), for which a checkpoint has no"
    ):
        write_merged(checkpoint, [(file, 1.0)], tmp_path / "out")
    assert left_in(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "out", "--format", "ckpt"], "format='ckpt': use one of diffusers, orbax"),
        (["--out", "out", "--dtype", "int8"], "dtype='int8': use one of bfloat16, float32, float16"),
        (["--out", "."], "already exists; remove it or choose another name"),
        (["--out", "file/out"], "file can't be written: "),
        (["--out", "out"], "can't be applied exactly"),  # a LoRA of another model
    ],
)
def test_the_program_says_what_is_wrong_first(small_folder: Path, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    result = autolora("merge", small_folder, "builtin:character", *flags)
    assert result.exit_code == 1 and message in " ".join(result.stderr.split()), result.output
    assert left_in(tmp_path) == ["file"]
    assert autolora("merge", small_folder, "--out", "out").exit_code == 2  # no LoRA
