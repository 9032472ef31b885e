"""Safetensors files, read safely: one file or shards, shapes without data, one tensor at a time.

Only the safetensors format is read. It can't execute code; pickles (.ckpt, .pt, .bin, whatever their extension) can, so
they are recognised by their first bytes and refused unopened. Every way in which a file can be bad is a WeightsError
that names the file, the tensor where there is one, and what to do.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from autolora_jax.weights.errors import WeightsError, printable, shorten

# safetensors' dtype names of what we compute with; ml_dtypes is what teaches numpy (and safetensors) bfloat16.
FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Plain casts, as T5 is published in: each value is one of bfloat16's, too, and is read as that.
EIGHT_BIT: dict[str, np.dtype] = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
# Factors that a program would have to multiply other tensors by.
_SCALES = re.compile(r"(.*\.)?(scaled_fp8|scale_weight|scale_input|weight_scale|input_scale|comfy_quant)")
_WEIGHTS = FLOATS | EIGHT_BIT
_LONGEST_NAME = 500  # characters; patterns that names are searched for may take their square
_CHUNK = 1 << 22  # elements looked at together in search of NaN
# The exponent's bits of 16-bit floats, all set in NaN and infinity: numpy looks at whole numbers forty times faster.
_EXPONENTS: dict[np.dtype, np.uint16] = {FLOATS["F16"]: np.uint16(0x7C00), FLOATS["BF16"]: np.uint16(0x7F80)}


class TensorInfo(NamedTuple):
    """What the header says about a tensor. dtype: safetensors' name, "F16"."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


_AGAIN = "download it again"
_CONVERT = (
    "it is a pickle, which can run any code when opened, and is never opened here; get the .safetensors version, or "
    "convert it with a program you trust in a place where it can do no harm"
)


# (what a file is, how its first 16 bytes tell, what to say). The first row that fits.
_KINDS: tuple[tuple[str, Callable[[bytes], bool], str], ...] = (
    ("empty", lambda h: not h, f"it is empty; {_AGAIN}"),
    ("safetensors", lambda h: len(h) > 8 and h[8:9] == b"{", ""),
    ("pickle", lambda h: h[:4] == b"PK\x03\x04", _CONVERT),  # torch.save since 1.6 is a zip of pickles
    ("pickle", lambda h: h[:1] == b"\x80" and h[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"), _CONVERT),
    ("gguf", lambda h: h[:4] == b"GGUF", "GGUF files (quantised) are not supported; get the .safetensors version"),
    ("git-lfs pointer", lambda h: h.startswith(b"version https://"), "it is a git-lfs pointer; run `git lfs pull`"),
    ("web page", lambda h: h.lstrip()[:5].lower() in (b"<!doc", b"<html"), f"it is a web page, not weights; {_AGAIN}"),
    ("unknown", lambda h: True, f"it is not a safetensors file; {_AGAIN}"),
)


def kind_of(path: Path) -> tuple[str, str]:
    """(what its first bytes say a file is, why it can't be loaded or ""). Raises WeightsError when unreadable."""
    try:
        with path.open("rb") as f:
            head = f.read(16)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except OSError as e:
        raise WeightsError(f"{path} can't be read: {e.strerror}") from None
    return next((kind, why) for kind, fits, why in _KINDS if fits(head))


class TensorFiles:
    """The tensors of one safetensors file, or of all shards of an index, memory-mapped. A context manager."""

    def __init__(self, files: Iterable[Path], where: str) -> None:
        self.where = where
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._open: dict[Path, safe_open] = {}
        for path in files:
            self._add(path)

    def _add(self, path: Path) -> None:
        kind, why = kind_of(path)
        if kind != "safetensors":
            raise WeightsError(f"{path} can't be loaded: {why}")
        try:
            opened = safe_open(path, framework="numpy")
            slices = ((name, opened.get_slice(name)) for name in opened.offset_keys())  # as they lie on the disk
            found = {name: TensorInfo(tuple(s.get_shape()), s.get_dtype(), path) for name, s in slices}
        except (SafetensorError, OSError) as e:
            size = path.stat().st_size
            raise WeightsError(
                f"{path} is broken ({printable(str(e))}); its {size} bytes may be an incomplete download: {_AGAIN}"
            ) from None
        if long := [name for name in found if len(name) > _LONGEST_NAME]:
            raise WeightsError(f"{path} has a name of {len(long[0])} characters, which no model's tensor has; {_AGAIN}")
        if scales := [name for name in found if _SCALES.fullmatch(name)]:
            raise WeightsError(
                f"{path} is quantised: {shorten(scales, 3)} scale other tensors, which is not supported; get the "
                "fp16 or bf16 version, or plain 8-bit floats (t5xxl_fp8_e4m3fn, not …_scaled)"
            )
        if twice := sorted(found.keys() & self.tensors.keys()):
            raise WeightsError(f"{path}: {shorten(twice)} stand in another shard, too; {_AGAIN}")
        self._open[path] = opened
        self.tensors |= found
        self.metadata |= opened.metadata() or {}

    def read(self, name: str) -> np.ndarray:
        """One tensor, a copy in memory of its own; 8-bit floats as bfloat16, which loses nothing.

        Raises WeightsError when it holds NaN or infinity.
        """
        info = self.tensors[name]
        try:
            if info.dtype in EIGHT_BIT:
                tensor = _read_eight_bit(info, name).astype(FLOATS["BF16"])
            else:
                tensor = self._open[info.file].get_tensor(name)
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError) as e:  # the last three: odd dtypes
            why = f"{printable(name)} ({info.dtype}) can't be read: {printable(str(e))}"
            raise WeightsError(f"{info.file}: {why}") from None
        if info.dtype in _WEIGHTS:
            require_finite(tensor, f"{info.file}: {printable(name)}")
        return tensor

    def number(self, name: str) -> float:
        """The one number that a tensor holds, of any dtype. Raises WeightsError for anything else."""
        info = self.tensors[name]
        if info.shape not in ((), (1,)):
            raise WeightsError(f"{info.file}: {printable(name)} is {list(info.shape)}, expected one number")
        try:
            return float(self.read(name).reshape(()))
        except TypeError:
            raise WeightsError(f"{info.file}: {printable(name)} is {info.dtype}, expected a real number") from None

    def require_floats(self, names: Iterable[str]) -> None:
        """Raises WeightsError naming tensors of these whose dtype can't be a weight."""
        if wrong := [f"{n} is {self.tensors[n].dtype}" for n in names if self.tensors[n].dtype not in _WEIGHTS]:
            advice = f"weights should be one of {', '.join(_WEIGHTS)}; get an unquantised version"
            raise WeightsError(f"{self.where}: {shorten(wrong)}; {advice}")

    def close(self) -> None:
        self._open.clear()

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_eight_bit(info: TensorInfo, name: str) -> np.ndarray:
    """A tensor of 8-bit floats, which safetensors has no numpy type for; that it lies in the file has been checked."""
    with info.file.open("rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        begin, end = header[name]["data_offsets"]
        f.seek(begin, os.SEEK_CUR)
        values = np.frombuffer(f.read(end - begin), EIGHT_BIT[info.dtype])
    return values.reshape(info.shape)


def open_tensors(path: Path) -> TensorFiles:
    """The tensors of a safetensors file, or of the shards that a `*.index.json` names. Raises WeightsError."""
    if ".safetensors.index." in path.name:  # model.safetensors.index.json, model.safetensors.index.fp16.json
        return _open_shards(path)
    return TensorFiles([path], str(path))


def shard_names(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index. Raises WeightsError for anything but a plain file name."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
    except FileNotFoundError:
        raise WeightsError(f"{index} does not exist") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise WeightsError(f"{index} is not a safetensors index ({type(e).__name__}: {e}); {_AGAIN}") from None
    for file in files:
        if not isinstance(file, str) or Path(file).name != file or file in ("", "..") or "\\" in file or "\0" in file:
            raise WeightsError(
                f"{index} points at {file!r}; a shard must be a plain file name beside its index. Don't trust this file"
            )
        if not file.endswith(".safetensors"):
            raise WeightsError(
                f"{index} points at {file}, which is not a .safetensors file; get the safetensors shards"
            )
    return weight_map


def _open_shards(index: Path) -> TensorFiles:
    weight_map = shard_names(index)
    files = {name: index.parent / name for name in sorted(set(weight_map.values()))}
    if missing := [name for name, path in files.items() if not path.exists()]:
        raise WeightsError(f"{index} names {shorten(missing)}, which {index.parent} does not hold; download them")
    opened = TensorFiles(files.values(), str(index))
    elsewhere = [n for n, f in weight_map.items() if n not in opened.tensors or opened.tensors[n].file.name != f]
    if unlisted := sorted(opened.tensors.keys() - weight_map.keys()) + elsewhere:
        raise WeightsError(f"{index} and its shards disagree about {shorten(unlisted)}; download all of them again")
    return opened


def require_finite(tensor: np.ndarray, what: str) -> None:
    """Raises WeightsError when a float tensor holds NaN or infinity."""
    flat = tensor.reshape(-1)
    exponent = _EXPONENTS.get(tensor.dtype)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if exponent is not None and (chunk.view(np.uint16) & exponent).max() < exponent:
            continue
        with np.errstate(invalid="ignore"):  # bfloat16's signalling NaN
            finite = np.isfinite(chunk)
        if not finite.all():
            at = start + int(np.argmin(finite))
            index = [int(i) for i in np.unravel_index(at, tensor.shape)]
            raise WeightsError(f"{what} holds {flat[at]} at {index}; the file is damaged or its training diverged")
