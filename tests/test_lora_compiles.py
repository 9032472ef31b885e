"""Another LoRA, another scale, one more LoRA: the programs that are there serve them all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from autolora_jax import CFG, AutoLoRAPipeline
from autolora_jax.demo import builtin
from tests.parity import error

RANK = 4  # of the built-in LoRAs, and their alpha
SAME = 1e-5  # of latents, when ranks are summed in another order; seen: 1.2e-6


@pytest.fixture(scope="module")
def pipe() -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(dtype="float32", devices=jax.devices()[:1])


def draw(pipe: AutoLoRAPipeline, **changes: Any) -> np.ndarray:
    images = pipe(
        "a zib",
        seeds=[0, 1],
        guidance=CFG(2.0),  # the base branch has no LoRA
        num_inference_steps=2,
        height=32,
        width=32,
        output_type="latent",
        **changes,
    ).images
    return np.asarray(images)


def part(folder: Path, first: int, last: int) -> Path:
    """Ranks first … last - 1 of the built-in character LoRA, as a file of its own. Its scale is 4 / its rank."""
    tensors = {}
    for name, tensor in load_file(builtin("builtin:character")).items():
        if "lora_down" in name:
            tensor = tensor[first:last]
        elif "lora_up" in name:
            tensor = tensor[:, first:last]
        tensors[name] = np.ascontiguousarray(tensor)
    save_file(tensors, folder / f"{first}-{last}.safetensors")
    return folder / f"{first}-{last}.safetensors"


@pytest.fixture
def drawn(pipe: AutoLoRAPipeline) -> Iterator[dict[str, np.ndarray]]:
    """What the built-in character LoRA draws, with one scale for all and with one each: both programs are compiled."""
    pipe.load_lora("builtin:character")
    yield {"one": draw(pipe), "each": draw(pipe, lora_scale=[0.4, 1.0])}
    pipe.unload_lora()


def test_scales_ranks_and_stacks_compile_nothing(
    pipe: AutoLoRAPipeline, drawn: dict[str, np.ndarray], tmp_path: Path, count_compilations: Any
) -> None:
    stacked = {}
    with count_compilations() as compiled:
        weaker = draw(pipe, lora_scale=0.4)
        per_image = draw(pipe, lora_scale=[1.0, 0.4])
        for cuts in ([(0, 3)], [(0, 1), (1, 2), (2, 4)]):
            pipe.unload_lora()
            for first, last in cuts:
                pipe.load_lora(part(tmp_path, first, last), scale=(last - first) / RANK)
            stacked[len(cuts), cuts[0]] = draw(pipe)
            draw(pipe, lora_scale=np.linspace(0.1, 1, 2 * len(cuts)).reshape(2, -1))
        pipe.unload_lora()
        pipe.load_lora("builtin:style", scale=0.7)
        style = draw(pipe)
        draw(pipe, lora_scale=[0.1, 0.2])
    assert compiled == []
    # And each of them is what it should be.
    assert error(drawn["each"][0], weaker[0]) < SAME and error(drawn["each"][1], drawn["one"][1]) < SAME
    assert error(per_image[0], drawn["one"][0]) < SAME and error(per_image[1], weaker[1]) < SAME
    for (count, _), latents in stacked.items():
        assert (error(latents, drawn["one"]) < SAME) == (count > 1)  # all ranks, shared out; the first has three
    assert error(style, drawn["one"]) > 0.05
