"""What a LoRA that was distilled says of itself: which guidance it stands for, and how to draw with it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax import foreign
from autolora_jax.settings.rules import RULES, Rule, numbers_of, to_dict
from autolora_jax.weights.files import open_tensors

HEADER_KEY = "autolora.distilled"


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What the header holds, as JSON under one key.

    teacher: the guidance that the LoRA stands for. guidance: what to draw with.
    steps, scheduler, timestep_spacing: how to draw, of a student that takes fewer steps than its teacher; else None.
    details: more of the teacher: its LoRAs, their strengths, its steps; for people.
    """

    target: str
    teacher: Rule
    guidance: Rule
    steps: int | None = None
    scheduler: str | None = None
    timestep_spacing: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def header(self) -> dict[str, str]:
        """Entries of a file's header."""
        values = {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "teacher": to_dict(self.teacher),
            "guidance": to_dict(self.guidance),
        }
        return {HEADER_KEY: json.dumps({name: value for name, value in values.items() if value is not None})}

    def __str__(self) -> str:
        stands = f"{type(self.teacher).__name__} ({numbers_of(self.teacher)})"
        how = f"{type(self.guidance).__name__}{f' ({said})' if (said := numbers_of(self.guidance)) else ''}"
        spacing = f" with {self.timestep_spacing} timesteps" if self.timestep_spacing else ""
        steps = f", {self.steps} steps of {self.scheduler}{spacing}" if self.steps else ""
        return f"{stands}; drawn with {how}{steps}"


class Usual(NamedTuple):
    """What is taken where the user says nothing; None: as without such a LoRA."""

    guidance: Rule | None = None
    steps: int | None = None
    scheduler: str | None = None
    timestep_spacing: str | None = None


NOTHING_SAID = Usual()


def usual_of(loras: Iterable[tuple[Distilled | None, str]]) -> Usual:
    """How to draw with LoRAs, of which some were distilled. loras: what each says of itself, and its role.

    One that acts on the base model, too (role "all"), says nothing of the guidance; one that acts on it alone, nothing.
    """
    found = [(said, role) for said, role in loras if said is not None and role != "base"]
    guidance = next((said.guidance for said, role in found if role == "tuned"), None)
    few = next((said for said, _ in found if said.steps), None)
    return Usual(guidance) if few is None else Usual(guidance, few.steps, few.scheduler, few.timestep_spacing)


def distilled_in(path: Path) -> Distilled | None:
    """What a LoRA file says of itself. Raises WeightsError for one that can't be read."""
    with open_tensors(path) as file:
        return distilled_of(file.metadata)


def distilled_of(metadata: Mapping[str, str]) -> Distilled | None:
    """What a file's header says of it; None for a LoRA that was not distilled, or not so that it can be read."""
    if HEADER_KEY not in metadata:
        return None
    try:
        told = foreign.parse_object(metadata[HEADER_KEY])
        steps = told.get("steps")
        return Distilled(
            target=str(told["target"]),
            teacher=_rule(told["teacher"]),
            guidance=_rule(told["guidance"]),
            steps=None if steps is None else max(1, int(str(steps))),
            **{name: str(told[name]) for name in ("scheduler", "timestep_spacing") if name in told},
            details=details if isinstance(details := told.get("details"), dict) else {},
        )
    except (ValueError, KeyError, TypeError):
        return None


def _rule(told: Any) -> Rule:
    """Raises ValueError, KeyError or TypeError for what is none."""
    return RULES[told["rule"]](**{name: value for name, value in told.items() if name != "rule"})
