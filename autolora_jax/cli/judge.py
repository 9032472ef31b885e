"""`autolora judge`: ask, show how it goes, say what came of it."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autolora_jax import files
from autolora_jax.cli.console import reported
from autolora_jax.config import ConfigError
from autolora_jax.display import Display, say
from autolora_jax.evaluation.features import FOLDER
from autolora_jax.evaluation.judge import (
    QUESTIONS,
    Judge,
    JudgeError,
    Patience,
    Preparation,
    Prices,
    Progress,
    Question,
    Report,
    VerdictCache,
    judge,
    report,
)
from autolora_jax.evaluation.judge.client import endpoint
from autolora_jax.evaluation.judge.questions import REFERENCE
from autolora_jax.evaluation.judge.verdicts import SCORED
from autolora_jax.evaluation.pictures import Picture, Pictures
from autolora_jax.evaluation.scores import numbered
from autolora_jax.image_files import PictureError, read_rgb
from autolora_jax.settings.fields import choose
from autolora_jax.settings.programs.asking import Asking
from autolora_jax.settings.programs.judge import Judge as Asked
from autolora_jax.weights.lora.metadata import listing

CACHE = "verdicts.sqlite"
INCOMPLETE = 3  # exit code: some pictures got no score, and another run may get them one
ABOUT = (
    "character",
    "description",
    "prompt",
    "style",
    "poor",
    "good",
    "reference",
    "subject",
)  # what a question may be told
NAMED = 20  # pictures without a score


def run(asked: Asked) -> int:
    """Judges, prints the means, writes the report. INCOMPLETE: pictures are left for another run."""
    with reported(exit_code=2):
        question = _question(asked)
    pictures = Pictures(*asked.places)
    with Display() as display:

        def show(progress: Progress) -> None:
            display.update("Judge", progress.done, pictures.count, progress.latest.picture)

        found = consult(pictures, question, asked.cache or pictures.folder / FOLDER / CACHE, asked, asked.model, show)
    _tell(found)
    if asked.out:
        _write(asked.out, {"endpoint": endpoint(asked.base_url), **found.json()})
    return 0 if all(each.verdict.final for each in found.judged) and not pictures.missing else INCOMPLETE


def _question(asked: Asked) -> Question:
    """The question with what flags say of it. Raises ConfigError for what does not belong to it, or is missing."""
    about = choose(QUESTIONS, asked.question, "--question").about
    given = {name: str(value) for name in ABOUT if (value := getattr(asked, name))}
    question = about(**given)
    if missing := [each for each in question.missing if each != "prompt"]:
        raise ConfigError(f"--question {asked.question} needs {', '.join(f'--{each}' for each in missing)}")
    for path in question.shows:
        try:
            read_rgb(path)
        except PictureError as e:
            raise ConfigError(f"--{REFERENCE} {path} {e}") from None
    return question


def consult(
    pictures: Iterable[Picture],
    question: Question,
    cache: Path,
    asked: Asking,
    model: str | None,
    on_progress: Callable[[Progress], None],
) -> Report:
    """The verdicts on pictures, with what they took. model: the judge; None: the only one that is served.

    Raises as evaluation.judge.judge, and JudgeError when no model is named and the server has not just one.
    """
    prompts: list[str] = []
    preparation = Preparation(asked.image_format, asked.max_side)

    def noted() -> Iterator[Picture]:
        for picture in pictures:
            prompts.append(str(picture.fields.get("prompt") or ""))
            yield picture

    began = time.monotonic()
    by = Judge(
        asked.base_url,
        model or _only_model(asked),
        asked.api_key,
        max_tokens=asked.max_tokens,
        timeout=asked.timeout,
        patience=Patience(asked.tries),
    )
    with by, VerdictCache(cache) as verdicts:
        if verdicts.broken:
            say(f"Warning: {verdicts.broken} lines of older verdicts were none, and are left out", "yellow")
        try:
            judged = judge(
                noted(),
                question,
                by,
                verdicts,
                preparation=preparation,
                concurrency=asked.concurrency,
                on_progress=on_progress,
            )
        except BaseException as e:
            e.add_note(f"{verdicts.path} keeps what was answered: the same command goes on from there")
            raise
    prices, seconds = Prices(asked.price_in, asked.price_out), time.monotonic() - began
    return report(judged, question, str(preparation), numbered(prompts), prices=prices, seconds=seconds)


def _only_model(asked: Asking) -> str:
    with Judge(asked.base_url, "", asked.api_key) as server:
        names = server.models()
    if len(names) != 1:
        raise JudgeError(
            f"{server.base_url} lists {len(names)} models ({', '.join(names[:10])}): name one with --model"
        )
    return names[0]


def _tell(found: Report) -> None:
    lost = [each for each in found.judged if each.verdict.outcome != SCORED]
    for each in lost[:NAMED]:
        say(f"{each.picture}: {each.verdict.outcome}: {each.verdict.why}", "yellow")
    if len(lost) > NAMED:
        say(f"… and {len(lost) - NAMED} more without a score", "yellow")
    if len(found.versions) > 1:
        say("Warning: these scores come from more than one judge, or version of one", "yellow")
    usage, new = found.usage, found.new
    cost = (
        f", cost {found.prices.of(usage):.4g}, {found.prices.of(new):.4g} of it now" if found.prices != Prices() else ""
    )
    rows = [
        ("pictures", ", ".join(f"{count} {outcome}" for outcome, count in found.outcomes.items())),
        ("asked", f"about {found.asked} of them, in {found.seconds:.1f} seconds"),
        *(("judge", f"{who}: {count} pictures") for who, count in found.versions.items()),
        ("sent as", found.preparation),
        ("tokens", f"{usage.prompt_tokens:,} sent, {usage.completion_tokens:,} answered{cost}"),
    ]
    say(listing(f"Question {found.question.name}", rows))
    count = found.outcomes.get(SCORED, 0)
    for name, (value, low, high) in found.means.items() if count else ():
        sure = f" (95 %: {low:.3f} to {high:.3f})" if math.isfinite(low + high) else ""
        print(f"{name} {value:.3f}{sure} of {count} pictures")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
