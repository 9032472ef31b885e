"""What a LoRA file's header says, and all that can be known against the file without reading its data."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from autolora_jax.config import JsonConfig
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import FLOATS, TensorFiles
from autolora_jax.weights.lora.embeddings import Keys, embedding_problems, split_embeddings
from autolora_jax.weights.lora.match import DAMAGED, NOT_APPLIED, Match, examine_modules, match_layers
from autolora_jax.weights.lora.names import SPELLINGS, Name, Targets, names
from autolora_jax.weights.lora.peft import PeftSettings, peft_settings


class Examined(NamedTuple):
    """What a file holds."""

    match: Match  # with all that is known against the file
    settings: Mapping[str, PeftSettings]  # component -> what PEFT says beside the tensors
    embeddings: Keys  # bundled with it
    names: Mapping[str, Name]  # of the model's layers; empty without a model


def examine(path: Path, file: TensorFiles, targets: Targets | None = None) -> Examined:
    """What a file holds, and whether it fits a model, if one is given."""
    settings, unusable = {}, ""
    try:
        settings = peft_settings(path, file.metadata, list(targets or SPELLINGS))
    except WeightsError as e:
        unusable = str(e)
    known = names(targets) if targets else {}
    all_shapes = {key: info.shape for key, info in file.tensors.items()}
    words, shapes = split_embeddings(all_shapes)
    match = match_layers(shapes, known, settings) if targets else examine_modules(shapes)
    if not all_shapes:
        match.problems.add("no tensors", DAMAGED)
    if problems := embedding_problems(words, all_shapes, configs_of(targets) if targets else None):
        remedy = "delete their bundle_emb keys to do without them"
        match.problems.add("textual-inversion embeddings that can't be used", remedy, *problems)
    if unusable:
        match.problems.add(unusable, NOT_APPLIED)
    for key, info in file.tensors.items():
        if info.dtype not in FLOATS and not key.endswith(".alpha"):
            remedy = f"get a version in {', '.join(FLOATS)}"
            match.problems.add("tensors that are no floats", remedy, f"{key} ({info.dtype})")
    return Examined(match, settings, words, known)


def configs_of(targets: Targets) -> dict[str, JsonConfig]:
    """component -> its config."""
    return {name: config for name, (_, config) in targets.items()}
