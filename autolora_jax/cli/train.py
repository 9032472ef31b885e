"""`autolora train`: check what can be checked early, load, train, keep what comes by."""

import dataclasses
import shlex
from pathlib import Path

from autolora_jax.cli.learning import TrainingDisplay, WorkFolder, begin, kept, learning
from autolora_jax.compilation import keep_programs
from autolora_jax.display import say
from autolora_jax.lora import LoraReport
from autolora_jax.pipeline import AutoLoRAPipeline
from autolora_jax.settings.changes import record
from autolora_jax.settings.programs.train import Train
from autolora_jax.settings.training import TrainingRun
from autolora_jax.training import Summary, train_lora
from autolora_jax.training.dataset import read_folder
from autolora_jax.training.header import base_hashes
from autolora_jax.training.lora import require_places
from autolora_jax.weights.lora.metadata import listing


def run(asked: Train) -> None:
    """Trains what is asked for, or goes on with it, and says what came out."""
    keep_programs(asked.compilation_cache)
    report = train(asked.settings, asked.fresh, asked.overwrite)
    say(f"Draw with it: {usage(asked.settings, report)}", "dim")
    print(f"LoRA in {asked.settings.out}")


def train(run: TrainingRun, fresh: bool, overwrite: bool) -> LoraReport:
    """`run` has a model and pictures.

    Raises DatasetError, ConfigError, WeightsError, TrainingError, OSError; those that come after the first checkpoint
    carry a note that says how to go on.
    """
    work = WorkFolder(run.folder())
    _check(run, work, overwrite)
    if fresh:
        work.discard()
    with learning(work, run.training.steps) as display:
        return _train(run, work, display)


def _check(run: TrainingRun, work: WorkFolder, overwrite: bool) -> None:
    """Raises for what would come to light only after loading a model, or after training."""
    assert run.data is not None
    data, out = Path(run.data), Path(run.out)
    settings = run.training.data
    read_folder(data, caption_extension=settings.caption_extension, default_caption=settings.default_caption)
    if work.path.resolve().is_relative_to(data.resolve()):
        raise ValueError(
            f"the work folder {work.path} lies among the pictures of {data}, which its samples would join; "
            "choose another --out or --work"
        )
    require_places(out, work.path, run.format, run.save_dtype)
    work.require_own(out, overwrite)


def _train(run: TrainingRun, work: WorkFolder, display: TrainingDisplay) -> LoraReport:
    model = run.model
    assert model.source is not None and run.data is not None
    pipe = AutoLoRAPipeline.from_pretrained(**dataclasses.asdict(model), on_progress=display)

    def start(summary: Summary) -> None:
        begin(work, display, record(run), describe(run, summary), summary)

    progress, sample = kept(work, display, model.dtype)
    report = train_lora(
        pipe,
        run.data,
        run.out,
        run.training,
        work=work.path,
        dialect=run.format,
        save_dtype=run.save_dtype,
        metadata=base_hashes(model.source) | ({"modelspec.trigger_phrase": run.trigger} if run.trigger else {}),
        on_start=start,
        on_progress=progress,
        on_sample=sample,
    )
    work.save_grid()
    return report


def describe(run: TrainingRun, summary: Summary) -> str:
    """A run in a few aligned lines, before its first step."""
    buckets = [f"{count} of {width}x{height}" for (height, width), count in summary.buckets.items()]
    layers = ", ".join(f"{count} in {component}" for component, count in summary.layers.items())
    lora = run.training.lora
    rows = [
        ("pictures", f"{summary.pictures}: {', '.join(sorted(buckets))}"),
        ("captions", f"{summary.captions} distinct"),
        ("layers", f"{layers}; rank {lora.rank}, alpha {lora.alpha or lora.rank:g}"),
        ("parameters", f"{summary.parameters:,}"),
        ("devices", str(summary.devices)),
        ("steps", f"{summary.steps} of {summary.rows} pictures: {summary.steps / summary.steps_per_epoch:.3g} epochs"),
        ("work folder", str(run.folder())),
    ]
    return listing(f"A LoRA of {summary.model}", rows)


def usage(run: TrainingRun, report: LoraReport) -> str:
    """The command that draws with what was trained."""
    files = {
        "--variant": run.model.variant,
        "--tokenizer": run.model.tokenizer,
        "--text-encoders-from": run.model.text_encoders,
        "--lora": run.out,
    }
    flags = [text for flag, value in files.items() if value for text in (flag, value)]
    prompt = next(iter(report.trigger_words), "PROMPT")
    return shlex.join(["autolora", "generate", str(run.model.source), *flags, "--prompt", prompt])
