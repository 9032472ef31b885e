"""Which layer of the model every tensor of a LoRA file changes, from names and shapes alone: every tensor exactly once.

Nothing is skipped. All that does not fit is collected, so that one message can say it.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from autolora_jax.config import JsonConfig
from autolora_jax.weights.errors import WeightsError, shorten
from autolora_jax.weights.files import WEIGHTS, TensorFiles
from autolora_jax.weights.lora import kinds
from autolora_jax.weights.lora.dialects import UNKNOWN, foreign, guess_family, naming_style, split_key
from autolora_jax.weights.lora.embeddings import Keys, embedding_problems, split_embeddings
from autolora_jax.weights.lora.kinds import DORA, Kind, kind_of
from autolora_jax.weights.lora.names import LAYOUTS, Layer, Name, Names, Targets, flat
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
    names: Names | None = None  # of the model's layers; None without a model
    nothing: "IsNothing" = lambda parts: False
    notes: list[str] = dataclasses.field(default_factory=list)  # what is applied, or left out, in a way worth a word

    @property
    def dialect(self) -> str:
        """For people: "LoHa (LyCORIS), kohya (sgm block names)"."""
        kinds = sorted(self.kinds - ({"LoRA"} if "DoRA" in self.kinds else set())) or ["unknown"]
        return f"{' + '.join(kinds)}, {self.style}"


def examine(path: Path, file: TensorFiles, targets: Targets | None = None) -> Match:
    """What a file holds, with all that is known against it, and whether it fits a model, if one is given."""
    settings, unusable = {}, ""
    try:
        settings = peft_settings(path, file.metadata, list(targets or LAYOUTS))
    except WeightsError as e:
        unusable = str(e)
    known = Names(targets) if targets else None
    all_shapes = {key: info.shape for key, info in file.tensors.items()}
    words, shapes = split_embeddings(all_shapes)
    match = examine_modules(shapes, partial(_nothing, file))
    if known:
        match_layers(match, shapes, known, settings)
    _look_at_alphas(match, settings)
    if not all_shapes:
        match.problems.add("no tensors", DAMAGED)
    if problems := embedding_problems(words, all_shapes, configs_of(targets) if targets else None):
        remedy = "delete their bundle_emb keys to do without them"
        match.problems.add("textual-inversion embeddings that can't be used", remedy, *problems)
    if unusable:
        match.problems.add(unusable, NOT_APPLIED)
    for key, info in file.tensors.items():
        if info.dtype not in WEIGHTS and not key.endswith((".alpha", ".lora_alpha", ".on_input")):
            remedy = f"get a version in {', '.join(WEIGHTS)}"
            match.problems.add("tensors that are no floats", remedy, f"{key} ({info.dtype})")
    match.settings, match.embeddings = settings, words
    return match


def configs_of(targets: Targets) -> dict[str, JsonConfig]:
    """component -> its config."""
    return {name: config for name, (_, config) in targets.items()}


BESIDE = {"diff_b", "up_bias"}  # parts that are added, whatever the product is
IsNothing = Callable[[Parts], bool]  # whether a module's tensors say that nothing is changed


def _nothing(file: TensorFiles, parts: Parts) -> bool:
    if parts.keys() & (DORA.keys() | {"rescale", "ia3_l", "boft_s"}):  # these say nothing by other numbers
        return False

    def zero(part: str) -> bool:
        return file.tensors[parts[part]].dtype in WEIGHTS and not file.read(parts[part]).any()

    kind, vectors = kind_of(parts), parts.keys() & BESIDE
    factors = [part for part in parts if part not in {*vectors, "alpha", "on_input"}]
    try:
        return all(map(zero, vectors)) and (any if kind and kind.product and factors else all)(map(zero, factors))
    except WeightsError:
        return False


def examine_modules(shapes: Mapping[str, Shape], nothing: IsNothing = lambda parts: False) -> Match:
    """What a file holds, without knowing a model: its kinds, and whether each module's parts are complete."""
    match = Match(naming_style(shapes), guess_family(shapes), set(), {}, {}, {}, Problems(), nothing=nothing)
    spelled: dict[str, str] = {}  # names that differ in dots and wrappers alone are of one module
    for key in shapes:
        if split := split_key(key, shapes):
            module, part = split
            module = spelled.setdefault(flat(module), module)
            parts = match.modules.setdefault(module, {})
            kind = kind_of([part])
            if part in parts and kind and kind.remedy:  # several tensors of a refused kind are one part
                part = f"{part} {len(parts)}"
            elif part in parts:
                match.problems.add("parts given twice", DOUBLED, f"{parts[part]} and {key}")
            parts[part] = key
        else:
            what, remedy = foreign(key) or ("nothing known here", "load the file with the program that made it")
            match.problems.add(f"tensors that are part of {what}", remedy, key)
    # An alpha alone is what is left where a tool cut weights out: no module.
    lone = [match.modules.pop(module)["alpha"] for module, parts in [*match.modules.items()] if {*parts} == {"alpha"}]
    if lone and not match.modules:
        match.problems.add("alphas alone, no weights", DAMAGED, *lone)
    elif lone:
        match.notes.append(f"{len(lone)} alphas have no weights to scale and are not used: {shorten(lone, 3)}")
    for module, parts in match.modules.items():
        _examine_module(module, parts, match, shapes)
    return match


def _examine_module(module: str, parts: Parts, match: Match, shapes: Mapping[str, Shape]) -> None:
    kind = kind_of(parts)
    if kind is None:
        match.problems.add("parts without the change they belong to", DAMAGED, *parts.values())
        return
    beyond = kind.beyond({part: shapes[key] for part, key in parts.items()})
    match.kinds.add(beyond or kind.name)
    if parts.keys() & DORA.keys():
        match.kinds.add("DoRA")
    if kind.remedy or beyond:
        if match.nothing(parts):
            match.notes.append(f"{module} ({kind.name}) is all zeros and left out")
            return
        sign = next(parts[p] for p in parts if p in kind.signs)
        match.problems.add(f"modules that are {beyond or kind.name}", kind.remedy or kinds.BEYOND, sign)
    elif missing := kind.missing(parts):
        match.problems.add(f"{kind.name} modules without their {' and '.join(missing)}", DAMAGED, module)
    elif foreign_parts := kind.foreign(parts):
        items = (f"{parts[part]} in a {kind.name}" for part in foreign_parts)
        match.problems.add("parts that do not belong together", NOT_APPLIED, *items)
    else:
        match.usable[module] = kind


def match_layers(
    match: Match, shapes: Mapping[str, Shape], names: Names, settings: Mapping[str, PeftSettings] | None = None
) -> Match:
    """The match with the layer that each module changes, and all that does not fit the model.

    shapes: tensor name in the file -> shape.
    settings: what PEFT says beside the tensors, per component.
    """
    layers: dict[Layer, str] = {}
    strange: list[str] = []
    for module, kind in match.usable.items():
        parts = match.modules[module]
        if module not in names:
            strange.append(module)
            continue
        name = names[module]
        if twice := [layers[share.layer] for share in name.shares if share.layer in layers]:
            match.problems.add("layers named twice", DOUBLED, *(f"{other} and {module}" for other in twice))
        elif problem := _misfit(kind, {part: shapes[key] for part, key in parts.items()}, name):
            what, remedy = _of_shapes(match, shapes, parts, name, names)
            match.problems.add(what, remedy, f"{module} ({problem})")
        elif "down" in parts and (problem := _rank_conflict(name, shapes[parts["down"]][0], settings or {})):
            match.problems.add("ranks that differ from the file's own PEFT settings", DAMAGED, f"{module} ({problem})")
        elif "magnitude" not in parts and settings and name.component in settings and settings[name.component].use_dora:
            match.problems.add(
                "modules without the magnitudes that their settings speak of (use_dora)", DAMAGED, module
            )
        layers |= {share.layer: module for share in name.shares}
    match.layers, match.names = layers, names
    unused = [module for module in strange if match.nothing(match.modules[module])]
    if unused:
        match.notes.append(
            f"{len(unused)} modules that this model does not have are all zeros and left out: {shorten(unused, 3)}"
        )
    if missing := [module for module in strange if module not in unused]:
        match.problems.add("modules that this model does not have", _of_names(match, names), *missing)
    return match


def _of_names(match: Match, names: Names) -> str:
    """What to do about names that no layer has. Another model is spoken of only where the file's shapes or names do."""
    if match.family not in (UNKNOWN, names.family, names.family.partition(".")[0]):
        return f"the file looks made for {match.family}: use it with the model it was trained on"
    if match.layers:
        return (
            "the rest fits this model; without knowing what these mean the LoRA can't be applied, so delete these keys"
        )
    return f"no naming of {names.family}'s layers that is known here; save it anew with the program that trained it"


def _of_shapes(match: Match, shapes: Mapping[str, Shape], parts: Parts, name: Name, names: Names) -> tuple[str, str]:
    inputs = kinds.sizes_of({part: shapes[key] for part, key in parts.items()}).inputs
    of_another = match.family not in (UNKNOWN, names.family, names.family.partition(".")[0])
    if of_another or inputs not in (None, name.kernel[-2] if len(name.kernel) > 1 else None):
        guess = "" if match.family == UNKNOWN else f"the file looks made for {match.family}: "
        return "shapes that do not fit", guess + "use it with the model it was trained on"
    return (
        "shapes that do not fit",
        "it is damaged, for another model, or laid out in a way not known here: get it anew",
    )


def _look_at_alphas(match: Match, settings: Mapping[str, PeftSettings]) -> None:
    """A word about modules that lack an alpha where others have one."""
    scaled = {
        module: parts for module, parts in match.modules.items() if (kind := kind_of(parts)) and kind.scaled(parts)
    }
    lacking = [module for module, parts in scaled.items() if "alpha" not in parts]
    if lacking and len(lacking) < len(scaled) and not settings:
        match.notes.append(
            f"{len(lacking)} of {len(scaled)} modules have no alpha, which is read as their rank (scale 1): "
            f"{shorten(lacking, 3)}"
        )


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
