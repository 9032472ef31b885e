"""Reading a LoRA file without its base model: names and shapes of a published one serve."""

from os import PathLike

from autolora_jax.demo import MODEL
from autolora_jax.models.networks import Networks
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.families import family_of
from autolora_jax.weights.files import open_tensors
from autolora_jax.weights.lora.describe import describe_lora
from autolora_jax.weights.lora.files import LoraFile, read_lora, targets_of
from autolora_jax.weights.lora.source import find_lora
from autolora_jax.weights.published import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM, SDXL_BASE

PUBLISHED = (SDXL_BASE, SD3_MEDIUM, SD35_MEDIUM, SD35_LARGE)


def read_alone(source: str | PathLike[str], model: str | None = None) -> tuple[Networks, LoraFile]:
    """(the base model's configs, the LoRA). No weights of the base model are read.

    source: as for read_lora. model: the base model, as for open_checkpoint; None: the built-in one where the header
        names it, else the first published one of the file's family that it fits.
    Raises WeightsError like read_lora.
    """
    path = find_lora(source)
    if model is None:
        with open_tensors(path) as file:
            model = MODEL if file.metadata.get("ss_sd_model_name") == MODEL else None
    if model is not None:
        networks = open_checkpoint(model).networks
        return networks, read_lora(path, targets_of(networks))
    family = describe_lora(path).family
    candidates = [networks for networks in PUBLISHED if family.startswith(family_of(networks).name)] or [SDXL_BASE]
    problems = []
    for networks in candidates:
        try:
            return networks, read_lora(path, targets_of(networks))
        except WeightsError as e:
            problems.append(e)
    raise problems[0]
