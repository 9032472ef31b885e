"""Features on disk: a file a model beside the pictures, so that what was computed once is never computed again.

The file is a line of JSON, which names the model, then records of one length: the SHA-256 of a picture's file, float32
features, a checksum. Records are only ever added, whole ones after the last whole one, so a run that is stopped loses
nothing, and two at a time can at worst write the same again.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

FOLDER = ".autolora"  # in the pictures' folder
KEY, CHECK = 32, 4  # bytes of a SHA-256 and of a CRC-32


class FeatureCache:
    """Features by the SHA-256 (hexadecimal) of what they are features of. Without a folder, in memory alone."""

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
        content = path.read_bytes()
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
