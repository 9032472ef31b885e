"""What stands for a picture when pictures are compared: a vector by a network, on all devices, computed once."""

import dataclasses
import functools
import json
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Shaped, UInt8
from PIL import Image

from autolora_jax import foreign
from autolora_jax.compilation import keep_programs
from autolora_jax.evaluation.pictures import Fields, Picture
from autolora_jax.image_files import PictureError
from autolora_jax.sharding import map_images, pad_rows, replicated, split_images

Placement = jax.sharding.Sharding
BATCH_SIZE = 16  # pictures a device
PREPARING = 8  # threads that decode and resize
FOLDER = ".autolora"  # in the pictures' folder, for what is kept
KEY, CHECK = 32, 4  # bytes of a SHA-256 and of a CRC-32


class Encoder:
    """A network from rows (prepared pictures, token ids) to vectors, mapped over the devices of a mesh.

    Its weights are loaded when the first rows come. Batches are powers of two, up to the largest: a handful of programs
    serves any number of rows.
    """

    def __init__(
        self,
        function: Callable[[Any, Array], Array],
        load: Callable[[Placement], Any],
        mesh: Mesh,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """function: (parameters, rows [n ...]) -> [n d]. load: its parameters, placed. batch_size: rows a device."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} should be 1 or more")
        keep_programs()
        self.mesh, self.batch_size = mesh, batch_size
        self._params = functools.cache(lambda: load(replicated(mesh)))
        self._run = jax.jit(map_images(function, mesh))

    @property
    def rows(self) -> int:
        """As many as are computed together."""
        return self.batch_size * self.mesh.size

    def __call__(self, rows: Shaped[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n d"]:
        """The vectors of n >= 1 rows; each depends on its row alone. Raises ValueError when one is not finite."""
        parts = [self._batch(rows[start : start + self.rows]) for start in range(0, len(rows), self.rows)]
        found = np.concatenate(parts)
        if not np.isfinite(found).all():
            raise ValueError("features are not finite; compute them in float32")
        return found

    def _batch(self, rows: Shaped[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n d"]:
        a_device = min(self.batch_size, 2 ** math.ceil(math.log2(-(-len(rows) // self.mesh.size))))
        full = jax.device_put(pad_rows(rows, a_device * self.mesh.size), split_images(self.mesh))
        return np.asarray(self._run(self._params(), full), np.float32)[: len(rows)]


@dataclasses.dataclass(frozen=True)
class PictureEncoder:
    """A model whose features stand for pictures.

    identity: of all that the features depend on, for file names. size: of a vector.
    prepare: a picture as the model sees it, 8-bit [h w 3]; raises PictureError for one that it can't judge.
    """

    name: str
    identity: str
    size: int
    prepare: Callable[[Image.Image], UInt8[np.ndarray, "h w 3"]]
    encode: Encoder


class Known(NamedTuple):
    """What is kept of a picture that was read."""

    key: str
    sha256: str
    fields: Fields


class Collected(NamedTuple):
    """n pictures in the order in which they came, the features of each encoder by its name, why others have none."""

    pictures: list[Known]
    features: dict[str, Float32[np.ndarray, "n _"]]
    bad: dict[str, str]  # key -> why


def collect(
    pictures: Iterable[Picture],
    encoders: Sequence[PictureEncoder] = (),
    cache: Path | None = None,
    on_progress: Callable[[int, str], None] | None = None,
) -> Collected:
    """Reads pictures one by one and takes their features: those that a cache holds, else computed and kept there.

    encoders: none, to learn what pictures there are.
    cache: a folder; None: nothing is kept. A run that is stopped has kept every batch that it finished.
    on_progress: called with (pictures read, the encoder that computes or "").
    Raises OSError and ValueError for what `pictures` does; a bad picture is no error, but told of.
    """
    tell = on_progress or (lambda *_: None)
    caches = [FeatureCache(cache, encoder.identity, encoder.size) for encoder in encoders]
    read: list[Known] = []
    bad: dict[str, str] = {}  # sha256 -> why
    asked: set[str] = set()
    # Pictures wait to be prepared by threads, then in a queue an encoder for a full batch.
    preparing: deque[tuple[str, Future[dict[int, np.ndarray]]]] = deque()
    queues: list[list[tuple[str, np.ndarray]]] = [[] for _ in encoders]
    most = 2 * max((encoder.encode.rows for encoder in encoders), default=0)

    def prepare(picture: Picture, missing: list[int]) -> dict[int, np.ndarray]:
        image = picture.image()
        return {i: encoders[i].prepare(image) for i in missing}

    def settle() -> None:
        """The picture that has waited longest goes on to the queues."""
        digest, future = preparing.popleft()
        try:
            prepared = future.result()
        except PictureError as e:
            bad[digest] = str(e)
            return
        for i, pixels in prepared.items():
            queues[i].append((digest, pixels))
            if len(queues[i]) == encoders[i].encode.rows:
                encode(i)

    def encode(i: int) -> None:
        if queues[i]:
            tell(len(read), encoders[i].name)
            digests, pixels = zip(*queues[i], strict=True)
            caches[i].add(digests, encoders[i].encode(np.stack(pixels)))
            queues[i].clear()

    with ThreadPoolExecutor(PREPARING) as pool:
        for picture in pictures:
            digest = picture.sha256
            read.append(Known(picture.key, digest, picture.fields))
            missing = [i for i, kept in enumerate(caches) if digest not in kept]
            if missing and digest not in asked:
                asked.add(digest)
                preparing.append((digest, pool.submit(prepare, picture, missing)))
                while len(preparing) > most:
                    settle()
            tell(len(read), "")
        while preparing:
            settle()
        for i, _ in enumerate(encoders):
            encode(i)
    good = [known for known in read if known.sha256 not in bad]
    digests = [known.sha256 for known in good]
    features = {encoder.name: kept.rows(digests) for encoder, kept in zip(encoders, caches, strict=True)}
    return Collected(good, features, {known.key: bad[known.sha256] for known in read if known.sha256 in bad})


class FeatureCache:
    """Features by the SHA-256 (hexadecimal) of what they are features of. Without a folder, in memory alone.

    A file a model, beside the pictures: a line of JSON, which names the model, then records of one length: the SHA-256
    of a picture's file, float32 features, a checksum. Records are only ever added, whole ones after the last whole one,
    so a run that is stopped loses nothing, and two at a time can at worst write the same again.
    """

    def __init__(self, folder: Path | None, identity: str, size: int) -> None:
        """identity: of the model and of all else that the features depend on; size: of a vector.

        Raises OSError when the folder can't be made or read.
        """
        self.size = size
        self._vectors: dict[bytes, np.ndarray] = {}
        self._path: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / f"{identity}.features"
            self._header = json.dumps({"features": identity, "size": size}).encode() + b"\n"
            self._end = self._read(self._path)

    def __contains__(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self._vectors

    def rows(self, digests: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """The features of these, all of which are there."""
        found = [self._vectors[bytes.fromhex(digest)] for digest in digests]
        return np.stack(found) if found else np.zeros((0, self.size), np.float32)

    def add(self, digests: Sequence[str], vectors: Float32[np.ndarray, "n d"]) -> None:
        """Keeps features, on disk at once. Raises OSError."""
        records = [
            (key := bytes.fromhex(digest), body := np.asarray(vector, "<f4").tobytes(), _checksum(key, body))
            for digest, vector in zip(digests, vectors, strict=True)
        ]
        self._vectors |= {key: vector for (key, _, _), vector in zip(records, vectors, strict=True)}
        if self._path is not None and records:
            content = b"".join(b"".join(record) for record in records)
            if not self._end:
                content = self._header + content
            with self._path.open("r+b" if self._end else "wb") as file:
                file.seek(self._end)
                file.write(content)
            self._end += len(content)

    def _read(self, path: Path) -> int:
        """Takes in what is whole; returns where that ends. 0: nothing is, and the file begins anew."""
        if not path.exists():
            return 0
        content = foreign.read_file(path)
        if not content.startswith(self._header):
            return 0
        length = KEY + 4 * self.size + CHECK
        starts = range(len(self._header), len(content) - length + 1, length)
        for start in starts:
            record = content[start : start + length]
            key, body, check = record[:KEY], record[KEY:-CHECK], record[-CHECK:]
            if check == _checksum(key, body):
                self._vectors[key] = np.frombuffer(body, "<f4")
        return len(self._header) + len(starts) * length


def _checksum(key: bytes, body: bytes) -> bytes:
    return zlib.crc32(key + body).to_bytes(CHECK, "little")
