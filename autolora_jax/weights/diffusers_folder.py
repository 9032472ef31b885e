"""The diffusers layout: model_index.json, and a folder with config.json and weights for every component."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolora_jax.config import CLIPTextConfig, JsonConfig, SchedulerConfig, read_json
from autolora_jax.models.networks import Networks
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.families import FAMILIES, Family
from autolora_jax.weights.files import TensorFiles, open_tensors, shard_names
from autolora_jax.weights.hub import Folder
from autolora_jax.weights.streaming import TensorWeights
from autolora_jax.weights.tables import stages_for
from autolora_jax.weights.tokenizer_files import check_tokenizer

INDEX = "model_index.json"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)


def read_index(folder: Folder) -> tuple[Family, dict[str, Any]]:
    """(family, parsed model_index.json) of a pipeline. Raises WeightsError when it is another one or not whole."""
    names = folder.names()
    if INDEX not in names:
        files = sorted(name for name in names if name.endswith(".safetensors"))
        hint = f"give one of its files ({shorten(files)}), or" if files else "give"
        raise WeightsError(
            f"{folder.where} has no {INDEX}; {hint} a folder that holds {INDEX}, unet/ or transformer/, vae/, "
            "text_encoder/, …"
        )
    index = read_json(folder.path(INDEX))
    pipeline = index.get("_class_name")
    family = next((f for f in FAMILIES if str(pipeline).startswith(f.pipeline.removesuffix("Pipeline"))), None)
    if family is None:
        known = " and ".join(f"{f.name} ({f.pipeline})" for f in FAMILIES)
        raise WeightsError(f"{folder.where} holds a {pipeline}; only {known} can be loaded")
    needed = (*family.parts, *family.tokenizers, "scheduler")
    if missing := [c for c in needed if not _class_of(index, c) and c not in family.optional]:
        refiner = " (the SDXL refiner can't draw on its own; give SDXL base)" if "text_encoder" in missing else ""
        raise WeightsError(f"{folder.where}: {INDEX} has no {', '.join(missing)}{refiner}")
    known_classes = _classes(family)
    wrong = [
        f"{c} is a {_class_of(index, c)}"
        for c, known in known_classes.items()
        if _class_of(index, c) not in (*known, None)
    ]
    if wrong:
        supported = ", ".join(f"{c}: {known[0]}" for c, known in known_classes.items())
        raise WeightsError(f"{folder.where}: {'; '.join(wrong)}; supported are {supported}")
    folders = {name.split("/")[0] for name in names if "/" in name}
    if missing := [c for c in needed if _class_of(index, c) and c not in folders]:
        raise WeightsError(f"{folder.where} lacks the folders {', '.join(missing)}, which {INDEX} names; download them")
    return family, index


def _classes(family: Family) -> dict[str, tuple[str, ...]]:
    parts = {name: part.classes for name, part in family.parts.items()}
    return parts | {name: tokenizer.classes for name, tokenizer in family.tokenizers.items()}


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    """The class that model_index.json gives for a component: it has the form {"unet": ["diffusers", "UNet…"]}."""
    entry = index.get(component)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def read_networks(folder: Folder, family: Family) -> Networks:
    """The configs of the networks that model_index.json names. Raises ConfigError or WeightsError naming the file."""
    index = read_json(folder.path(INDEX))
    return {name: read_config(folder, family, name) for name in family.parts if _class_of(index, name)}


def read_config(folder: Folder, family: Family, component: str, where: str | None = None) -> JsonConfig:
    """The config of one network. Raises ConfigError or WeightsError naming the file.

    where: the folder in which it is, if that is not called like it; "": this one.
    """
    name = f"{component if where is None else where}/config.json".lstrip("/")
    part, path = family.parts[component], _required(folder, name)
    raw = read_json(path)
    if part.config is CLIPTextConfig:  # some files are silent about their architecture; model_index.json is checked
        raw = {**raw, "architectures": [part.classes[0]]}
    return part.config.from_dict(raw, str(path))


def read_scheduler(folder: Folder) -> SchedulerConfig:
    return SchedulerConfig.from_file(_required(folder, "scheduler/scheduler_config.json"))


def _required(folder: Folder, name: str) -> Path:
    if name not in folder.names():
        raise WeightsError(f"{folder.where} has no {name}; download it")
    return folder.path(name)


def component_weights(
    folder: Folder, family: Family, component: str, config: JsonConfig, variant: str | None
) -> TensorWeights:
    """Where a component's tensors are. Nothing is fetched before they are opened."""
    name = weights_file(folder, component, family.parts[component].stem, variant)
    return TensorWeights(lambda: open_weights(folder, name), "", stages_for(config))


def weights_file(folder: Folder, component: str, stem: str, variant: str | None) -> str:
    """The component's safetensors file or index: of the variant, if one is asked for; else plain; else fp16.

    component: its folder; "" for a folder of one network.
    """
    stem = f"{component}/{stem}" if component else stem
    names = folder.names()
    for choice in (variant,) if variant else (None, "fp16"):
        dot = f".{choice}" if choice else ""
        candidates = (
            f"{stem}{dot}.safetensors",
            f"{stem}.safetensors.index{dot}.json",
            f"{stem}{dot}.safetensors.index.json",
        )
        for candidate in candidates:
            if candidate in names:
                return candidate
    parts = (name.rpartition("/") for name in names if not name.endswith("config.json"))
    there = sorted(name for inside, _, name in parts if inside == component)
    asked = f" of variant {variant!r}" if variant else ""
    advice = "give another variant, or none" if variant else "get the safetensors version"
    if not variant and any(name.endswith((".bin", ".pt", ".ckpt", ".msgpack")) for name in there):
        advice = "pickles and old Flax files are never opened; get the safetensors version"
    holds = shorten(there) if there else "no weights"
    where = f"{folder.where}: {component}/" if component else folder.where
    raise WeightsError(f"{where} has no safetensors weights{asked}, only {holds}; {advice}")


def open_weights(folder: Folder, name: str) -> TensorFiles:
    """The tensors of a file that weights_file found, fetched if need be."""
    path = folder.path(name)
    if name.endswith(".json"):
        beside = "".join(name.rpartition("/")[:2])
        names = folder.names()
        for shard in sorted(set(shard_names(path).values())):
            if f"{beside}{shard}" in names:  # open_tensors names those that are not there
                folder.path(f"{beside}{shard}")
    return open_tensors(path)


def tokenizer_folder(folder: Folder, family: Family, name: str) -> Path:
    """The folder of a tokenizer on this machine, with what transformers reads. Raises WeightsError."""
    there = folder.names()
    wanted = [file for file in TOKENIZER_FILES if f"{name}/{file}" in there]
    needs = family.tokenizers[name].needs
    if not any(files <= set(wanted) for files in needs):
        options = " or ".join(" with ".join(f"{name}/{file}" for file in sorted(files)) for files in needs)
        raise WeightsError(f"{folder.where} has no {options}; download it")
    paths = [folder.path(f"{name}/{file}") for file in wanted]
    check_tokenizer(paths)
    return paths[0].parent


def make_index(
    family: Family, networks: Networks, force_zeros_for_empty_prompt: bool, scheduler: SchedulerConfig
) -> dict[str, Any]:
    """The model_index.json of a pipeline of these networks."""
    entries = {}
    for name, classes in _classes(family).items():
        absent = name.replace("tokenizer", "text_encoder") in family.parts.keys() - networks.keys()
        library = "diffusers" if family.parts.get(name) and "text" not in name else "transformers"
        entries[name] = [None, None] if absent else [library, classes[0]]
    zeros = {"force_zeros_for_empty_prompt": force_zeros_for_empty_prompt} if family.zeros_for_no_prompt else {}
    return {
        "_class_name": family.pipeline,
        **zeros,
        "scheduler": ["diffusers", scheduler.to_dict()["_class_name"]],
        **entries,
    }
