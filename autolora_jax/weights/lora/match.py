"""Which layer of the model every tensor of a LoRA file changes, from names and shapes alone: every tensor exactly once.

Nothing is skipped. All that does not fit is collected, so that one message can say it.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from autolora_jax.config import JsonConfig
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.files import FLOATS, TensorFiles
from autolora_jax.weights.lora import kinds
from autolora_jax.weights.lora.dialects import foreign, guess_family, naming_style, split_key
from autolora_jax.weights.lora.embeddings import Keys, embedding_problems, split_embeddings
from autolora_jax.weights.lora.kinds import DORA, Kind, kind_of
from autolora_jax.weights.lora.names import SPELLINGS, Layer, Name, Targets, names
from autolora_jax.weights.lora.peft import PeftSettings, peft_settings
from autolora_jax.weights.rules import Shape

Parts = dict[str, str]  # part ("down", "up", "alpha") -> the tensor's name in the file

DAMAGED = "the file is damaged or was edited: download it again"
NOT_APPLIED = "without knowing what they mean the LoRA can't be applied"
DOUBLED = "re-save the file with one of them"


class Problems:
    """All that is wrong with a file, grouped by what is wrong and what to do about it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, what: str, remedy: str, *items: str) -> None:
        self._found[what, remedy] += items

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self) -> list[str]:
        """One line per kind of problem: how many, what, which, what to do."""
        return [
            f"{len(items)} {what}: {shorten(items, 3)} – {remedy}" if items else f"{what} – {remedy}"
            for (what, remedy), items in self._found.items()
        ]


@dataclasses.dataclass
class Match:
    """What a file's names and shapes say."""

    style: str  # how it names layers
    family: str  # the base model it looks made for
    kinds: set[str]  # names of those in it
    modules: dict[str, Parts]  # every module of the file, by its name there
    usable: dict[str, Kind]  # those that are whole and of a kind that can be applied
    layers: dict[Layer, str]  # the layers it changes -> module
    problems: Problems
    settings: Mapping[str, PeftSettings] = dataclasses.field(default_factory=dict)  # component -> PEFT's, see peft
    embeddings: Keys = dataclasses.field(default_factory=dict)  # bundled with it
    names: Mapping[str, Name] = dataclasses.field(default_factory=dict)  # of the model's layers; empty without a model

    @property
    def dialect(self) -> str:
        """For people: "LoHa (LyCORIS), kohya (sgm block names)"."""
        kinds = sorted(self.kinds - ({"LoRA"} if "DoRA" in self.kinds else set())) or ["unknown"]
        return f"{' + '.join(kinds)}, {self.style}"


def examine(path: Path, file: TensorFiles, targets: Targets | None = None) -> Match:
    """What a file holds, with all that is known against it, and whether it fits a model, if one is given."""
    settings, unusable = {}, ""
    try:
        settings = peft_settings(path, file.metadata, list(targets or SPELLINGS))
    except WeightsError as e:
        unusable = str(e)
    known = names(targets) if targets else {}
    all_shapes = {key: info.shape for key, info in file.tensors.items()}
    words, shapes = split_embeddings(all_shapes)
    match = match_layers(shapes, known, settings) if targets else examine_modules(shapes)
    if not all_shapes:
        match.problems.add("no tensors", DAMAGED)
    if problems := embedding_problems(words, all_shapes, configs_of(targets) if targets else None):
        remedy = "delete their bundle_emb keys to do without them"
        match.problems.add("textual-inversion embeddings that can't be used", remedy, *problems)
    if unusable:
        match.problems.add(unusable, NOT_APPLIED)
    for key, info in file.tensors.items():
        if info.dtype not in FLOATS and not key.endswith(".alpha"):
            remedy = f"get a version in {', '.join(FLOATS)}"
            match.problems.add("tensors that are no floats", remedy, f"{key} ({info.dtype})")
    match.settings, match.embeddings, match.names = settings, words, known
    return match


def configs_of(targets: Targets) -> dict[str, JsonConfig]:
    """component -> its config."""
    return {name: config for name, (_, config) in targets.items()}


def examine_modules(shapes: Mapping[str, Shape]) -> Match:
    """What a file holds, without knowing a model: its kinds, and whether each module's parts are complete."""
    match = Match(naming_style(shapes), guess_family(shapes), set(), {}, {}, {}, Problems())
    for key in shapes:
        if split := split_key(key):
            module, part = split
            parts = match.modules.setdefault(module, {})
            kind = kind_of([part])
            if part in parts and not (kind and kind.remedy):  # a refused kind is told by any of its tensors
                match.problems.add("parts given twice", DOUBLED, f"{parts[part]} and {key}")
            parts[part] = key
        else:
            what, remedy = foreign(key) or ("nothing known here", "load the file with the program that made it")
            match.problems.add(f"tensors that are part of {what}", remedy, key)
    for module, parts in match.modules.items():
        _examine_module(module, parts, match)
    return match


def _examine_module(module: str, parts: Parts, match: Match) -> None:
    kind = kind_of(parts)
    if kind is None:
        match.problems.add("parts without the change they belong to", DAMAGED, *parts.values())
        return
    match.kinds.add(kind.name)
    if parts.keys() & DORA.keys():
        match.kinds.add("DoRA")
    if kind.remedy:
        sign = next(parts[p] for p in parts if p in kind.signs)
        match.problems.add(f"modules that are {kind.name}", kind.remedy, sign)
    elif missing := kind.missing(parts):
        match.problems.add(f"{kind.name} modules without their {' and '.join(missing)}", DAMAGED, module)
    elif foreign_parts := kind.foreign(parts):
        items = (f"{parts[part]} in a {kind.name}" for part in foreign_parts)
        match.problems.add("parts that do not belong together", NOT_APPLIED, *items)
    else:
        match.usable[module] = kind


def match_layers(
    shapes: Mapping[str, Shape], names: Mapping[str, Name], settings: Mapping[str, PeftSettings] | None = None
) -> Match:
    """Which layer each module of a file changes, and all that does not fit the model.

    shapes: tensor name in the file -> shape. names: names.names(…) of the model.
    settings: what PEFT says beside the tensors, per component.
    """
    match = examine_modules(shapes)
    guess = "" if match.family == "unknown" else f"the file looks made for {match.family}: "
    other_model = guess + "use it with the model it was trained on"
    layers: dict[Layer, str] = {}
    for module, kind in match.usable.items():
        parts = match.modules[module]
        if module not in names:
            match.problems.add("modules that this model does not have", other_model, module)
            continue
        name = names[module]
        if twice := [layers[share.layer] for share in name.shares if share.layer in layers]:
            match.problems.add("layers named twice", DOUBLED, *(f"{other} and {module}" for other in twice))
        elif problem := _misfit(kind, {part: shapes[key] for part, key in parts.items()}, name):
            match.problems.add("shapes that do not fit", other_model, f"{module} ({problem})")
        elif "down" in parts and (problem := _rank_conflict(name, shapes[parts["down"]][0], settings or {})):
            match.problems.add("ranks that differ from the file's own PEFT settings", DAMAGED, f"{module} ({problem})")
        elif "magnitude" not in parts and settings and name.component in settings and settings[name.component].use_dora:
            match.problems.add(
                "modules without the magnitudes that their settings speak of (use_dora)", DAMAGED, module
            )
        layers |= {share.layer: module for share in name.shares}
    match.layers = layers
    return match


def _misfit(kind: Kind, shapes: Mapping[str, Shape], name: Name) -> str | None:
    if shapes.get("alpha", ()) not in ((), (1,)):
        return f"alpha {list(shapes['alpha'])} instead of one number"
    if wrong := kinds.misfit(kind, shapes, name.kernel):
        return wrong
    if len(name.shares) > 1 and shapes.get("dora_scale", (0,))[0] == 1:
        return "magnitudes over the inputs of several layers at once, which can't be taken apart"
    return None


def _rank_conflict(name: Name, rank: int, settings: Mapping[str, PeftSettings]) -> str | None:
    if name.component not in settings:
        return None
    said = settings[name.component].rank(name.module)
    return f"rank {rank}, settings say {said}" if said != rank else None


def raise_problems(where: str, match: Match) -> None:
    """Raises the one WeightsError that names the file and all that is wrong with it; does nothing when all is well."""
    if match.problems:
        head = f"{where} can't be applied exactly, so nothing of it was loaded ({match.dialect}):"
        raise WeightsError("\n  ".join([head, *match.problems.lines()]))
