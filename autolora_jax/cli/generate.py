"""`autolora generate`: every flag is a change to one field of GenerateConfig, which holds the defaults."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autolora_jax.cli.console import Debug, reported
from autolora_jax.cli.flags import assignments, option
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

PICTURES, GUIDANCE, SAMPLER, OUTPUT, SETTINGS = (
    "Pictures",
    "Guidance",
    "Sampling",
    "Output",
    "Presets",
)

EXAMPLES = """[bold]Examples[/]

Four pictures with the paper's guidance:

[cyan]autolora generate sd_xl_base_1.0.safetensors --lora pixel-art-xl.safetensors --prompt "a corgi" --seeds 0-3[/]

Base model, LoRA and AutoLoRA side by side, from the same noise:

[cyan]autolora generate MODEL --lora princess_xl_v2.safetensors:0.8 --prompt "Anna" --seeds 0-7 --compare[/]

A preset, with another γ and fewer steps:

[cyan]autolora generate MODEL --config configs/sdxl_autolora.py --lora FILE --prompt "Anna" --gamma 2 --steps 20[/]

The same run again, elsewhere:

[cyan]autolora generate --config out/config.json --out again[/]
"""

# Flag -> the setting it changes.
FLAGS = {
    "model": "model.source",
    "lora": "loras",
    "embedding": "embeddings",
    "dtype": "model.dtype",
    "variant": "model.variant",
    "tokenizer": "model.tokenizer",
    "text_encoders_from": "model.text_encoders",
    "t5": "model.text_encoder_3",
    "weight_shards": "model.weight_shards",
    "prompt": "prompts",
    "negative_prompt": "negative_prompt",
    "seeds": "seeds",
    "size": "size",
    "clip_skip": "clip_skip",
    "base_text": "base_text",
    "max_sequence_length": "max_sequence_length",
    "guidance": "guidance",
    "gamma": "guidance.gamma",
    "w1": "guidance.w1",
    "w2": "guidance.w2",
    "w": "guidance.w",
    "omega": "guidance.omega",
    "start": "guidance.start",
    "stop": "guidance.stop",
    "guidance_rescale": "sampler.guidance_rescale",
    "steps": "sampler.steps",
    "scheduler": "sampler.scheduler",
    "timestep_spacing": "sampler.timestep_spacing",
    "noise": "sampler.noise",
    "batch_size": "batch_size",
    "compare": "compare",
    "out": "out",
}


def generate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Diffusers folder, single .safetensors file, converted folder, or hub id such as "
            "stabilityai/stable-diffusion-xl-base-1.0. A preset may name it instead. "
            "Without any, the small built-in model draws, to try the program.",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        option(
            "--lora",
            panel=MODEL,
            metavar="FILE[:SCALE]",
            help="LoRA file, folder or hub id, and its strength (1). Repeat it to add several.",
        ),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        option(
            "--embedding",
            panel=MODEL,
            metavar="FILE",
            help="Textual-inversion embedding (.safetensors): prompts call it by the file's name. Repeat it to add "
            "several. Those that a LoRA's file brings are loaded with it.",
        ),
    ] = None,
    dtype: Dtype = None,
    variant: Variant = None,
    tokenizer: Tokenizer = None,
    text_encoders_from: TextEncodersFrom = None,
    t5: T5 = None,
    weight_shards: WeightShards = None,
    compilation_cache: CompilationCache = None,
    prompt: Annotated[
        list[str] | None, option("--prompt", "-p", panel=PICTURES, help="What to draw. Repeat it for several prompts.")
    ] = None,
    prompt_file: Annotated[
        Path | None, option("--prompt-file", panel=PICTURES, help="Text file with a prompt a line, added to --prompt.")
    ] = None,
    negative_prompt: Annotated[
        str | None,
        option(
            "--negative-prompt",
            "-n",
            panel=PICTURES,
            help="What not to draw. By default an empty text is encoded; 'none': zeros instead, as diffusers does.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        option(
            "--seeds",
            panel=PICTURES,
            default="0",
            metavar="SEEDS",
            help="A picture each: 0-15, or 1,5,9-12. Same seed, same noise.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        option(
            "--size",
            panel=PICTURES,
            default="the model's",
            metavar="WIDTHxHEIGHT",
            help="Width, then height in pixels, as in A1111: 832x1216 is upright.",
        ),
    ] = None,
    clip_skip: Annotated[
        int | None,
        option("--clip-skip", panel=PICTURES, help="Text encoder layers to leave out, counted as diffusers does."),
    ] = None,
    max_sequence_length: Annotated[
        int | None,
        option(
            "--max-sequence-length",
            panel=PICTURES,
            default="256",
            metavar="TOKENS",
            help="(SD3) What T5 reads, to 512.",
        ),
    ] = None,
    guidance: Annotated[
        str | None,
        option(
            "--guidance",
            panel=GUIDANCE,
            default="autolora with a LoRA, cfg without",
            metavar="RULE",
            help="autolora, cfg, none, autoguidance (guided by the base model, without CFG) or personalization "
            "(guided by a weaker LoRA, without prompt). Each value below is for the rules named before it.",
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        option(
            "--gamma",
            panel=GUIDANCE,
            default="1.5",
            help="(autolora) γ, from the base model through the LoRA: 0 base, 1 LoRA, above 1 beyond it.",
        ),
    ] = None,
    w1: Annotated[
        float | None,
        option("--w1", panel=GUIDANCE, default="SDXL 5.0, SD3 7.0", help="(autolora) CFG scale of the base model."),
    ] = None,
    w2: Annotated[
        float | None,
        option("--w2", panel=GUIDANCE, default="SDXL 5.0, SD3 7.0", help="(autolora) CFG scale of the LoRA model."),
    ] = None,
    w: Annotated[
        float | None,
        option(
            "--w",
            panel=GUIDANCE,
            default="SDXL 5.0, SD3 7.0, autoguidance 1.5",
            help="(cfg, autoguidance, personalization) The rule's scale; 1 is no guidance.",
        ),
    ] = None,
    omega: Annotated[
        float | None,
        option(
            "--omega",
            panel=GUIDANCE,
            default="0.5",
            help="(personalization) ω, strength of the weaker LoRA relative to the LoRA.",
        ),
    ] = None,
    start: Annotated[
        float | None,
        option("--start", panel=GUIDANCE, default="0.0", help="Where guidance sets in: a fraction of the steps."),
    ] = None,
    stop: Annotated[
        float | None,
        option(
            "--stop",
            panel=GUIDANCE,
            default="1.0",
            help="Where it ends. Outside, autolora goes on as CFG (half the cost), the others without guidance.",
        ),
    ] = None,
    base_text: Annotated[
        str | None,
        option(
            "--base-text",
            panel=GUIDANCE,
            default="base",
            metavar="WHOSE",
            help="(autolora, autoguidance) What the base model is told: base, by its own text encoders; or lora, by "
            "those of the LoRA, so that only its denoiser differs.",
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None,
        option(
            "--guidance-rescale", panel=GUIDANCE, default="0.0", help="0 to 1: takes back contrast that guidance adds."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        option("--steps", panel=SAMPLER, default="30", help="Solver steps; each is 2 to 4 network evaluations."),
    ] = None,
    scheduler: Annotated[
        str | None,
        option(
            "--scheduler",
            panel=SAMPLER,
            default="the model's",
            help="ddim, euler, euler_karras, euler_ancestral, dpmpp_2m or dpmpp_2m_karras; for SD3 flow_euler, "
            "flow_euler_karras, flow_euler_exponential or flow_dpmpp_2m.",
        ),
    ] = None,
    timestep_spacing: Annotated[
        str | None,
        option("--timestep-spacing", panel=SAMPLER, default="the model's", help="leading, linspace or trailing."),
    ] = None,
    noise: Annotated[
        str | None,
        option(
            "--noise", panel=SAMPLER, default="jax", help="torch: the noise, and so the pictures, of diffusers' seeds."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        option("--batch-size", panel=SAMPLER, default="4", help="Pictures per device at once. Less needs less memory."),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "--out",
            "-o",
            panel=OUTPUT,
            default="out",
            help="Folder. Pictures are numbered on from those that are in it.",
        ),
    ] = None,
    compare: Annotated[
        bool | None,
        option(
            "--compare/--no-compare",
            panel=OUTPUT,
            help="Draw also the base model and the LoRA with CFG, from the same noise, and grid.png of all.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, option("--overwrite", panel=OUTPUT, help="Number from 0000 and replace pictures of the same name.")
    ] = False,
    config: Annotated[
        Path | None,
        option(
            "--config",
            panel=SETTINGS,
            metavar="FILE",
            help="Preset (.py) or the config.json of an earlier run; flags change it. A .py is a program and is "
            "executed: use only presets that you trust.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        option(
            "--set",
            panel=SETTINGS,
            metavar="NAME=VALUE",
            help="Change any setting by its name in config.json: --set sampler.steps=28. Flags win over it.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw pictures with a LoRA-tuned SDXL or SD3, one for every prompt and seed.

    Each PNG carries its settings where A1111, ComfyUI and civitai look for them; config.json beside them holds the
    run's. Pictures are saved as they are finished.
    """
    flags = {FLAGS[name]: value for name, value in locals().items() if name in FLAGS and value is not None}
    with reported(debug, exit_code=2):
        from autolora_jax import overrides
        from autolora_jax.config import ConfigError
        from autolora_jax.presets import BUILTIN_NOTE, GenerateConfig, with_builtin

        settings = overrides.load_preset(config, GenerateConfig) if config else GenerateConfig()
        changes: dict[str, Any] = {**assignments(set_ or ()), **flags}
        if prompt_file:
            changes["prompts"] = [*(prompt or ()), *_lines(prompt_file)]
        settings = overrides.override(settings, changes)
        if settings.model.source is None:
            settings = with_builtin(settings)
            print(BUILTIN_NOTE, file=sys.stderr)
        if not settings.prompts:
            raise ConfigError("draw what? Give a --prompt or a --prompt-file")
        if settings.compare and not settings.loras:
            raise ConfigError("--compare sets a LoRA beside the base model: add --lora FILE")
    with reported(debug):
        from autolora_jax.cli.drawing import draw
        from autolora_jax.compilation import keep_programs

        keep_programs(compilation_cache)
        folder = draw(settings, overwrite)
        print(f"{len(folder.saved)} pictures in {folder.path}")


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text ({e.reason} at byte {e.start}); save it as UTF-8") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: one a line is expected")
    return prompts
