"""Whole runs against PyTorch: guidance × scheduler × dialect, and the laws a pipeline must keep."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

from autolora_jax import CFG, AutoGuidance, AutoLoRA, AutoLoRAPipeline, NoGuidance, PersonalizationGuidance, Progress
from autolora_jax.models.vae import decode_tiled
from autolora_jax.noise import initial_noise
from autolora_jax.text import Text
from tests import reference_run
from tests.lora_reference import Change, RandomLora, random_lora

# Final latents, of the reference's maximum; seen: 4.2e-6. torch itself is within 4e-6 of float64; tanh for erf GELU
# moves them 4e-4.
LATENTS = 5e-5
CALL = dict(prompt="a cat, the dog", negative_prompt="mist", height=96, width=128, num_inference_steps=6)
SEEDS = [3, 2**40 + 5]


@pytest.fixture(scope="module")
def lora(small_pipeline: StableDiffusionXLPipeline) -> RandomLora:
    return random_lora(small_pipeline, seed=1, convolutions=True)


@pytest.fixture(scope="module")
def lora_file(lora: RandomLora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora.save(tmp_path_factory.mktemp("lora") / "kohya.safetensors", "kohya_sgm")


@pytest.fixture(scope="module")
def pipe(small_folder: Path, lora_file: Path) -> AutoLoRAPipeline:
    """Ours, float32, on one device, because to be partitioned is half of a compilation; with the LoRA."""
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(lora_file)
    return pipe


def torch_latents(pipe: StableDiffusionXLPipeline, lora: RandomLora, rule, scheduler="euler", **more) -> np.ndarray:
    """[seeds h w c]"""
    call = {**CALL, **more}
    call["steps"] = call.pop("num_inference_steps")
    return reference_run.run(pipe, lora, rule, scheduler=scheduler, seeds=SEEDS, **call)


def our_latents(pipe: AutoLoRAPipeline, rule, **more) -> np.ndarray:
    return pipe(**{**CALL, "seeds": SEEDS, "guidance": rule, "noise": "torch", "output_type": "latent", **more}).images


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


RULES = {
    "lora": NoGuidance(),
    "cfg": CFG(4.0),
    "autolora": AutoLoRA(1.5, 3.0, 4.0),
    "autolora-without-cfg": AutoLoRA(1.5, 1.0, 1.0),
    "autoguidance": AutoGuidance(1.8),
    "personalization": PersonalizationGuidance(3.0, 0.4),
    "domain-guidance": PersonalizationGuidance(3.0, 0.0),
    "interval": AutoLoRA(1.5, 3.0, 4.0, start=0.2, stop=0.7),
    "refreshed": AutoLoRA(1.5, 3.0, 4.0, refresh_base=3, refresh_uncond=2, stop=0.9),
    "refreshed-cfg": CFG(4.0, refresh_uncond=2, start=0.2),
}


@pytest.mark.parametrize("rule", RULES)
def test_guidance_matches_torch(pipe, small_pipeline, lora, rule: str):
    seen = error(our_latents(pipe, RULES[rule]), torch_latents(small_pipeline, lora, RULES[rule]))
    assert seen < LATENTS


# A solver sees one prediction, whatever rule it came from, and an interval of AutoLoRA in CFG is of two rules.
PAIRS = [
    pytest.param(scheduler, rule, marks=() if rule == "interval" else pytest.mark.slow)
    for scheduler in reference_run.SCHEDULERS
    for rule in RULES
    if scheduler != "euler"
]


@pytest.mark.parametrize(("scheduler", "rule"), PAIRS)
def test_schedulers_match_torch(pipe, small_pipeline, lora, scheduler: str, rule: str):
    ours = our_latents(pipe, RULES[rule], scheduler=scheduler)
    assert error(ours, torch_latents(small_pipeline, lora, RULES[rule], scheduler)) < LATENTS


def test_projected_guidance_matches_torch(pipe, small_pipeline, lora):
    """APG with its momentum, by diffusers' update of denoised pictures."""
    w, eta, norm, buffer = 4.0, 0.2, 2.0, MomentumBuffer(-0.5)

    def guider(yes: torch.Tensor, no: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        pictures = normalized_guidance(x - sigma * yes, x - sigma * no, w - 1, buffer, eta, norm, True)
        return (x - pictures) / sigma

    ours = our_latents(pipe, CFG(w, apg_eta=eta, apg_norm=norm, apg_momentum=-0.5))
    assert error(ours, torch_latents(small_pipeline, lora, CFG(w), guider=guider)) < LATENTS


@pytest.mark.parametrize("dialect", ["kohya_diffusers", "peft"])
def test_dialects_give_the_same_delta(pipe, small_folder, lora, tmp_path, dialect: str):
    """So what holds of one dialect, for every rule and scheduler, holds of all."""
    metadata = lora.peft_metadata() if dialect == "peft" else None
    other = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    other.load_lora(lora.save(tmp_path / "other.safetensors", dialect, metadata))
    assert jax.tree.structure(other._delta) == jax.tree.structure(pipe._delta)
    for a, b in zip(jax.tree.leaves(other._delta), jax.tree.leaves(pipe._delta), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-7)  # alpha / rank, rounded once


@pytest.mark.slow
def test_thirty_steps_match_torch(pipe, small_pipeline, lora):
    more = {"num_inference_steps": 30}
    ours = our_latents(pipe, RULES["autolora"], **more)
    assert error(ours, torch_latents(small_pipeline, lora, RULES["autolora"], **more)) < LATENTS


def test_rescale_and_zero_negative_match_torch(pipe, small_pipeline, lora):
    ours = our_latents(pipe, RULES["cfg"], guidance_rescale=0.7, negative_prompt=None)
    assert error(ours, torch_latents(small_pipeline, lora, RULES["cfg"], rescale=0.7, negative_prompt=None)) < LATENTS


def test_clip_skip_matches_diffusers(pipe, small_pipeline):
    """Which skips for the prompt, not for the negative one."""
    ours = pipe.conditioning("a cat", "mist", clip_skip=1)["base"]["encoder_hidden_states"][0]
    positive, negative, *_ = small_pipeline.encode_prompt("a cat", negative_prompt="mist", clip_skip=1)
    assert error(ours, torch.cat([negative, positive]).detach().numpy()) < LATENTS


def test_v_prediction_matches_torch(pipe, small_pipeline, lora, monkeypatch):
    config = dataclasses.replace(pipe.scheduler, prediction_type="v_prediction", timestep_spacing="trailing")
    monkeypatch.setattr(pipe, "scheduler", config)
    theirs = dict(small_pipeline.scheduler.config) | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    monkeypatch.setattr(small_pipeline, "scheduler", small_pipeline.scheduler.from_config(theirs))
    ours = our_latents(pipe, RULES["autolora"])
    assert error(ours, torch_latents(small_pipeline, lora, RULES["autolora"])) < LATENTS


@pytest.mark.parametrize("dialect", ["kohya_sgm", pytest.param("peft", marks=pytest.mark.slow)])
def test_cfg_with_lora_equals_diffusers_own_pipeline(pipe, small_folder, small_pipeline, tmp_path, dialect: str):
    # one alpha and rank: diffusers applies the commonest alpha of a kohya file to every attention projection
    file = random_lora(small_pipeline, seed=2, ranks=(4,), alphas=None, strength=0.5).save(
        tmp_path / f"{dialect}.safetensors", dialect
    )
    theirs = StableDiffusionXLPipeline.from_pretrained(small_folder)
    theirs.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="it")
    theirs.set_adapters(["it"], [0.8])
    mine = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    mine.load_lora(file, scale=0.8)
    call = {**CALL, "num_inference_steps": 6}
    noise = [torch.Generator("cpu").manual_seed(s) for s in SEEDS]
    expected = theirs(
        **{**call, "prompt": [CALL["prompt"]] * 2, "negative_prompt": [CALL["negative_prompt"]] * 2},
        guidance_scale=4.0,
        generator=noise,
        output_type="latent",
    ).images
    ours = our_latents(mine, CFG(4.0))
    assert error(ours, expected.permute(0, 2, 3, 1).numpy()) < LATENTS
    # the LoRA visibly changes the picture, or agreement would prove nothing
    assert error(our_latents(mine, CFG(4.0), lora_scale=0.0), ours) > 0.05
    decoded = theirs.vae.decode(expected / theirs.vae.config.scaling_factor).sample
    pixels = theirs.image_processor.postprocess(decoded.detach(), output_type="np")
    levels = np.abs(np.round(pixels * 255) - our_latents(mine, CFG(4.0), output_type="np").astype(float))
    assert levels.max() <= 1 and (levels > 0).mean() < 1e-3


def test_images_do_not_depend_on_their_company(pipe, small_folder, lora_file):
    """One of three on two devices is the same alone on one."""
    two = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:2])
    two.load_lora(lora_file)
    together = our_latents(two, RULES["autolora"], noise="jax", seeds=[5, 6, 7])
    alone = our_latents(pipe, RULES["autolora"], noise="jax", seeds=[6])
    assert error(alone[0], together[1]) < 1e-5  # seen 2e-6: other batch sizes sum in another order


def test_one_batch_mixes_guidance_and_lora_scales(pipe):
    rules = [CFG(4.0), AutoLoRA(1.5, 3.0, 4.0), NoGuidance(), AutoLoRA(1.8, 2.0, 5.0)]
    scales = [0.3, 1.0, 0.0, 0.7]
    mixed = our_latents(pipe, rules, seeds=[5, 6, 7, 8], lora_scale=scales)
    for i, (rule, scale) in enumerate(zip(rules, scales, strict=True)):
        one = our_latents(pipe, rule, seeds=[5 + i], lora_scale=scale)  # the merged path; the batch took the other
        assert error(mixed[i], one[0]) < LATENTS  # seen 3e-6


def test_given_noise_is_the_initial_noise(pipe):
    x = initial_noise(SEEDS, (12, 16, 4), "torch")
    a = our_latents(pipe, CFG(4.0), latents=x)
    np.testing.assert_array_equal(a, our_latents(pipe, CFG(4.0)))


def test_two_loras_stack_and_unload(pipe, small_folder, small_pipeline, lora, lora_file, tmp_path):
    second = random_lora(small_pipeline, seed=9, ranks=(3,), components=("unet",))
    mine = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    mine.load_lora(lora_file, scale=0.7)
    mine.load_lora(second.save(tmp_path / "second.safetensors", "kohya_diffusers"), scale=0.4)
    joined = joint((lora, 0.7), (second, 0.4))
    assert error(our_latents(mine, CFG(4.0)), torch_latents(small_pipeline, joined, CFG(4.0))) < LATENTS
    mine.unload_lora()
    nothing = RandomLora({})
    assert error(our_latents(mine, CFG(4.0)), torch_latents(small_pipeline, nothing, CFG(4.0))) < LATENTS


def joint(*loras: tuple[RandomLora, float]) -> RandomLora:
    """One LoRA that changes every module as all of them do."""
    downs: dict[tuple[str, str], list[torch.Tensor]] = {}
    ups: dict[tuple[str, str], list[torch.Tensor]] = {}
    for lora, scale in loras:
        for key, change in lora.changes.items():
            downs.setdefault(key, []).append(change.down * (scale * change.alpha / change.down.shape[0]))
            ups.setdefault(key, []).append(change.up)
    joined = {key: (torch.cat(downs[key]), torch.cat(ups[key], 1)) for key in downs}
    return RandomLora({key: Change(down, up, float(down.shape[0])) for key, (down, up) in joined.items()})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(height=100), "height=100 is not a positive multiple of 8; 96 is"),
        (dict(seeds=[]), "one or more whole numbers"),
        (dict(guidance=AutoLoRA(gamma=[1.0, 2.0, 3.0])), "3 values for 1 images"),
        (dict(guidance=[CFG(2.0, zero_init_steps=1)]), "zero_init_steps is for models that predict a velocity"),
        (dict(lora_scale=[0.1, 0.2]), "one per picture"),
        (dict(scheduler="eulr"), "euler"),
        (dict(output_type="jpg"), "there are pil, np, latent"),
        (dict(negative_prompt=["a", "b"]), "2 texts for 1 prompts"),
        (dict(latents=np.zeros((1, 3, 3, 4), np.float32)), "latents has shape"),
        (dict(num_inference_steps=0), "num_inference_steps"),
        (dict(clip_skip=9), "clip_skip=9"),
        (dict(batch_size=0), "batch_size = 0 should be at least 1"),
        (dict(noise="numpy"), "noise"),
    ],
)
def test_bad_arguments_are_refused(pipe, arguments: dict, words: str):
    with pytest.raises(ValueError, match=words):
        pipe("a cat", **arguments)


def test_autolora_needs_a_lora(small_folder):
    plain = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="no LoRA is loaded"):
        plain("a cat", guidance=AutoLoRA())


def test_long_prompts_are_said_to_be_cut(pipe):
    with pytest.warns(UserWarning, match="not read"):
        pipe.text.tokenize(Text("cat " * 80, "the dog", ""))


def test_progress_is_reported_step_by_step(pipe):
    seen: list[Progress] = []
    our_latents(pipe, CFG(4.0), on_progress=seen.append)
    steps = [p.done for p in seen if p.stage == "sample"]
    assert max(steps) == 6 and {p.total for p in seen if p.stage == "sample"} == {6}
    assert seen[0].stage == "encode"


def test_progress_shows_what_the_pictures_have_come_to(pipe):
    seen: list[Progress] = []
    latents = our_latents(pipe, CFG(4.0), on_progress=seen.append)
    told = seen[-1].partial()
    assert told.pictures == [0, 1]
    np.testing.assert_array_equal(told.latents, latents)
    np.testing.assert_array_equal(pipe.decode(told.latents), our_latents(pipe, CFG(4.0), output_type="np"))


class Enough(Exception):
    pass


def test_a_call_that_is_stopped_tells_where_it_stood_and_spoils_none_after_it(pipe):
    before, seen = our_latents(pipe, CFG(4.0)), []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.stage == "sample":
            raise Enough

    with pytest.raises(Enough):
        our_latents(pipe, CFG(4.0), num_inference_steps=40, on_progress=stop)
    assert seen[-1].done < 10 and seen[-1].total == 40
    told = seen[-1].partial()
    assert np.isfinite(told.latents).all() and np.isfinite(told.denoised).all() and len(told.pictures) == 2
    assert (told.denoised != told.latents).any()
    seen.clear()
    np.testing.assert_array_equal(our_latents(pipe, CFG(4.0), on_progress=seen.append), before)
    assert seen[-1].done == 6  # nothing of the call before is told


def test_large_pictures_are_decoded_in_tiles(pipe, monkeypatch):
    """By vae.decode_tiled, which test_vae compares with diffusers: tiles have norms of their own, so other values."""
    monkeypatch.setattr("autolora_jax.engine.TILED_FROM", 0)
    latents = initial_noise([1, 2], (17, 12, 4), "jax")  # higher than a tile
    vae, params = pipe.engine.vae, pipe.engine.vae_params
    pixels = jax.jit(decode_tiled, static_argnums=0)(vae, params, jnp.asarray(latents) / vae.config.scaling_factor)
    levels = np.clip(np.asarray(pixels) / 2 + 0.5, 0, 1) * 255
    assert np.abs(pipe.decode(latents) - levels).max() < 0.51  # rounded


def test_pictures_that_are_not_finite_are_said(pipe):
    with pytest.warns(UserWarning, match=r"pictures \[1\] \(seeds \[8\]\) came out not finite"):
        pipe("a cat", seeds=[7, 8], num_inference_steps=6, height=96, width=128, lora_scale=[1.0, 1e30])
