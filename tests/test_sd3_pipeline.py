"""Whole runs of SD3 and SD3.5 against PyTorch: guidance × scheduler, with and without T5, and what it refuses."""

import copy
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeZeroStarGuidance, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline
from autolora_jax.settings.pictures import SKIP
from autolora_jax.text import Prompts, Text
from autolora_jax.text.stage import ANY_SIZE, same_text
from autolora_jax.weights.errors import WeightsError
from tests import reference_sd3
from tests.parity import error, normal

# Final latents, of the reference's maximum; seen: 3e-6.
LATENTS = 5e-5
EMBEDDINGS = 1e-5  # seen: 8e-7
CALL = dict(prompt="a cat, the dog", negative_prompt="mist", height=96, width=128, max_sequence_length=24)
SEEDS = [3, 2**40 + 5]
NO_LORA = {"base": np.zeros((1, 0), np.float32)}
RULES = {
    "cfg": CFG(4.0),
    "autolora": AutoLoRA(1.5, 3.0, 4.0),
    "interval": AutoLoRA(1.5, 3.0, 4.0, start=0.2, stop=0.7),
}


@pytest.fixture(scope="module", params=reference_sd3.KINDS)
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(diffusers' base pipeline, the same with a LoRA, folder with the base pipeline and lora.safetensors)."""
    folder = tmp_path_factory.mktemp(request.param.replace(".", ""))
    base = reference_sd3.tiny_sd3(folder, request.param)
    base.set_progress_bar_config(disable=True)
    base.save_pretrained(folder)
    tuned = StableDiffusion3Pipeline(**{**base.components, "transformer": copy.deepcopy(base.transformer)})
    write_lora(base, folder / "lora.safetensors")
    tuned.load_lora_weights(folder, weight_name="lora.safetensors")
    return base, tuned, folder


def write_lora(pipe: StableDiffusion3Pipeline, path: Path) -> None:
    """A LoRA of the transformer's attention as diffusers' training script saves it."""
    transformer = copy.deepcopy(pipe.transformer)
    targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.to_add_out"]
    torch.manual_seed(7)
    transformer.add_adapter(LoraConfig(r=3, lora_alpha=3, init_lora_weights=False, target_modules=targets))
    state = get_peft_model_state_dict(transformer)
    save_file({f"transformer.{name}": 2 * tensor.contiguous() for name, tensor in state.items()}, path)


@pytest.fixture(scope="module")
def pipe(theirs) -> AutoLoRAPipeline:
    """Ours, float32, on one device, because to be partitioned is half of a compilation; with the LoRA."""
    folder = theirs[2]
    pipe = AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(folder / "lora.safetensors")
    return pipe


# A solver sees one prediction, whatever rule it came from.
PAIRS = [
    (scheduler, rule)
    for scheduler in reference_sd3.SCHEDULERS
    for rule in RULES
    if scheduler == "flow_euler" or rule == "interval"
]


@pytest.mark.parametrize(("scheduler", "rule"), PAIRS)
def test_guidance_matches_torch(pipe, theirs, rule: str, scheduler: str):
    base, tuned, _ = theirs
    steps = 6
    ours = pipe(
        **CALL,
        seeds=SEEDS,
        guidance=RULES[rule],
        num_inference_steps=steps,
        scheduler=scheduler,
        noise="torch",
        output_type="latent",
    ).images
    reference = reference_sd3.run(base, tuned, RULES[rule], scheduler=scheduler, steps=steps, seeds=SEEDS, **CALL)
    assert error(ours, reference) < LATENTS


@pytest.mark.parametrize("scheduler", reference_sd3.SCHEDULERS)
def test_zero_star_with_its_first_steps_matches_diffusers(pipe, theirs, scheduler: str):
    """The first steps leave the latents where they are, which a solver that looks back remembers."""
    base, tuned, _ = theirs
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=2)
    same = dict(scheduler=scheduler, seeds=SEEDS[:1])
    reference = reference_sd3.run(base, tuned, CFG(4.0), steps=6, guider=guider, **same, **CALL)
    rule = CFG(4.0, zero_star=1.0, zero_init_steps=2)
    settings = dict(guidance=rule, num_inference_steps=6, noise="torch", output_type="latent")
    assert error(pipe(**CALL, **same, **settings).images, reference) < LATENTS
    rescaled = pipe(**CALL, **same, **settings, guidance_rescale=0.5).images
    assert np.isfinite(rescaled).all()


def test_pictures_equal_diffusers_own_pipeline(pipe, theirs):
    """Its own call, at the default size and scale 7.0, through the VAE."""
    _, tuned, _ = theirs
    generator = torch.Generator("cpu").manual_seed(5)
    call = dict(num_inference_steps=4, max_sequence_length=24)
    reference = tuned("the cat", negative_prompt="", generator=generator, guidance_scale=7.0, output_type="np", **call)
    ours = pipe("the cat", seeds=5, guidance=CFG(), noise="torch", output_type="np", **call)
    assert ours.settings[0]["guidance"] == CFG(7.0)
    assert np.abs(ours.images / 255.0 - reference.images).max() < 0.5 / 255 + 1e-4  # the 8-bit levels


def test_skipped_layers_equal_diffusers_own_pipeline(pipe, theirs, count_compilations):
    """Skip-layer guidance of two pictures, the second at scale 0; layers and intervals are data, of warm programs."""
    _, tuned, _ = theirs
    call = dict(num_inference_steps=6, output_type="latent", max_sequence_length=24)

    def ours(**asked) -> np.ndarray:
        scales = {"skip_layer_guidance_scale": [2.8, 0.0]}
        return pipe("the cat", seeds=[5, 5], guidance=CFG(4.0), noise="torch", **call, **asked, **scales).images

    def reference(**asked) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(5)
        return tuned("the cat", negative_prompt="", generator=generator, guidance_scale=4.0, **call, **asked).images

    some = {SKIP: [0, 1], "skip_layer_guidance_stop": 0.6}  # on the steps 1 to 3 of 6
    other = {SKIP: [2], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 1.0}
    pipe.warm_up(batch_size=2, guidance=CFG(4.0), skip_guidance_layers="1", max_sequence_length=24)
    with count_compilations() as compiled:
        found = {"some": ours(**some), "other": ours(**other)}
    assert not compiled
    expected = {"some": reference(**some), "other": reference(**other), "none": reference()}
    for name, latents in found.items():
        assert error(latents[:1], expected[name]) < LATENTS  # seen: 3e-6
        assert error(latents[1:], expected["none"]) < LATENTS
        assert error(latents[:1], expected["none"]) > 0.01


def test_without_t5_matches_torch(pipe, theirs):
    base, tuned, folder = theirs
    ours = AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:1], text_encoder_3=None)
    assert "text_encoder_3" not in ours.params
    ours.load_lora(folder / "lora.safetensors")
    bare = [
        StableDiffusion3Pipeline(**{**p.components, "text_encoder_3": None, "tokenizer_3": None}) for p in (base, tuned)
    ]
    settings = dict(seeds=SEEDS[:1], num_inference_steps=4, noise="torch", output_type="latent")
    images = ours(**CALL, guidance=RULES["autolora"], **settings).images
    reference = reference_sd3.run(*bare, RULES["autolora"], scheduler="flow_euler", steps=4, seeds=SEEDS[:1], **CALL)
    assert error(images, reference) < LATENTS


def test_t5_from_the_host_is_the_same(pipe, theirs):
    """Also with a delta of its own."""
    change = {"encoder": {"block_1": {"layer_0": {"SelfAttention": {"q": leaf(96, 32)}}}}}
    told = []
    for place in ("device", "host"):
        one = jax.devices()[:1]
        ours = AutoLoRAPipeline.from_pretrained(theirs[2], dtype="float32", devices=one, text_encoder_3=place)
        ours.add_lora({"text_encoder_3": change}, pipe.reports[0], 0.7)
        both = ours.conditioning("a cat", "mist", max_sequence_length=24)
        told.append({kind: both[kind]["encoder_hidden_states"] for kind in ("base", "lora")})
    device, host = told
    assert error(host["base"], device["base"]) < 1e-6  # seen: 0
    assert error(host["lora"], device["lora"]) < 1e-6  # seen: 0
    assert error(host["lora"], host["base"]) > 1e-3
    with pytest.raises(ValueError, match="use 'device', 'host' or None"):
        AutoLoRAPipeline.from_pretrained(theirs[2], text_encoder_3="cpu")


def leaf(inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """One LoRA's change of a Dense layer."""
    return {"down": normal(1, inputs, 2), "up": normal(2, 2, outputs), "owner": np.zeros(2, np.int32)}


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_prompts_match_diffusers(pipe, theirs, clip_skip: int | None):
    base, _, _ = theirs
    ours = pipe.conditioning("a cat! the dog", "mist", clip_skip=clip_skip, max_sequence_length=24)["base"]
    with torch.no_grad():
        positive, negative, pooled, negative_pooled = base.encode_prompt(
            "a cat! the dog", None, None, negative_prompt="mist", clip_skip=clip_skip, max_sequence_length=24
        )
    for name, pair in (
        ("encoder_hidden_states", (negative, positive)),
        ("pooled_projections", (negative_pooled, pooled)),
    ):
        assert error(ours[name][0], torch.cat(pair)) < EMBEDDINGS


def test_one_program_serves_all_values(pipe, count_compilations):
    call = dict(num_inference_steps=3, output_type="latent", max_sequence_length=24)
    pipe("a cat", seeds=[0, 1], guidance=AutoLoRA(), **call)
    with count_compilations() as compiled:
        pipe("the dog", seeds=[7, 8], guidance=AutoLoRA(1.2, 2.0, 3.0), lora_scale=0.3, **call)
        pipe("the dog", seeds=[7, 8], guidance=AutoLoRA(1.2, 2.0, 3.0, zero_init_steps=[0, 2]), **call)
    assert not compiled


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (dict(height=100), "height=100 is not a positive multiple of 16; 96 is"),
        (dict(height=256), "should be a multiple of the patch size 2, at most 24"),
        (dict(max_sequence_length=513), "max_sequence_length=513 should be 1 to 512"),
        (dict(scheduler="ddim"), "ddim"),
        (dict(skip_guidance_layers=[1, 3]), "names layer 3; this model has layers 0 to 2"),
        (dict(skip_guidance_layers=[-1]), "should be layers, counted from 0, such as 7-9"),
        (dict(skip_layer_guidance_scale=3.0), "is of layers that are skipped: give skip_guidance_layers"),
    ],
)
def test_what_cannot_be_drawn_is_refused(pipe, call, words: str):
    with pytest.raises(ValueError, match=words):
        pipe(**{"prompt": "a cat", "num_inference_steps": 2, "max_sequence_length": 24, **call})


def test_only_t5_can_be_left_out(pipe, tiny_folder, theirs, tmp_path):
    with pytest.raises(WeightsError, match="SDXL can't be run without its text_encoder_3; optional: none"):
        AutoLoRAPipeline.from_pretrained(tiny_folder, text_encoder_3=None)
    index = json.loads((theirs[2] / "model_index.json").read_text())
    del index["text_encoder_2"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="has no text_encoder_2"):
        AutoLoRAPipeline.from_pretrained(tmp_path)


def test_long_prompts_are_said_to_be_cut(pipe):
    with pytest.warns(UserWarning, match="longer than 23 tokens; not read"):
        ids = pipe.text.tokenize(same_text("cat " * 30), ANY_SIZE._replace(max_sequence_length=24))
    assert [ids[name].shape for name in pipe.text.encoders] == [(1, 77), (1, 77), (1, 24)]


def test_weights_act_as_in_the_programs_they_come_from(pipe):
    """A1111 brings back the mean of both CLIPs' states together and leaves T5 alone; ComfyUI weighs T5, too."""

    def told(prompt: str, syntax: str = "plain", t5_too: str | None = None) -> np.ndarray:
        text = Text(prompt, prompt, t5_too or prompt)
        asked = Prompts([text], [text], ANY_SIZE._replace(syntax=syntax, max_sequence_length=24), NO_LORA)
        return pipe.text.conditioning(asked)["base"]["encoder_hidden_states"][0, 1]

    plain, nothing = told("a cat the dog"), told("")
    clips, t5 = plain[:77, : 32 + 48], plain[77:]
    row = np.ones((77, 1), np.float32)
    cat = len(pipe.text.tokenizers["text_encoder"]("a cat", add_special_tokens=False).input_ids)
    a = len(pipe.text.tokenizers["text_encoder"]("a", add_special_tokens=False).input_ids)
    row[1 + a : 1 + cat] = 1.5
    weighed = told("a (cat:1.5) the dog", "a1111", "a cat the dog")
    expected = clips * row * (clips.sum() / (clips * row).sum())
    assert error(weighed[:77, : 32 + 48], expected) < 1e-5
    np.testing.assert_array_equal(weighed[77:], t5)
    comfy = told("a (cat:1.5) the dog", "comfy")
    assert (
        error(
            comfy[:77, : 32 + 48],
            np.where(row == 1, clips, (clips - nothing[:77, : 32 + 48]) * row + nothing[:77, : 32 + 48]),
        )
        < 1e-5
    )
    change, apart = comfy[77:] - t5, t5 - nothing[77:]
    heavier = np.abs(change).max(axis=-1) > 1e-6
    assert 0 < heavier.sum() < len(heavier)
    assert error(change[heavier], 0.5 * apart[heavier]) < 1e-4
