"""Where pictures go: every picture a file, named by its key, or many in a tar file as WebDataset reads them."""

import itertools
import re
import tarfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

from autolora_jax import tars
from autolora_jax.batch.shard_files import end, sample
from autolora_jax.batch.storage import AT_ONCE, STATE, Storage

IMAGES, SHARDS, STAGED = "images", "shards", f"{STATE}/staged"
_SHARD, _PIECE = re.compile(r"(\d{6,})\.tar"), re.compile(r"(\d{6,})-(\d{8,})\.tar")


class Place(NamedTuple):
    """Where a picture is found: a file, and the name inside, if that is a shard.

    position: its number in the order of the shard, in which numbers may be left out.
    """

    file: str
    member: str | None
    position: int | None = None


class Picture(NamedTuple):
    """A picture's content, where it belongs, and its row of the manifest."""

    place: Place
    content: bytes
    row: dict[str, Any]


class Store:
    """Where the pictures of a job go: every picture is a file, images/KEY[:2]/KEY.png."""

    def __init__(self, storage: Storage, suffix: str) -> None:
        self.storage, self.suffix = storage, suffix

    def place(self, batch: int, number: int, key: str) -> Place:
        """Where a picture of a batch will be found. number: its own in the batch."""
        return Place(f"{IMAGES}/{key[:2]}/{key}.{self.suffix}", None)

    def save(self, batch: int, pictures: Sequence[Picture], pool: Executor) -> None:
        """Keeps the pictures of a batch so that they are safe from now on. pool: for what can be done at once."""
        list(pool.map(lambda picture: self.storage.write(picture.place.file, picture.content), pictures))

    def committed(self, batch: int) -> list[int]:
        """Called when a batch is recorded. Returns recorded batches that do not count: their pictures are gone."""
        return []


def any_picture(storage: Storage) -> bool:
    """Whether a place holds any picture that is a file."""
    folders = (f"{IMAGES}/{first:02x}" for first in range(256))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return any(name[:1] != "." for names in pool.map(storage.names, folders) for name in names)


class Piece(NamedTuple):
    """A recorded batch's part of a shard, while others of it are to come."""

    shard: int
    batch: int

    @property
    def file(self) -> str:
        return f"{STAGED}/{self.shard:06}-{self.batch:08}.tar"


def pieces_in(storage: Storage) -> set[Piece]:
    """Those that a place holds; files of other names are nobody's."""
    return {Piece(int(match[1]), int(match[2])) for match in map(_PIECE.fullmatch, storage.names(STAGED)) if match}


def shards_in(storage: Storage) -> set[int]:
    """The numbers of a place's shards."""
    return {int(match[1]) for match in map(_SHARD.fullmatch, storage.names(SHARDS)) if match}


def shard_file(number: int) -> str:
    return f"{SHARDS}/{number:06}.tar"


def is_place(key: str, file: str, member: str | None) -> bool:
    """Whether a picture of this key may stand there."""
    if member is None:
        return file.startswith(f"{IMAGES}/{key[:2]}/{key}.")
    return member.startswith(f"{key}.") and shard_number(file) is not None


def shard_number(file: str | None) -> int | None:
    """Of a shard's file; None for any other."""
    match = _SHARD.fullmatch((file or "").removeprefix(f"{SHARDS}/"))
    return int(match[1]) if match else None


class Shards(Store):
    """Tar files of consecutive batches: shards/000000.tar with KEY.png, KEY.json and KEY.txt, in the batches' order.

    The JSON is the picture's row of the manifest, the text its prompt: a caption, to whom trains on them.

    A batch is staged as a piece of its shard's tar. When the last one of a shard is recorded, the pieces are joined.
    Equal batches give equal bytes: members have no time and no owner.
    """

    def __init__(
        self, storage: Storage, suffix: str, first: int, batches: int, total: int, finished: Iterable[int], rows: int
    ) -> None:
        """first: number of the first shard. batches: a shard, of `total` in all. finished: those that are recorded.
        rows: of a batch."""
        super().__init__(storage, suffix)
        self.first, self.batches, self.total, self.rows = first, batches, total, rows
        self._lock = threading.Lock()
        self._finished: defaultdict[int, set[int]] = defaultdict(set)
        for batch in finished:
            self._finished[batch // batches].add(batch)

    def place(self, batch: int, number: int, key: str) -> Place:
        shard, before = divmod(batch, self.batches)
        return Place(shard_file(self.first + shard), f"{key}.{self.suffix}", before * self.rows + number)

    def save(self, batch: int, pictures: Sequence[Picture], pool: Executor) -> None:
        samples = (sample(picture.row, picture.content) for picture in pictures)
        self.storage.write(Piece(self.first + batch // self.batches, batch).file, b"".join(samples))

    def committed(self, batch: int) -> list[int]:
        shard = batch // self.batches
        own = range(shard * self.batches, min((shard + 1) * self.batches, self.total))
        with self._lock:
            self._finished[shard].add(batch)  # twice, if two workers drew it: one was taken for dead
            whole = len(self._finished[shard]) == len(own)
        pieces = [Piece(self.first + shard, batch) for batch in own]
        if not whole or (lost := lost_pieces(self.storage, pieces)):
            return [piece.batch for piece in lost] if whole else []
        join_staged(self.storage, pieces)
        return []


def lost_pieces(storage: Storage, pieces: Iterable[Piece]) -> list[Piece]:
    """Those of recorded batches that are neither there nor in their shard."""
    there, shards = pieces_in(storage), shards_in(storage)
    gone = (piece for piece in pieces if piece not in there and piece.shard not in shards)
    return [piece for piece in gone if storage.read(piece.file) is None]  # a bucket may list late what it has


def join_staged(storage: Storage, pieces: Iterable[Piece]) -> None:
    """Joins pieces, all of which are there, to the shards that they belong to, and removes them and those left over.

    Pieces of a shard that is there are left over from a run that was killed.
    """
    there = shards_in(storage)
    for shard, group in itertools.groupby(sorted(pieces), lambda piece: piece.shard):
        names = [piece.file for piece in group]
        if shard not in there:
            with storage.writing(shard_file(shard)) as tar:
                for piece in storage.read_all(names):
                    tar.write(piece)
                tar.write(end(tar.tell()))
        storage.remove(names)


def read_pictures(storage: Storage, places: Mapping[str, Place]) -> Iterator[tuple[str, bytes | str]]:
    """(key, content) of each picture, in an order that opens every file once. In place of a content: why there is none.

    places: key -> where the manifest says it is. Raises StorageError.
    """
    shards: dict[str, dict[str, str]] = {}
    for key, (file, member, _) in places.items():
        if member is None:
            content = storage.read(file)
            yield key, f"{file} is not there" if content is None else content
        else:
            shards.setdefault(file, {})[member] = key
    for shard, keys in shards.items():
        for member, found in _read_members(storage, shard, keys):
            yield keys[member], found


def absent(storage: Storage, files: Iterable[str]) -> list[str]:
    """Which of these files are not there; each of their folders is listed once. Raises StorageError."""
    by_folder: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for file in sorted(files):
        folder, _, name = file.rpartition("/")
        by_folder[folder][name] = None
    with ThreadPoolExecutor(AT_ONCE) as pool:
        there = pool.map(lambda folder: set(storage.names(folder)), by_folder)
        return [
            f"{folder}/{name}"
            for (folder, names), found in zip(by_folder.items(), there, strict=True)
            for name in names
            if name not in found
        ]


def _read_members(storage: Storage, shard: str, members: Mapping[str, object]) -> Iterator[tuple[str, bytes | str]]:
    """(member, content) of these members of a shard. In place of a content: why there is none. Raises StorageError."""
    folder, _, file = shard.rpartition("/")
    if file not in storage.names(folder):
        yield from ((member, f"{shard} is not whole yet") for member in members)
        return
    left = dict.fromkeys(members)
    try:
        with storage.reading(shard) as opened:
            for info, found in tars.members(opened):
                if info.name in left and found:
                    del left[info.name]
                    yield info.name, found.read()
    except tarfile.TarError as e:
        yield from ((member, f"{shard}: {member} can't be read: {e}") for member in left)
        return
    yield from ((member, f"{shard} holds no {member}") for member in left)
