"""What a pipeline's users do with LoRAs: load, name, change and unload them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax

from autolora_jax import lora
from autolora_jax.engine import Engine
from autolora_jax.settings.fields import choose
from autolora_jax.settings.rules import ROLES
from autolora_jax.sharding import replicated
from autolora_jax.text import TextStage, Word
from autolora_jax.weights.families import Family
from autolora_jax.weights.lora.files import read_lora

Tree = Mapping[str, Any]


class WithLoras:
    """The part of a pipeline that knows its LoRAs. It is the pipeline that has what they change."""

    family: Family
    denoiser: Any
    params: Mapping[str, Tree]
    text: TextStage
    engine: Engine
    mesh: jax.sharding.Mesh

    loras: tuple[lora.Loaded, ...] = ()
    _named: tuple[Path, ...] = ()  # files of the last of these, which are there because prompts named them
    _delta: Mapping[str, Tree] = {}  # stacked, on the devices

    @property
    def reports(self) -> list[lora.LoraReport]:
        """What the LoRAs hold."""
        return [each.report for each in self.loras]

    def load_lora(
        self,
        source: str | PathLike[str],
        scale: lora.Strength = 1.0,
        *,
        name: str | None = None,
        role: str = "tuned",
        blocks: lora.Blocks | None = None,
    ) -> lora.LoraReport:
        """Adds a LoRA (path or hub id) on top of those loaded, and says what it holds; the base weights stay untouched.

        scale: strength of its delta in later calls: a number, several over the steps (linear between the first and the
            last), or a function of the progress, 0 to 1; text encoders take the mean. A call's `lora_scale` overrides
            that of those that are "tuned".
        name: by which set_lora, unload_lora and others call it; the file's by default.
        role: which weights it acts on. "tuned": those that guidance compares with the base model's. "all": the base
            model's, too, as a LoRA has to that makes it draw in few steps. "base": the base model's alone.
        blocks: factors on its layers, {"unet": {"down": 0.5, "up": {"block_0": [0.4, 1, 1]}, "attn2": 0.8}}, or 12 or
            20 numbers of SDXL's blocks; see lora.blocks.
        Raises WeightsError when any part of the file can't be applied exactly, ValueError for the rest.
        """
        self._load_named(())
        if name in self._names:
            raise ValueError(f"a LoRA {name!r} is loaded already; unload_lora({name!r}), or give this one another name")
        return self._load_lora(source, name, self._read(scale=scale, role=role, blocks=blocks))

    def _load_lora(self, source: str | PathLike[str], name: str | None, settings: Mapping[str, Any]) -> lora.LoraReport:
        file = read_lora(source, self.lora_targets())
        trees, report = lora.attach(file, self.denoiser.param_dtype, self.params)
        words = [Word(name, vectors, report.path, len(self.loras)) for name, vectors in file.embeddings.items()]
        self.text.set_words([*self.text.words, *words])
        self._add(lora.Loaded(report, name or self._free(report.name), trees=trees, **settings))
        return report

    def add_lora(self, trees: Mapping[str, Tree], report: lora.LoraReport, scale: lora.Strength = 1.0) -> None:
        """Adds a LoRA that is no file: component -> delta tree, as `lora.attach` gives them."""
        self._load_named(())
        self._add(lora.Loaded(report, self._free(report.name), scale, trees=trees))

    def _add(self, loaded: lora.Loaded) -> None:
        self.loras = (*self.loras, loaded)
        self._stack()

    def unload_lora(self, name: str | None = None) -> None:
        """Drops a LoRA, by its name, and the words that came with it; or all: the base model alone again.

        Raises ValueError where none is called so.
        """
        self._load_named(())
        gone = range(len(self.loras)) if name is None else [self._place(name)]
        self._keep([i for i in range(len(self.loras)) if i not in gone])

    def _keep(self, kept: Sequence[int]) -> None:
        """Drops all LoRAs but these, and the words that came with the others."""
        moved = {old: new for new, old in enumerate(kept)}
        self.loras = tuple(self.loras[i] for i in kept)
        words = [word for word in self.text.words if word.lora is None or word.lora in moved]
        self.text.set_words(w if w.lora is None else w._replace(lora=moved[w.lora]) for w in words)
        self._stack()

    def _load_named(self, files: Sequence[Path]) -> None:
        """Makes these the LoRAs that are loaded because prompts name them, behind all others."""
        if self._named == (*files,):
            return
        own = len(self.loras) - len(self._named)
        self._named = ()
        self._keep(range(own))
        for file in files:
            self._load_lora(file, None, {"scale": 0.0})
            self._named += (file,)

    # ---- by name -----------------------------------------------------------------------------------------------------

    def set_lora(
        self,
        name: str,
        *,
        scale: lora.Strength | None = None,
        role: str | None = None,
        enabled: bool | None = None,
        blocks: lora.Blocks | None = None,
    ) -> None:
        """Changes a LoRA that is loaded; what is None stays. It compiles nothing.

        enabled: a LoRA that is not stays loaded and acts nowhere. The others: as for load_lora; blocks={} takes block
        weights away. Raises ValueError where none is called so.
        """
        place = self._place(name)
        changes = self._read(scale=scale, role=role, enabled=enabled, blocks=blocks)
        changed = dataclasses.replace(self.loras[place], **changes)
        self.loras = (*self.loras[:place], changed, *self.loras[place + 1 :])
        if blocks is not None:
            self._stack()

    def _read(self, *, blocks: lora.Blocks | None, **given: Any) -> dict[str, Any]:
        """The settings of a LoRA that are given. Raises ValueError."""
        if (role := given.get("role")) is not None:
            choose(ROLES, role, "role")
        if blocks is not None:
            given["blocks"] = lora.read_blocks(blocks, {name: self.params[name] for name in self.lora_targets()})
        return {setting: value for setting, value in given.items() if value is not None}

    @property
    def _names(self) -> list[str]:
        return [each.name for each in self.loras]

    def _place(self, name: str) -> int:
        """Which of the LoRAs is called so."""
        if name not in self._names:
            raise ValueError(f"no LoRA {name!r} is loaded; there are {', '.join(self._names) or 'none'}")
        return self._names.index(name)

    def _free(self, name: str) -> str:
        """A name that none of the LoRAs has: this, or with a number behind it."""
        numbered = (f"{name}_{i}" if i > 1 else name for i in itertools.count(1))
        return next(each for each in numbered if each not in self._names)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """diffusers': enables these LoRAs and disables all others.

        adapter_weights: a scale or block weights, as set_lora takes them, for all of them, or a list with one for each;
        by default 1.0.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, list | tuple) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"adapter_weights are {len(weights)} for {len(names)} adapter_names; give one each")
        places = {self._place(name) for name in names}
        for name, weight in zip(names, weights, strict=True):
            by_block = isinstance(weight, Mapping)
            self.set_lora(name, scale=1.0 if by_block or weight is None else weight, blocks=weight if by_block else {})
        self._enable(lambda i: i in places)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """diffusers': unload_lora of each."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.unload_lora(name)

    def get_active_adapters(self) -> list[str]:
        """diffusers': the names of the LoRAs that are enabled."""
        return [each.name for each in self.loras if each.enabled]

    def disable_lora(self) -> None:
        """diffusers': no LoRA acts any more; all stay loaded."""
        self._enable(lambda i: False)

    def enable_lora(self) -> None:
        """diffusers': all LoRAs act again."""
        self._enable(lambda i: True)

    def _enable(self, which: Callable[[int], bool]) -> None:
        self.loras = tuple(dataclasses.replace(each, enabled=which(i)) for i, each in enumerate(self.loras))

    # ---- what they change --------------------------------------------------------------------------------------------

    def lora_targets(self) -> dict[str, Any]:
        """What a LoRA can change: component -> (its parameters, its config)."""
        networks = {self.family.denoiser: self.denoiser, **self.text.encoders}
        return {name: (self.params[name], network.config) for name, network in networks.items()}

    def _stack(self) -> None:
        components = (self.family.denoiser, *self.text.encoders)
        stacked = {name: lora.stack([each.tree(name) for each in self.loras]) for name in components}
        room = {name: lora.padded(tree, self.params[name]) for name, tree in stacked.items()}
        self._delta = jax.device_put(room, replicated(self.mesh))
        denoiser = self.family.denoiser
        self.engine.set_delta(self._delta[denoiser], stacked[denoiser])
        self.text.set_deltas({name: self._delta[name] for name in self.text.encoders}, len(self.loras))
