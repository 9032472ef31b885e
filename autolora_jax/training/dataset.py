"""A folder of pictures with captions -> examples, or one error that lists all that is wrong with it.

Two layouts: a text file beside each picture (kohya's, whose subfolders `10_name` say how often their pictures come in
an epoch), or a metadata.jsonl or metadata.csv (the imagefolder of Hugging Face, which diffusers' scripts read).
Source: kohya-ss/sd-scripts@48d368fa library/config_util.py generate_dreambooth_subsets_config_by_subdirs.
"""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autolora_jax.image_files import EXTENSIONS, FOREIGN_EXTENSIONS, read_size
from autolora_jax.training import captions
from autolora_jax.weights.errors import shorten

REPEATS_PREFIX = re.compile(r"(\d+)_(.*)", re.DOTALL)
MOST_REPEATS = 1000  # a subfolder 20240131_walk is a date
SHOWN = 10  # problems in a message
NAMED = 5  # pictures in one problem


@dataclass(frozen=True)
class Example:
    """One picture to train on.

    size: (height, width) of the file in pixels, after rotation by EXIF.
    repeats: how often it comes in an epoch.
    """

    path: Path
    caption: str
    size: tuple[int, int]
    repeats: int = 1


class DatasetError(ValueError):
    """Training pictures can't be used. `problems` has every reason, the message the first ten."""

    def __init__(self, where: Path | str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = list(problems[:SHOWN])
        if len(problems) > SHOWN:
            lines.append(f"… and {len(problems) - SHOWN} more")
        count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
        super().__init__("\n  ".join([f"{where} can't be trained on, {count}:", *lines]))


def read_folder(
    folder: str | os.PathLike[str],
    *,
    caption_extension: str = ".txt",
    default_caption: str | None = None,
    recursive: bool = True,
) -> tuple[Example, ...]:
    """The pictures of a folder with their captions, sorted by path.

    With a metadata.jsonl or metadata.csv in it, each row gives `file_name` (relative to the folder, never outside) and
    the caption under `text`, `caption` or `prompt`; text files beside the pictures are then not read. Otherwise a
    caption is the whole text of `name.txt` or `name.caption`; without such a file it is the name of the enclosing
    subfolder after its prefix (`10_red fox` -> "red fox"). Hidden files and files that are no pictures are ignored.

    caption_extension: with its dot; comes before ".caption".
    default_caption: for pictures without any; "" trains them without a caption.
    recursive: whether pictures in subfolders belong to it.
    Raises DatasetError with everything that is wrong. Pictures are opened, but only suspicious ones decoded.
    """
    folder = Path(folder)
    if not re.fullmatch(r"\.\w+", caption_extension):
        raise ValueError(f"caption_extension is {caption_extension!r}; expected a dot and letters, as '.txt'")
    if not folder.is_dir():
        reason = "is a file; give its folder" if folder.exists() else "no such folder; check the path"
        raise DatasetError(folder, [reason])
    files, problems = _files(folder, recursive)
    pictures = [path for path in files if path.suffix.lower() in EXTENSIONS]
    foreign = [path for path in files if path.suffix.lower() in FOREIGN_EXTENSIONS]
    problems += [f"{_name(path, folder)}: {path.suffix} is not read; save it as PNG" for path in foreign]
    metadata = [path for path in files if path.name in captions.METADATA]
    if metadata and metadata != [folder / metadata[0].name]:
        names = ", ".join(_name(path, folder) for path in metadata)
        raise DatasetError(folder, [f"{names}: expected one metadata file, in the folder itself; give such a folder"])
    if metadata:
        found = captions.in_metadata(metadata[0])
        pictures = sorted({*pictures, *found.captions})  # rows may name hidden files
        subsets: dict[Path, tuple[int, str | None]] = {}
        lack = f"no row in {metadata[0].name}: {{}}; add rows, or give a default caption"
    else:
        found = captions.beside(files, pictures, caption_extension, folder)
        _warn_of_unused(files, pictures, (caption_extension.lower(), captions.SECOND_EXTENSION), folder)
        subsets, wrong = _subsets(pictures, folder)
        problems += wrong
        lack = f"no caption: {{}}; write a {caption_extension} beside each, or give a default caption"
    problems += found.problems
    if not pictures:
        problems.append(f"no pictures ({', '.join(EXTENSIONS)}) in it" + " or below it" * recursive)
    examples, without = [], []
    for path, size in captions.each(read_size, pictures):
        repeats, name = subsets.get(path.parent, (1, None))
        caption = next((c for c in (found.captions.get(path), name, default_caption) if c is not None), None)
        if caption is None:
            without.append(_name(path, folder))
        if isinstance(size, ValueError):
            problems.append(f"{_name(path, folder)}: {size}")
        elif caption is not None:
            examples.append(Example(path, caption, size, repeats))
    if without:
        count = f"{len(without)} pictures have " if len(without) > 1 else "one picture has "
        problems.append(count + lack.format(shorten(without, NAMED)))
    if problems:
        raise DatasetError(folder, problems)
    return tuple(examples)


def _warn_of_unused(files: Sequence[Path], pictures: Sequence[Path], endings: Sequence[str], folder: Path) -> None:
    """Says which captions have no picture, and which shards are not read: a mistyped name is found so."""
    known = {path.with_suffix("") for path in pictures}
    texts = [path for path in files if path.suffix.lower() in endings and path.stem.lower() != "readme"]
    alone = [path for path in texts if path.with_suffix("") not in known]
    shards = [path for path in files if path.suffix.lower() == ".tar"]
    for what, found in (("captions without a picture", alone), ("shards, which are not read to train", shards)):
        if found:
            named = shorten([_name(path, folder) for path in found], NAMED)
            warnings.warn(f"{folder} holds {len(found)} {what}: {named}", stacklevel=3)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _files(folder: Path, recursive: bool) -> tuple[list[Path], list[str]]:
    """(all files that are not hidden, sorted; problems)."""
    found: list[Path] = []
    problems: list[str] = []
    walk = os.walk(folder, followlinks=True, onerror=lambda e: problems.append(f"can't be listed: {e}"))
    for here, subfolders, names in walk:
        found += [Path(here, name) for name in names if not name.startswith(".")]
        above = Path(here).resolve()
        subfolders[:] = [
            name
            for name in subfolders
            if recursive
            and not name.startswith(".")
            and not above.is_relative_to(Path(here, name).resolve())  # a link in a circle
        ]
    return sorted(found), problems


def _subsets(pictures: Sequence[Path], folder: Path) -> tuple[dict[Path, tuple[int, str | None]], list[str]]:
    """Folder of pictures -> (repeats, caption of captionless ones), by the nearest name like `10_name`; problems."""
    subsets: dict[Path, tuple[int, str | None]] = {folder: (1, None)}
    problems = []
    below = {parent for path in pictures for parent in path.parents if parent.is_relative_to(folder)} - {folder}
    for parent in sorted(below):
        match = REPEATS_PREFIX.fullmatch(parent.name)
        subsets[parent] = (int(match[1]), match[2].strip() or None) if match else subsets[parent.parent]
        if match and not 1 <= int(match[1]) <= MOST_REPEATS:
            why = f"its name means {match[1]} repeats of its pictures, not 1 to {MOST_REPEATS}; rename it"
            problems.append(f"{_name(parent, folder)}: {why}")
    return subsets, problems
