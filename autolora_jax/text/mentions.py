"""LoRAs that prompts name, <lora:name:0.8>, as A1111 reads them: found in a folder by their files' names.

Source: AUTOMATIC1111's webui, modules/extra_networks.py parse_prompt; extensions-builtin/Lora extra_networks_lora.py
activate, networks.py list_available_networks. In a negative prompt A1111 reads none.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autolora_jax.config import ConfigError
from autolora_jax.files import is_litter
from autolora_jax.text.syntax import SYNTAXES
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.files import open_tensors

_MENTION = re.compile(r"<(?:lora|lyco):([^>]+)>")
ALIAS = "ss_output_name"  # what a header calls its LoRA
_NO_ALIAS = "None"  # what sd-scripts writes of a run without a name


class Mention(NamedTuple):
    """A LoRA's name in a prompt, and how strong it is."""

    name: str
    scale: float


def mentions(text: str, syntax: str = "a1111") -> tuple[str, tuple[Mention, ...]]:
    """(a prompt without the LoRAs that it names, these); none where its syntax has no names for them.

    Raises ConfigError for what A1111 reads in a name, and this library does not.
    """
    if not SYNTAXES[syntax].names_loras or not (found := [*_MENTION.finditer(text)]):
        return text, ()
    return _MENTION.sub("", text).strip(), tuple(_mention(match[1], match[0], text) for match in found)


def _mention(inside: str, whole: str, text: str) -> Mention:
    name, *rest = inside.split(":")
    plain = [word for word in rest if "=" not in word]
    said = dict(zip(("te", "unet", "dyn"), plain, strict=False)) | dict(w.split("=", 1) for w in rest if "=" in w)
    where = f"the prompt {text!r} holds {whole!r}"
    if len(plain) > 3 or (unknown := said.keys() - {"te", "unet"}):
        raise ConfigError(f"{where}: {', '.join(unknown) if len(plain) <= 3 else plain[-1]} is not read here")
    try:
        scale = float(said.get("te", 1.0))
        of_denoiser = float(said.get("unet", scale))
    except ValueError:
        raise ConfigError(f"{where}: its strength should be a number, as in <lora:{name}:0.8>") from None
    if scale != of_denoiser or not math.isfinite(scale):
        raise ConfigError(
            f"{where}: text encoders at {scale:g} and the denoiser at {of_denoiser:g}; here a LoRA has one strength, a "
            f"finite number: <lora:{name}:{of_denoiser:g}>"
        )
    return Mention(name, scale)


class Named(NamedTuple):
    """Prompts, read. files: of all LoRAs that they name, each once. scales: of each prompt, by file."""

    prompts: list[str]
    files: list[Path]
    scales: list[Mapping[Path, float]]


def read_mentions(prompts: Sequence[str], syntax: str, folder: str | None) -> Named:
    """What prompts are without the LoRAs that they name, and where these are.

    Of a LoRA that a prompt names twice the strengths add up. Raises ConfigError, WeightsError for a name that is no
    file's, or several files'.
    """
    read = [mentions(text, syntax) for text in prompts]
    named = {mention.name: text for text, (_, found) in zip(prompts, read, strict=True) for mention in found}
    files = _find(named, folder) if named else {}
    scales: list[Mapping[Path, float]] = []
    for _, found in read:
        own: dict[Path, float] = {}
        for name, scale in found:
            own[files[name]] = own.get(files[name], 0.0) + scale
        scales.append(own)
    return Named([text for text, _ in read], list(dict.fromkeys(files.values())), scales)


def _find(named: Mapping[str, str], folder: str | None) -> dict[str, Path]:
    """Name -> its file: the one that is called so, else the one whose header says so. named: name -> a prompt of it."""
    name, text = next(iter(named.items()))
    if folder is None:
        raise ConfigError(
            f"the prompt {text!r} names the LoRA {name!r}: say which folder it is in, lora_dir='loras' (--lora-dir "
            "loras); or load it by load_lora (--lora FILE:SCALE) and leave this out"
        )
    there = sorted(path for path in Path(folder).rglob("*.safetensors") if not is_litter(path.name))
    if not there:
        raise ConfigError(f"lora_dir = {folder!r} holds no .safetensors file, but the prompt {text!r} names {name!r}")
    stems = {path.stem for path in there}
    aliases = {path: _alias(path) for path in there} if named.keys() - stems else {}
    found = {}
    for name, text in named.items():
        fitting = [path for path in there if path.stem == name] or [p for p, alias in aliases.items() if alias == name]
        if len(fitting) != 1:
            what = (
                f"there are {shorten(list(map(str, fitting)))}: rename one"
                if fitting
                else f"there are {shorten([*stems])}"
            )
            raise ConfigError(f"the prompt {text!r} names the LoRA {name!r}, which is no one file of {folder}; {what}")
        found[name] = fitting[0]
    return found


def _alias(path: Path) -> str | None:
    try:
        with open_tensors(path) as file:
            name = file.metadata.get(ALIAS)
    except WeightsError:
        return None
    return None if name == _NO_ALIAS else name
