"""What PEFT says about a LoRA beside its tensors: alpha, rank and their exceptions.

diffusers writes it into the file's header (`lora_adapter_metadata`: JSON, keys `<component>.lora_alpha` and so on),
PEFT itself into adapter_config.json beside adapter_model.safetensors. Source: peft/tuners/lora/config.py LoraConfig.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autolora_jax import foreign
from autolora_jax.config import ConfigError, read_json
from autolora_jax.config.base import keys
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.lora.source import PEFT_CONFIG, PEFT_WEIGHTS

HEADER_KEY = "lora_adapter_metadata"
LARGEST_ALPHA = 1e9  # what is beyond is no alpha

# Keys that choose what is trained or how it starts: the tensors already say it.
_IRRELEVANT = keys("""
    auto_mapping base_model_name_or_path ensure_weight_tying exclude_modules fan_in_fan_out inference_mode
    layers_pattern layers_to_transform lora_bias lora_dropout megatron_core peft_version qalora_group_size revision
    target_modules task_type
    boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor feedforward_modules
""")
# Keys with values that do not change what the tensors mean. Other initialisations (PiSSA, OLoRA, CorDA, LoftQ) change
# the base weights that the LoRA adds to.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
    "init_ia3_weights": (True,),
    "init_weights": (True,),
    "peft_type": ("LORA", "BOFT", "IA3"),  # its OFT means another thing of convolutions than OneTrainer's of that name
}
_PLAIN_PATTERN = re.compile(r"[\w.^$\\-]{1,300}")  # of PEFT's regular expressions, those that can't run away
_MOST_PATTERNS = 2048


@dataclasses.dataclass(frozen=True)
class PeftSettings:
    """One component's LoraConfig, as far as it changes the result."""

    r: int = 8
    lora_alpha: float = 8.0
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "PeftSettings":
        """Settings of one component. Raises WeightsError naming every key that changes the result in an unknown way."""
        known = {f.name for f in dataclasses.fields(cls)} | _IRRELEVANT
        unknown = [
            f"{key} = {value!r}"
            for key, value in raw.items()
            if key not in known and value not in (None, False, [], {}) and value not in _HARMLESS.get(key, ())
        ]
        if unknown:
            raise WeightsError(f"PEFT settings not supported: {shorten(sorted(unknown))}; train it without")
        ranks, alphas = _pattern(raw, "rank_pattern"), _pattern(raw, "alpha_pattern")
        return cls(
            r=_rank("r", raw.get("r", cls.r)),
            lora_alpha=_alpha("lora_alpha", raw.get("lora_alpha", cls.lora_alpha)),
            rank_pattern={pattern: _rank("rank_pattern", value) for pattern, value in ranks.items()},
            alpha_pattern={pattern: _alpha("alpha_pattern", value) for pattern, value in alphas.items()},
            use_rslora=_switch("use_rslora", raw),
            use_dora=_switch("use_dora", raw),
        )

    def rank(self, module: str) -> int:
        """The rank that a module should have."""
        rank: int = _exception(self.rank_pattern, module, self.r)
        return rank

    def alpha(self, module: str) -> float:
        """The alpha of a module in the convention `scale = alpha / rank`."""
        alpha: float = _exception(self.alpha_pattern, module, self.lora_alpha)
        return alpha * math.sqrt(self.rank(module)) if self.use_rslora else alpha


def _switch(key: str, raw: Mapping[str, Any]) -> bool:
    value = raw.get(key) or False
    if value not in (True, False):
        raise WeightsError(f"{key} must be true or false, not {value!r:.80}")
    return bool(value)


def _rank(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WeightsError(f"{key} must be a positive integer, not {value!r:.80}")
    return value


def _alpha(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST_ALPHA:  # NaN, too
        raise WeightsError(f"{key} must be a number, not {value!r:.80}")
    return float(value)


def _pattern(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise WeightsError(f"{key} must be an object, not {value!r:.80}")
    if len(value) > _MOST_PATTERNS:
        raise WeightsError(f"{key} has {len(value)} entries, more than a network has layers")
    for pattern in value:
        if not _PLAIN_PATTERN.fullmatch(pattern) or not _compiles(pattern):
            raise WeightsError(f"{key}: {pattern!r} is more than a module's name; re-save it with plain names")
    return value


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _exception(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The first pattern that ends a module's name at a dot. Source: peft/utils/other.py get_pattern_key."""
    return next((value for pattern, value in patterns.items() if _compiled(pattern).match(module)), default)


@functools.lru_cache(maxsize=2 * _MOST_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def peft_settings(path: Path, metadata: Mapping[str, str], components: Sequence[str]) -> dict[str, PeftSettings]:
    """component -> what PEFT says about it, if anything. Raises WeightsError for settings that can't be honoured."""
    if HEADER_KEY in metadata:
        try:
            raw = foreign.parse_object(metadata[HEADER_KEY])
        except ValueError as e:
            raise WeightsError(f"header entry {HEADER_KEY} is not valid JSON ({e})") from None
        # diffusers' save_lora_adapter, which knows one network alone, writes neither names nor settings with a prefix.
        common = {k: v for k, v in raw.items() if "." not in k}
        parts = {c: {k.removeprefix(f"{c}."): v for k, v in raw.items() if k.startswith(f"{c}.")} for c in components}
        return {c: PeftSettings.from_dict(part) for c in components if (part := parts[c] or common)}
    beside = path.with_name(PEFT_CONFIG)
    if path.name == PEFT_WEIGHTS and beside.is_file():
        try:
            settings = PeftSettings.from_dict(read_json(beside))
        except ConfigError as e:
            raise WeightsError(str(e)) from None
        return {c: settings for c in components}
    return {}


def peft_header(alphas: Mapping[str, Mapping[str, tuple[int, float]]], dora: bool = False, bias: bool = False) -> str:
    """The JSON for `lora_adapter_metadata` that says: component -> module -> (rank, alpha)."""
    raw: dict[str, Any] = {}
    for component, modules in alphas.items():
        # As PEFT's patterns may omit a name's beginning, this one fits CLIPTextModel with and without its `text_model.`
        # (transformers before and since 5.6).
        modules = {module.removeprefix("text_model."): said for module, said in modules.items()}
        ranks, alpha_values = zip(*modules.values(), strict=True)
        r, alpha = max(set(ranks), key=ranks.count), max(set(alpha_values), key=alpha_values.count)
        raw |= {
            f"{component}.peft_type": "LORA",
            f"{component}.r": r,
            f"{component}.lora_alpha": alpha,
            f"{component}.target_modules": sorted(modules),
            f"{component}.use_dora": dora,
            f"{component}.lora_bias": bias,
            f"{component}.rank_pattern": {m: x for m, (x, _) in modules.items() if x != r},
            f"{component}.alpha_pattern": {m: x for m, (_, x) in modules.items() if x != alpha},
        }
    return json.dumps(raw, sort_keys=True)
