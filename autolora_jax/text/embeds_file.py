"""Files of embeddings (.safetensors): a tensor for each name that a call has for what is told in place of texts.

Where the models that a guidance compares read a prompt differently, a name ends in the kind of weights that is told it:
prompt_embeds.base, prompt_embeds.lora.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from autolora_jax import foreign
from autolora_jax.config import ConfigError
from autolora_jax.text.embeds import Embeds, pairs_of
from autolora_jax.weights.files import FLOATS
from autolora_jax.weights.writing import write_safetensors

Arguments = dict[str, Any]  # of a call: name -> array, or kind of weights -> array
Form = tuple[tuple[str, tuple[int, ...]], ...]  # see form


def write_embeds(path: str | os.PathLike[str], told: Embeds | Mapping[str, Embeds]) -> None:
    """Writes what encode_prompt gave to a .safetensors file, for --embeds, for jobs and for read_embeds.

    told: for all that a guidance asks, or one each: {"base": …, "lora": …}. Raises OSError.
    """
    by_kind = {f".{kind}": one for kind, one in told.items()} if isinstance(told, Mapping) else {"": told}
    arrays = {f"{name}{end}": array for end, one in by_kind.items() for name, array in one._asdict().items()}
    write_safetensors(Path(path), {name: np.ascontiguousarray(array) for name, array in arrays.items()})


def read_embeds(path: str | os.PathLike[str]) -> Arguments:
    """What a file of embeddings holds, as a call takes it: `pipe(**read_embeds("told.safetensors"))`.

    Arrays are float32: [prompts, tokens, width], pooled ones [prompts, width]. Raises ConfigError for a file that
    holds none, or anything else; OSError when it can't be read.
    """
    return parse_embeds(foreign.read_file(path), str(path))


def parse_embeds(content: bytes, source: str) -> Arguments:
    """The same of a file's content. source: it, for messages."""
    try:
        tensors = dict(deserialize(content))
    except SafetensorError as e:
        raise ConfigError(f"{source} can't be read as a .safetensors file of embeddings: {e}") from None
    given: Arguments = {}
    for name, tensor in tensors.items():
        argument, _, kind = name.partition(".")
        if argument not in Embeds._fields:
            raise ConfigError(
                f"{source} holds {name[:80]!r}; expected {', '.join(Embeds._fields)}, and nothing else: "
                "autolora_jax.write_embeds writes such a file"
            )
        if kind and argument in tensors:
            raise ConfigError(f"{source} holds {argument} for all weights, and {name[:80]} for one kind; leave one out")
        if tensor["dtype"] not in FLOATS:
            raise ConfigError(f"{source}: {name[:80]} is of {tensor['dtype']}; expected one of {', '.join(FLOATS)}")
        array = np.frombuffer(tensor["data"], FLOATS[tensor["dtype"]]).reshape(tensor["shape"]).astype(np.float32)
        if kind:
            given.setdefault(argument, {})[kind] = array
        else:
            given[argument] = array
    try:
        positive, negative = pairs_of(given)
        if positive is None:
            raise ValueError("it has no prompt_embeds and no pooled_prompt_embeds")
        if negative is not None and negative.prompts not in (1, positive.prompts):
            raise ValueError(f"negative_prompt_embeds is of {negative.prompts} prompts for {positive.prompts}")
    except ValueError as e:
        raise ConfigError(f"{source}: {e}") from None
    return given


def one_of(given: Mapping[str, Any], i: int) -> Arguments:
    """Of a file's, or of a call's arguments: those of prompt i."""
    return _each(lambda _, array: array[i % len(array)][None], given)


def as_kind(known: str, asked: str, given: Mapping[str, Any]) -> Arguments:
    """Of a call's arguments those that each kind of weights has of its own: what one is told, told to another."""
    by_kind = {name: value for name, value in given.items() if name in Embeds._fields and isinstance(value, Mapping)}
    return {name: {asked: value[known]} for name, value in by_kind.items() if known in value}


def joined(parts: Sequence[Arguments]) -> Arguments:
    """Of several files: their prompts one after another; nothing of nothing.

    Raises ConfigError where they don't fit together.
    """
    if not any(parts):
        return {}
    if len({form(part) for part in parts}) > 1:
        told = " and ".join(dict.fromkeys(", ".join(f"{name} {list(shape)}" for name, shape in form(p)) for p in parts))
        raise ConfigError(f"embeddings that are drawn together hold the same arrays of the same sizes; these: {told}")
    each = [one_of(part, i) for part in parts for i in range(prompts_of(part))]
    return _each(lambda at, _: np.concatenate([_at(one, at) for one in each]), each[0])


def form(given: Mapping[str, Any]) -> Form:
    """Names of a call's arguments, and the shape of each for a prompt: what those share that are told at once."""
    shapes: dict[str, tuple[int, ...]] = {}
    _each(lambda at, array: shapes.setdefault(".".join(at), array.shape[1:]), given)
    return tuple(sorted(shapes.items()))


def digests(given: Mapping[str, Any]) -> dict[str, str]:
    """Argument -> the digest by which pictures tell it, of arguments of one prompt."""
    return {pair.name: pair.digest(0) for pair in pairs_of(given) if pair}


def prompts_of(given: Mapping[str, Any]) -> int:
    """How many a file's, or a call's arguments are of."""
    positive, _ = pairs_of(given)
    assert positive is not None
    return positive.prompts


def _each(change: Callable[[tuple[str, ...], np.ndarray], Any], given: Mapping[str, Any]) -> Arguments:
    """Arguments with something else in place of every array. change: (name and, if any, kind; array) -> it."""
    return {
        name: {kind: change((name, kind), array) for kind, array in value.items()}
        if isinstance(value, Mapping)
        else change((name,), value)
        for name, value in given.items()
    }


def _at(given: Mapping[str, Any], at: tuple[str, ...]) -> np.ndarray:
    value: Any = given
    for name in at:
        value = value[name]
    return value
