"""`autolora evaluate`: features, figures, the table."""

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autolora_jax import files, foreign
from autolora_jax.display import Display, say
from autolora_jax.evaluation import Interval, clipscore
from autolora_jax.evaluation.clipscore import text_features
from autolora_jax.evaluation.encoders import Clip, PictureEncoder, open_clip, open_encoder
from autolora_jax.evaluation.features import FOLDER, Collected, collect
from autolora_jax.evaluation.kept import Source, gather, source_of
from autolora_jax.evaluation.pictures import Fields, Pictures, as_text, labels
from autolora_jax.evaluation.scores import (
    Measure,
    Row,
    Sample,
    conditional_measure,
    numbered,
    sample_measure,
    tabulate,
    vendi_measure,
)
from autolora_jax.settings.programs.evaluate import CLIPSCORE, CONDITIONAL, DIVERSITY, PICKSCORE, VENDI, Evaluate
from autolora_jax.sharding import data_mesh
from autolora_jax.weights.errors import WeightsError

INCOMPLETE = 3  # exit code: some pictures could not be measured
FEATURES = "dinov2-giant"  # whose, where nothing else is said
WIDTH = 160  # columns of a table that goes to a file
NAMED = 20  # pictures that could not be measured
# Metric -> the setting that names the CLIP which reads prompts for it.
READERS = {CLIPSCORE: "clip", CONDITIONAL: "clip", PICKSCORE: "pickscore"}
# Of pictures by their prompts: metric -> (its name, how it is made of features).
FITS = {
    CLIPSCORE: (clipscore.CLIPSCORE, clipscore.clip_scores_of),
    PICKSCORE: (clipscore.PICKSCORE, clipscore.pick_scores_of),
}
# Pictures that differ in these are not samples of one thing.
SETTINGS = (
    *("model", "guidance", "gamma", "w", "w1", "w2", "omega", "loras", "lora_scales", "lora_roles", "scheduler"),
    *("lora_strengths", "lora_blocks"),
    *("refresh_base", "refresh_uncond", "apg_eta", "apg_norm", "apg_momentum", "zero_star", "zero_init_steps"),
    *("skip_guidance_layers", "skip_layer_guidance_scale", "guidance_rescale"),
    *("steps", "size", "width", "height", "negative_prompt"),
)


def run(asked: Evaluate) -> int:
    """Measures pictures, prints the table and writes it. INCOMPLETE: some could not be measured."""
    pictures = Pictures(*asked.places)
    source = next(map(source_of, pictures), None)
    encoder: PictureEncoder | Source | None
    encoder, readers = _of_features(source, asked) if source else _models(asked, asked.names)
    kept = _cache_folder(asked.cache, pictures.folder / FOLDER) if readers or not source else None
    found = _collect(pictures, encoder, [clip for metric, clip in readers.items() if metric in FITS], kept)
    fields = [picture.fields for picture in found.pictures]
    names = _group_names(asked.group_by, fields)
    groups = labels(fields, names)
    _warn_of_mixtures(fields, groups, names)
    scores = _scores(asked, readers, found, kept)
    told = _conditions(readers.get(CONDITIONAL), found, kept)
    rows, overall = tabulate(_measures(asked, encoder, found, scores, told, groups), groups)
    _warn_of_singles(asked.names, rows)
    results = Results(rows, overall, names, asked.confidence)
    results.show()
    if asked.json:
        models: dict[str, PictureEncoder | Source | None]
        models = {"features": encoder, **{READERS[metric]: clip.pictures for metric, clip in readers.items()}}
        about = {
            "places": [str(place) for place in asked.places],
            "models": {role: {"name": e.name, "identity": e.identity} for role, e in models.items() if e},
            "not measured": dict(found.bad),
        }
        results.write(asked.json, about)
    return INCOMPLETE if found.bad else 0


def _of_features(source: Source, asked: Evaluate) -> tuple[Source, dict[str, Clip]]:
    """The model that features are by, and those that read prompts: one that looks at pictures, too, has to be the same.

    Raises ValueError for other models: there are no pictures that they could look at.
    """
    if asked.features not in (None, source.name):
        raise ValueError(
            f"--features {asked.features}: there are no pictures, but features by {source.name}; leave the flag out"
        )
    _, readers = _models(asked, [metric for metric in asked.names if metric in READERS], pictures=False)
    for metric, clip in readers.items():
        if metric in FITS and (clip.pictures.name, clip.pictures.identity) != source:
            raise ValueError(
                f"--metrics {metric}: there are no pictures, and the features are by {source.identity}, not by "
                f"{clip.pictures.identity}"
            )
    return source, readers


def _models(
    asked: Evaluate, metrics: Sequence[str], pictures: bool = True
) -> tuple[PictureEncoder | None, dict[str, Clip]]:
    """Those that the metrics need: of features, and metric -> of what reads prompts. Nothing is loaded yet."""
    mesh = data_mesh(jax.local_devices())
    how: dict[str, Any] = {"dtype": asked.dtype, "batch_size": asked.batch_size}
    encoder, features = None, asked.features or FEATURES
    try:
        names = {metric: getattr(asked, READERS[metric]) for metric in metrics if metric in READERS}
        opened = {name: open_clip(name, mesh, **how) for name in dict.fromkeys(names.values())}
        if features in opened:
            encoder = opened[features].pictures
        elif pictures and {DIVERSITY, VENDI, CONDITIONAL} & {*metrics}:
            encoder = open_encoder(features, mesh, **how)
    except WeightsError as e:
        e.add_note("Offline, --features builtin measures what the built-in model drew")
        raise
    return encoder, {metric: opened[name] for metric, name in names.items()}


def _cache_folder(given: Path | None, usual: Path) -> Path | None:
    """The folder, made; None where nothing can be written beside the pictures."""
    folder = given or usual
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
    except OSError as e:
        if given:
            raise
        say(f"Features are not kept: {e.strerror}: {folder}. Give --cache a folder that can be written", "yellow")
        return None
    return folder


def _collect(
    pictures: Pictures, encoder: PictureEncoder | Source | None, readers: Sequence[Clip], kept: Path | None
) -> Collected:
    """Raises ValueError when no picture can be measured; says which ones can't."""
    with Display() as display:

        def show(done: int, by: str) -> None:
            display.update("Pictures", done, pictures.count, f"features by {by}" if by else "")

        if isinstance(encoder, Source):
            found = gather(pictures, encoder, show)
        else:
            encoders = {each.name: each for each in (encoder, *(clip.pictures for clip in readers)) if each}
            found = collect(pictures, list(encoders.values()), kept, show)
        found.bad.update(pictures.missing)
        count = len(found.pictures) + len(found.bad)
        display.update("Pictures", count, count)
    for key, why in list(found.bad.items())[:NAMED]:
        say(f"{key} {why}", "yellow")
    if len(found.bad) > NAMED:
        say(f"… and {len(found.bad) - NAMED} more", "yellow")
    if not found.pictures:
        raise ValueError("none of the pictures can be measured")
    return found


def _group_names(group_by: str, fields: Sequence[Fields]) -> list[str]:
    """The fields to group by. Raises ValueError for one that no picture has."""
    told = {name for each in fields for name in each}
    if not group_by:
        return ["prompt"] if "prompt" in told else []
    names = [] if group_by == "none" else [name.strip() for name in group_by.split(",")]
    for name in names:
        if name not in told:
            near = difflib.get_close_matches(name, told, n=1)
            advice = f"did you mean {near[0]}?" if near else f"they tell {', '.join(sorted(told))}"
            raise ValueError(f"--group-by {name}: no picture tells that; {advice}")
    return names


def _warn_of_mixtures(fields: Sequence[Fields], groups: Sequence[tuple[str, ...]], names: Sequence[str]) -> None:
    """Says what pictures of one group should have had in common."""

    def differs(name: str) -> bool:
        values = {(group, as_text(each.get(name))) for group, each in zip(groups, fields, strict=True)}
        return len(values) > len(set(groups))

    if mixed := [name for name in SETTINGS if name not in names and differs(name)]:
        apart = ",".join([*names, *mixed])
        say(f"Pictures of one group differ in {', '.join(mixed)}; --group-by {apart} keeps them apart", "yellow")


def _warn_of_singles(metrics: Sequence[str], rows: Sequence[Row]) -> None:
    if DIVERSITY in metrics and (single := sum(row.pictures == 1 for row in rows)):
        say(f"{single} of {len(rows)} groups have a single picture, and so no diversity", "yellow")


def _scores(asked: Evaluate, readers: Mapping[str, Clip], found: Collected, kept: Path | None) -> dict[str, np.ndarray]:
    """What each picture has: how it fits its prompt, and what judges gave it."""
    scores = {}
    for metric, (name, score) in FITS.items():
        if clip := readers.get(metric):
            scores[name] = score(clip, found.features[clip.pictures.name], _prompts(found), kept)
    for path in asked.scores:
        scores |= _judged(path, found)
    return scores


def _prompts(found: Collected) -> list[str | None]:
    return [as_text(picture.fields.get("prompt")) or None for picture in found.pictures]


def _judged(path: Path, found: Collected) -> dict[str, np.ndarray]:
    """The scores in a report of `autolora judge`, a value a picture, NaN for those that it gives none.

    Raises ValueError when it is something else or about other pictures.
    """
    try:
        rows = {row["picture"]: row for row in foreign.parse_object(foreign.read_file(path))["pictures"]}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is no report of autolora judge ({type(e).__name__}: {e})") from None
    mine = [rows.get(picture.key, {}) for picture in found.pictures]
    if not any(mine):
        here, there = found.pictures[0].key, next(iter(rows), "nothing")
        raise ValueError(f"{path} is about other pictures: about {there}, say, and not about {here}")
    numbers = sorted({name for row in mine for name, value in row.items() if isinstance(value, int | float)})
    return {name: np.array([row.get(name, np.nan) for row in mine], np.float64) for name in numbers}


def _conditions(reader: Clip | None, found: Collected, kept: Path | None) -> np.ndarray | None:
    """Features of the pictures' prompts, where they are wanted. Raises ValueError for a picture that tells none."""
    if reader is None:
        return None
    prompts = _prompts(found)
    if None in prompts:
        key = found.pictures[prompts.index(None)].key
        raise ValueError(f"--metrics {CONDITIONAL} is given the prompts, and {key} tells none; give a manifest.jsonl")
    return text_features(reader, [prompt for prompt in prompts if prompt is not None], kept)


def _measures(
    asked: Evaluate,
    encoder: PictureEncoder | Source | None,
    found: Collected,
    scores: Mapping[str, np.ndarray],
    told: np.ndarray | None,
    groups: Sequence[tuple[str, ...]],
) -> list[Measure]:
    features = found.features[encoder.name] if encoder else None
    numbers = numbered(groups)
    sample = Sample(numbers, scores, features if DIVERSITY in asked.names else None)
    measures = [sample_measure(sample, level=asked.confidence)]
    if VENDI in asked.names and features is not None:
        measures.append(vendi_measure(features, numbers, asked.confidence))
    if told is not None and features is not None:
        measures.append(conditional_measure(features, told))
    return measures


class Results(NamedTuple):
    """Rows of groups and of all pictures. names: the fields that the rows' labels are values of."""

    rows: Sequence[Row]
    overall: Row
    names: Sequence[str]
    confidence: float

    def show(self) -> None:
        """Prints the table to stdout."""
        sure = any(np.isfinite(figure.low) for row in (*self.rows, self.overall) for figure in row.figures.values())
        caption = f"intervals: {self.confidence:.0%} confidence" if sure else None
        table = Table(caption=caption, caption_justify="left")
        for name in self.names:
            table.add_column(name, overflow="fold")
        for heading in ("pictures", *self.overall.figures):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows if self.names else []:
            table.add_row(*map(Text, row.label), *_cells(row))
        table.add_section()
        table.add_row(
            *[Text("all", "bold"), *map(Text, [""] * len(self.names))][: len(self.names)], *_cells(self.overall)
        )
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH).print(table)

    def write(self, path: Path, told: Mapping[str, Any]) -> None:
        """Writes the table and what else should be known of it, whole or not at all. Raises OSError."""
        content = {
            **told,
            "confidence": self.confidence,
            "group by": list(self.names),
            "all": _plain(self.overall),
            "groups": [{"label": dict(zip(self.names, row.label, strict=True)), **_plain(row)} for row in self.rows],
        }
        files.write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _cells(row: Row) -> list[str]:
    return [str(row.pictures), *map(_shown, row.figures.values())]


def _shown(figure: Interval) -> str:
    if np.isnan(figure.value):
        return "–"
    value = f"{figure.value:.4g}"
    return value if np.isnan(figure.low) else f"{value} ({figure.low:.4g} to {figure.high:.4g})"


def _plain(row: Row) -> dict[str, Any]:
    """A row as JSON values: what is not defined is null."""
    figures = {
        name: {part: None if np.isnan(value) else value for part, value in figure._asdict().items()}
        for name, figure in row.figures.items()
    }
    return {"pictures": row.pictures, "figures": figures}
