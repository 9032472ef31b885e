"""The same picture elsewhere: as a command, in Python, as a job."""

import dataclasses
import shlex
from typing import Any

import yaml

from autolora_jax.cli.flags import LISTS, flags_of
from autolora_jax.settings.changes import to_text
from autolora_jax.settings.fields import settings_of
from autolora_jax.settings.jobs import Job, Settings
from autolora_jax.settings.pictures import DrawingConfig, GenerateConfig
from autolora_jax.settings.programs.generate import Generate
from autolora_jax.settings.rules import Rule, numbers
from autolora_jax.settings.values import spelled

_RULE = "settings.guidance."


def command(config: GenerateConfig) -> str:
    """The `autolora generate` that draws it. What is as usual is not said, nor what is secret."""
    usual = Generate(settings=GenerateConfig())
    asked = dataclasses.replace(usual, settings=config)
    words = ["autolora", "generate"]
    for flag in flags_of(Generate):
        value, field = _at(asked, flag.name), flag.field
        start = _at(usual, flag.name)
        if flag.name.startswith(_RULE) and config.guidance is not None:  # its numbers: as a rule of its kind has them
            start = getattr(type(config.rule())(), flag.name.removeprefix(_RULE), None)
        if field.said.secret or value is None or value == start:
            continue
        name = None if field.said.argument else flag.words[0]
        text = to_text(value, field.hint)
        for each in text if isinstance(text, list) and spelled(field.hint)[0] in LISTS else [text]:
            if isinstance(each, bool):
                words.append(flag.words[0] if each else flag.words[-1])
            else:
                said = _rule_name(each) if isinstance(each, dict) else str(each)
                words += [said] if name is None else [name, said]
    if config.model.source is None:  # which draws several beside each other, unless told not to
        words.append("--no-compare")
    return shlex.join(words)


def _rule_name(told: dict[str, Any]) -> str:
    return str(told["rule"])


def _at(asked: Generate, name: str) -> Any:
    value: Any = asked
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def python(config: GenerateConfig) -> str:
    """The calls that draw it."""
    model, drawing = config.model, DrawingConfig()
    rule = config.rule()
    loaded = ", ".join(
        [*([] if model.source is None else [repr(model.source)]), *_said(model, type(model)(), ("source",))]
    )
    call = {"negative_prompt": config.negative_prompt} if config.negative_prompt else {}
    told = [f"{name}={value!r}" for name, value in call.items()]
    told += [f"seeds={list(config.all_seeds)}", f"guidance={_rule(rule)}"]
    told += _said(DrawingConfig(**config.drawing()), drawing, ("guidance",))
    lines = [f"from autolora_jax import AutoLoRAPipeline, {type(rule).__name__}", ""]
    lines += [f"pipe = AutoLoRAPipeline.from_pretrained({loaded})"]
    for lora in config.loras:
        role = "" if lora.role == "tuned" else f", role={lora.role!r}"
        lines.append(f"pipe.load_lora({lora.source!r}, {lora.scale!r}{role})")
    for embedding in config.embeddings:
        lines.append(f"pipe.load_textual_inversion({embedding!r})")
    prompts = repr(config.prompts[0]) if len(config.prompts) == 1 else repr(list(config.prompts))
    lines += ["out = pipe(", f"    {prompts},", *(f"    {part}," for part in told), ")", 'out.save("pictures")']
    return "\n".join(lines) + "\n"


def _rule(rule: Rule) -> str:
    said = [f"{name}={getattr(rule, name)!r}" for name in numbers() if getattr(rule, name, None) is not None]
    usual = type(rule)()
    return f"{type(rule).__name__}({', '.join(part for part in said if part not in _values(usual))})"


def _values(rule: Rule) -> list[str]:
    return [f"{field.name}={getattr(rule, field.name)!r}" for field in dataclasses.fields(rule)]


def _said(settings: Any, usual: Any, without: tuple[str, ...]) -> list[str]:
    """What differs from the usual, as arguments."""
    fields = [f.name for f in settings_of(type(settings)) if f.name not in without and not f.said.secret]
    return [f"{name}={getattr(settings, name)!r}" for name in fields if getattr(settings, name) != getattr(usual, name)]


def job(config: GenerateConfig, seeds: tuple[int, ...] = tuple(range(16))) -> str:
    """A job file (.yaml) of many seeds in this manner."""
    shared = {field.name for field in dataclasses.fields(Settings)} & {f.name for f in dataclasses.fields(config)}
    settings = Settings(**{name: getattr(config, name) for name in shared})
    table = Job(config.prompts, seeds=seeds, negative_prompt=config.negative_prompt, settings=settings).to_table()
    usual = Job((), settings=Settings()).to_table()
    return yaml.safe_dump(_without(table, usual), sort_keys=False, allow_unicode=True)


def _without(table: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """What a table says that is not as usual."""
    kept: dict[str, Any] = {}
    for name, value in table.items():
        if value == usual.get(name):
            continue
        inner = _without(value, usual[name]) if isinstance(value, dict) and isinstance(usual.get(name), dict) else value
        kept[name] = value if "rule" in (value if isinstance(value, dict) else ()) else inner
    return kept
