"""What compiles, counted line by line: docs/explanations/compilation.md is this list in words."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from autolora_jax import CFG, AutoGuidance, AutoLoRA, AutoLoRAPipeline, NoGuidance, PersonalizationGuidance
from autolora_jax.progress import Progress

SIDE = 32
BATCH = 4
SEVEN = AutoLoRA(1.5, 2.0, 2.0)  # Eq. 7: pairs of prompts
SIX = AutoLoRA(1.5, 1.0, 1.0)  # Eq. 6: one prompt a call
LONG = "a zib, " * 15
LORA = "small:0.5.safetensors"


def draw(pipe: AutoLoRAPipeline, prompt: Any = "a zib", **changes: Any) -> np.ndarray:
    settings = {"seeds": range(BATCH), "guidance": SEVEN, "num_inference_steps": 3, "height": SIDE, "width": SIDE}
    return np.asarray(pipe(prompt, **{**settings, "output_type": "np", **changes}).images)


def load(folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    """Both programs of the denoiser are there: for pairs of prompts, and for one."""
    pipe = load(small_folder)
    pipe.load_lora(small_folder / LORA)
    for rule in (SEVEN, SIX):
        draw(pipe, guidance=rule)
    return pipe


VALUES: dict[str, dict[str, Any]] = {
    "a seed": {"seeds": range(7, 7 + BATCH)},
    "a prompt": {"prompt": "a red cat in the snow"},
    "prompts of several lengths": {"prompt": ["a", LONG], "seeds": [1, 2]},
    "another negative prompt": {"negative_prompt": "sand"},
    "no negative prompt": {"negative_prompt": None},
    "γ": {"guidance": AutoLoRA(1.9, 2.0, 2.0)},
    "γ = 0": {"guidance": AutoLoRA(0.0, 2.0, 2.0)},
    "γ = 1": {"guidance": AutoLoRA(1.0, 2.0, 2.0)},
    "w": {"guidance": AutoLoRA(1.5, 3.0, 4.0)},
    "w1 = 1": {"guidance": AutoLoRA(1.5, 1.0, 4.0)},
    "γ per picture": {"guidance": AutoLoRA([1.0, 1.2, 1.4, 1.6], 2.0, 2.0)},
    "an interval": {"guidance": AutoLoRA(1.5, 2.0, 2.0, start=0.4, stop=0.7)},
    "Eq. 6 in an interval": {"guidance": AutoLoRA(1.5, 1.0, 1.0, start=0.4)},
    "a base that is refreshed": {"guidance": AutoLoRA(1.5, 2.0, 2.0, refresh_base=3), "num_inference_steps": 7},
    "all that is refreshed": {"guidance": AutoLoRA(1.5, 2.0, 2.0, refresh_base=2, refresh_uncond=4)},
    "another refresh per picture": {"guidance": AutoLoRA(1.5, 2.0, 2.0, refresh_base=[1, 2, 3, 4])},
    "CFG": {"guidance": CFG(4.0)},
    "CFG that is refreshed": {"guidance": CFG(4.0, refresh_uncond=2)},
    "CFG in an interval": {"guidance": CFG(4.0, start=0.5)},
    "no guidance": {"guidance": NoGuidance()},
    "AutoGuidance": {"guidance": AutoGuidance(2.0)},
    "personalization": {"guidance": PersonalizationGuidance(3.0)},
    "ω": {"guidance": PersonalizationGuidance(3.0, 0.2)},
    "rules in one batch": {"guidance": [CFG(2.0), SEVEN, NoGuidance(), PersonalizationGuidance(2.0)]},
    "steps": {"num_inference_steps": 11},
    "one step": {"num_inference_steps": 1},
    "a solver": {"scheduler": "dpmpp_2m_karras"},
    "a stochastic solver": {"scheduler": "euler_ancestral"},
    "a solver that looks further back": {"scheduler": "unipc_beta", "num_inference_steps": 5},
    "a solver of few steps": {"scheduler": "lcm"},
    "η": {"scheduler": "tcd", "eta": 0.8},
    "a spacing": {"timestep_spacing": "trailing"},
    "APG": {"guidance": AutoLoRA(1.5, 2.0, 2.0, apg_eta=0.0, apg_norm=5.0, apg_momentum=-0.5)},
    "CFG-Zero*": {"guidance": CFG(4.0, zero_star=1.0)},
    "rescaling": {"guidance_rescale": 0.4},
    "a scale": {"lora_scale": 0.3},
    "scale 0": {"lora_scale": 0.0},
    "a scale per picture": {"lora_scale": [0.1, 0.4, 0.4, 1.2]},
    "a scale over the steps": {"lora_scale": np.linspace(0.0, 1.0, 3).reshape(1, 3, 1)},
    "one picture": {"seeds": 3},
    "three pictures": {"seeds": range(3)},
    "nine pictures": {"seeds": range(9)},
    "clip_skip": {"clip_skip": 1},
    "base_text": {"base_text": "lora"},
    "noise as torch makes it": {"noise": "torch"},
    "progress": {"on_progress": lambda progress: None},
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_compiles_nothing(pipe: AutoLoRAPipeline, name: str, count_compilations: Callable[[], Any]):
    with count_compilations() as compiled:
        draw(pipe, **VALUES[name])
    assert compiled == []


def test_pictures_compile_their_encoder_and_masks_their_loop_and_new_ones_nothing(
    pipe: AutoLoRAPipeline, count_compilations: Callable[[], Any]
):
    rng = np.random.default_rng(0)

    def given(n: int = 1, is_masked: bool = False) -> dict[str, Any]:
        images = list(rng.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8))
        mask = {"mask_image": list(rng.random((n, SIDE, SIDE)) < 0.5)} if is_masked else {}
        return {"image": images, "strength": 0.5, **mask}

    with count_compilations() as compiled:
        draw(pipe, **given())
    assert len(compiled) <= 2  # the encoder, and noise on what it gives: the denoiser's program is the usual one
    for rule in (SEVEN, SIX):
        draw(pipe, guidance=rule, **given(is_masked=True))
    with count_compilations() as compiled:
        for is_masked in (False, True):
            for more in ({"strength": 0.7}, {"strength": 1.0}, {"num_inference_steps": 17}, {"scheduler": "dpmpp_2m"}):
                draw(pipe, **given(is_masked=is_masked) | more)
            draw(pipe, guidance=SIX, **given(BATCH, is_masked))
        draw(pipe, image=np.zeros((50, 40, 3)), strength=0.5)  # resized
        draw(pipe)
    assert compiled == []


def of_rank(rank: int, lora: Path, folder: Path, only: str = "") -> Path:
    """A LoRA with the first `rank` ranks of another, repeated if it has fewer; only: layers with this in them."""
    tensors = {}
    for name, tensor in load_file(lora).items():
        if only in name:
            axis = 0 if ".lora_A." in name else 1
            index = np.arange(rank) % tensor.shape[axis]
            tensors[name] = np.ascontiguousarray(np.take(tensor, index, axis))
    save_file(tensors, folder / f"rank{rank}{only}.safetensors")
    return folder / f"rank{rank}{only}.safetensors"


def test_other_loras_and_stacks_of_them_compile_nothing(
    pipe: AutoLoRAPipeline, small_folder: Path, tmp_path: Path, count_compilations: Callable[[], Any]
):
    alone, lora = draw(pipe), small_folder / LORA
    with count_compilations() as compiled:
        for rank, only, role in ((2, "", "tuned"), (8, "", "all"), (1, "attn2", "base")):
            pipe.load_lora(of_rank(rank, lora, tmp_path, only), scale=0.5, role=role)
            together = draw(pipe)
            draw(pipe, guidance=SIX, seeds=[1])
    try:
        assert compiled == []
        assert (together != alone).any()
    finally:
        pipe.unload_lora()
        pipe.load_lora(lora)


def test_a_new_size_compiles_and_so_does_the_first_lora(small_folder: Path, count_compilations: Callable[[], Any]):
    """The count sees what there is to see."""
    pipe = load(small_folder)
    with count_compilations() as compiled:
        draw(pipe, guidance=CFG(2.0), height=40)
    assert compiled
    with count_compilations() as compiled:
        pipe.load_lora(small_folder / LORA)
        draw(pipe, height=40)
    assert compiled


def test_warm_up_leaves_nothing_to_compile(small_folder: Path, count_compilations: Callable[[], Any]):
    pipe = load(small_folder)
    pipe.load_lora(small_folder / LORA)
    told: list[Progress] = []
    count = pipe.warm_up([(48, 32), (32, 48)], batch_size=2, guidance=[SEVEN, CFG(2.0)], on_progress=told.append)
    assert [p.done for p in told] == [1, 2, 3, 4] and count == 4
    assert {p.what.split(",")[0] for p in told} == {"denoiser", "decoder"} and "32×48, 2 a device" in str(told)
    with count_compilations() as compiled:
        for height, width in ((48, 32), (32, 48)):
            draw(pipe, height=height, width=width, batch_size=2, seeds=range(3))
    assert compiled == []
    assert pipe.warm_up([(32, 48)], batch_size=2, guidance=SEVEN, mask_image=True) == 3
    with count_compilations() as compiled:
        for mask in ({}, {"mask_image": np.zeros((32, 48))}):
            draw(pipe, image=np.zeros((32, 48, 3)), **mask, strength=0.4, width=48, batch_size=2, seeds=range(2))
    assert compiled == []


COUNTED = """
import jax, sys
misses = []
jax.monitoring.register_event_listener(lambda event, **_: event.endswith("cache_misses") and misses.append(event))
from autolora_jax.cli import main
sys.argv = ["autolora", *sys.argv[1:]]
try:
    main()
finally:
    print("compiled", len(misses))
"""


def test_a_second_process_compiles_nothing(small_folder: Path, tmp_path: Path):
    """`autolora generate`, whose progress is shown; and the last picture is the first's, byte for byte."""

    def generate(out: str) -> int:
        command = [sys.executable, "-c", COUNTED, "generate", str(small_folder), "--lora", str(small_folder / LORA)]
        command += ["--prompt", "a zib", "--seeds", "0,1", "--steps", "2", "--size", "32x32"]
        command += ["--dtype", "float32", "--out", str(tmp_path / out)]
        environment = {**os.environ, "AUTOLORA_COMPILATION_CACHE": str(tmp_path / "programs")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "Draw" in done.stderr
        return int(done.stdout.split("compiled ")[1])

    assert generate("first") > 0
    assert generate("again") == 0
    one, two = (next((tmp_path / out).glob("0000*.png")).read_bytes() for out in ("first", "again"))
    assert one == two
