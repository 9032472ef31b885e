"""A plan: every picture of a job as a number, its key, and the batches that draw them.

Nothing is listed: picture i is computed from the prompts, the recipes and the seeds when it is asked for, and a plan
keeps a key of 20 bytes for each. Order: prompt, then settings, then seed. A batch has a fixed number of rows and holds
pictures that one program draws with one set of loaded files; which ones follows from the plan, the pictures that are
still wanted and the number of rows alone. That is what makes a resumed run draw the very same batches.
"""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from autolora_jax.batch.prompts import read_prompts
from autolora_jax.batch.recipe import Program, Recipe, resolve
from autolora_jax.batch.sources import Base, EmbedsFile, Sources, canonical, found_at
from autolora_jax.config import ConfigError
from autolora_jax.given import Ground
from autolora_jax.settings.fields import told
from autolora_jax.settings.jobs import Job, Prompt, Settings
from autolora_jax.settings.pictures import check_seeds, read_seeds
from autolora_jax.settings.values import Lora, Seeds, Strength
from autolora_jax.text.embeds_file import Form
from autolora_jax.text.mentions import Named, mentions, read_mentions

KEY_LENGTH = 20  # hex digits, 80 bits: two of a billion pictures share a key with a chance of 4e-7
MOST_WASTE = 1.1  # rows that batches of one LoRA scale may need, relative to batches that mix scales
Items = Int[np.ndarray, "_"]  # numbers of pictures in a plan


class Row(NamedTuple):
    """A picture to be drawn."""

    item: int
    key: str
    prompt: str  # a caption, where there are embeds
    negative_prompt: str | None
    seed: int
    id: str | None
    recipe: Recipe
    base: Base | None = None
    embeds: EmbedsFile | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that it is made from, as a picture's file says it: see pictures.chunks."""
        recipe, columns = self.recipe, self.recipe.columns
        return {
            "key": self.key,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            **{name: columns[name] for name in ("model", "model_sha256", "loras", "lora_scales")},
            **{name: columns[name] for name in ("lora_roles", "lora_strengths", "lora_blocks")},
            "embeddings": columns["embeddings"],
            **told(recipe.load.model.config),
            **told(recipe.drawing),
            "guidance": recipe.rule,
            "size": recipe.size,
            "lora_hashes": [lora.autov3 for lora in recipe.load.loras],
            **(self.base.columns if self.base else {}),
            **(self.embeds.columns if self.embeds else {}),
        }


class Batch(NamedTuple):
    """Pictures that are drawn at once.

    number: among the batches of a run. rows: how many pictures the program draws; those beyond `items` are padding.
    """

    number: int
    items: Items
    rows: int


class Plan:
    """All pictures of a job."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        recipes: Mapping[Any, Sequence[Recipe]],
        negative: str | None,
        seeds: Sequence[Seeds],
        bases: Sequence[Base | None],
        embeds: Sequence[EmbedsFile | None],
        groups: Sequence[Any],
    ) -> None:
        """recipes: of the job's settings, for each group of prompts. negative: of prompts that have none of their own.
        seeds, bases, embeds, groups: of each prompt."""
        self.prompts, self.negative, self.seeds = list(prompts), negative, list(seeds)
        self.bases, self.embeds = list(bases), list(embeds)
        self.recipes = [recipe for of_group in recipes.values() for recipe in of_group]
        number = {group: i for i, group in enumerate(recipes)}
        self._each = len(self.recipes) // len(number)  # of a prompt
        # The number of each prompt's first recipe.
        self._recipe = np.array([self._each * number[group] for group in groups], np.int64)
        self._counts = np.array([len(own) for own in seeds], np.int64)
        self._starts = np.append(0, np.cumsum(self._counts * self._each))  # of each prompt's pictures
        self.keys = self._keys()
        _, first = np.unique(self.keys, return_index=True)
        self.first = np.zeros(len(self.keys), bool)  # where a key stands for the first time
        self.first[first] = True

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def duplicates(self) -> int:
        """Pictures that are wanted more than once; they are drawn once."""
        return int((~self.first).sum())

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """By its hash, where each of its files is found from this machine: "source", and what else opens a model."""
        files = [(file.sha256, file.source) for file in self._files()]
        models = {recipe.load.model.sha256: recipe.load.model for recipe in self.recipes}
        return {sha256: {"source": found_at(source)} for sha256, source in files} | {
            sha256: {
                "source": found_at(model.config.source or model.name),
                **{name: value for name, value in model.config.files().items() if value is not None},
            }
            for sha256, model in models.items()
        }

    def _files(self) -> Iterator[Any]:
        """Its LoRAs, embeddings, pictures and masks."""
        for recipe in self.recipes:
            yield from (*recipe.load.loras, *recipe.load.embeddings)
        for base in self.bases:
            yield from filter(None, base or ())

    @property
    def fingerprint(self) -> str:
        """What tells it from other plans."""
        return hashlib.sha256(self.keys.tobytes()).hexdigest()

    def row(self, item: int) -> Row:
        """A picture."""
        p = int(np.searchsorted(self._starts, item, side="right")) - 1
        prompt, seeds = self.prompts[p], self.seeds[p]
        r, s = divmod(int(item - self._starts[p]), len(seeds))
        key, recipe, given = self.keys[item].decode(), self.recipes[self._recipe[p] + r], self.embeds[p]
        text = prompt.text if given else _text(prompt, recipe)
        told = (int(item), key, text, self._negative(prompt, given), seeds[s], prompt.id)
        return Row(*told, recipe, self.bases[p], given)

    def rows(self, batch: Batch) -> list[Row]:
        """The pictures of a batch."""
        return [self.row(int(item)) for item in batch.items]

    def recipes_of(self, items: Items) -> Items:
        """The number of each picture's recipe."""
        p = np.searchsorted(self._starts, items, side="right") - 1
        return self._recipe[p] + (items - self._starts[p]) // self._counts[p]

    def batches(self, items: Items, rows: int) -> list[Batch]:
        """Batches of `rows` rows that draw these pictures, in an order that loads every set of files once."""
        recipes = self.recipes_of(items)
        batches: list[Batch] = []
        for group in self._groups(np.bincount(recipes, minlength=len(self.recipes)), rows):
            members = items[np.isin(recipes, group)]
            for start in range(0, len(members), rows):
                batches.append(Batch(len(batches), members[start : start + rows], rows))
        return batches

    def _groups(self, counts: Items, rows: int) -> list[list[int]]:
        """Numbers of recipes that may share batches, in drawing order; of one LoRA scale where that wastes few rows.

        counts: pictures of each recipe.
        """
        # Files loaded -> program -> LoRA scales -> recipes. Dicts remember who came first.
        tree: dict[Any, dict[Program, dict[tuple[Strength, ...], list[int]]]]
        tree = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        for number, recipe in enumerate(self.recipes):
            if counts[number]:
                tree[recipe.load.names][recipe.program][recipe.one_scale].append(number)
        by_model: dict[Any, list[Any]] = defaultdict(list)
        for names in tree:
            by_model[names[0]].append(names)
        groups: list[list[int]] = []
        for names in (names for same_model in by_model.values() for names in same_model):
            for scales in tree[names].values():
                apart = list(scales.values())
                together = [number for numbers in apart for number in numbers]
                needed = sum(_ceil(int(counts[numbers].sum()), rows) for numbers in apart)
                if needed <= MOST_WASTE * _ceil(int(counts[together].sum()), rows):
                    groups += apart
                else:
                    groups.append(together)
        return groups

    def _negative(self, prompt: Prompt, given: EmbedsFile | None) -> str | None:
        if given and given.negative:
            return None
        return self.negative if prompt.negative is None else prompt.negative

    def _keys(self) -> np.ndarray:
        """The key of each picture, as bytes: SHA-256 of the canonical JSON that `identity` describes."""
        keys = np.empty(len(self), f"S{KEY_LENGTH}")
        i = 0
        every = zip(self.prompts, self.seeds, self.bases, self.embeds, self._recipe, strict=True)
        for prompt, seeds, base, given, first in every:
            made_from = f'"embeds":{canonical([sha256 for _, sha256 in given.told])},' if given else ""
            made_from += f'"image":{canonical([file and file.sha256 for file in base])},' if base else ""
            heads: dict[str, str] = {}  # by what is encoded: all recipes of one syntax have the same
            for recipe in self.recipes[first : first + self._each]:
                encoded = "" if given else _text(prompt, recipe)
                if encoded not in heads:
                    heads[encoded] = json.dumps([encoded, self._negative(prompt, given)], separators=(",", ":"))[:-1]
                head = heads[encoded]
                tail = f'],"settings":{recipe.identity}}}'
                for seed in seeds:
                    text = f'{{{made_from}"picture":{head},{seed}{tail}'
                    keys[i] = hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH].encode()
                    i += 1
        return keys


def make_plan(job: Job, sources: Sources) -> Plan:
    """The plan of a job. Raises ConfigError, WeightsError, ValueError or OSError for what could not be drawn."""
    prompts = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in job.prompts]
    prompts += read_prompts(job.prompt_file) if job.prompt_file else []
    if not prompts:
        raise ConfigError("draw what? The job has neither prompts nor a prompt_file")
    each = [(prompt, given) for prompt in prompts for given in (sources.embeds(prompt) if prompt.embeds else [None])]
    prompts, embeds = [prompt for prompt, _ in each], [given for _, given in each]
    bases, settings = [sources.base(prompt) for prompt in prompts], job.all_settings()
    if not any(bases) and any(one.strength is not None for one in settings):
        raise ConfigError("settings.strength is how much given pictures are changed, but no prompt has an image")
    syntaxes = dict.fromkeys(one.prompt_syntax for one in settings)
    # What is read of each; and prompts on the same ground, of embeddings of one form, that name the same LoRAs: no
    # batch mixes others, and every file is loaded once.
    texts = ["" if given else prompt.text for prompt, given in each]
    groups = [
        (base and base.ground, given and given.form, tuple(mentions(text, syntax)[1] for syntax in syntaxes))
        for text, base, given in zip(texts, bases, embeds, strict=True)
    ]
    firsts: dict[Any, str] = {}
    for group, text in zip(groups, texts, strict=True):
        firsts.setdefault(group, text)
    alone = len({group[-1] for group in groups}) == 1
    recipes = {group: _recipes(text, settings, sources, group[:2], alone) for group, text in firsts.items()}
    shared = job.all_seeds  # one tuple for all prompts without their own
    seeds = [shared if own is None else read_seeds(own, f"seeds of {text!r}") for text, _, own, *_ in prompts]
    for noise in {one.noise for one in settings}:
        for own in {id(own): own for own in seeds}.values():
            check_seeds(own, noise)
    return Plan(prompts, recipes, job.negative_prompt, seeds, bases, embeds, groups)


def _recipes(
    text: str, every: Sequence[Settings], sources: Sources, given: tuple[Ground | None, Form | None], alone: bool
) -> list[Recipe]:
    """The recipes of a prompt, and of those that name the same LoRAs. given: what they are drawn from, and the form of
    what is told in place of texts. alone: there are no others."""
    found: dict[tuple[str, str | None], Named] = {}
    recipes = []
    for settings in every:
        place = settings.prompt_syntax, settings.lora_dir
        if place not in found:
            found[place] = read_mentions([text], *place)
        loras = (Lora(str(path), scale) for path, scale in found[place].scales[0].items())
        try:
            own = dataclasses.replace(settings, loras=(*settings.loras, *loras))
            recipes.append(resolve(own, sources, *given))
        except ConfigError as e:
            raise ConfigError(str(e) if alone else f"the prompt {text!r}: {e}") from None
    return recipes


def _text(prompt: Prompt, recipe: Recipe) -> str:
    """What is encoded of a prompt: not the LoRAs that it names, where its syntax does so."""
    return mentions(prompt.text, recipe.drawing.prompt_syntax)[0]


def _ceil(count: int, rows: int) -> int:
    """Batches for so many pictures."""
    return -(-count // rows)
