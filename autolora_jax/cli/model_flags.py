"""Flags of the programs that load a model and run it."""

from typing import Annotated

from autolora_jax.cli.flags import option

MODEL = "Model"  # their panel in --help

Variant = Annotated[
    str | None, option("--variant", panel=MODEL, help="'fp16' takes a folder's *.fp16.safetensors files.")
]
Tokenizer = Annotated[
    str | None,
    option(
        "--tokenizer",
        panel=MODEL,
        help="Folder or hub id with tokenizer/, tokenizer_2/, …. A single file has none; offline it needs this.",
    ),
]
TextEncodersFrom = Annotated[
    str | None,
    option(
        "--text-encoders-from",
        panel=MODEL,
        metavar="PLACE",
        help="Folder, file or hub id with the text encoders that a single file of SD3 leaves out: CLIP, T5.",
    ),
]
T5 = Annotated[
    str | None,
    option(
        "--t5",
        panel=MODEL,
        default="device",
        metavar="PLACE",
        help="Where SD3's largest text encoder is: device, host (of a chip it would not fit on), or none.",
    ),
]
Dtype = Annotated[
    str | None,
    option("--dtype", panel=MODEL, default="bfloat16", help="bfloat16, or float32: exact, slow, twice the memory."),
]
WeightShards = Annotated[
    int | None,
    option(
        "--weight-shards",
        panel=MODEL,
        default="1",
        metavar="DEVICES",
        help="How many devices hold one copy of the weights together: for a model too large for one.",
    ),
]
CompilationCache = Annotated[
    str | None,
    option(
        "--compilation-cache",
        panel=MODEL,
        metavar="PLACE",
        help="Where compiled programs are kept, so that the next run need not compile them: a folder, a bucket's URL, "
        "or 'off'; else autolora-jax/programs in your cache folder. AUTOLORA_COMPILATION_CACHE says it for all runs.",
    ),
]
