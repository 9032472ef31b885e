"""`autolora train`: every flag is a change to one field of TrainingRun, which holds the defaults."""

from pathlib import Path
from typing import Annotated, Any

import typer

from autolora_jax.cli.console import Debug, reported, say, terminable
from autolora_jax.cli.flags import assignments, option
from autolora_jax.cli.model_flags import MODEL, T5, CompilationCache, TextEncodersFrom, Tokenizer, Variant

PICTURES, LORA, TRAINING, LOSS, OUTPUT, SETTINGS = (
    "Pictures and captions",
    "LoRA",
    "Training",
    "Loss",
    "Output",
    "Presets",
)

EXAMPLES = """[bold]Examples[/]

A folder with dog-1.jpg, dog-1.txt, …; each .txt says what its picture shows:

[cyan]autolora train sd_xl_base_1.0.safetensors --data photos --trigger "sks dog" --out dog.safetensors[/]

What it is like, on the small built-in model:

[cyan]autolora train --data photos --steps 200 --rank 8 --out small.safetensors[/]

A preset, with the feed-forward layers, too:

[cyan]autolora train --config configs/sdxl_lora.py --data photos --target attention --target feed_forward[/]

Ctrl-C, then the same command again: it goes on where it was. The finished LoRA:

[cyan]autolora generate sd_xl_base_1.0.safetensors --lora dog.safetensors --prompt "sks dog on a beach"[/]
"""

# Flag -> the setting it changes.
FLAGS = {
    "model": "model.source",
    "dtype": "model.dtype",
    "variant": "model.variant",
    "tokenizer": "model.tokenizer",
    "text_encoders_from": "model.text_encoders",
    "t5": "model.text_encoder_3",
    "data": "data",
    "resolution": "training.data.resolution",
    "crop": "training.data.crop",
    "flip": "training.data.flip",
    "caption_extension": "training.data.caption_extension",
    "default_caption": "training.data.default_caption",
    "rank": "training.lora.rank",
    "alpha": "training.lora.alpha",
    "target": "training.lora.targets",
    "text_encoders": "training.lora.text_encoders",
    "steps": "training.steps",
    "batch_size": "training.batch_size",
    "accumulate": "training.gradient_accumulation_steps",
    "learning_rate": "training.optimizer.learning_rate",
    "warmup": "training.optimizer.warmup_steps",
    "schedule": "training.optimizer.schedule",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "seed": "training.seed",
    "min_snr_gamma": "training.loss.min_snr_gamma",
    "noise_offset": "training.loss.noise_offset",
    "caption_dropout": "training.loss.caption_dropout",
    "out": "out",
    "format": "format",
    "save_dtype": "save_dtype",
    "trigger": "trigger",
    "work": "work",
    "save_every": "training.save_every",
    "sample_every": "training.sample_every",
    "sample_prompt": "training.sample_prompts",
}
SQUARES = {"training.data.max_aspect": 1.0}  # --no-buckets


def train(
    model: Annotated[
        str | None,
        typer.Argument(
            help="What to tune: diffusers folder, single .safetensors file, converted folder, or hub id such as "
            "stabilityai/stable-diffusion-xl-base-1.0. Without any, or 'builtin': the small built-in model.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            panel=MODEL,
            default="bfloat16",
            help="Of the frozen weights: bfloat16, or float32 for twice the memory. What learns is float32 anyway.",
        ),
    ] = None,
    variant: Variant = None,
    tokenizer: Tokenizer = None,
    text_encoders_from: TextEncodersFrom = None,
    t5: T5 = None,
    compilation_cache: CompilationCache = None,
    data: Annotated[
        Path | None,
        option(
            "--data",
            panel=PICTURES,
            metavar="DIR",
            help="Folder of pictures, each with its caption in a text file of the same name, or all in metadata.jsonl "
            "or .csv as file_name and text. Pictures in a subfolder 10_name count ten times. A dozen can be enough.",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        option(
            "--resolution",
            panel=PICTURES,
            default="the model's",
            metavar="PIXELS",
            help="Side of a square picture; others have as many pixels. Latents are made once, and kept.",
        ),
    ] = None,
    no_buckets: Annotated[
        bool,
        option("--no-buckets", panel=PICTURES, help="Crop all to squares, where otherwise shapes up to 2:1 are kept."),
    ] = False,
    crop: Annotated[
        str | None,
        option(
            "--crop", panel=PICTURES, default="center", help="Part of a picture that fits no shape: center or random."
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        option("--flip/--no-flip", panel=PICTURES, default="no-flip", help="Train on mirrored pictures, too."),
    ] = None,
    caption_extension: Annotated[
        str | None, option("--caption-extension", panel=PICTURES, default=".txt", help="Of the text files.")
    ] = None,
    default_caption: Annotated[
        str | None,
        option("--default-caption", panel=PICTURES, help="For pictures without one, which are else an error."),
    ] = None,
    rank: Annotated[
        int | None,
        option("--rank", panel=LORA, default="16", help="How much it can learn: 4 to 64. The file grows with it."),
    ] = None,
    alpha: Annotated[
        float | None,
        option("--alpha", panel=LORA, default="the rank", help="The change is scaled by alpha / rank, as kohya's is."),
    ] = None,
    target: Annotated[
        list[str] | None,
        option(
            "--target",
            panel=LORA,
            default="attention",
            metavar="GROUP|REGEX",
            help="Layers that learn: attention, cross_attention, feed_forward, projections, convolutions, embeddings, "
            "or a pattern of their names, such as 'up_blocks.*attn2'. Repeat it for several.",
        ),
    ] = None,
    text_encoders: Annotated[
        bool | None,
        option(
            "--text-encoders/--no-text-encoders",
            panel=LORA,
            default="no-text-encoders",
            help="Both text encoders learn, too: slower; some subjects need it.",
        ),
    ] = None,
    steps: Annotated[
        int | None, option("--steps", panel=TRAINING, default="1000", help="Optimizer steps. Fewer for few pictures.")
    ] = None,
    batch_size: Annotated[
        int | None, option("--batch-size", panel=TRAINING, default="1", help="Pictures per device at once.")
    ] = None,
    accumulate: Annotated[
        int | None,
        option(
            "--accumulate",
            panel=TRAINING,
            default="1",
            help="Batches a step: as good as so many times the batch size, in the memory of one.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, option("--learning-rate", panel=TRAINING, default="0.0001", help="Its highest value.")
    ] = None,
    warmup: Annotated[
        int | None, option("--warmup", panel=TRAINING, default="0", metavar="STEPS", help="Steps from 0 up to it.")
    ] = None,
    schedule: Annotated[
        str | None, option("--schedule", panel=TRAINING, default="cosine", help="After it: cosine, linear or constant.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            panel=TRAINING,
            default="above 512x512",
            help="Compute activations twice rather than keep them: less memory, a third more time.",
        ),
    ] = None,
    seed: Annotated[
        int | None, option("--seed", panel=TRAINING, default="0", help="The same settings and seed give the same file.")
    ] = None,
    min_snr_gamma: Annotated[
        str | None,
        option(
            "--min-snr-gamma",
            panel=LOSS,
            default="5.0",
            metavar="NUMBER|none",
            help="Weighs down the easy timesteps of little noise (arXiv 2303.09556); none: all count alike.",
        ),
    ] = None,
    noise_offset: Annotated[
        float | None,
        option("--noise-offset", panel=LOSS, default="0.0", help="About 0.05 helps very dark and very light pictures."),
    ] = None,
    caption_dropout: Annotated[
        float | None,
        option(
            "--caption-dropout",
            panel=LOSS,
            default="0.1",
            help="Share of pictures trained without their caption, for guidance to work.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=OUTPUT, default="lora.safetensors", metavar="FILE", help="The LoRA."),
    ] = None,
    format: Annotated[
        str | None,
        option(
            "--format", panel=OUTPUT, default="kohya", help="Names in it: kohya (A1111, ComfyUI) or peft (diffusers)."
        ),
    ] = None,
    save_dtype: Annotated[
        str | None,
        option(
            "--save-dtype", panel=OUTPUT, default="float32", help="Of the file: float32, or float16 for half the size."
        ),
    ] = None,
    trigger: Annotated[
        str | None,
        option(
            "--trigger", panel=OUTPUT, metavar="PHRASE", help="What calls the subject in a prompt; kept in the file."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        option(
            "--work",
            panel=OUTPUT,
            default="FILE with .train at its end",
            metavar="DIR",
            help="Folder of checkpoints, latents, log.jsonl, samples and config.json. A run found in it is resumed.",
        ),
    ] = None,
    save_every: Annotated[
        int | None,
        option("--save-every", panel=OUTPUT, default="250", metavar="STEPS", help="Steps between checkpoints."),
    ] = None,
    sample_every: Annotated[
        int | None,
        option("--sample-every", panel=OUTPUT, default="250", metavar="STEPS", help="Steps between samples; 0: none."),
    ] = None,
    sample_prompt: Annotated[
        list[str] | None,
        option("--sample-prompt", panel=OUTPUT, default="the first captions", help="Repeat it for several prompts."),
    ] = None,
    fresh: Annotated[
        bool, option("--fresh", panel=OUTPUT, help="Start anew: first remove the checkpoints in the work folder.")
    ] = False,
    overwrite: Annotated[
        bool, option("--overwrite", panel=OUTPUT, help="Replace a LoRA file that another run wrote.")
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
            help="Change any setting by its name in config.json: --set training.optimizer.weight_decay=0. Flags win.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Tune SDXL or SD3 on a folder of captioned pictures: a LoRA file that autolora, A1111, ComfyUI and diffusers load.

    Ctrl-C and SIGTERM save where it stands, and the same command goes on from there: to the very same file.
    """
    flags = {FLAGS[name]: value for name, value in locals().items() if name in FLAGS and value is not None}
    with reported(debug, exit_code=2):
        from autolora_jax import overrides
        from autolora_jax.config import ConfigError
        from autolora_jax.demo import MODEL as BUILTIN
        from autolora_jax.presets import TrainingRun

        run = overrides.load_preset(config, TrainingRun) if config else TrainingRun()
        changes: dict[str, Any] = {**assignments(set_ or ()), **(SQUARES if no_buckets else {}), **flags}
        run = overrides.override(run, changes)
        if run.model.source in (None, BUILTIN):
            # It is small: bfloat16 would save nothing.
            exact = {"model.source": BUILTIN, "model.dtype": changes.get("model.dtype", "float32")}
            run = overrides.override(run, exact)
        if run.data is None:
            raise ConfigError("train on what? Give --data DIR, a folder of pictures with captions")
    with reported(debug), terminable():
        from autolora_jax.cli.training import train as train_run
        from autolora_jax.cli.training import usage
        from autolora_jax.compilation import keep_programs

        keep_programs(compilation_cache)
        report = train_run(run, fresh, overwrite)
        say(f"Draw with it: {usage(run, report)}", "dim")
        print(f"LoRA in {run.out}")
