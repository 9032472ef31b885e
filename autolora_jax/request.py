"""What one call asks for, checked and laid out per image: everything that does not depend on which model answers."""

import dataclasses
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from autolora_jax import guidance
from autolora_jax import noise as noises
from autolora_jax.canvas import Canvas
from autolora_jax.config import ConfigError
from autolora_jax.given import Originals
from autolora_jax.guidance import Plan
from autolora_jax.lora import Loaded, by_kind, padded_scales
from autolora_jax.settings.call import Call
from autolora_jax.settings.fields import told
from autolora_jax.settings.pictures import SKIP, SKIPPING
from autolora_jax.settings.rules import Rule
from autolora_jax.text import Sizes, Text, TextSettings
from autolora_jax.text.embeds import SAID, GivenEmbeds, pairs_of
from autolora_jax.text.syntax import SYNTAXES, foreign
from autolora_jax.weights.lora.distilled import usual_of

Texts = str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Request:
    """n images, prompt-major: rows (p0,s0), (p0,s1), …, (p1,s0), …"""

    positive: list[Text]  # n
    negative: list[Text | None]  # n; None = what the checkpoint's pipeline means by no negative prompt
    given: tuple[GivenEmbeds | None, GivenEmbeds | None]  # what is told instead of negative and positive texts
    seeds: list[int]  # n
    rules: list[Rule]  # n, values of one image each
    plan: Plan
    strengths: np.ndarray  # of the LoRAs, whatever they act on, float32 [n, steps or 1, loras]
    scales: dict[str, np.ndarray]  # kind of weights -> LoRA scales by their roles, as `strengths`
    text_scales: dict[str, np.ndarray]  # of the text encoders, which speak once: [n, loras]
    rescale: np.ndarray | None  # float32 [n]
    skip_scale: np.ndarray | None  # float32 [n], of skip-layer guidance
    skipped: np.ndarray | None  # bool [layers]
    latents: np.ndarray | None  # float32 [n h w c], instead of noise from the seeds
    latent_shape: tuple[int, int, int]  # (h, w, c)
    text: TextSettings
    call: Call  # every open choice made
    originals: Originals | None  # that the pictures are made from

    @classmethod
    def of(cls, call: Call, canvas: Canvas, loaded: Sequence[Loaded]) -> "Request":
        """The request, or a ValueError that names the argument, what it should be and what came."""
        yes, no = pairs_of(vars(call))
        texts = [""] * yes.prompts if yes else call.prompt
        assert texts is not None, "a Call has one of both"
        prompts = join_texts(texts, call.prompt_2, call.prompt_3)
        negatives = join_negatives(call.negative_prompt, call.negative_prompt_2, call.negative_prompt_3)
        _check_marks([*prompts, *negatives], call.prompt_syntax)
        seeds = list(call.all_seeds)
        if call.paired and len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed per prompt")
        repeat = 1 if call.paired else len(seeds)
        n = len(prompts) * repeat
        if n == 0:
            raise ValueError(f"nothing to draw: {len(prompts)} prompts × {repeat} seeds")
        originals = Originals.of(call.image, call.mask_image, len(prompts), repeat)
        if originals is None and call.strength is not None:
            raise ConfigError(f"strength = {call.strength} is how much a given picture is changed: give image=, too")
        if call.skip is None and (given := [name for name in SKIPPING if getattr(call, name) is not None]):
            raise ConfigError(f"{given[0]} = {getattr(call, given[0])} is of layers that are skipped: give {SKIP}, too")
        tuned = any(lora.tells_apart for lora in loaded)
        usual = usual_of((lora.report.distilled, lora.role) for lora in loaded if lora.enabled)
        call = canvas.resolved(call, tuned, None if originals is None else originals.ground, usual)
        assert call.size is not None and call.guidance is not None
        rules = call.guidance
        steps = canvas.steps(call)
        strengths = _strengths(call.lora_scale, loaded, n, steps)
        rescaling = bool(np.any(np.asarray(call.guidance_rescale)))
        skip_scale = skipped = None
        if (skip := call.skip) is not None:
            skip_scale = _per_image(skip.scale, n, SKIPPING[0])
            skip = skip._replace(scale=skip_scale.tolist())
            skipped = np.isin(np.arange(canvas.layers), call.skipped_layers)
        plan = guidance.plan(rules, n, steps, reference=rescaling, skip=skip)
        if "base" in plan.weights and not tuned:
            why = "all LoRAs act on both: load one with role='tuned'" if loaded else "no LoRA is loaded: use load_lora"
            raise ValueError(f"{rules} compares a tuned model with its base, but {why}")
        scales = by_kind(strengths, loaded, plan.weak_factor)
        told = text_scales({kind: values.mean(axis=1) for kind, values in scales.items()}, call.base_text)
        shape = canvas.latent_shape(call.size)
        return cls(
            positive=[t for t in prompts for _ in range(repeat)],
            negative=[t for t in broadcast_negatives(negatives, len(prompts)) for _ in range(repeat)],
            given=(
                no and no.for_images(len(prompts), repeat, plan.weights),
                yes and yes.for_images(len(prompts), repeat, plan.weights),
            ),
            seeds=seeds if call.paired else seeds * len(prompts),
            rules=[rules.at(i) for i in range(n)] if isinstance(rules, Rule) else list(rules),
            plan=plan,
            strengths=strengths,
            scales={kind: scales[kind] for kind in plan.weights},
            text_scales={kind: values for kind, values in told.items() if kind in plan.weights},
            rescale=_per_image(call.guidance_rescale, n, "guidance_rescale") if rescaling else None,
            skip_scale=skip_scale,
            skipped=skipped,
            latents=None if call.latents is None else _given_noise(call.latents, (n, *shape)),
            latent_shape=shape,
            text=TextSettings(
                _sizes(call), call.clip_skip, call.max_sequence_length, call.prompt_syntax, call.prompt_chunks
            ),
            call=call,
            originals=originals,
        )

    # What a seed's generator draws, in diffusers' order: from a given picture what its latents are sampled by; the
    # initial noise; with a mask what those of the picture's kept part would be sampled by, which ordinary checkpoints
    # do not read; then the steps' noise.

    @property
    def masked(self) -> bool:
        """Whether a mask keeps a part of the given pictures."""
        return self.originals is not None and self.originals.ground.masked

    def latent_noise(self, index: np.ndarray) -> np.ndarray:
        """What the latents of some given pictures are sampled by, unit variance, float32 [b h w c]."""
        return noises.initial_noise([self.seeds[i] for i in index], self.latent_shape, self.call.noise)

    def initial_noise(self, index: np.ndarray) -> np.ndarray:
        """x_T of some images, unit variance, float32 [b h w c]."""
        if self.latents is not None:
            return self.latents[index]
        before = int(self.originals is not None)
        return noises.initial_noise([self.seeds[i] for i in index], self.latent_shape, self.call.noise, before)

    def step_noise(self, index: np.ndarray, steps: int) -> np.ndarray:
        """Fresh noise of some images for a stochastic solver, float32 [b steps h w c]."""
        seeds, before = [self.seeds[i] for i in index], int(self.originals is not None) + int(self.masked)
        by_step = noises.step_noise(seeds, steps, self.latent_shape, self.call.noise, before)
        return np.ascontiguousarray(np.moveaxis(by_step, 1, 0))

    def model_scales(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """LoRA scales of some images by kind of weights, with zeros for LoRAs that are not there: one more compiles
        nothing."""
        return {kind: padded_scales(values[index]) for kind, values in self.scales.items()}

    @property
    def scale_groups(self) -> list[list[int]]:
        """The images, those together that have the same LoRA scales."""
        groups: dict[bytes, list[int]] = {}
        for i in range(len(self.seeds)):
            groups.setdefault(b"".join(values[i].tobytes() for values in self.scales.values()), []).append(i)
        return list(groups.values())

    def batches(self, devices: int, most: int, ready: Collection[int] = ()) -> tuple[int, list[np.ndarray]]:
        """(images a device at once, the images of each batch, as the devices take them): all of them, in batches.

        Images that one device draws at once have the same LoRA scales, because they share its merged kernels. A
        number of images that no size holds is filled up by repeating some. Sizes are powers of two and `most`.

        most: images a device at once. ready: sizes whose programs are there: one that is large enough is taken
        rather than a fitting one that would have to be compiled.
        """
        groups = self.scale_groups
        needed = min(most, -(-len(self.seeds) // devices), max(map(len, groups)))
        fitting = min(most, 1 << (needed - 1).bit_length())
        size = min((size for size in ready if needed <= size <= most), default=fitting)
        slots = [_filled(group[i : i + size], size) for group in groups for i in range(0, len(group), size)]
        batches = [_filled(slots[i : i + devices], devices) for i in range(0, len(slots), devices)]
        return size, [np.concatenate(batch) for batch in batches]

    def settings(self) -> list[dict[str, Any]]:
        """What each image was asked to be, for its metadata: all that has a column, under its name there."""
        told_scales = any(values.any() for values in self.scales.values()) or "lora" in self.scales
        return [
            {
                **self._texts(i),
                "seed": self.seeds[i],
                **told(self.call),
                "guidance": self.rules[i],
                "guidance_rescale": 0.0 if self.rescale is None else float(self.rescale[i]),
                SKIPPING[0]: None if self.skip_scale is None else float(self.skip_scale[i]),
                "lora_scales": [_told(s) for s in self.strengths[i].T] if told_scales else [],
                "noise": self.call.noise if self.latents is None else "given",
                "size": self.call.size,
                **({} if self.originals is None else self.originals.told(i)),
            }
            for i in range(len(self.seeds))
        ]

    def _texts(self, i: int) -> dict[str, str | None]:
        """What an image is told, for its metadata; of what was given in place of texts a digest."""
        no, yes = self.given
        texts = (None, None, None) if yes else self.positive[i]
        negative = None if no or (text := self.negative[i]) is None else text.first
        return {
            **dict(zip(("prompt", "prompt_2", "prompt_3"), texts, strict=True)),
            "negative_prompt": negative,
            **{given.name: given.digest(i)[:SAID] for given in (yes, no) if given},
        }


def _check_marks(texts: Sequence[Text | None], name: str) -> None:
    """Raises ConfigError for a prompt that its syntax can't read; warns of marks that are read as letters."""
    for text in dict.fromkeys(part for given in texts if given is not None for part in given):
        SYNTAXES[name].parts(text)
        if name == "plain" and (found := foreign(text)):
            warnings.warn(
                f"the prompt {text!r} is read letter by letter: {found}. prompt_syntax 'a1111' or 'comfy' reads "
                "weights; load_lora, or --lora FILE:SCALE, loads a LoRA",
                stacklevel=2,
            )


def _sizes(call: Call) -> tuple[Sizes, Sizes]:
    """SDXL's size conditioning (negative, positive)."""
    assert call.size is not None
    own = (call.size[1], call.size[0])
    size = Sizes(call.original_size or own, call.crops_coords_top_left, call.target_size or own)
    if call.image is not None:  # diffusers' img2img takes each by itself, and the crop of both from the positive one
        crop = call.negative_crops_coords_top_left if any(call.negative_crops_coords_top_left) else size[1]
        return Sizes(call.negative_original_size or size[0], crop, call.negative_target_size or size[2]), size
    if not (call.negative_original_size and call.negative_target_size):  # diffusers takes them only together
        return size, size
    return Sizes(call.negative_original_size, call.negative_crops_coords_top_left, call.negative_target_size), size


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


def join_negatives(first: Any, *others: Texts | None) -> list[Text | None]:
    """Negative prompts for all encoders; None = what the checkpoint's pipeline means by none."""
    if first is None and (first := next((text for text in others if text is not None), None)) is None:
        return [None]
    firsts = [first] if isinstance(first, str) else list(first)
    joined = join_texts([text or "" for text in firsts], *others)
    return [None if text is None else whole for text, whole in zip(firsts, joined, strict=True)]


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
    return {**scales, "base": scales[base_text]}


def _filled(items: list[Any], n: int) -> list[Any]:
    """n items: the last one again where there are fewer."""
    return items + items[-1:] * (n - len(items))


def _told(scale: np.ndarray) -> float | list[float]:
    """A LoRA's scale over the steps: a number if it is one."""
    values: list[float] = scale.tolist()
    return values[0] if len({*values}) == 1 else values


def _strengths(lora_scale: Any, loaded: Sequence[Loaded], n: int, steps: int) -> np.ndarray:
    """float32 [n, steps or 1, loras].

    lora_scale: of a call; one that is not for each LoRA by itself is for those that make the tuned model, and what is
    masked is the LoRA's own. A LoRA that is disabled has none.
    """
    loras = len(loaded)
    columns = [lora.over(steps) for lora in loaded]
    own = np.stack(np.broadcast_arrays(*columns), axis=-1)[None] if loaded else np.zeros((1, 1, 0), np.float32)
    given = np.ma.masked_all((1, 1, 1)) if lora_scale is None else np.ma.asarray(lora_scale, np.float32)
    kept = np.ma.getmaskarray(given)
    if given.ndim < 2:
        kept = np.array([lora.role != "tuned" for lora in loaded], bool)
        if loaded and kept.all():
            raise ValueError(
                f"lora_scale={lora_scale} is of LoRAs with the role 'tuned', and none is loaded; give an array with a "
                "scale for each LoRA"
            )
        given = given.reshape(-1, 1, 1)
    elif given.ndim == 2:
        given, kept = given[:, None], kept[:, None]
    try:
        scales = np.where(kept, own, np.ma.getdata(given))
        scales = np.broadcast_to(scales, (n, scales.shape[1], loras)).astype(np.float32)
    except ValueError:
        scales = np.zeros((0, 0, 0))
    if scales.shape[1] not in (1, steps):
        raise ValueError(
            f"lora_scale has shape {np.shape(lora_scale)}; give a number, {n} numbers (one per picture), an array of "
            f"shape ({n} or 1, {loras}): pictures, LoRAs loaded, or ({n} or 1, {steps}, {loras}): over the steps"
        )
    if not np.isfinite(scales).all():
        raise ValueError("lora_scale must be finite")
    return scales * np.array([lora.enabled for lora in loaded], np.float32)


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
