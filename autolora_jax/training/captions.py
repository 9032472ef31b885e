"""Captions of pictures: from text files beside them, or from the rows of a metadata.jsonl or metadata.csv.

Source: huggingface.co/docs/datasets/image_dataset (metadata).
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any, NamedTuple, TypeVar

from autolora_jax import foreign
from autolora_jax.image_files import EXTENSIONS

SECOND_EXTENSION = ".caption"
KEYS = ("text", "caption", "prompt")  # of metadata; the first that is there counts

T = TypeVar("T")
Rows = Iterator[tuple[int, Any]]  # (line, a mapping or the ValueError that reading it met)


class Found(NamedTuple):
    """captions: of a picture whose caption is unusable: ""; of one without any: no entry."""

    captions: dict[Path, str]
    problems: list[str]


def each(read: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[tuple[Path, T | ValueError]]:
    """(path, what was read or why not) in order; in threads, since opening many files over a network is waiting."""

    def attempt(path: Path) -> T | ValueError:
        try:
            return read(path)
        except OSError as e:
            return ValueError(f"can't be read ({e.strerror})")
        except ValueError as e:
            return e

    with ThreadPoolExecutor() as pool:
        yield from zip(paths, pool.map(attempt, paths), strict=True)


def beside(files: Sequence[Path], pictures: Sequence[Path], extension: str, folder: Path) -> Found:
    """The whole text of `name` + extension, or of `name.caption`, for each picture that has one."""
    at = {path.with_suffix(path.suffix.lower()): path for path in files}
    places = {p: [at.get(p.with_suffix(e)) for e in (extension.lower(), SECOND_EXTENSION)] for p in pictures}
    sources = {picture: next(filter(None, candidates), None) for picture, candidates in places.items()}
    texts = dict(each(_caption_of_file, sorted({file for file in sources.values() if file})))
    problems = [f"{f.relative_to(folder).as_posix()}: {e}" for f, e in texts.items() if isinstance(e, ValueError)]
    captions = {picture: texts[file] for picture, file in sources.items() if file}
    return Found({p: c if isinstance(c, str) else "" for p, c in captions.items()}, problems)


def in_metadata(path: Path) -> Found:
    """One caption per row of a metadata file, whose `file_name` is relative to its folder and never outside it."""
    found = Found({}, [])
    lines: dict[Path, int] = {}
    try:
        rows = list(METADATA[path.name](_text(path)))
    except (ValueError, OSError) as e:
        return Found({}, [f"{path.name}: {e}"])
    for line, row in rows:
        try:
            picture = _picture(row, path.parent)
            if picture in lines:
                raise ValueError(f"{row['file_name']} is already on line {lines[picture]}; keep one of them")
            lines[picture] = line
            found.captions[picture] = ""
            found.captions[picture] = _caption_of_row(row)
        except ValueError as e:
            found.problems.append(f"{path.name} line {line}: {e}")
    return found


def _text(path: Path) -> str:
    """Raises ValueError if it is not UTF-8."""
    try:
        text = foreign.read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # plain letters in UTF-16 are valid UTF-8
        raise ValueError("is not UTF-8 text; save it as UTF-8")
    return text


def _caption_of_file(path: Path) -> str:
    if caption := _text(path).strip():
        return caption
    raise ValueError("the caption is empty; write one or delete the file")


def _caption_of_row(row: Mapping[str, Any]) -> str:
    caption = next((row[key] for key in KEYS if row.get(key) is not None), None)
    if isinstance(caption, str) and caption.strip():
        return caption.strip()
    raise ValueError(f"{row['file_name']} has no text under {', '.join(KEYS)}")


def _picture(row: Any, folder: Path) -> Path:
    """The file that a row is about. Raises ValueError."""
    if isinstance(row, ValueError):
        raise row
    name = row.get("file_name") if isinstance(row, Mapping) else None
    if not (isinstance(name, str) and name):
        raise ValueError(f"expected file_name and one of {', '.join(KEYS)}; got {str(row)[:100]}")
    relative = PurePosixPath(normpath(name))
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{name} is outside the folder; file names are relative to it")
    if not (path := folder / relative).is_file():
        raise ValueError(f"{name} does not exist; remove the row or restore the file")
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"{name} is no picture ({', '.join(EXTENSIONS)}); remove the row")
    return path


def _json_rows(text: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): captions may hold U+2028
        if line.strip():
            try:
                yield number, foreign.parse_json(line)
            except ValueError as e:
                yield number, ValueError(f"invalid JSON ({e}); expected one object a line")


def _csv_rows(text: str) -> Rows:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as e:
        yield reader.line_num, ValueError(f"invalid CSV ({e})")


METADATA: dict[str, Callable[[str], Rows]] = {"metadata.jsonl": _json_rows, "metadata.csv": _csv_rows}
