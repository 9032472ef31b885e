"""The diffusers layout: model_index.json, and a folder with config.json and weights for every component."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolora_jax.config import CLIPTextConfig, JsonConfig, SchedulerConfig, UNetConfig, VAEConfig, read_json
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.files import TensorFiles, open_tensors, shard_names
from autolora_jax.weights.folders import Folder
from autolora_jax.weights.networks import Networks
from autolora_jax.weights.streaming import TensorWeights
from autolora_jax.weights.tables import stages_for

INDEX = "model_index.json"
CLASSES: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
_STEMS = {"text_encoder": "model", "text_encoder_2": "model"}  # the others: diffusion_pytorch_model


def read_index(folder: Folder) -> dict[str, Any]:
    """The parsed model_index.json of an SDXL pipeline. Raises WeightsError when it is another pipeline or not whole."""
    names = folder.names()
    if INDEX not in names:
        files = sorted(name for name in names if name.endswith(".safetensors"))
        hint = f"give one of its files ({shorten(files)}), or" if files else "give"
        raise WeightsError(
            f"{folder.where} has no {INDEX}; {hint} a folder that holds {INDEX}, unet/, vae/, text_encoder/, …"
        )
    index = read_json(folder.path(INDEX))
    pipeline = index.get("_class_name")
    if not str(pipeline).startswith("StableDiffusionXL"):
        raise WeightsError(f"{folder.where} holds a {pipeline}; only SDXL (StableDiffusionXLPipeline) can be loaded")
    if missing := [c for c in (*CLASSES, "scheduler") if not _class_of(index, c)]:
        refiner = " (the SDXL refiner can't draw on its own; give SDXL base)" if "text_encoder" in missing else ""
        raise WeightsError(f"{folder.where}: {INDEX} has no {', '.join(missing)}{refiner}")
    wrong = [f"{c} is a {_class_of(index, c)}" for c, known in CLASSES.items() if _class_of(index, c) not in known]
    if wrong:
        raise WeightsError(f"{folder.where}: {'; '.join(wrong)}; supported are {_spelled_classes()}")
    folders = {name.split("/")[0] for name in names if "/" in name}
    if missing := [c for c in (*CLASSES, "scheduler") if c not in folders]:
        raise WeightsError(f"{folder.where} lacks the folders {', '.join(missing)}, which {INDEX} names; download them")
    return index


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    """The class that model_index.json gives for a component: it has the form {"unet": ["diffusers", "UNet…"]}."""
    entry = index.get(component)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def _spelled_classes() -> str:
    return ", ".join(f"{c}: {known[0]}" for c, known in CLASSES.items())


def read_networks(folder: Folder) -> Networks:
    """The four networks' configs. Raises ConfigError or WeightsError naming the file."""

    def text(component: str) -> CLIPTextConfig:
        path = _required(folder, f"{component}/config.json")
        # Some files are silent about their architecture; model_index.json has been checked.
        return CLIPTextConfig.from_dict({**read_json(path), "architectures": [CLASSES[component][0]]}, str(path))

    return Networks(
        text_encoder=text("text_encoder"),
        text_encoder_2=text("text_encoder_2"),
        unet=UNetConfig.from_file(_required(folder, "unet/config.json")),
        vae=VAEConfig.from_file(_required(folder, "vae/config.json")),
    )


def read_scheduler(folder: Folder) -> SchedulerConfig:
    return SchedulerConfig.from_file(_required(folder, "scheduler/scheduler_config.json"))


def _required(folder: Folder, name: str) -> Path:
    if name not in folder.names():
        raise WeightsError(f"{folder.where} has no {name}; download it")
    return folder.path(name)


def component_weights(folder: Folder, component: str, config: JsonConfig, variant: str | None) -> TensorWeights:
    """Where a component's tensors are. Nothing is fetched before they are opened."""
    name = weights_file(folder, component, variant)
    return TensorWeights(lambda: _open(folder, name), "", stages_for(config))


def weights_file(folder: Folder, component: str, variant: str | None) -> str:
    """The component's safetensors file or index: of the variant, if one is asked for; else plain; else fp16."""
    stem = f"{component}/{_STEMS.get(component, 'diffusion_pytorch_model')}"
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
    there = sorted(n.split("/")[1] for n in names if n.startswith(f"{component}/") and not n.endswith("config.json"))
    asked = f" of variant {variant!r}" if variant else ""
    advice = "give another variant, or none" if variant else "get the safetensors version"
    if not variant and any(name.endswith((".bin", ".pt", ".ckpt", ".msgpack")) for name in there):
        advice = "pickles and old Flax files are never opened; get the safetensors version"
    holds = shorten(there) if there else "no weights"
    raise WeightsError(f"{folder.where}: {component}/ has no safetensors weights{asked}, only {holds}; {advice}")


def _open(folder: Folder, name: str) -> TensorFiles:
    path = folder.path(name)
    if name.endswith(".json"):
        component = name.split("/")[0]
        names = folder.names()
        for shard in sorted(set(shard_names(path).values())):
            if f"{component}/{shard}" in names:  # open_tensors names those that are not there
                folder.path(f"{component}/{shard}")
    return open_tensors(path)


def tokenizer_folder(folder: Folder, name: str) -> Path:
    """The folder "tokenizer" or "tokenizer_2" on this machine, with what transformers' CLIPTokenizer reads."""
    there = folder.names()
    wanted = [f"{name}/{file}" for file in TOKENIZER_FILES if f"{name}/{file}" in there]
    if not {f"{name}/vocab.json", f"{name}/merges.txt"} <= set(wanted) and f"{name}/tokenizer.json" not in wanted:
        raise WeightsError(f"{folder.where} has no {name}/vocab.json with {name}/merges.txt; download them")
    paths = [folder.path(file) for file in wanted]
    return paths[0].parent


def make_index(force_zeros_for_empty_prompt: bool, scheduler: SchedulerConfig) -> dict[str, Any]:
    """The model_index.json of an SDXL pipeline."""
    libraries = {c: "transformers" if known[0].startswith("CLIP") else "diffusers" for c, known in CLASSES.items()}
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": force_zeros_for_empty_prompt,
        "scheduler": ["diffusers", scheduler.to_dict()["_class_name"]],
        **{c: [libraries[c], known[0]] for c, known in CLASSES.items()},
    }
