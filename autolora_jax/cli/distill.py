"""`autolora distill`: check what can be checked early, load, draw and learn in turn, keep what comes by."""

import dataclasses
import shlex
import shutil
from pathlib import Path

from autolora_jax.batch.prompts import read_prompts
from autolora_jax.cli.learning import TrainingDisplay, WorkFolder, begin, kept, learning
from autolora_jax.compilation import keep_programs
from autolora_jax.config import ConfigError
from autolora_jax.display import say
from autolora_jax.lora import LoraReport
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.settings.changes import record
from autolora_jax.settings.distilling import Distillation
from autolora_jax.settings.programs.distill import Distill
from autolora_jax.settings.rules import numbers_of
from autolora_jax.training import distill_lora
from autolora_jax.training.contexts import prompts_of
from autolora_jax.training.distill import PAIRS, Outline
from autolora_jax.training.header import base_hashes
from autolora_jax.training.lora import require_places
from autolora_jax.weights.lora.describe import usable_lora
from autolora_jax.weights.lora.metadata import listing


def run(asked: Distill) -> None:
    """Distils what is asked for, or goes on with it, and says what came out."""
    keep_programs(asked.compilation_cache)
    run, work = asked.settings, WorkFolder(asked.settings.folder())
    prompts = _check(run, work, asked.overwrite)
    if asked.fresh and work.finished:
        work.discard()
        shutil.rmtree(work.path / PAIRS, ignore_errors=True)
    with learning(work, run.student.total) as display:
        report = _distill(run, prompts, work, display)
    say(f"Draw with it: {usage(run, report)}", "dim")
    print(f"LoRA in {run.out}")


def _check(run: Distillation, work: WorkFolder, overwrite: bool) -> list[str]:
    """The prompts of the file; [] without one. Raises for what would come to light only after loading a model."""
    prompts = read_prompts(run.prompts) if run.prompts is not None else []
    if own := next((prompt for prompt in prompts if prompt.embeds or prompt.image), None):
        raise ConfigError(f"{run.prompts}: {own.embeds or own.image} is no text: a teacher draws prompts from noise")
    for lora in run.loras:
        usable_lora(lora.source)
    if not (prompts or run.loras):
        raise ConfigError("distil on which prompts? Give --prompts FILE, a few dozen; or --lora, for its trigger words")
    require_places(Path(run.out), work.path, run.format, run.save_dtype)
    work.require_own(Path(run.out), overwrite)
    return [prompt.text for prompt in prompts]


def _distill(run: Distillation, prompts: list[str], work: WorkFolder, display: TrainingDisplay) -> LoraReport:
    model = run.model
    pipe = AutoLoRAPipeline.from_pretrained(**dataclasses.asdict(model), on_progress=display)
    for lora in run.loras:
        pipe.load_lora(lora.source, lora.scale, role=lora.role, blocks=lora.block_weights)
    for embedding in run.embeddings:
        pipe.load_textual_inversion(embedding)
    prompts = prompts or prompts_of([word for report in pipe.reports for word in report.trigger_words])
    if not prompts:
        raise ConfigError("the LoRAs name no trigger words to make prompts of: give --prompts FILE")

    def start(outline: Outline) -> None:
        begin(work, display, record(run), describe(run, outline), outline)

    progress, sample = kept(work, display, model.dtype)
    report = distill_lora(
        pipe,
        prompts,
        run.out,
        run.student,
        work=work.path,
        dialect=run.format,
        save_dtype=run.save_dtype,
        metadata=base_hashes(str(model.source)),
        on_start=start,
        on_progress=progress,
        on_sample=sample,
        negative_prompt=run.negative_prompt,
        **run.drawing(),
    )
    work.save_grid()
    return report


def describe(run: Distillation, outline: Outline) -> str:
    """A run in a few aligned lines, before its first step."""
    student, rule = run.student, outline.teacher
    layers = ", ".join(f"{count} in {component}" for component, count in outline.layers.items())
    fewer = outline.student_steps != outline.teacher_steps
    steps = f"{outline.student_steps}, the teacher's {outline.teacher_steps}" if fewer else f"{outline.student_steps}"
    rows = [
        ("teacher", f"{type(rule).__name__} ({numbers_of(rule)})"),
        ("LoRAs", ", ".join(outline.loras) or "none"),
        ("student", f"target {student.target}; {steps} steps a picture"),
        ("prompts", str(outline.prompts)),
        ("rounds", f"{student.rounds} of {student.trajectories} pictures and {student.updates} steps"),
        ("layers", f"{layers}; {student.rank} ranks added"),
        ("parameters", f"{outline.parameters:,}"),
        ("devices", str(outline.devices)),
        ("a step", f"{outline.rows} states"),
        ("work folder", str(run.folder())),
    ]
    return listing(f"A LoRA of what {outline.model} draws", rows)


def usage(run: Distillation, report: LoraReport) -> str:
    """The command that draws with what was distilled."""
    files = {
        "--variant": run.model.variant,
        "--tokenizer": run.model.tokenizer,
        "--text-encoders-from": run.model.text_encoders,
        "--lora": run.out,
    }
    flags = [text for flag, value in files.items() if value for text in (flag, value)]
    prompt = next(iter(report.trigger_words), "PROMPT")
    return shlex.join(["autolora", "generate", str(run.model.source), *flags, "--prompt", prompt])
