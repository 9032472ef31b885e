"""Ways of damaging files: any bytes, JSON by its structure, and whole folders. All seeded."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Random = random.Random

DEEP = b"[" * 200_000
ODD = (None, True, 0, -1, 1, 2**63, 10**400, 0.5, 1e300, "", "\0", "x" * 5_000, "\ud800", "../..", [], {}, [[]], [None])
WORDS = (b"NaN", b"Infinity", b"-Infinity", b"1e999", DEEP, b'{"a":' * 5_000, b"\xff\xfe", b"\0", b'"\\ud800"')


def flipped(rng: Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 20)) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def cut(rng: Random, content: bytes) -> bytes:
    return content[: rng.choice((0, 1, rng.randint(0, len(content)), max(0, len(content) - 1)))]


def put_in(rng: Random, content: bytes) -> bytes:
    at = rng.randint(0, len(content))
    return content[:at] + rng.choice((*WORDS, bytes(100), rng.randbytes(50))) + content[at:]


def taken_out(rng: Random, content: bytes) -> bytes:
    at = rng.randint(0, len(content))
    return content[:at] + content[at + rng.choice((1, 10, 512)) :]


def twice(rng: Random, content: bytes) -> bytes:
    return content + content


def something_else(rng: Random, content: bytes) -> bytes:
    return rng.choice(
        (b"", b"null", b"[]", b"7", b'"text"', DEEP, b"\x80\x04cposix\nsystem\n", b"PK\x03\x04", bytes(512))
    )


def of_json(rng: Random, content: bytes) -> bytes:
    """JSON with values, keys or whole parts changed; of anything else, something else."""
    lines = content.splitlines() or [b""]
    at = rng.randrange(len(lines))
    try:
        whole, given = (True, json.loads(content)) if len(lines) == 1 or lines[0] in (b"{", b"[") else (False, None)
        given = given if whole else json.loads(lines[at])
    except ValueError:
        return something_else(rng, content)
    text = json.dumps(changed(rng, given)).encode()
    if rng.random() < 0.3:
        text = text.replace(b"null", rng.choice(WORDS[:6]), 1)
    lines[at] = text
    return text if whole else b"\n".join(lines) + b"\n"


def changed(rng: Random, value: Any) -> Any:
    """A JSON value with something odd somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice([*value])
        others = {key: part for key, part in value.items() if key != name}
        done = rng.random()
        if done < 0.2:
            return others
        return (
            {**others, rng.choice(("\0", "x" * 5_000, "")): value[name]}
            if done < 0.3
            else {**others, name: changed(rng, value[name])}
        )
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], changed(rng, value[at]), *value[at + 1 :]]
    odd = rng.choice(ODD)
    return 10**30 if odd == 10**400 and rng.random() < 0.5 else odd


WAYS: tuple[Callable[[Random, bytes], bytes], ...] = (
    flipped,
    cut,
    put_in,
    taken_out,
    twice,
    something_else,
    of_json,
    of_json,
)


def damaged(rng: Random, source: Path, target: Path) -> str:
    """A copy of a file or folder with one thing wrong in it; what it is."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
        files = sorted(path for path in target.rglob("*") if path.is_file() and not path.is_symlink())
        path = rng.choice(files)
    else:
        shutil.copyfile(source, target)
        path = target
    content = path.read_bytes()
    odd = rng.random()
    if source.is_dir() and odd < 0.1:
        path.unlink()
        if odd < 0.03:
            path.mkdir()
        elif odd < 0.06:
            os.mkfifo(path)
        return f"{path.name} gone"
    way = rng.choice(WAYS)
    path.write_bytes(way(rng, content))
    return f"{path.name} {way.__name__}"
