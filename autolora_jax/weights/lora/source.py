"""Where a LoRA is: a file, a folder with one, or a repository on the Hugging Face hub."""

from os import PathLike
from pathlib import Path

from autolora_jax.demo import builtin
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.hub import Folder, HubFolder, LocalFolder, is_hub_id, open_hub, split_hub_id

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Names that diffusers and PEFT give, for folders with several files.
_USUAL = ("pytorch_lora_weights.safetensors", PEFT_WEIGHTS)


def find_lora(source: str | PathLike[str]) -> Path:
    """The LoRA file that `source` means; fetched when it is on the hub.

    source: a .safetensors file, a folder that holds one, a hub id "owner/name" or "owner/name/file.safetensors", or
        "builtin:character", "builtin:style".
    Raises WeightsError when there is none, or several to choose from.
    """
    try:
        if inside := builtin(str(source)):
            return inside
    except ValueError as e:
        raise WeightsError(str(e)) from None
    path = Path(source)
    if path.is_dir():
        return _choose(LocalFolder(path))
    if path.exists() or not is_hub_id(str(source)) or str(source).startswith("."):
        return path  # whether it can be read is the reader's question
    repo, file = split_hub_id(str(source))
    if repo.endswith(".safetensors"):
        return path  # "loras/a.safetensors": a missing file
    # A file that is named needs no listing, and is found in the cache without a connection.
    return _choose(HubFolder(repo, "main", frozenset({file}), None) if file else open_hub(repo))


def settings_beside(path: Path) -> list[Path]:
    """The file that says what the tensors of PEFT's file mean, if there is one."""
    beside = path.with_name(PEFT_CONFIG)
    return [beside] if path.name == PEFT_WEIGHTS and beside.is_file() else []


def _choose(folder: Folder) -> Path:
    names = folder.names()
    files = sorted(name for name in names if name.endswith(".safetensors") and ("/" not in name or len(names) == 1))
    usual = [name for name in _USUAL if name in files]
    if not usual and len(files) != 1:
        what = f"several .safetensors files ({shorten(files)})" if files else "no .safetensors file"
        raise WeightsError(f"{folder.where} holds {what}; name the LoRA's file")
    chosen = (usual or files)[0]
    if chosen == PEFT_WEIGHTS and PEFT_CONFIG in names:
        folder.path(PEFT_CONFIG)  # holds its alpha; lands beside it
    return folder.path(chosen)
