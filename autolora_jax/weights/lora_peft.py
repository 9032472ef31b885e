"""What PEFT says about a LoRA beside its tensors: alpha, rank and their exceptions.

diffusers writes it into the file's header (`lora_adapter_metadata`: JSON, keys `<component>.lora_alpha` and so on), PEFT
itself into adapter_config.json beside adapter_model.safetensors. Source: peft/tuners/lora/config.py LoraConfig.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autolora_jax.config import ConfigError, read_json
from autolora_jax.weights.errors import WeightsError

HEADER_KEY = "lora_adapter_metadata"

# Keys that choose what is trained or how it starts: the tensors already say it.
_IRRELEVANT = frozenset(
    """auto_mapping base_model_name_or_path exclude_modules fan_in_fan_out inference_mode layers_pattern
    layers_to_transform lora_dropout megatron_core peft_version qalora_group_size revision target_modules task_type
    ensure_weight_tying""".split()
)
# Keys with values that do not change what the tensors mean. Other initialisations (PiSSA, OLoRA, CorDA, LoftQ) change the
# base weights that the LoRA adds to.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
    "peft_type": ("LORA",),
}
_PLAIN_PATTERN = re.compile(r"[\w.^$\\-]+")  # of PEFT's regular expressions, those that can't run away


@dataclasses.dataclass(frozen=True)
class PeftSettings:
    """One component's LoraConfig, as far as it changes the result."""

    r: int = 8
    lora_alpha: float = 8
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    use_rslora: bool = False

    def __post_init__(self) -> None:
        numbers = [self.lora_alpha, *self.alpha_pattern.values()]
        if not all(_is(x, int, float) and math.isfinite(x) for x in numbers):
            raise WeightsError(f"lora_alpha and alpha_pattern must hold numbers, not {numbers}")
        ranks = [self.r, *self.rank_pattern.values()]
        if not all(_is(x, int) and x > 0 for x in ranks):
            raise WeightsError(f"r and rank_pattern must hold positive integers, not {ranks}")
        if not _is(self.use_rslora, bool):
            raise WeightsError(f"use_rslora must be true or false, not {self.use_rslora!r}")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            if not _PLAIN_PATTERN.fullmatch(pattern):
                raise WeightsError(f"pattern {pattern!r} is more than a module's name; re-save it with plain names")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "PeftSettings":
        """Settings of one component. Raises WeightsError naming every key that changes the result in an unknown way."""
        fields = {f.name for f in dataclasses.fields(cls)}
        problems = [
            f"{key} = {value!r}"
            for key, value in raw.items()
            if key not in fields | _IRRELEVANT
            and value not in (None, False, [], {})
            and value not in _HARMLESS.get(key, ())
        ]
        if problems:
            raise WeightsError(f"PEFT settings not supported: {', '.join(sorted(problems))}; train it without")
        known = {k: v for k, v in raw.items() if k in fields and v is not None}
        for key in ("rank_pattern", "alpha_pattern"):
            if not isinstance(known.get(key, {}), dict):
                raise WeightsError(f"{key} must be an object, not {known[key]!r}")
        return cls(**known)

    def rank(self, module: str) -> int:
        """The rank that a module should have."""
        return _exception(self.rank_pattern, module, self.r)

    def alpha(self, module: str) -> float:
        """The alpha of a module in the convention `scale = alpha / rank`."""
        alpha = float(_exception(self.alpha_pattern, module, self.lora_alpha))
        return alpha * math.sqrt(self.rank(module)) if self.use_rslora else alpha


def _is(value: Any, *types: type) -> bool:
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def _exception(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The first pattern that ends a module's name at a dot. Source: peft/utils/other.py get_pattern_key."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as e:
            raise WeightsError(f"pattern {pattern!r} is not a regular expression ({e})") from None
    return default


def peft_settings(path: Path, metadata: Mapping[str, str], components: Sequence[str]) -> dict[str, PeftSettings]:
    """component -> what PEFT says about it, where it says anything. Raises WeightsError for settings it can't honour."""
    if HEADER_KEY in metadata:
        try:
            raw = json.loads(metadata[HEADER_KEY])
        except (ValueError, RecursionError) as e:
            raise WeightsError(f"header entry {HEADER_KEY} is not valid JSON ({e})") from None
        if not isinstance(raw, dict):
            raise WeightsError(f"header entry {HEADER_KEY} should be a JSON object, not {raw!r:.80}")
        parts = {c: {k.removeprefix(f"{c}."): v for k, v in raw.items() if k.startswith(f"{c}.")} for c in components}
        return {c: PeftSettings.from_dict(part) for c, part in parts.items() if part}
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        try:
            settings = PeftSettings.from_dict(read_json(beside))
        except ConfigError as e:
            raise WeightsError(str(e)) from None
        return {c: settings for c in components}
    return {}


def peft_header(alphas: Mapping[str, Mapping[str, tuple[int, float]]]) -> str:
    """The JSON for `lora_adapter_metadata` that says: component -> module -> (rank, alpha)."""
    raw: dict[str, Any] = {}
    for component, modules in alphas.items():
        ranks, alpha_values = zip(*modules.values(), strict=True)
        r, alpha = max(set(ranks), key=ranks.count), max(set(alpha_values), key=alpha_values.count)
        raw |= {
            f"{component}.peft_type": "LORA",
            f"{component}.r": r,
            f"{component}.lora_alpha": alpha,
            f"{component}.target_modules": sorted(modules),
            f"{component}.rank_pattern": {f"^{m}": x for m, (x, _) in modules.items() if x != r},
            f"{component}.alpha_pattern": {f"^{m}": x for m, (_, x) in modules.items() if x != alpha},
        }
    return json.dumps(raw, sort_keys=True)
