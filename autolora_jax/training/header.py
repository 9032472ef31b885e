"""What a trained LoRA's header says of its training, under the keys that other programs read.

Sources: sd-scripts train_network.py (ss_*), Stability-AI/ModelSpec 1.0 (modelspec.*). No date: the same run gives the
same file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax.config import MMDiTConfig, SchedulerConfig
from autolora_jax.settings.training import OptimizerConfig, TrainConfig
from autolora_jax.training.dataset import Example
from autolora_jax.training.objective import Objective
from autolora_jax.weights import families
from autolora_jax.weights.files import sha256_of
from autolora_jax.weights.writing import LEGACY

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # a flow model has no entry


class Names(NamedTuple):
    """What a family of models is called in headers."""

    architecture: str  # modelspec's
    base_model: str  # sd-scripts'
    module: str  # sd-scripts' network module


def base_hashes(source: str) -> dict[str, str]:
    """sd-scripts' entries that say which file the base model was; {} where it is none. It is read once, whole."""
    path = Path(source)
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(LEGACY.start)
        older = hashlib.sha256(file.read(LEGACY.stop - LEGACY.start)).hexdigest()[:8]
    return {"ss_sd_model_hash": older, "ss_new_sd_model_hash": sha256_of(path)}


FAMILIES = {
    families.SDXL.name: Names("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "networks.lora"),
    families.SD3.name: Names("stable-diffusion-3", "sd3", "networks.lora_sd3"),
}


def names_of(family: str, denoiser: Any) -> Names:
    """What a model is called. denoiser: its config, which tells SD3 from SD3.5 Medium and Large."""
    names = FAMILIES[family]
    if isinstance(denoiser, MMDiTConfig):
        kind = "medium" if denoiser.qk_norm is None else "5-medium" if denoiser.dual_attention_layers else "5-large"
        return names._replace(architecture=f"{names.architecture}-{kind}")
    return names


def training_header(
    model: str,
    names: Names,
    objective: Objective,
    examples: Sequence[Example],
    config: TrainConfig,
    rows: int,
    title: str,
) -> dict[str, str]:
    """Header entries of a LoRA of the named base model. names: of its kind. rows: pictures a step, of all devices."""
    tags = Counter(tag.strip() for example in examples for tag in example.caption.split(",") if tag.strip())
    captions = {example.caption for example in examples}
    values = {
        **learned_header(model, names, objective.scheduler, config.optimizer, title, config.steps, config.seed),
        "ss_network_dim": config.lora.rank,
        "ss_network_alpha": config.lora.alpha or config.lora.rank,
        "ss_num_train_images": sum(example.repeats for example in examples),
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": rows,
        "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_min_snr_gamma": None if objective.scheduler.flow else config.loss.min_snr_gamma,
        "ss_noise_offset": config.loss.noise_offset or None,
        "ss_caption_dropout_rate": config.loss.caption_dropout,
        "ss_tag_frequency": json.dumps({"training": dict(tags)}),
    }
    if len(captions) == 1 and any(captions):  # then it is what calls the LoRA's subject
        values["modelspec.trigger_phrase"] = captions.pop()
    return as_texts(values)


def learned_header(
    model: str,
    names: Names,
    scheduler: SchedulerConfig,
    optimizer: OptimizerConfig,
    title: str,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Entries of whatever is learned, from pictures or from a teacher; None where there is none."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{names.architecture}/lora",
        "modelspec.title": title,
        "modelspec.prediction_type": PREDICTIONS.get(scheduler.prediction_type),
        "ss_sd_model_name": model,
        "ss_base_model_version": names.base_model,
        "ss_network_module": names.module,
        "ss_steps": steps,
        "ss_learning_rate": optimizer.learning_rate,
        "ss_lr_scheduler": optimizer.schedule,
        "ss_lr_warmup_steps": optimizer.warmup_steps,
        "ss_optimizer": "adamw",
        "ss_seed": seed,
    }


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """As a header has them, which holds texts alone; without those that are None."""
    return {name: str(value) for name, value in values.items() if value is not None}
