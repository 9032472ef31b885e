"""Where the pictures are that are measured: a folder, or tar shards in WebDataset's form, with what is told of each.

What is told comes from the picture's PNG chunks, a JSON file of its name, and its row in a `manifest.jsonl`; where they
differ, the later of these counts. Nothing is decoded here and one picture at a time is in memory. Where there are no
pictures, the features that a job kept in their place are found as they would have been; see `kept`.
"""

import hashlib
import io
import itertools
import tarfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from autolora_jax import foreign, tars
from autolora_jax.image_files import EXTENSIONS, FOREIGN_EXTENSIONS, FORMATS, read_rgb
from autolora_jax.pictures import told
from autolora_jax.weights.errors import shorten

MANIFEST = "manifest.jsonl"
SHARD = ".tar"
VERIFY = "autolora batch --verify says more"
KEPT = ".safetensors"  # what a job kept in place of a picture
JOB = "batch.json"  # in the folder that a job was drawn into
MADE = ("gallery", "sheets")  # folders beside it that hold its pictures once more, made smaller
SUFFIXES = frozenset(EXTENSIONS + FOREIGN_EXTENSIONS)  # of the foreign ones is said that they can't be read
Fields = Mapping[str, Any]
# What Pillow and JSON make of broken files.
_BROKEN = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, KeyError, TypeError)


class Picture(NamedTuple):
    """A picture's file and what is known of it.

    key: its path in the folder, or its shard's name and its own: unique, and the same in every run.
    fields: "prompt" and "seed" where they are known, and whatever else is told; "folder": the one that it is in.
    """

    key: str
    data: bytes
    fields: Fields

    @property
    def sha256(self) -> str:
        """Of the file, in hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()

    def image(self) -> Image.Image:
        """The picture: RGB, upright, transparency on white. Raises image_files.PictureError."""
        return read_rgb(io.BytesIO(self.data))


class Pictures:
    """The pictures of some places, in a stable order: `for picture in Pictures("out")`, as often as wanted.

    Files that begin with a dot are left out, and so are grids, thumbnails and sheets that autolora makes of pictures.
    What else is there and is not read, `left_out` names; `missing`, what folders' manifests tell of and is not there;
    `changed`, what is not as they tell. A warning says so once all pictures have been seen.
    """

    def __init__(self, *places: str | PathLike[str]) -> None:
        """places: folders, taken with their subfolders; .tar files; pictures. A folder may hold .tar files instead.

        Raises FileNotFoundError for what is not there, ValueError for places without pictures.
        """
        self.files: list[tuple[Path, Path]] = []  # (the place it is in, picture or shard)
        self.left_out: dict[str, dict[str, None]] = {}  # why -> names, in the order in which they were met
        self.missing: dict[str, str] = {}  # name -> why
        self.changed: dict[str, None] = {}  # names
        self._told_of: list[Path] = []  # folders with manifests
        self._seen: set[int] = set()  # hashes of (file, None), (shard, name in it): millions take little room
        for place in map(Path, places):
            found = [place] if place.is_file() else self._files(place)
            if not found:
                kinds = ", ".join(EXTENSIONS[:3])
                raise ValueError(f"{place} holds no pictures ({kinds}, …) and no {SHARD} files")
            self.files += [(place.parent if place.is_file() else place, file) for file in found]
        self._manifests: dict[Path, dict[str, Fields]] = {}

    @property
    def count(self) -> int | None:
        """How many there are (grids included); None when shards would have to be read to know."""
        return None if any(file.suffix == SHARD for _, file in self.files) else len(self.files)

    @property
    def folder(self) -> Path:
        """The first place, or the folder it is in."""
        return self.files[0][0]

    def __iter__(self) -> Iterator[Picture]:
        """Raises ValueError for a broken shard, manifest or JSON file, OSError for what can't be read."""
        self.missing, self.changed, self._seen = {}, {}, set()
        pictures = (
            picture
            for place, file in self.files
            for picture in (self._shard(file) if file.suffix == SHARD else self._file(place, file))
        )
        for picture in pictures:
            if _is_grid(picture.fields):
                self._leave("grids", picture.key)
                continue
            ours = picture.fields.get("status") == "ok"  # else it may be the hash of something else
            if ours and picture.fields.get("sha256") not in (None, picture.sha256):
                self.changed[picture.key] = None
            yield picture
        self._find_missing()
        left_out = [f"{len(names)} {why} ({shorten([*names], 3)})" for why, names in self.left_out.items()]
        for names, text in (
            (left_out, f"not among the pictures: {'; '.join(left_out)}"),
            (self.missing, f"{len(self.missing)} pictures of {MANIFEST} are not there ({_few(self.missing)})"),
            (self.changed, f"{len(self.changed)} are not the pictures that {MANIFEST} means ({_few(self.changed)})"),
        ):
            if names:
                warnings.warn(text, stacklevel=2)

    def _find_missing(self) -> None:
        for folder in self._told_of:
            known = self._manifests.get(folder)
            for row in _rows(folder / MANIFEST) if known is None else known.values():
                file, member = row.get("file"), row.get("member")
                if not isinstance(file, str) or row.get("status", "ok") != "ok":
                    continue
                whole, own = (hash((folder / file, name)) in self._seen for name in (None, member))
                if not own and (whole or not (folder / file).is_file()):  # else it was left out
                    self.missing[f"{file}/{member}" if member else file] = "is not there"

    def _leave(self, why: str, name: str) -> None:
        self.left_out.setdefault(why, {})[name] = None

    def _file(self, place: Path, file: Path) -> Iterator[Picture]:
        self._seen.add(hash((file, None)))
        beside = file.with_suffix(".json")
        sidecar = _object(beside.read_bytes(), str(beside)) if beside.is_file() else {}
        key = file.relative_to(place).as_posix()
        yield _picture(key, file.read_bytes(), {**sidecar, **self._rows(file, up_to=place)})

    def _rows(self, file: Path, up_to: Path) -> dict[str, Any]:
        """What manifests in the file's folder and in those above it say of it, the nearest one last."""
        found: dict[str, Any] = {}
        above = itertools.takewhile(lambda folder: folder != up_to.parent, file.parents)
        for folder in reversed([*above]):
            rows = self._manifest(folder)
            name = file.relative_to(folder)
            found |= rows.get(name.with_suffix("").as_posix(), {})
            found |= rows.get(name.as_posix(), {})
        return found

    def _shard(self, file: Path) -> Iterator[Picture]:
        rows = self._manifest(file.parent)
        self._seen.add(hash((file, None)))
        for key, members in _groups(file):
            self._seen |= {hash((file, name)) for name in members}
            kinds: tuple[Collection[str], ...] = (SUFFIXES, {KEPT})
            found = ([name for name in members if _suffix(name) in suffixes] for suffixes in kinds)
            pictures: list[str] = next(filter(None, found), [])
            for name in members.keys() - {*pictures}:
                if _suffix(name) not in (".json", ".txt"):
                    self._leave("files in shards that are no pictures", f"{file.name}/{name}")
            for name in pictures:
                own = name[: len(name) - len(_suffix(name))]
                stems = dict.fromkeys((key, own))  # of the sample, and of the picture's own
                fields = [_beside(file, stem, members) for stem in stems] + [rows.get(stem, {}) for stem in stems]
                told = {field: value for each in fields for field, value in each.items()}
                yield _picture(f"{file.name}/{own}{_suffix(name)}", members[name], told)

    def _manifest(self, folder: Path) -> dict[str, Fields]:
        """Rows of a folder's manifest by their `file` and by their `key`."""
        if folder not in self._manifests:
            names = ((name, row) for row in _rows(folder / MANIFEST) for name in (row.get("key"), row.get("file")))
            self._manifests[folder] = {name: row for name, row in names if isinstance(name, str)}
        return self._manifests[folder]

    def _files(self, place: Path) -> list[Path]:
        """Pictures of a folder and its subfolders; else shards, or else what was kept in their place."""
        visible = _visible(place)
        self._told_of += [path.parent for path in visible if path.name == MANIFEST]
        kinds = _kinds_of(visible)
        found = next(filter(None, kinds.values()), [])
        for kind, files in kinds.items():
            if files is not found:
                for file in files:
                    self._leave(f"{kind} beside other files that are read", file.relative_to(place).as_posix())
        return found


def _rows(path: Path) -> Iterator[Fields]:
    """The rows of a manifest, one at a time in memory."""
    if path.is_file():
        with path.open("rb") as lines:
            yield from (_object(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip())


def _visible(place: Path) -> list[Path]:
    """The files of a folder and its subfolders that are neither hidden nor made of others."""
    if not place.is_dir():
        raise FileNotFoundError(2, "there is no such file or folder", str(place))
    visible = [
        path
        for path in place.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts)
    ]
    made = [file.parent / name for file in visible if file.name == JOB for name in MADE]
    visible = [path for path in visible if not any(folder in path.parents for folder in made)]
    return sorted(visible, key=lambda path: path.relative_to(place).parts)


def _kinds_of(visible: Sequence[Path]) -> dict[str, list[Path]]:
    """What of these can be read, by its kind; of the first that there is any all is read."""
    kinds: dict[str, Collection[str]] = {"pictures": SUFFIXES, "shards (.tar)": {SHARD}, "kept features": {KEPT}}
    return {kind: [path for path in visible if path.suffix.lower() in suffixes] for kind, suffixes in kinds.items()}


def _few(names: Iterable[str]) -> str:
    return f"{shorten([*names], 3)}; {VERIFY}"


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _beside(file: Path, stem: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    """What a shard's JSON and text of this name say."""
    by_name = {name.lower(): content for name, content in members.items()}
    text, described = by_name.get(f"{stem}.txt".lower()), by_name.get(f"{stem}.json".lower())
    told = {} if text is None else {"prompt": text.decode("utf-8", "replace").strip()}
    return told | ({} if described is None else _object(described, f"{file}: {stem}.json"))


def _groups(file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, name -> content) of the samples of a shard: files one after another whose names begin alike.

    Source: WebDataset's format; a sample's key ends at the first dot after its folder, but its decoders go by what
    stands behind the last: img.v1.0.png is a picture.
    """
    try:
        with file.open("rb") as opened:
            for key, members in itertools.groupby(_members(opened), key=lambda member: member[0]):
                yield key, {name: content for _, name, content in members}
    except tarfile.TarError as e:
        raise ValueError(f"{file} is no whole tar file ({e}); write or copy it again") from None


def _members(tar: IO[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """(key, name, content) of each file that is not hidden."""
    for member, opened in tars.members(tar):
        path = PurePosixPath(member.name)
        if opened and not any(part.startswith(".") for part in path.parts):
            yield str(path.with_name(path.name.partition(".")[0])), str(path), opened.read()


def _picture(key: str, data: bytes, beside: Fields) -> Picture:
    folder = {"folder": PurePosixPath(key).parent.as_posix()}
    return Picture(key, data, {**folder, **_own(key, data), **beside})


def _own(key: str, data: bytes) -> dict[str, Any]:
    """What a file says of itself; {} where it is broken: whoever decodes it will say why that can't be."""
    try:
        if key.endswith(KEPT):
            header = foreign.parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return foreign.parse_object(header["__metadata__"]["autolora"])
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return told(image)
    except _BROKEN:
        return {}


def _object(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object without what is null in it."""
    try:
        found = foreign.parse_object(content)
    except ValueError as e:
        raise ValueError(f"{where} is not valid JSON ({e})") from None
    return {name: value for name, value in found.items() if value is not None}


def _is_grid(fields: Fields) -> bool:
    """Grids carry the settings of a run, pictures their own."""
    return "settings" in fields and "seed" not in fields


def labels(pictures: Sequence[Fields], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The group of each picture: the values that it has of these fields, as text; "" where it has none."""
    return [tuple(as_text(fields.get(name)) for name in names) for fields in pictures]


def as_text(value: Any) -> str:
    """A field's value for people, and to compare it with others."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_text(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(as_text, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
