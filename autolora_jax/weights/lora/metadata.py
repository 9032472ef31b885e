"""What is told to people about a LoRA: its header's trigger words and training, in lines. Decides no number."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from autolora_jax import foreign
from autolora_jax.weights.errors import printable

# Headings and the header's keys that may fill them, best first. Sources: sd-scripts train_network.py (ss_*),
# Stability-AI/ModelSpec (modelspec.*).
TRAINING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("title", ("modelspec.title", "ss_output_name")),
    ("author", ("modelspec.author",)),
    ("licence", ("modelspec.license",)),
    ("description", ("modelspec.description",)),
    ("usage", ("modelspec.usage_hint",)),
    ("architecture", ("modelspec.architecture", "ss_base_model_version")),
    ("base model", ("ss_sd_model_name",)),
    ("prediction", ("modelspec.prediction_type",)),
    ("clip skip", ("ss_clip_skip",)),
    ("network", ("ss_network_module",)),
    ("its arguments", ("ss_network_args", "lycoris_config")),  # the latter is SimpleTuner's
    ("resolution", ("modelspec.resolution", "ss_resolution")),
    ("images", ("ss_num_train_images",)),
    ("steps", ("ss_steps", "ss_max_train_steps")),
    ("epochs", ("ss_epoch", "ss_num_epochs")),
    ("learning rate", ("ss_unet_lr", "ss_learning_rate")),
    ("optimizer", ("ss_optimizer",)),
    ("comment", ("ss_training_comment",)),
    ("date", ("modelspec.date",)),
)
_NOTHING = ("", "None", "{}")


def training_summary(metadata: Mapping[str, str]) -> dict[str, str]:
    """heading -> value, for those headings of TRAINING that the header fills."""
    found = {heading: [metadata[k] for k in keys if metadata.get(k, "") not in _NOTHING] for heading, keys in TRAINING}
    return {heading: printable(values[0]) for heading, values in found.items() if values}


def trigger_words(metadata: Mapping[str, str], most: int = 10) -> tuple[str, ...]:
    """The author's trigger phrase if the header has one, else the most frequent caption tags of the training images."""
    if phrase := metadata.get("modelspec.trigger_phrase", "").strip():
        return (printable(phrase),)
    counts: Counter[str] = Counter()
    for tags in _json_object(metadata.get("ss_tag_frequency", "")).values():
        if isinstance(tags, dict):
            counts.update({tag: n for tag, n in tags.items() if isinstance(n, int)})
    return tuple(word for tag, _ in counts.most_common(most) if (word := printable(tag)))


def by_component(components: Iterable[str]) -> dict[str, int]:
    """component -> how many, the denoiser first."""
    return dict(sorted(Counter(components).items(), key=lambda item: ("text" in item[0], item[0])))


def histogram(counts: Mapping[Any, int], most: int | None = None) -> str:
    """ "32 (700×), 16 (22×)", the most frequent value first; a single value alone. most: how many are shown."""
    if len(counts) == 1:
        return str(next(iter(counts)))
    rows = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    more = [f"… {len(rows) - most} more"] if most is not None and len(rows) > most else []
    return ", ".join([*(f"{value} ({n}×)" for value, n in rows[:most]), *more]) or "none"


def alpha_histogram(alphas: Mapping[float | None, int], most: int | None = None) -> str:
    """The histogram of alphas, of which None means that the file does not say."""
    return histogram({"not given (= rank)" if a is None else f"{a:g}": n for a, n in alphas.items()}, most)


def listing(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title and aligned rows beneath it."""
    return "\n".join([printable(title), *(f"  {name:15} {value}" for name, value in rows)])


def _json_object(text: str) -> dict[str, object]:
    try:
        return foreign.parse_object(text)
    except ValueError:
        return {}
