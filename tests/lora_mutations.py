"""Good LoRA files of every kind for a model of a few layers, and ways of damaging them.

All random, all seeded: a mutation and the seed of its Random give one file.
"""

import functools
import json
import math
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from autolora_jax.config import CLIPTextConfig, MMDiTConfig, UNetConfig
from autolora_jax.weights.lora.kinds import KINDS, endings
from autolora_jax.weights.lora.names import Targets

Header = dict[str, Any]
Random = random.Random

# A few layers of each sort, so that finding their names takes no time.
TARGETS: Targets = {
    "unet": (
        {
            "down_blocks_1": {
                "attentions_0": {
                    "proj_in": {"kernel": (64, 64), "bias": (64,)},
                    "norm": {"scale": (64,), "bias": (64,)},
                },
                "resnets_0": {"conv1": {"kernel": (3, 3, 32, 64), "bias": (64,)}},
            }
        },
        UNetConfig(),
    ),
    "transformer": (
        {"transformer_blocks_0": {"attn": {name: {"kernel": (32, 32)} for name in ("to_q", "to_k", "to_v")}}},
        MMDiTConfig(),
    ),
    "text_encoder": (
        {"text_model": {"encoder": {"layers_0": {"mlp": {"fc1": {"kernel": (32, 64)}}}}}},
        CLIPTextConfig(),
    ),
}
LINEAR, CONV, NORM = (
    f"lora_unet_down_blocks_1_{name}" for name in ("attentions_0_proj_in", "resnets_0_conv1", "attentions_0_norm")
)
QKV = "lora_unet_joint_blocks_0_x_block_attn_qkv"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
# module -> ending -> shape: every kind, in files that load.
GOOD: tuple[Mapping[str, Mapping[str, tuple[int, ...]]], ...] = (
    {
        LINEAR: {"lora_down.weight": (4, 64), "lora_up.weight": (64, 4), "alpha": ()},
        CONV: {"lora_down.weight": (2, 32, 3, 3), "lora_up.weight": (64, 2, 1, 1), "alpha": (), "diff_b": (64,)},
        NORM: {"w_norm": (64,), "b_norm": (64,)},
        QKV: {"lora_down.weight": (6, 32), "lora_up.weight": (96, 6), "alpha": ()},
    },
    {
        LINEAR: {"hada_w1_a": (64, 2), "hada_w1_b": (2, 64), "hada_w2_a": (64, 2), "hada_w2_b": (2, 64), "alpha": ()},
        CONV: {
            **{"hada_t1": (2, 2, 3, 3), "hada_w1_a": (2, 64), "hada_w1_b": (2, 32)},
            **{"hada_t2": (2, 2, 3, 3), "hada_w2_a": (2, 64), "hada_w2_b": (2, 32), "alpha": ()},
        },
        QKV: {"lokr_w1": (4, 8), "lokr_w2": (24, 4), "alpha": ()},
    },
    {
        LINEAR: {"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8), "alpha": ()},
        CONV: {"lokr_w1": (4, 4), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 16), "lokr_w2_b": (2, 8), "alpha": ()},
        QKV: {"diff": (96, 32)},
        NORM: {"diff": (64,), "diff_b": (64,)},
    },
    {
        LINEAR: {"lora_down.weight": (4, 64), "lora_up.weight": (64, 4), "alpha": (), "dora_scale": (64, 1)},
        CONV: {"lora_down.weight": (2, 32), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (64, 2), "alpha": ()},
        QKV: {"lora_down.weight": (6, 32), "lora_up.weight": (96, 6), "dora_scale": (96, 1)},
    },
    {
        TEXT: {"lora_A.weight": (2, 32), "lora_B.weight": (64, 2), "lora_B.bias": (64,)},
        "unet.down_blocks.1.attentions.0.proj_in": {
            **{"lora_A.weight": (2, 64), "lora_B.weight": (64, 2), "lora_magnitude_vector": (64,)},
        },
    },
)
HEADERS: tuple[Mapping[str, str], ...] = (
    {"ss_tag_frequency": json.dumps({"1_dog": {"sks dog": 7}}), "ss_network_args": '{"split_qkv": "True"}'},
    {"lora_adapter_metadata": json.dumps({"text_encoder.r": 2, "unet.r": 2, "unet.use_dora": True})},
)
KERNELS: Mapping[str, tuple[int, int, tuple[int, ...]]] = {  # outputs, inputs, window
    LINEAR: (64, 64, ()),
    CONV: (64, 32, (3, 3)),
    QKV: (96, 32, ()),
    TEXT: (64, 32, ()),
}
# safetensors' dtypes -> bits; those that it has no numpy type for, too.
DTYPES = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
FLOATS = {"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "F4": 4}
ODD_NAMES = ("F12", "f32", "", "F32 ", "Q4_K", "__metadata__", "\x1b[31m", None, 7, ["F32"], {"a": 1})
ODD_VALUES = (0, -1, 1, 2**31, 2**63, 2**64, 1e30, 0.5, None, "0", [], {}, True, [[]], "\u202e\x1b[2J")


@functools.cache
def good(index: int) -> tuple[Header, bytes]:
    """(the header, the data) of a file in which nothing is wrong."""
    rng = np.random.default_rng(index)
    entries: Header = {}
    data = b""
    for module, parts in GOOD[index % len(GOOD)].items():
        for ending, shape in parts.items():
            values = np.array(2, np.float32) if ending == "alpha" else rng.normal(size=shape).astype(np.float32)
            entries[f"{module}.{ending}"] = _entry("F32", shape, len(data), values.nbytes)
            data += values.tobytes()
    header = HEADERS[1] if index % len(GOOD) == len(GOOD) - 1 else HEADERS[0]
    return {"__metadata__": dict(header), **entries}, data


def _entry(dtype: str, shape: tuple[int, ...], start: int, size: int) -> Header:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}


def packed(header: Header | bytes, data: bytes) -> bytes:
    """A file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def rebuilt(header: Header, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A file whose offsets are right, whatever else is wrong."""
    entries: Header = {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = _entry(dtype, shape, len(data), len(content))
        data += content
    return packed({"__metadata__": header["__metadata__"], **entries}, data)


def tensors_of(header: Header, data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """name -> (dtype, shape, content)."""
    return {
        name: (entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def names_in(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def changed(rng: Random, header: Header, data: bytes, field: str, values: Any) -> bytes:
    """The header with some entries' field replaced by what `values` makes of it."""
    copy = json.loads(json.dumps(header))
    for name in rng.sample(names_in(copy), rng.randint(1, 3)):
        copy[name][field] = values(copy[name][field])
    return packed(copy, data)


# ---- what is done to files: (random numbers, header, data) -> the bytes of a file ------------------------------------


def flipped_bytes(rng: Random, header: Header, data: bytes) -> bytes:
    text = bytearray(json.dumps(header).encode())
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        text[rng.randrange(len(text))] = rng.randrange(256)
    return packed(bytes(text), data)


def flipped_anywhere(rng: Random, header: Header, data: bytes) -> bytes:
    content = bytearray(packed(header, data))
    for _ in range(rng.choice((1, 3, 100))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def cut(rng: Random, header: Header, data: bytes) -> bytes:
    """At every boundary of its structure, and beside it."""
    content = packed(header, data)
    start = len(content) - len(data)
    ends = [start + header[name]["data_offsets"][1] for name in names_in(header)]
    place = rng.choice([0, 1, 7, 8, 9, start - 1, start, start + 1, *ends]) + rng.choice((-1, 0, 0, 1))
    return content[: max(0, place)] if rng.random() < 0.8 else content + bytes(rng.randrange(1, 99))


def other_length(rng: Random, header: Header, data: bytes) -> bytes:
    content = packed(header, data)
    own = len(content) - len(data) - 8
    length = rng.choice(
        [0, 1, own - 1, own + 1, own + len(data), len(content), 10**8, 10**8 + 1, 2**32, 2**63, 2**64 - 1]
    )
    return struct.pack("<Q", length) + content[8:]


def other_offsets(rng: Random, header: Header, data: bytes) -> bytes:
    def other(offsets: list[Any]) -> Any:
        start, end = offsets
        shift = rng.choice((1, -1, 4, -4, 64, 2**31, 2**62, -(2**40)))
        moved = [[end, start], [start + shift, end + shift], [start, end + shift], [0, len(data)], [start, start]]
        odd = [[rng.choice(ODD_VALUES), rng.choice(ODD_VALUES)], rng.choice(ODD_VALUES), [start], [], [start, end, end]]
        return rng.choice([*moved, *odd])

    return changed(rng, header, data, "data_offsets", other)


def other_dtypes(rng: Random, header: Header, data: bytes) -> bytes:
    return changed(rng, header, data, "dtype", lambda _: rng.choice([*DTYPES, *FLOATS, *ODD_NAMES]))


def other_shapes(rng: Random, header: Header, data: bytes) -> bytes:
    def other(shape: list[int]) -> Any:
        made = [rng.choice([n, n, 0, 1, -1, n + 1, 2 * n, 2**20, 2**31, 2**62, 2**64, *ODD_VALUES]) for n in shape]
        return rng.choice([made, made[::-1], [*made, 1], made[1:], [1] * 3000, rng.choice(ODD_VALUES), [2**40] * 4])

    return changed(rng, header, data, "shape", other)


def honest_tensors(rng: Random, header: Header, data: bytes) -> bytes:
    """Shapes and dtypes that are others, with data and offsets that agree."""
    tensors = tensors_of(header, data)
    for name in rng.sample(list(tensors), rng.choice((1, 1, 2))):
        _, shape, _ = tensors[name]
        dtype, bits = rng.choice([*DTYPES.items(), *FLOATS.items()])
        if rng.random() < 0.3:
            shape = tuple(rng.choice((n, n, 0, 1, 2, 3, 8, 32, 64, 96)) for n in shape)
        elif rng.random() < 0.3:
            shape = rng.choice((shape[::-1], (*shape, 1, 1), shape[:1], (1, *shape), ()))
        size = math.ceil(math.prod(shape) * bits / 8)
        fill = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(min(size, 4096)) * (size // 4096 + 1)))
        tensors[name] = (dtype, shape, fill[:size])
    return rebuilt(header, tensors)


def twice(rng: Random, header: Header, data: bytes) -> bytes:
    """A name that stands in the header several times."""
    one, other = (rng.choice(names_in(header)) for _ in range(2))
    text = json.dumps(header).encode()
    again = json.dumps({one: header[rng.choice((one, other))]}).encode()[1:-1]
    return packed(text[:-1] + b", " + again + b"}", data)


def odd_json(rng: Random, header: Header, data: bytes) -> bytes:
    text = json.dumps(header)
    depth = rng.choice((50, 126, 127, 128, 129, 5000, 100_000))
    name = rng.choice(names_in(header))
    deep = (f'{{"{name}": ' + "[" * depth + "]" * depth + "}", '{"a":' * depth + "1" + "}" * depth)
    less = ("{}", "{", "[]", "null", "{} {}", text[:-1], text.replace('"', "'"), text.replace("[", "{", 1))
    more = (text + " " * 99, text + "\0", " " + text, json.dumps(header, indent=3))
    no_text = (text.encode().replace(b"F32", b"F\xff2"), b"{" + b"\xff" * 50 + b"}", text.encode("utf-16"))
    odd = rng.choice([*(x.encode() for x in (*deep, *less, *more)), *no_text])
    return packed(odd, data)


def exchanged(rng: Random, header: Header, data: bytes) -> bytes:
    """Tensors under each other's names; names of modules and endings put together anew."""
    tensors = tensors_of(header, data)
    names = list(tensors)
    if rng.random() < 0.5:
        i, j = rng.sample(range(len(names)), 2)
        names[i], names[j] = names[j], names[i]
    else:
        endings = [name.rpartition(".lora_")[1:] if ".lora_" in name else name.rpartition(".")[1:] for name in names]
        rng.shuffle(endings)
        names = [
            name.partition("." if name.startswith("lora") else ".lora_")[0] + "".join(endings.pop()) for name in names
        ]
    return rebuilt(header, dict(zip(names, tensors.values(), strict=True)))


ENDINGS = (
    *(
        "lora_down.weight",
        "lora_up.weight",
        "lora_mid.weight",
        "lora_A.weight",
        "lora_B.weight",
        "lora_A.default.weight",
    ),
    *("lora.down.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_magnitude_vector", "lora_B.bias"),
    *("a1.weight", "b2.weight", "oft_blocks", "oft_R.weight", "set_weight", "on_input", "lora_A.bias", "vera_lambda_b"),
    *(
        "lora_embedding_A",
        "sparkle",
        "weight",
        "..",
        "processor.to_q_lora.up.weight",
        *(p for p in endings(KINDS) if "_" in p),
    ),
)


def any_endings(rng: Random, header: Header, data: bytes) -> bytes:
    """Parts of all kinds in one module."""
    tensors = {}
    for module in rng.sample(
        (LINEAR, CONV, NORM, QKV, TEXT, "lycoris_x", "", "unet", "\x1b[31m", "bundle_emb.cat", "a_" * 300), 3
    ):
        for ending in rng.sample((*ENDINGS, "alpha", "diff", "clip_l", "clip_g"), rng.randint(1, 6)):
            shape = tuple(rng.choice((1, 2, 3, 4, 8, 16, 32, 64, 96)) for _ in range(rng.choice((0, 1, 2, 2, 2, 4))))
            shape = shape if math.prod(shape) < 50_000 else (2, 2)
            tensors[f"{module}.{ending}"] = ("F32", shape, rng.randbytes(4 * math.prod(shape)))
    return rebuilt(header, tensors)


def _kinds(rng: Random, outputs: int, inputs: int, window: tuple[int, ...]) -> list[dict[str, tuple[int, ...]]]:
    """The parts of every kind that can be written for a layer, of any rank and factors."""
    r, ones = rng.choice((0, 1, 2, 3, 7, 70)), tuple(1 for _ in window)
    a, b = rng.choice((1, 2, 4, 8, 32)), rng.choice((1, 2, 4, 8, 32))
    c, d = outputs // a, inputs // b
    flat = math.prod(window)
    lefts = [{"lokr_w1": (a, b)}, {"lokr_w1_a": (a, r), "lokr_w1_b": (r, b)}]
    rights = [
        {"lokr_w2": (c, d, *window)},
        {"lokr_w2_a": (c, r), "lokr_w2_b": (r, d * flat)},
        {"lokr_w2_a": (r, c), "lokr_w2_b": (r, d), "lokr_t2": (r, r, *(window or (1, 1)))},
    ]
    hada = {f"hada_w{i}_{h}": shape for i in (1, 2) for h, shape in (("a", (outputs, r)), ("b", (r, inputs * flat)))}
    cored = {f"hada_w{i}_{h}": shape for i in (1, 2) for h, shape in (("a", (r, outputs)), ("b", (r, inputs)))}
    return [
        {"lora_down.weight": (r, inputs, *window), "lora_up.weight": (outputs, r, *ones)},
        {"lora_A.weight": (r, inputs, *window), "lora_B.weight": (outputs, r, *ones), "lora_B.bias": (outputs,)},
        {"lora_down.weight": (r, inputs), "lora_mid.weight": (r, r, *window), "lora_up.weight": (outputs, r)},
        hada,
        {**cored, "hada_t1": (r, r, *window), "hada_t2": (r, r, *window)},
        *({**left, **right} for left in lefts for right in rights),
        {"diff": (outputs, inputs, *window)},
        {"diff_b": (outputs,)},
    ]


def any_kind(rng: Random, header: Header, data: bytes) -> bytes:
    """Modules of any kind, rank and factors, most of them whole."""
    tensors = {}
    for module, kernel in rng.sample(sorted(KERNELS.items()), rng.randint(1, 3)):
        outputs, inputs, window = kernel
        parts = rng.choice(_kinds(rng, outputs, inputs, window))
        ones = tuple(1 for _ in window)
        beside = {
            "alpha": (),
            "diff_b": (outputs,),
            "dora_scale": rng.choice(((outputs, 1, *ones), (1, inputs, *ones))),
        }
        parts |= {name: shape for name, shape in beside.items() if rng.random() < 0.3}
        if rng.random() < 0.2:
            parts.pop(rng.choice(list(parts)))
        if rng.random() < 0.1:
            parts |= rng.choice(_kinds(rng, outputs, inputs, window))
        for ending, shape in parts.items():
            values = (
                np.random.default_rng(rng.randrange(99)).normal(size=shape).astype(rng.choice((np.float16, np.float32)))
            )
            tensors[f"{module}.{ending}"] = (f"F{8 * values.itemsize}", shape, values.tobytes())
    return rebuilt(header, tensors)


ALPHAS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30, 1e30, 1e300, 1e9, 65504.0, 4.0)
ALPHA_TYPES = (
    np.float16,
    np.float32,
    np.float64,
    ml_dtypes.bfloat16,
    np.int8,
    np.int64,
    np.uint64,
    np.bool_,
    np.complex64,
)


def other_values(rng: Random, header: Header, data: bytes) -> bytes:
    """Alphas of all types, and tensors that hold what no float should."""
    names = {np.dtype(np.bool_): "BOOL", np.dtype(np.complex64): "C64", np.dtype(ml_dtypes.bfloat16): "BF16"}
    tensors = tensors_of(header, data)
    for name in rng.sample(list(tensors), rng.choice((1, 1, 2, 5))):
        _, shape, _ = tensors[name]
        if name.endswith(".alpha"):
            shape = rng.choice(((), (), (), (1,), (1, 1), (2,), (0,), (300,)))
        with np.errstate(all="ignore"):
            values = np.full(shape, rng.choice(ALPHAS)).astype(rng.choice(ALPHA_TYPES))
        kind = f"{values.dtype.kind.upper()}{8 * values.itemsize}"
        tensors[name] = (names.get(values.dtype, kind), shape, values.tobytes())
    return rebuilt(header, tensors)


SETTINGS = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "bias",
    "peft_type",
    "sparkle",
)
PATTERNS = ("to_q", "(a+)+$", ".*", "\\", "[", "^$", "a" * 500, "\x1b[2J", "proj_in", "1" * 200)


def odd_metadata(rng: Random, header: Header, data: bytes) -> bytes:
    copy = json.loads(json.dumps(header))
    prefixes = ("", "unet.", "text_encoder.", "transformer.", "x.")
    said: Header = {}
    for _ in range(rng.randint(1, 6)):
        pattern = {rng.choice(PATTERNS): rng.choice((*ODD_VALUES, 4))}
        said[rng.choice(prefixes) + rng.choice(SETTINGS)] = rng.choice(
            (*ODD_VALUES, 4, 2.5, math.nan, 10**400, pattern)
        )
    adapter = json.dumps(said)
    wild = [
        "",
        "null",
        "[" * 5000,
        '{"unet.r": ' + "1" * 6000 + "}",
        adapter[:-1],
        "\0",
        "{}" * 9,
        '{"a": 1e999}',
        "NaN",
    ]
    texts = [adapter, adapter, adapter, adapter, *wild, json.dumps({"1_a": {"b": 2**70, "c": None, "\x1b[2J": 1}})]
    for key in ("lora_adapter_metadata", "ss_tag_frequency", "ss_network_args", "modelspec.title", "sshs_model_hash"):
        if rng.random() < 0.6:
            copy["__metadata__"][key] = rng.choice([*texts, "x" * 100_000, "\x1b]0;title\x07"])
    if rng.random() < 0.2:
        copy["__metadata__"] = rng.choice((*ODD_VALUES, {"a": 1}, {"a": {}}, {"format": None}))
    return packed(copy, data)


MUTATIONS: tuple[Callable[[Random, Header, bytes], bytes], ...] = (
    *(flipped_bytes, flipped_anywhere, cut, other_length, other_offsets, other_dtypes, other_shapes, honest_tensors),
    *(twice, odd_json, exchanged, any_endings, any_kind, other_values, odd_metadata),
)
