"""What a model is: frozen, hashable dataclasses read from the JSON files beside a checkpoint. Standard library only.

Field names and defaults are those of the published SDXL base 1.0 files, so `UNetConfig()` *is* SDXL. A JSON key that
asks for something these networks do not do is an error, never a shrug: it would give wrong pictures silently.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

C = TypeVar("C", bound="JsonConfig")  # not Self: runtime type checkers decorate methods one by one


class ConfigError(ValueError):
    """A config file asks for something unknown, unsupported or impossible."""


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value (lists as tuples) has the annotated type."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, h) for h in hint.__args__)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, hint.__args__[0]) for v in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


@dataclasses.dataclass(frozen=True)
class JsonConfig:
    """Base of all configs: reads a JSON object strictly."""

    # Keys that only this value (or its absence) may have: the networks are built for it.
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    # Keys that do not change a prediction (training, bookkeeping, hints to other programs).
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        """Config from a parsed JSON object. Raises ConfigError naming every key that can't be honoured."""
        hints = typing.get_type_hints(cls)
        fields = {f.name for f in dataclasses.fields(cls)}
        problems, known = [], {}
        for key, value in raw.items():
            if key in fields:
                known[key] = _hashable(value)
                if not _fits(known[key], hints[key]):
                    problems.append(f"{key} = {value!r} should be {_spelled(hints[key])}")
            elif key in cls.FIXED:
                if _hashable(value) not in cls.FIXED[key]:
                    options = " or ".join(map(repr, cls.FIXED[key]))
                    problems.append(f"{key} = {value!r} is not supported (only {options})")
            elif not (key.startswith("_") or key in cls.IRRELEVANT or value is None or value is False):
                problems.append(f"{key} = {value!r} is not known here and might change the result")
        if problems:
            raise ConfigError(f"{where}: " + "; ".join(problems))
        try:
            return cls(**known)
        except ConfigError as e:
            raise ConfigError(f"{where}: {e}") from None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that from_dict reads as this config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_file(cls: type[C], path: Path) -> C:
        """Config from a JSON file. Raises ConfigError naming the file when it can't be read or honoured."""
        return cls.from_dict(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError naming the file when it is missing, broken or no object."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{path} is not valid JSON ({e}); download it again") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} should hold a JSON object, not a {type(raw).__name__}")
    return raw


@dataclasses.dataclass(frozen=True)
class UNetConfig(JsonConfig):
    """SDXL's denoiser (diffusers' UNet2DConditionModel with text_time conditioning)."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    layers_per_block: int = 2
    transformer_layers_per_block: int | tuple[int, ...] = (1, 2, 10)
    attention_head_dim: int | tuple[int, ...] = (5, 10, 20)  # the *number of heads*, diffusers' historical misnomer
    num_attention_heads: int | tuple[int, ...] | None = None
    cross_attention_dim: int = 2048
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 2816
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = True
    sample_size: int = 128

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "addition_embed_type": ("text_time",),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "downsample_padding": (1,),
        "flip_sin_to_cos": (True,),
        "freq_shift": (0,),
        "mid_block_scale_factor": (1, 1.0),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "resnet_out_scale_factor": (1, 1.0),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_type": ("positional",),
        "attention_type": ("default",),
        "reverse_transformer_layers_per_block": (None,),
    }
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset({"addition_embed_type_num_heads", "dropout"})

    def __post_init__(self) -> None:
        n = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            types = getattr(self, name)
            if len(types) != n:
                raise ConfigError(f"{name} has {len(types)} entries, block_out_channels {n}; they must agree")
            side = "Down" if name.startswith("down") else "Up"
            allowed = {f"{side}Block2D", f"CrossAttn{side}Block2D"}
            if unknown := sorted(set(types) - allowed):
                raise ConfigError(f"{name} has {unknown}; supported are {sorted(allowed)}")
        for name in ("transformer_layers_per_block", "heads"):
            if len(getattr(self, name) if name == "heads" else self.depths) != n:
                raise ConfigError(f"{name} must have one entry per block ({n})")
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % self.norm_num_groups or channels % heads:
                raise ConfigError(
                    f"{channels} channels are not divisible by {self.norm_num_groups} groups and {heads} heads"
                )

    def to_dict(self) -> dict[str, Any]:
        return {"_class_name": "UNet2DConditionModel", **super().to_dict(), "addition_embed_type": "text_time"}

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks per attention layer, per level."""
        d = self.transformer_layers_per_block
        return (d,) * len(self.block_out_channels) if isinstance(d, int) else d

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads, per level. Source: diffusers unet_2d_condition.py, which prefers num_attention_heads."""
        h = self.num_attention_heads or self.attention_head_dim
        return (h,) * len(self.block_out_channels) if isinstance(h, int) else h


@dataclasses.dataclass(frozen=True)
class VAEConfig(JsonConfig):
    """diffusers' AutoencoderKL."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.13025
    shift_factor: float | None = None
    sample_size: int = 1024
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"act_fn": ("silu", "swish")}
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset({"down_block_types", "up_block_types"})

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        for key, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if unknown := sorted(set(raw.get(key, ())) - {only}):
                raise ConfigError(f"{where}: {key} has {unknown}; supported is only {only}")
        return super().from_dict(raw, where)

    def to_dict(self) -> dict[str, Any]:
        levels = len(self.block_out_channels)
        sides = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        return {"_class_name": "AutoencoderKL", **super().to_dict(), **sides}

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(JsonConfig):
    """transformers' CLIPTextModel / CLIPTextModelWithProjection. Defaults: SDXL's first encoder, CLIP ViT-L."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768
    eos_token_id: int = 2
    with_projection: bool = False

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"model_type": ("clip_text_model",)}
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "dropout",
            "bos_token_id",
            "pad_token_id",
            "initializer_factor",
            "initializer_range",
            "torch_dtype",
            "dtype",
            "transformers_version",
            "architectures",
            "return_dict",
            "use_cache",
            "use_bfloat16",
            "tie_word_embeddings",
            "id2label",
            "label2id",
            "num_return_sequences",
            "top_k",
            "top_p",
            "temperature",
            "length_penalty",
            "max_length",
            "min_length",
            "num_beams",
            "num_beam_groups",
            "repetition_penalty",
            "typical_p",
            "diversity_penalty",
            "encoder_no_repeat_ngram_size",
            "no_repeat_ngram_size",
            "chunk_size_feed_forward",
            "problem_type",
            "early_stopping",
            "remove_invalid_values",
            "decoder_start_token_id",
            "is_encoder_decoder",
        ]
    )

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        architectures = raw.get("architectures") or ["CLIPTextModel"]
        return super().from_dict({**raw, "with_projection": "WithProjection" in architectures[0]}, where)

    def to_dict(self) -> dict[str, Any]:
        raw = super().to_dict()
        projection = "WithProjection" if raw.pop("with_projection") else ""
        return {"architectures": [f"CLIPTextModel{projection}"], "model_type": "clip_text_model", **raw}

    def __post_init__(self) -> None:
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise ConfigError(f"hidden_act = {self.hidden_act!r} is not supported (quick_gelu or gelu)")


@dataclasses.dataclass(frozen=True)
class SchedulerConfig(JsonConfig):
    """The noise schedule a checkpoint was trained with, and its default solver (scheduler/scheduler_config.json)."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    final_sigmas_type: str = "zero"
    use_karras_sigmas: bool = False
    rescale_betas_zero_snr: bool = False
    solver: str = "euler"  # our name of the file's _class_name; see schedules.SOLVERS

    # diffusers' class -> our solver.
    CLASSES: ClassVar[Mapping[str, str]] = {
        "EulerDiscreteScheduler": "euler",
        "EulerAncestralDiscreteScheduler": "euler_ancestral",
        "DDIMScheduler": "ddim",
        "DPMSolverMultistepScheduler": "dpmpp_2m",
    }
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "algorithm_type": ("dpmsolver++",),
        "clip_sample": (False,),
        "euler_at_final": (False,),
        "interpolation_type": ("linear",),
        "lambda_min_clipped": (float("-inf"), "-Infinity"),
        "lower_order_final": (True,),
        "solver_order": (2,),
        "solver_type": ("midpoint",),
        "timestep_type": ("discrete",),
    }
    IRRELEVANT: ClassVar[frozenset[str]] = frozenset(
        {
            "clip_sample_range",
            "dynamic_thresholding_ratio",
            "flow_shift",
            "sample_max_value",
            "skip_prk_steps",
            "time_shift_type",
        }
    )
    # Keys that only some classes read; files keep them when a pipeline is given another scheduler.
    READ_ONLY_BY: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("dpmpp_2m",),
        "clip_sample": ("ddim",),
        "euler_at_final": ("dpmpp_2m",),
        "interpolation_type": ("euler",),
        "lambda_min_clipped": ("dpmpp_2m",),
        "lower_order_final": ("dpmpp_2m",),
        "sigma_max": ("euler",),
        "sigma_min": ("euler",),
        "solver_order": ("dpmpp_2m",),
        "solver_type": ("dpmpp_2m",),
        "thresholding": ("ddim", "dpmpp_2m"),
        "timestep_type": ("euler",),
        "use_beta_sigmas": ("euler", "dpmpp_2m"),
        "use_exponential_sigmas": ("euler", "dpmpp_2m"),
        "use_karras_sigmas": ("euler", "dpmpp_2m"),
        "variance_type": ("dpmpp_2m",),
    }
    # What diffusers' classes assume where a file is silent. Source: the signatures of their __init__, diffusers 0.42.1.
    ABSENT: ClassVar[Mapping[str, Any]] = {
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
    }

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        """Config from a parsed scheduler_config.json. Raises ConfigError for what would give other images."""
        return super().from_dict(_as_diffusers_reads(raw, where), where)

    def to_dict(self) -> dict[str, Any]:
        [name] = [name for name, solver in self.CLASSES.items() if solver == self.solver]
        raw = {"_class_name": name, **super().to_dict(), "clip_sample": False}
        del raw["solver"]
        return raw


def _as_diffusers_reads(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A scheduler's file as its class reads it: with its defaults for silent keys, without keys it does not know."""
    name, classes = raw.get("_class_name"), SchedulerConfig.CLASSES
    if not isinstance(name, str) or name not in classes:
        raise ConfigError(f"{where}: scheduler {name!r} is not supported; supported are {', '.join(classes)}")
    solver = classes[name]
    absent = {**SchedulerConfig.ABSENT, "timestep_spacing": "leading" if solver == "ddim" else "linspace"}
    only_by = SchedulerConfig.READ_ONLY_BY
    return {**{k: v for k, v in {**absent, **raw}.items() if solver in only_by.get(k, (solver,))}, "solver": solver}
