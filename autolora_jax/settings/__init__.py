"""What can be asked for, as frozen dataclasses whose fields say all that is known of a setting. No JAX in here.

fields     a setting: type, default, help, flag, bounds, column        values     types, and how each is spelled
rules      guidance                                                    pictures   drawing, with which files, a run
call       what a pipeline is called with                              training   a LoRA's training
jobs       many pictures                                               distilling a guidance made a LoRA
changes    presets, config.json, --set                                 arguments  a call's arguments
programs/  the command lines
"""

from autolora_jax.settings.call import Call
from autolora_jax.settings.changes import load_preset, override
from autolora_jax.settings.jobs import Job, OutputConfig, Prompt, Settings
from autolora_jax.settings.model import ModelConfig
from autolora_jax.settings.pictures import DrawingConfig, GenerateConfig, PictureConfig
from autolora_jax.settings.rules import CFG, RULES, AutoGuidance, AutoLoRA, NoGuidance, PersonalizationGuidance, Rule
from autolora_jax.settings.training import DataConfig, LoraConfig, LossConfig, OptimizerConfig, TrainConfig, TrainingRun
from autolora_jax.settings.values import Lora, Loras, Seeds, Size, Texts

__all__ = [
    "CFG",
    "RULES",
    "AutoGuidance",
    "AutoLoRA",
    "Call",
    "DataConfig",
    "DrawingConfig",
    "GenerateConfig",
    "Job",
    "Lora",
    "LoraConfig",
    "Loras",
    "LossConfig",
    "ModelConfig",
    "NoGuidance",
    "OptimizerConfig",
    "OutputConfig",
    "PersonalizationGuidance",
    "PictureConfig",
    "Prompt",
    "Rule",
    "Seeds",
    "Settings",
    "Size",
    "Texts",
    "TrainConfig",
    "TrainingRun",
    "load_preset",
    "override",
]
