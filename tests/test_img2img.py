"""Runs that begin with a picture, with and without a mask, against diffusers' pipelines and torch's loops."""

import inspect
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from autolora_jax import CFG, AutoGuidance, AutoLoRA, AutoLoRAPipeline, NoGuidance, PersonalizationGuidance
from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules import SOLVERS, make_schedule, skipped_steps
from tests import reference_run, reference_sd3
from tests.lora_reference import RandomLora, random_lora
from tests.parity import error
from tests.reference_picture import Picture, masks, pictures
from tests.test_schedules import DIFFUSION, FINAL, SHAPE, base_of, distance, network, ours_and_theirs, run
from tests.test_sd3_pipeline import write_lora

# Final latents, of the reference's maximum; seen: SDXL 4.4e-6, SD3 1.4e-5.
LATENTS = 5e-5
SEEDS = [3, 2**40 + 5]
STEPS, W = 6, 4.0
WIDTH, HEIGHT = 128, 96
GIVEN = 131, 97  # the pictures' own size: the model draws in multiples of 8, or 16
CALL: dict[str, Any] = dict(prompt="a cat, the dog", negative_prompt="mist", num_inference_steps=STEPS)
SIZE = {"height": HEIGHT, "width": WIDTH}
IMAGES, MASKS = pictures(2, *GIVEN), masks(2, *GIVEN)
masked = pytest.mark.parametrize("masked", [False, True], ids=["image", "mask"])
RULES = {
    "lora": NoGuidance(),
    "autolora": AutoLoRA(1.5, 3.0, 4.0),
    "autolora-without-cfg": AutoLoRA(1.5, 1.0, 1.0),
    "autoguidance": AutoGuidance(1.8),
    "personalization": PersonalizationGuidance(3.0, 0.4),
    "interval": AutoLoRA(1.5, 3.0, 4.0, start=0.2, stop=0.7),
}


def draw(pipe: AutoLoRAPipeline, is_masked: bool, **more: Any) -> np.ndarray:
    """Our final latents."""
    given = {"image": IMAGES, "mask_image": MASKS if is_masked else None}
    return pipe(**{**CALL, **given, "seeds": SEEDS, "noise": "torch", "output_type": "latent", **more}).images


def diffusers(theirs: Any, is_masked: bool, strength: float | None = None, **more: Any) -> np.ndarray:
    """Its own pipeline's final latents. strength: None is its default."""
    texts = {name: [CALL[name]] * 2 for name in ("prompt", "negative_prompt")}
    given = {"mask_image": MASKS, **SIZE} if is_masked else {}
    given |= {} if strength is None else {"strength": strength}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    call = {**CALL, **texts, "image": IMAGES, "guidance_scale": W, "generator": generators, **given, **more}
    return theirs(**call, output_type="latent").images


# ---- SDXL ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(small_pipeline: StableDiffusionXLPipeline) -> RandomLora:
    return random_lora(small_pipeline, seed=1, convolutions=True)


@pytest.fixture(scope="module")
def pipe(small_folder: Path, lora: RandomLora, tmp_path_factory: pytest.TempPathFactory) -> AutoLoRAPipeline:
    """Ours, float32, on one device, because to be partitioned is half of a compilation; with the LoRA."""
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(lora.save(tmp_path_factory.mktemp("lora") / "kohya.safetensors", "kohya_sgm"))
    return pipe


@pytest.fixture(scope="module")
def theirs(small_pipeline: StableDiffusionXLPipeline) -> dict[bool, Any]:
    """Whether masked -> diffusers' pipeline."""
    kinds = {False: StableDiffusionXLImg2ImgPipeline, True: StableDiffusionXLInpaintPipeline}
    pipes = {is_masked: kind(**small_pipeline.components, add_watermarker=False) for is_masked, kind in kinds.items()}
    for each in pipes.values():
        each.set_progress_bar_config(disable=True)
    return pipes


def solved_by(theirs: Any, scheduler: str) -> Any:
    cls, overrides = reference_run.SCHEDULERS[scheduler]
    usual = {"use_karras_sigmas": False, "algorithm_type": "dpmsolver++"}  # not what the one before was asked to be
    theirs.scheduler = cls.from_config(theirs.scheduler.config, **{**usual, **overrides})
    return theirs


# The strength in (0, 1], or None, diffusers' default: 0.3 and 0.9999.
CASES = [*((solver, 0.5) for solver in reference_run.SCHEDULERS), ("euler", None), ("dpmpp_2m", 0.17)]
CASES += [(solver, 1.0) for solver in ("ddim", "euler", "dpmpp_2m_karras")]


@masked
@pytest.mark.parametrize(("scheduler", "strength"), CASES)
def test_sdxl_equals_diffusers_own_pipelines(pipe, theirs, scheduler: str, strength: float | None, masked: bool):
    eta = 0.0 if scheduler == "tcd" else None  # what its pipelines say where nobody does
    ours = draw(pipe, masked, guidance=CFG(W), lora_scale=0.0, scheduler=scheduler, strength=strength, eta=eta)
    assert error(ours, diffusers(solved_by(theirs[masked], scheduler), masked, strength)) < LATENTS


# Rules of one prompt a call are another program, which test_pipeline compiles, too, but for its form with a mask.
ONE_PROMPT = ("lora", "autolora-without-cfg", "autoguidance", "personalization")
PAIRS = [
    pytest.param(rule, is_masked, marks=pytest.mark.slow if is_masked and rule in ONE_PROMPT else ())
    for rule in RULES
    for is_masked in (False, True)
]


@pytest.mark.parametrize(("rule", "masked"), PAIRS)
def test_every_rule_matches_torch(pipe, small_pipeline, lora, rule: str, masked: bool):
    """With the solvers that remember and that draw noise in turn."""
    scheduler = ("dpmpp_2m", "euler_ancestral")[masked]
    picture = Picture(IMAGES, MASKS if masked else None, 0.7)
    call = {**CALL, **SIZE, "steps": STEPS, "seeds": SEEDS, "scheduler": scheduler}
    del call["num_inference_steps"]
    reference = reference_run.run(small_pipeline, lora, RULES[rule], picture=picture, **call)
    assert error(draw(pipe, masked, guidance=RULES[rule], scheduler=scheduler, strength=0.7), reference) < LATENTS


def test_the_loop_is_diffusers_own(small_pipeline, theirs, lora):
    """What the rules are compared with, where diffusers has the rule, too."""
    call = {**CALL, **SIZE, "steps": STEPS, "seeds": SEEDS, "scheduler": "euler_ancestral", "scale": 0.0}
    del call["num_inference_steps"]
    for is_masked in (False, True):
        picture = Picture(IMAGES, MASKS if is_masked else None, 0.7)
        ours = reference_run.run(small_pipeline, lora, CFG(W), picture=picture, **call)
        assert error(ours, diffusers(solved_by(theirs[is_masked], "euler_ancestral"), is_masked, 0.7)) < LATENTS


def test_sizes_and_crops_are_told_as_diffusers_does(pipe, theirs):
    sizes = {"original_size": (200, 300), "crops_coords_top_left": (8, 4), "negative_original_size": (64, 64)}
    ours = draw(pipe, False, guidance=CFG(W), lora_scale=0.0, strength=0.5, scheduler="euler", **sizes)
    assert error(ours, diffusers(solved_by(theirs[False], "euler"), False, 0.5, **sizes)) < LATENTS


def test_a_picture_equals_diffusers_own_through_the_vae(pipe, theirs):
    """And what the mask keeps passes through it, too: there is no pasting."""
    given = {"guidance": CFG(W), "lora_scale": 0.0, "scheduler": "euler", "strength": 0.7}
    ours = draw(pipe, True, output_type="np", **given)
    reference = diffusers(solved_by(theirs[True], "euler"), True, 0.7)
    with torch.no_grad():
        pixels = theirs[True].vae.decode(reference / theirs[True].vae.config.scaling_factor).sample
    levels = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours / 255.0 - levels).max() < 0.5 / 255 + 1e-4


# ---- SD3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, AutoLoRAPipeline]:
    """(diffusers' base pipeline, the same with a LoRA, ours with it)."""
    folder = tmp_path_factory.mktemp("sd3")
    base = reference_sd3.tiny_sd3(folder)
    base.set_progress_bar_config(disable=True)
    base.save_pretrained(folder)
    write_lora(base, folder / "lora.safetensors")
    theirs = StableDiffusion3Pipeline.from_pretrained(folder)
    theirs.load_lora_weights(folder, weight_name="lora.safetensors")
    ours = AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:2])
    ours.load_lora(folder / "lora.safetensors")
    return base, theirs, ours


SD3 = {"max_sequence_length": 24}


@masked
@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])  # of 6 steps 2.1 are 3: SD3's pipelines round up
def test_sd3_equals_diffusers_own_pipelines(sd3, strength: float, masked: bool):
    base, theirs, ours = sd3
    kind = StableDiffusion3InpaintPipeline if masked else StableDiffusion3Img2ImgPipeline
    pipe = kind(**{name: theirs.components[name] for name in base.components})
    pipe.set_progress_bar_config(disable=True)
    asked = None if strength == 0.6 else strength  # that is the default
    found = draw(ours, masked, guidance=CFG(W), strength=asked, **SD3)
    assert error(found, diffusers(pipe, masked, strength, **SIZE, **SD3)) < LATENTS


@masked
@pytest.mark.parametrize("scheduler", reference_sd3.SCHEDULERS)
def test_sd3_with_rules_matches_torch(sd3, scheduler: str, masked: bool):
    base, theirs, ours = sd3
    rule = RULES["interval" if masked else "autolora"]
    call = {name: value for name, value in CALL.items() if name != "num_inference_steps"} | SIZE | SD3
    picture = Picture(IMAGES, MASKS if masked else None, 0.6)
    settings = {"scheduler": scheduler, "steps": STEPS, "seeds": SEEDS, "picture": picture}
    reference = reference_sd3.run(base, theirs, rule, **settings, **call)
    assert error(draw(ours, masked, guidance=rule, scheduler=scheduler, strength=0.6, **SD3), reference) < LATENTS


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_a_whole_run_is_the_usual_one(name: str):
    """Strength 1 takes every step as it is; less takes the last ones, the first of them without a memory."""
    flow = {"prediction_type": "flow_prediction"} if SOLVERS[name].flow else {}
    config = SchedulerConfig(solver=base_of(name), **flow)
    usual, whole, part = (make_schedule(config, 20, name, strength=strength) for strength in (None, 1.0, 0.5))
    assert usual.known is None and whole.known is not None and part.known is not None
    for field, values in usual._asdict().items():
        if field != "known":
            np.testing.assert_array_equal(getattr(whole, field), values)
            memory = 2 if name.startswith("unipc") else 1
            if field in ("toward", "previous", "earlier"):
                np.testing.assert_array_equal(getattr(part, field)[memory:], values[10 + memory :])
            elif field != "initial_scale":
                np.testing.assert_array_equal(getattr(part, field), values[10:])
    assert part.previous[0] == part.earlier[0] == part.earlier[1] == 0
    if not name.startswith("unipc"):
        assert part.toward[0] == pytest.approx(usual.toward[10] + usual.previous[10], rel=1e-6)
    np.testing.assert_array_equal(part.known.picture, whole.known.picture[10:])
    assert (part.known.picture[-1], part.known.noise[-1]) == (1, 0)


@pytest.mark.parametrize("name", [name for name in DIFFUSION if base_of(name) == name])
def test_a_part_of_a_run_is_diffusers(name: str):
    """From the tenth of 20 steps on, where multistep solvers begin anew."""
    config, theirs = ours_and_theirs(name)
    table = make_schedule(config, 20, name, strength=0.5)
    draw = torch.Generator().manual_seed(0)
    picture, noise = torch.randn((2, *SHAPE), generator=draw)
    state = draw.get_state()
    fresh = torch.stack([torch.randn(SHAPE, generator=draw) for _ in range(10)]).numpy()
    theirs.set_timesteps(20)
    if name != "ddim":  # which looks for its place at every step
        theirs.set_begin_index(10)
    x = theirs.add_noise(picture, noise, theirs.timesteps[10:11])
    known = table.known
    begun = known.picture[0] * picture.numpy() + known.noise[0] * noise.numpy()
    assert distance(begun, x.numpy()) < FINAL
    takes = inspect.signature(theirs.step).parameters
    extra = {"generator": draw.set_state(state)} if "generator" in takes else {}
    for t in theirs.timesteps[10:]:
        x = theirs.step(network(theirs.scale_model_input(x, t), t), t, x, return_dict=False, **extra)[0]
    ours = run(table._replace(initial_scale=1.0), begun, fresh)
    assert distance(ours, x.numpy()) < FINAL


def test_steps_that_are_left_out_are_diffusers():
    for n in range(1, 60):
        for strength in (0.01, 0.1, 0.29, 0.3, 1 / 3, 0.55, 0.58, 0.6, 0.7, 0.9999, 1.0):
            theirs = max(n - min(int(n * strength), n), 0)
            if theirs < n:
                assert skipped_steps(n, strength, flow=False) == theirs
            else:
                with pytest.raises(ValueError, match=rf"strength = {strength} leaves none of {n} steps; at least"):
                    skipped_steps(n, strength, flow=False)
            assert skipped_steps(n, strength, flow=True) == int(max(n - min(n * strength, n), 0))
