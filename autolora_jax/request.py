"""What one call asks for, checked and laid out per image: everything that does not depend on which model answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from autolora_jax import guidance
from autolora_jax import noise as noises
from autolora_jax.guidance import Plan, Rule
from autolora_jax.lora import padded_scales
from autolora_jax.text import Text, TextSettings

Texts = str | Sequence[str]
BASE_TEXTS = ("base", "lora")


@dataclasses.dataclass(frozen=True)
class Request:
    """n images, prompt-major: rows (p0,s0), (p0,s1), …, (p1,s0), …"""

    positive: list[Text]  # n
    negative: list[Text | None]  # n; None = what the checkpoint's pipeline means by no negative prompt
    seeds: list[int]  # n
    rules: list[Rule]  # n, values of one image each
    plan: Plan
    scales: dict[str, np.ndarray]  # kind of weights -> LoRA scales, float32 [n, loras]
    text_scales: dict[str, np.ndarray]  # the same of the text encoders
    base_text: str
    rescale: np.ndarray | None  # float32 [n]
    noise: str
    latents: np.ndarray | None  # float32 [n h w c], instead of noise from the seeds
    latent_shape: tuple[int, int, int]  # (h, w, c)
    text: TextSettings
    one_scale: bool = True  # whether the program may count on LoRA scales that all images agree in

    @classmethod
    def of(
        cls,
        *,
        prompts: list[Text],
        negatives: list[Text | None],
        seeds: int | Sequence[int],
        rules: Rule | Sequence[Rule],
        steps: int,
        guidance_rescale: float | Sequence[float],
        lora_scale: Any,
        loras: int,
        latents: Any,
        latent_shape: tuple[int, int, int],
        noise: str,
        text: TextSettings,
        base_text: str,
        paired: bool = False,
    ) -> "Request":
        """The request, or a ValueError that names the argument, what it should be and what came.

        paired: image i is prompt i with seed i, instead of every prompt with every seed.
        """
        seed_list = [int(seeds)] if isinstance(seeds, int | np.integer) else [int(s) for s in seeds]
        if paired and len(seed_list) != len(prompts):
            raise ValueError(f"{len(seed_list)} seeds for {len(prompts)} prompts; give one seed per prompt")
        repeat = 1 if paired else len(seed_list)
        n = len(prompts) * repeat
        if n == 0:
            raise ValueError(f"nothing to draw: {len(prompts)} prompts × {repeat} seeds")
        scales = _image_scales(lora_scale, n, loras)
        rescaling = bool(np.any(np.asarray(guidance_rescale)))
        plan = guidance.plan(rules, n, steps, reference=rescaling)
        if "base" in plan.weights and not loras:
            raise ValueError(f"{rules} compares a tuned model with its base, but no LoRA is loaded: use load_lora")
        by_kind = {"base": np.zeros_like(scales), "weak": plan.weak_factor[:, None] * scales, "lora": scales}
        return cls(
            positive=[t for t in prompts for _ in range(repeat)],
            negative=[t for t in broadcast_negatives(negatives, len(prompts)) for _ in range(repeat)],
            seeds=seed_list if paired else seed_list * len(prompts),
            rules=[rules.at(i) for i in range(n)] if isinstance(rules, Rule) else list(rules),
            plan=plan,
            scales={kind: by_kind[kind] for kind in plan.weights},
            text_scales={kind: s for kind, s in text_scales(by_kind, base_text).items() if kind in plan.weights},
            base_text=base_text,
            rescale=_per_image(guidance_rescale, n, "guidance_rescale") if rescaling else None,
            noise=noise,
            latents=None if latents is None else _given_noise(latents, (n, *latent_shape)),
            latent_shape=latent_shape,
            text=text,
        )

    def pixels(self, factor: int) -> int:
        """Pixels of one picture."""
        return self.latent_shape[0] * self.latent_shape[1] * factor**2

    def initial_noise(self, index: np.ndarray) -> np.ndarray:
        """x_T of some images, unit variance, float32 [b h w c]."""
        if self.latents is not None:
            return self.latents[index]
        return noises.initial_noise([self.seeds[i] for i in index], self.latent_shape, self.noise)

    def step_noise(self, index: np.ndarray, steps: int) -> np.ndarray:
        """Fresh noise of some images for a stochastic solver, float32 [b steps h w c]."""
        by_step = noises.step_noise([self.seeds[i] for i in index], steps, self.latent_shape, self.noise)
        return np.ascontiguousarray(np.moveaxis(by_step, 1, 0))

    def shared_scales(self, steps: int) -> dict[str, np.ndarray]:
        """LoRA scales [steps, loras] of the kinds of weights where all images agree: one merged kernel serves all."""
        return {kind: np.tile(s[0], (steps, 1)) for kind, s in self._adapted() if self.one_scale and _same(s)}

    def image_scales(self, index: np.ndarray, steps: int) -> dict[str, np.ndarray]:
        """LoRA scales [b, steps, loras] of the kinds of weights where they do not."""
        shared = self.shared_scales(steps)
        return {kind: np.repeat(s[index, None], steps, axis=1) for kind, s in self._adapted() if kind not in shared}

    def _adapted(self) -> list[tuple[str, np.ndarray]]:
        """With zeros for LoRAs that are not there, so that loading one more compiles nothing."""
        return [(kind, padded_scales(s)) for kind, s in self.scales.items() if kind != "base"]

    def settings(self) -> list[dict[str, Any]]:
        """What each image was asked to be, for its metadata."""
        lora_scales = next((s for kind, s in self.scales.items() if kind == "lora"), None)
        return [
            {
                "prompt": self.positive[i].first,
                "prompt_2": self.positive[i].second,
                "prompt_3": self.positive[i].third,
                "negative_prompt": None if (negative := self.negative[i]) is None else negative.first,
                "seed": self.seeds[i],
                "guidance": self.rules[i],
                "guidance_rescale": 0.0 if self.rescale is None else float(self.rescale[i]),
                "lora_scales": [] if lora_scales is None else [float(s) for s in lora_scales[i]],
                "noise": self.noise if self.latents is None else "given",
                "clip_skip": self.text.clip_skip,
                "base_text": self.base_text,
            }
            for i in range(len(self.seeds))
        ]


def picture_size(height: int | None, width: int | None, unit: int, trained: int) -> tuple[int, int]:
    """Pixels (height, width), multiples of `unit`; `trained` where not given. Raises ValueError."""
    sizes = {"height": height or trained, "width": width or trained}
    for name, size in sizes.items():
        if size <= 0 or size % unit:
            near = max(unit, round(size / unit) * unit)
            raise ValueError(f"{name}={size} is not a positive multiple of {unit}; {near} is")
    return sizes["height"], sizes["width"]


def join_texts(first: Texts, *others: Texts | None) -> list[Text]:
    """Prompts for all encoders; the second and third read the first's unless they are given their own."""
    firsts = [first] if isinstance(first, str) else list(first)
    columns = [firsts]
    for name, other in zip(("second", "third"), others, strict=True):
        texts = firsts if other is None else [other] * len(firsts) if isinstance(other, str) else list(other)
        if len(texts) != len(firsts):
            raise ValueError(
                f"{len(texts)} texts for the {name} encoder, {len(firsts)} for the first; give as many, or one"
            )
        columns.append(texts)
    return [Text(*row) for row in zip(*columns, strict=True)]


def join_negatives(*texts: Texts | None) -> list[Text | None]:
    """Negative prompts for all encoders; [None] = what the checkpoint's pipeline means by none."""
    given = next((text for text in texts if text is not None), None)
    if given is None:
        return [None]
    first, *others = texts
    return list(join_texts(given if first is None else first, *others))


def broadcast_negatives(negatives: list[Text | None], n: int) -> list[Text | None]:
    """One negative for all prompts, or one each."""
    if len(negatives) not in (1, n):
        raise ValueError(f"negative_prompt has {len(negatives)} texts for {n} prompts; give one, or one per prompt")
    return negatives * n if len(negatives) == 1 else negatives


def text_scales(scales: dict[str, np.ndarray], base_text: str) -> dict[str, np.ndarray]:
    """kind of weights -> LoRA scales at which its prompts are encoded.

    scales: kind of weights ("base" and "lora" at least) -> LoRA scales of its denoiser.
    base_text: whose text encoders and words speak to the base model.
    """
    if base_text not in BASE_TEXTS:
        raise ValueError(f"base_text={base_text!r}: use 'base' or 'lora'")
    return {**scales, "base": scales[base_text]}


def _same(scales: np.ndarray) -> bool:
    return bool((scales == scales[:1]).all())


def _image_scales(lora_scale: Any, n: int, loras: int) -> np.ndarray:
    scales = np.asarray(lora_scale, np.float32)
    if scales.ndim == 1:
        scales = scales[:, None]  # one per picture, the same for every LoRA
    try:
        scales = np.broadcast_to(scales, (n, loras)).copy()
    except ValueError:
        raise ValueError(
            f"lora_scale has shape {np.shape(lora_scale)}; give a number, {n} numbers (one per picture) or an array "
            f"of shape ({n} or 1, {loras}): pictures, LoRAs loaded"
        ) from None
    if not np.isfinite(scales).all():
        raise ValueError("lora_scale must be finite")
    return scales


def _per_image(value: Any, n: int, name: str) -> np.ndarray:
    values = np.asarray(value, np.float32)
    if values.shape not in ((), (1,), (n,)) or not np.isfinite(values).all():
        raise ValueError(f"{name} must be a finite number or {n} of them (one per picture), not shape {values.shape}")
    return np.broadcast_to(values, (n,)).copy()


def _given_noise(latents: np.ndarray | jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    x = np.asarray(latents, np.float32)
    if x.shape != shape:
        raise ValueError(f"latents has shape {x.shape}; expected {shape}: pictures, height/8, width/8, channels")
    return x
