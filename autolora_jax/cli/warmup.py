"""`autolora warmup`: the programs that later runs will need, compiled before anybody waits for them."""

import dataclasses
from pathlib import Path
from typing import Any

from autolora_jax.batch import Artist, Job
from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.recipe import Recipe
from autolora_jax.batch.sources import Sources
from autolora_jax.cli.console import reported
from autolora_jax.compilation import keep_programs
from autolora_jax.display import Display
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.settings.changes import load_preset, read
from autolora_jax.settings.fields import choose
from autolora_jax.settings.model import ModelConfig
from autolora_jax.settings.programs.warmup import Warmup
from autolora_jax.settings.rules import RULES
from autolora_jax.settings.values import Size


def run(asked: Warmup) -> None:
    """Compiles, and says how many programs are ready."""
    with reported(exit_code=2):
        pixels = [read(text, Size, "--size") for text in asked.size]
        most = [read(text, int, "--batch-size") for text in asked.batch_size]
        rules = [choose(RULES, name, "--guidance")() for name in asked.guidance] or None
    place = keep_programs(asked.compilation_cache)
    with Display() as display:
        if (asked.source or "").endswith(".py"):
            count = _of_job(Path(str(asked.source)), display)
        else:
            model = {field.name: getattr(asked, field.name) for field in dataclasses.fields(ModelConfig)}
            pipe = AutoLoRAPipeline.from_pretrained(**model, on_progress=display)
            for lora in asked.lora:
                pipe.load_lora(lora.source, role=lora.role)
            sizes = [(height, width) for width, height in pixels] or None
            count = sum(pipe.warm_up(sizes, batch_size=n, guidance=rules, on_progress=display) for n in most)
    print(f"{count} programs are ready, kept in {place or 'no place: the compilation cache is off'}")


def _of_job(path: Path, display: Display) -> int:
    """Compiles what a job will draw with, and says how many programs that were."""
    job = load_preset(path, Job)
    artist, count = Artist(on_progress=display), 0
    kinds: dict[Any, list[Recipe]] = {}
    for recipe in make_plan(job, Sources()).recipes:
        changed = recipe.drawing.strength is not None
        skips = recipe.drawing.skip is not None
        length = recipe.drawing.max_sequence_length
        kinds.setdefault((recipe.load.names, changed, recipe.masked, skips, length), []).append(recipe)
    for (_, changed, masked, _, length), own in kinds.items():
        pipe = artist.pipeline(own[0].load)
        sizes = list(dict.fromkeys((recipe.size[1], recipe.size[0]) for recipe in own))
        rules = list(dict.fromkeys(recipe.rule for recipe in own))
        given: dict[str, Any] = {"image": changed, "mask_image": masked, "max_sequence_length": length}
        given["skip_guidance_layers"] = own[0].drawing.skip_guidance_layers
        count += pipe.warm_up(sizes, batch_size=job.batch_size, guidance=rules, **given, on_progress=display)
    return count
