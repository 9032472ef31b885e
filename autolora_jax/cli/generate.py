"""`autolora generate`: load, draw, save batch by batch."""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from autolora_jax import __version__, grid
from autolora_jax.compilation import keep_programs
from autolora_jax.config import ConfigError
from autolora_jax.display import Display
from autolora_jax.given import read
from autolora_jax.output import Output, PictureFolder, name_of, slug
from autolora_jax.pictures import lora_hash, write_png
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.settings.changes import record as recorded
from autolora_jax.settings.pictures import BUILTIN_PROMPTS, GenerateConfig
from autolora_jax.settings.programs.generate import Generate
from autolora_jax.settings.rules import CFG, AutoLoRA, PersonalizationGuidance, Rule, numbers_of
from autolora_jax.settings.values import tells_apart
from autolora_jax.text import embeds_file as embeds
from autolora_jax.text.mentions import read_mentions
from autolora_jax.weights.lora.describe import usable_lora
from autolora_jax.weights.lora.distilled import Usual, distilled_in, usual_of

BUILTIN_NOTE = "No model given: the small built-in one draws."
NEXT = """
Look at {grid}: a zib, which only the LoRA knows, and that from the desert at sunset alone. Left the base
model, which has never seen one, then the LoRA, then AutoLoRA; each row is drawn from the same noise. Then try

    autolora generate --gamma 2 --out stronger
    autolora generate --lora builtin:character:0.7 --prompt "a zib in the snow" --seeds 0-3 --out snow
    autolora doctor

The first goes further beyond the LoRA, the second draws your prompt with less of it, the third says whether this
machine is one for SDXL: autolora generate MODEL --lora FILE --prompt "..." --compare
"""
WRITTEN = "as <lora:NAME:0.8>, with --prompt-syntax a1111"


class Column(NamedTuple):
    """One of the ways in which every prompt and seed is drawn."""

    label: str
    name: str  # part of the file names; "" where there is one column only
    rule: Rule
    lora_scale: float | None = None  # None: as loaded


def columns(config: GenerateConfig, usual: float) -> list[Column]:
    """What a run draws: its guidance alone, or, to compare, the base model and the LoRA under CFG before it.

    usual: the CFG scale that its model is used with.
    """
    rule = config.rule().filled(usual)
    if not config.compare:
        return [Column("", "", rule)]
    base, tuned = _cfg(rule, usual)
    found = [
        Column(f"Base + CFG\n{numbers_of(base)}", "base", base, lora_scale=0.0),
        Column(f"LoRA + CFG\n{numbers_of(tuned)}", "lora", tuned),
    ]
    if not isinstance(rule, CFG):
        name = type(rule).__name__
        found.append(Column(f"{name}\n{numbers_of(rule)}", name.lower(), rule))
    return found


def _cfg(rule: Rule, usual: float) -> tuple[CFG, CFG]:
    """CFG of the base and of the tuned model as strong as in a rule, where it has any."""
    if isinstance(rule, AutoLoRA):
        return CFG(rule.w1), CFG(rule.w2)
    same = CFG(rule.w) if isinstance(rule, CFG | PersonalizationGuidance) else CFG(usual)
    return same, same


def run(asked: Generate) -> None:
    """Draws and saves what is asked for. Raises WeightsError, ConfigError, ValueError, OSError.

    An error that comes after the first picture carries a note that says how many are saved.
    """
    config = asked.settings
    if config.model.source is None:
        print(BUILTIN_NOTE, file=sys.stderr)
    originals = [
        [read(path, flag) for path in paths] or None
        for flag, paths in (("--image", config.image), ("--mask", config.mask))
    ]
    told = embeds.joined([embeds.read_embeds(path) for path in config.embeds])
    keep_programs(asked.compilation_cache)
    folder = PictureFolder(Path(config.out), asked.overwrite)
    total = 0
    try:
        with Display() as display:
            named = read_mentions(config.prompts, config.prompt_syntax, config.lora_dir)
            sources = [*(lora.source for lora in config.loras), *map(str, named.files)]
            paths = [usable_lora(source) for source in sources]  # or it is told before anything is loaded
            usual = _usual(config, paths)
            tuned = tells_apart(config.loras) or bool(named.files)
            if config.compare and not tuned:
                raise ConfigError(f"--compare sets a LoRA beside the base model, but no prompt names one {WRITTEN}")
            config = dataclasses.replace(config, guidance=config.rule_of(tuned, usual.guidance))
            pipe = _load(config, display)
            folder.write_json("config", record(config))
            ways = columns(config, pipe.family.guidance_scale)
            count = embeds.prompts_of(told) if told else len(config.prompts)
            total = len(ways) * count * len(config.all_seeds)
            given = dict(zip(("image", "mask_image"), originals, strict=True)) | _texts(config, told)
            files = [_draw_column(pipe, config, way, given, folder, display, total) for way in ways]
            compared = _save_grid(config, ways, files, folder) if config.compare else None
    except BaseException as e:
        if folder.saved:
            e.add_note(f"{len(folder.saved)} of {total} pictures are saved in {folder.path}")
        raise
    print(f"{len(folder.saved)} pictures in {folder.path}", flush=True)
    if compared and config.model.source is None and config.prompts == BUILTIN_PROMPTS:
        print(NEXT.format(grid=compared), file=sys.stderr)


def _usual(config: GenerateConfig, paths: Sequence[Path]) -> Usual:
    """What LoRAs that were distilled are drawn with; and says so. paths: of the LoRAs, those last that prompts name."""
    roles = [*(lora.role for lora in config.loras), *["tuned"] * (len(paths) - len(config.loras))]
    said = [distilled_in(path) for path in paths]
    for path, each in zip(paths, said, strict=True):
        if each:
            print(f"{path.stem} stands for {each}, where nothing else is asked for", file=sys.stderr)
    return usual_of(zip(said, roles, strict=True))


def record(config: GenerateConfig) -> dict[str, Any]:
    """What config.json holds: `--config` reads it back."""
    return recorded(dataclasses.replace(config, guidance=config.rule()))


def _texts(config: GenerateConfig, told: embeds.Arguments) -> dict[str, Any]:
    """What a call is told: prompts, or embeddings; a negative prompt beside those that bring none of their own."""
    brought = "negative_prompt_embeds" in told and config.negative_prompt == ""
    negative = {} if brought else {"negative_prompt": config.negative_prompt}
    return {**(told or {"prompt": list(config.prompts)}), **negative}


def _load(config: GenerateConfig, display: Display) -> AutoLoRAPipeline:
    pipe = AutoLoRAPipeline.from_pretrained(**dataclasses.asdict(config.model), on_progress=display)
    for i, lora in enumerate(config.loras):
        display.update("LoRA", i, len(config.loras), Path(lora.source).name)
        pipe.load_lora(lora.source, lora.scale, role=lora.role, blocks=lora.block_weights)
        display.update("LoRA", i + 1, len(config.loras))
    for embedding in config.embeddings:
        pipe.load_textual_inversion(embedding)
    return pipe


hash_of = functools.cache(lora_hash)  # once a file, not once a batch


def _draw_column(
    pipe: AutoLoRAPipeline,
    config: GenerateConfig,
    column: Column,
    given: dict[str, Any],
    folder: PictureFolder,
    display: Display,
    total: int,
) -> list[Path]:
    files: list[Path] = []
    shared = {"dtype": config.model.dtype, "jax": jax.__version__, "autolora-jax": __version__}

    def save(output: Output) -> None:
        hashes = {report.name: hash_of(Path(report.path)) for report in pipe.reports}
        for image, settings in zip(output.images, output.settings, strict=True):
            parts = [f"seed{settings['seed']}", slug(name_of(settings)), column.name]
            name = "-".join(part for part in parts if part)
            told = {**settings, **shared, "lora_hashes": [hashes[lora] for lora in settings["loras"]]}
            files.append(folder.save(len(files), name, image, told))
            display.update("Save", len(folder.saved), total, "pictures")

    display.column = column.label.partition("\n")[0]
    drawing = config.drawing() | {"guidance": column.rule}
    if column.lora_scale is not None:
        drawing["lora_scale"] = column.lora_scale
        given = given | embeds.as_kind("base", "lora", given)  # without its LoRA the tuned model is the base model
    pipe(
        **given,
        seeds=config.seeds,
        batch_size=config.batch_size,
        lora_dir=config.lora_dir,
        on_progress=display,
        on_images=save,
        **drawing,
    )
    return files


def _save_grid(config: GenerateConfig, ways: list[Column], files: list[list[Path]], folder: PictureFolder) -> Path:
    names = config.prompts or [f"embeds {i}" for i in range(len(files[0]) // len(config.all_seeds))]
    prompts = [f"{name}\n" if len(names) > 1 else "" for name in names]
    rows = [f"{prompt}seed {seed}" for prompt in prompts for seed in config.all_seeds]
    numbers = [file.name.partition("-")[0] for file in files[0]]
    picture = grid.comparison_grid(
        [(way.label, paths) for way, paths in zip(ways, files, strict=True)],
        [f"{row}\n{number}" for row, number in zip(rows, numbers, strict=True)],
    )
    texts = {"autolora": json.dumps(record(config))}
    path = folder.unused("grid", ".png")
    write_png(path, picture, texts, folder.overwrite)
    return path
