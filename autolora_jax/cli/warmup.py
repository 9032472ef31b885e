"""`autolora warmup`: the programs that later runs will need, compiled before anybody waits for them."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from autolora_jax.cli.console import Debug, reported
from autolora_jax.cli.flags import option
from autolora_jax.cli.model_flags import (
    MODEL,
    T5,
    CompilationCache,
    Dtype,
    TextEncodersFrom,
    Tokenizer,
    Variant,
    WeightShards,
)

PROGRAMS = "Programs"

EXAMPLES = """[bold]Examples[/]

What `autolora generate` needs for AutoLoRA, upright and square:

[cyan]autolora warmup MODEL --lora pixel-art-xl.safetensors --size 1024x1024 --size 832x1216[/]

All that a job will draw with:

[cyan]autolora warmup job.py[/]

Programs are compiled for the devices that are here: run it on a machine like those that will draw, with a
[cyan]--compilation-cache[/] that they all see. Any LoRA of low rank will do: its programs serve every other.
"""


def warmup(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model, as for generate: folder, file or hub id; without any the built-in one. Or a job, a .py file "
            "as for batch: what it draws with is compiled, and the other flags are not needed.",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None, option("--lora", panel=MODEL, metavar="FILE", help="A LoRA to be drawn with. Repeat it.")
    ] = None,
    dtype: Dtype = None,
    variant: Variant = None,
    tokenizer: Tokenizer = None,
    text_encoders_from: TextEncodersFrom = None,
    t5: T5 = None,
    weight_shards: WeightShards = None,
    size: Annotated[
        list[str] | None,
        option(
            "--size",
            panel=PROGRAMS,
            default="the model's",
            metavar="WIDTHxHEIGHT",
            help="Of the pictures. Repeat it for several.",
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        option(
            "--batch-size",
            panel=PROGRAMS,
            default="4",
            help="Pictures per device at once, as in the runs to come; 1 for single ones. Repeat it for several.",
        ),
    ] = None,
    guidance: Annotated[
        list[str] | None,
        option(
            "--guidance",
            panel=PROGRAMS,
            default="autolora with a LoRA, cfg without",
            metavar="RULE",
            help="Rules to come. autolora and cfg share a program, which takes both prompts at once; none, "
            "autoguidance, personalization and AutoLoRA without CFG share another. Repeat it for several.",
        ),
    ] = None,
    compilation_cache: CompilationCache = None,
    debug: Debug = False,
) -> None:
    """Compile ahead what later runs will need: of a model with the given LoRAs, or of a job.

    Every run finds the programs in the compilation cache. What depends on values alone, such as steps, seeds, prompts,
    γ, w and scales, is no program's matter.
    """
    given: dict[str, Any] = {
        "dtype": dtype,
        "variant": variant,
        "tokenizer": tokenizer,
        "text_encoders": text_encoders_from,
        "text_encoder_3": t5,
        "weight_shards": weight_shards,
    }
    with reported(debug, exit_code=2):
        from autolora_jax import overrides
        from autolora_jax.guidance import RULES
        from autolora_jax.presets import GenerateConfig, Lora
        from autolora_jax.schedules.choice import choose

        of_job = model is not None and model.endswith(".py")
        changes = {f"model.{name}": value for name, value in given.items() if value is not None}
        settings = overrides.override(GenerateConfig(), changes)
        pixels = [overrides.override(settings, {"size": text}).size for text in size or ()]
        rules = [choose(RULES, name, "guidance")() for name in guidance or ()] or None
        loras = [Lora.parse(text) for text in lora or ()]
    with reported(debug):
        from autolora_jax.cli.progress import Display
        from autolora_jax.compilation import keep_programs
        from autolora_jax.pipeline import AutoLoRAPipeline

        place = keep_programs(compilation_cache)
        with Display() as display:
            if of_job:
                assert model is not None
                count = _of_job(Path(model), display)
            else:
                config = dataclasses.asdict(settings.model) | {"source": model}
                pipe = AutoLoRAPipeline.from_pretrained(**config, on_progress=display)
                for each in loras:
                    pipe.load_lora(each.source)
                sizes = [(height, width) for width, height in filter(None, pixels)] or None
                count = sum(
                    pipe.warm_up(sizes, batch_size=most, guidance=rules, on_progress=display)
                    for most in batch_size or (4,)
                )
        print(f"{count} programs are ready, kept in {place or 'no place: the compilation cache is off'}")


def _of_job(path: Path, display: Any) -> int:
    """Compiles what a job will draw with, and says how many programs that were."""
    from autolora_jax import overrides
    from autolora_jax.batch import Artist, Job
    from autolora_jax.batch.recipe import resolve
    from autolora_jax.batch.sources import Sources

    job, sources = overrides.load_preset(path, Job), Sources()
    artist, count = Artist(on_progress=display), 0
    recipes = [resolve(settings, sources) for settings in job.all_settings()]
    for names in dict.fromkeys(recipe.load.names for recipe in recipes):
        own = [recipe for recipe in recipes if recipe.load.names == names]
        pipe = artist.pipeline(own[0].load)
        sizes = list(dict.fromkeys((recipe.program.height, recipe.program.width) for recipe in own))
        rules = list(dict.fromkeys(recipe.rule for recipe in own))
        count += pipe.warm_up(sizes, batch_size=job.batch_size, guidance=rules, on_progress=display)
    return count
