"""What a model says of the pictures that it draws; here a drawing's open choices are made, for calls and jobs alike."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

import numpy as np

from autolora_jax.config import ConfigError, MMDiTConfig, SchedulerConfig
from autolora_jax.given import Ground
from autolora_jax.schedules import (
    SOLVERS,
    SPACINGS,
    Schedule,
    make_schedule,
    own_scheduler,
    own_spacing,
    skipped_steps,
    solvers_for,
)
from autolora_jax.settings.pictures import SKIP, SKIPPING, STEPS, DrawingConfig
from autolora_jax.settings.rules import ZEROED, Rule
from autolora_jax.weights.lora.distilled import NOTHING_SAID, Usual

Drawn = TypeVar("Drawn", bound=DrawingConfig)
# (whether the model predicts flow, whether there is a mask) -> strength where none is given, as in diffusers.
STRENGTHS = {(False, False): 0.3, (False, True): 0.9999, (True, False): 0.6, (True, True): 0.6}


class Canvas(NamedTuple):
    """What a model says of the pictures that it draws."""

    factor: int  # pixels per latent cell
    patch: int  # latent cells per side of a token
    cells: int  # of a side of the pictures that it was trained on
    channels: int  # of latents
    usual: float  # scale of classifier-free guidance that it is used with
    scheduler: SchedulerConfig
    layers: int = 0  # that skip-layer guidance may skip

    @classmethod
    def of(cls, denoiser: Any, vae: Any, usual: float, scheduler: SchedulerConfig) -> "Canvas":
        """From the networks' configs."""
        layers = denoiser.num_layers if isinstance(denoiser, MMDiTConfig) else 0
        return cls(
            vae.factor, denoiser.patch_size, denoiser.sample_size, denoiser.in_channels, usual, scheduler, layers
        )

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(h, w, c) of a picture's latents. size: (width, height), pixels."""
        return size[1] // self.factor, size[0] // self.factor, self.channels

    def schedule(self, drawing: DrawingConfig, masked: bool = False, parts: int = 1) -> Schedule:
        """Of a drawing whose choices are made. Raises ValueError for one that the model can't be sampled with.

        masked: whether a mask keeps a part of a given picture. parts: into how many each step is divided.
        """
        assert drawing.size is not None and drawing.num_inference_steps is not None
        tokens = drawing.size[0] * drawing.size[1] // (self.factor * self.patch) ** 2
        return make_schedule(
            self.scheduler,
            drawing.num_inference_steps,
            drawing.scheduler,
            drawing.timestep_spacing,
            tokens,
            drawing.strength,
            masked,
            drawing.eta,
            parts,
        )

    def steps(self, drawing: DrawingConfig) -> int:
        """How many steps such a drawing takes: all, or from a given picture the last ones."""
        n, strength = drawing.num_inference_steps, drawing.strength
        assert n is not None
        return n if strength is None else n - skipped_steps(n, strength, self.scheduler.flow)

    def resolved(self, drawing: Drawn, tuned: bool, ground: Ground | None = None, usual: Usual = NOTHING_SAID) -> Drawn:
        """It with every open choice made: guidance and its scales, skipped layers, size, steps, scheduler, spacing, η,
        strength.

        tuned: whether there is a LoRA. usual: what distilled LoRAs are drawn with. ground: what the picture is made
        from; None: from noise, and strength means nothing. Raises ValueError for what the model can't draw.
        """
        rules = drawing.rule_of(tuned, usual.guidance)
        every = [rules] if isinstance(rules, Rule) else list(rules)
        if not self.scheduler.flow and any(np.any(getattr(rule, ZEROED)) for rule in every):
            raise ConfigError(
                f"{ZEROED} is for models that predict a velocity (SD3, SD3.5): at zero the picture stays where it is. "
                "This one predicts otherwise, and would only keep too much noise; leave it at 0"
            )
        filled = [rule.filled(self.usual) for rule in every]
        theirs = usual.scheduler if usual.scheduler in solvers_for(self.scheduler) else None
        scheduler = drawing.scheduler or theirs or own_scheduler(self.scheduler)
        spacing = usual.timestep_spacing if theirs and usual.timestep_spacing in SPACINGS else None
        return dataclasses.replace(
            drawing,
            guidance=filled[0] if isinstance(rules, Rule) else filled,
            **self._skipping(drawing),
            size=self._size(drawing, ground),
            strength=self._strength(drawing, ground),
            num_inference_steps=drawing.num_inference_steps or usual.steps or STEPS,
            scheduler=scheduler,
            timestep_spacing=drawing.timestep_spacing or spacing or own_spacing(self.scheduler, scheduler),
            eta=SOLVERS[scheduler].eta if drawing.eta is None else drawing.eta,
        )

    def _skipping(self, drawing: DrawingConfig) -> dict[str, Any]:
        """The settings of skip-layer guidance; nothing where it adds nothing."""
        skip = drawing.skip
        if outside := [layer for layer in drawing.skipped_layers if layer >= self.layers]:
            there = (
                f"layers 0 to {self.layers - 1}" if self.layers else "none that can be skipped: it is for SD3, SD3.5"
            )
            raise ConfigError(
                f"{SKIP} = {drawing.skip_guidance_layers} names layer {outside[0]}; this model has {there}"
            )
        is_on = skip is not None and bool(np.any(skip.scale))
        values = dict(zip(SKIPPING, skip if is_on and skip else (None,) * 3, strict=True))
        return {SKIP: drawing.skip_guidance_layers if is_on else None, **values}

    def _strength(self, drawing: DrawingConfig, ground: Ground | None) -> float | None:
        if ground is None:
            return None
        usual = STRENGTHS[self.scheduler.flow, ground.masked]
        return usual if drawing.strength is None else float(drawing.strength)

    def _size(self, drawing: DrawingConfig, ground: Ground | None) -> tuple[int, int]:
        """(width, height) in pixels: whole patches, though the UNet copes with odd numbers of its single cells."""
        unit, trained = self.factor * self.patch, self.cells * self.factor
        width, height = drawing.sides()
        for name, side in (("height", height), ("width", width)):
            if side is not None and (side <= 0 or side % unit):
                near = max(unit, round(side / unit) * unit)
                raise ValueError(f"{name}={side} is not a positive multiple of {unit}; {near} is")
        usual: tuple[int, int] = (trained, trained)
        if ground is not None and not (width and height):
            if ground.size is None:
                raise ConfigError("image has pictures of several sizes; give one size (--size) for all")
            usual = (max(unit, ground.size[0] // unit * unit), max(unit, ground.size[1] // unit * unit))
        return width or usual[0], height or usual[1]
