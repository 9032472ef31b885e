"""AutoLoRAPipeline: checkpoint and LoRA files in, pictures out. The only file that knows every part."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import DTypeLike
from PIL import Image

from autolora_jax import lora
from autolora_jax.compilation import keep_programs
from autolora_jax.config import SchedulerConfig
from autolora_jax.demo import MODEL
from autolora_jax.engine import Engine
from autolora_jax.guidance import CFG, AutoLoRA, Rule
from autolora_jax.loading import load_parts
from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.progress import OnProgress
from autolora_jax.request import (
    Request,
    Texts,
    broadcast_negatives,
    join_negatives,
    join_texts,
    picture_size,
    text_scales,
)
from autolora_jax.sampler import Model
from autolora_jax.schedules import make_schedule, own_scheduler
from autolora_jax.sharding import data_mesh, replicated
from autolora_jax.text import Sizes, TextSettings, TextStage, Word
from autolora_jax.text.stage import same_text
from autolora_jax.warming import warm_up
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.families import Family
from autolora_jax.weights.lora.embeddings import read_embedding
from autolora_jax.weights.lora.files import read_lora

Tree = Mapping[str, Any]
Size = tuple[int, int]
REHEARSED = 30  # steps of a run that is only compiled for: enough for any interval to show


@dataclasses.dataclass(frozen=True)
class Output:
    """images: ordered prompt-major, (p0,s0), (p0,s1), …, (p1,s0), …; settings[i]: all that image i was made from."""

    images: Any  # list of PIL images | uint8 [n h w 3] | float32 latents [n h/8 w/8 c]
    settings: list[dict[str, Any]]


OnImages = Callable[[Output], None]


class AutoLoRAPipeline:
    """A loaded model with its (optional) LoRAs, ready to draw. Build it with `from_pretrained`."""

    def __init__(
        self,
        *,
        family: Family,
        denoiser: nn.Module,
        vae: AutoencoderKL,
        text: TextStage,
        params: Mapping[str, Tree],
        scheduler: SchedulerConfig,
        mesh: jax.sharding.Mesh,
        name: str,
    ) -> None:
        self.family = family
        self.denoiser: Any = denoiser
        self.vae, self.text = vae, text
        self.params = params  # by component: "unet" or "transformer", "vae", "text_encoder", …
        self.scheduler = scheduler
        self.mesh = mesh
        self.name = name
        self.reports: list[lora.LoraReport] = []
        self._scales: list[float] = []
        self._loras: list[Mapping[str, Tree]] = []  # one mapping component -> tree per loaded LoRA
        self._delta: Mapping[str, Tree] = {}  # stacked, on the devices
        model = Model(params[family.denoiser], {})
        self.engine = Engine(self.denoiser, vae, text, model, params["vae"], mesh)

    # ---- loading ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str] | None = None,
        *,
        dtype: DTypeLike = "bfloat16",
        devices: Sequence[jax.Device] | None = None,
        weight_shards: int = 1,
        variant: str | None = None,
        revision: str | None = None,
        tokenizer: str | PathLike[str] | None = None,
        text_encoders: str | PathLike[str] | None = None,
        text_encoder_3: str | None = "device",
        cache_dir: str | PathLike[str] | None = None,
        compilation_cache: str | PathLike[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> "AutoLoRAPipeline":
        """A pipeline on the given devices (default: all), weights placed tensor by tensor.

        source: a diffusers folder, a hub id, a single .safetensors file, or a converted Orbax folder; nothing is the
            built-in model, "builtin".
        dtype: "bfloat16" (float32 where it matters: norm statistics, softmax, step arithmetic, the VAE) or "float32"
            (float32 products too, on every device).
        weight_shards: devices that hold one copy of the weights together, for a model too large for one of them.
        variant: "fp16" takes the `*.fp16.safetensors` files of a diffusers folder or hub repository.
        tokenizer: folder or hub id that holds tokenizer/, tokenizer_2/, …; needed offline for a single file.
        text_encoders: folder, file or hub id with the text encoders that a single file of SD3 leaves out; needed
            offline for CLIP, and for T5, which else stays out.
        text_encoder_3: where SD3's T5 and its 9.5 GB are. "device": with the rest. "host": in host memory, from where
            they pass through the first device, once for the new prompts of a batch. None: nowhere; the model then sees
            zeros for it, as it did in a part of its training.
        compilation_cache: where compiled programs are kept for other processes: a folder, a bucket's URL or "off";
            by default in the user's cache folder, see compilation.keep_programs. JAX has one for the whole process.
        Raises WeightsError or ConfigError that name the file, what was expected and what to do.
        """
        keep_programs(compilation_cache)
        source = source if source is not None else MODEL
        dtype = jnp.dtype(dtype)
        mesh = data_mesh(devices, weight_shards)
        checkpoint = open_checkpoint(
            source,
            variant=variant,
            revision=revision,
            tokenizer=tokenizer,
            text_encoders=text_encoders,
            cache_dir=cache_dir,
        )
        parts = load_parts(checkpoint, dtype, mesh, text_encoder_3, on_progress)
        return cls(**parts._asdict(), scheduler=checkpoint.scheduler, mesh=mesh, name=Path(source).name)

    def load_lora(self, source: str | PathLike[str], scale: float = 1.0) -> lora.LoraReport:
        """Adds a LoRA (path or hub id) on top of those loaded, and says what it holds; the base weights stay untouched.

        scale: strength of its delta in later calls; a call's `lora_scale` overrides it.
        Raises WeightsError when any part of the file can't be applied exactly.
        """
        file = read_lora(source, self.lora_targets())
        trees, report = lora.attach(file, self.denoiser.param_dtype, self.params)
        words = [Word(name, vectors, report.path, len(self._loras)) for name, vectors in file.embeddings.items()]
        self.text.set_words([*self.text.words, *words])
        self.add_lora(trees, report, scale)
        return report

    def add_lora(self, trees: Mapping[str, Tree], report: lora.LoraReport, scale: float = 1.0) -> None:
        """Adds a LoRA that is no file: component -> delta tree, as `lora.attach` gives them."""
        self._loras.append(trees)
        self._scales.append(float(scale))
        self.reports.append(report)
        self._stack()

    def unload_lora(self) -> None:
        """Drops every LoRA and the words that came with them: the base model alone again."""
        self._loras, self._scales, self.reports = [], [], []
        self.text.set_words(word for word in self.text.words if word.lora is None)
        self._stack()

    def load_textual_inversion(self, source: str | PathLike[str], token: str | None = None) -> str:
        """Adds an embedding (path or hub id of a .safetensors file): the word that stands for its vectors in prompts.

        Every branch reads it, the base model's too; text.words says how it is found in a prompt.
        token: the word; by default the file's name without its ending. It is returned.
        Raises WeightsError when the file does not fit the model's text encoders or the word is taken.
        """
        path, vectors = read_embedding(source, {name: encoder.config for name, encoder in self.text.encoders.items()})
        word = Word((token or "").strip() or path.stem, vectors, str(path))
        self.text.set_words([*self.text.words, word])
        return word.name

    def unload_textual_inversion(self, token: str | None = None) -> None:
        """Drops one embedding that load_textual_inversion added, or all of them. Raises ValueError if there is none."""
        loaded = [word.name for word in self.text.words if word.lora is None]
        if token is not None and token not in loaded:
            raise ValueError(f"no embedding {token!r} is loaded; there are {loaded or 'none'}")
        kept = [word for word in self.text.words if word.lora is not None or token not in (None, word.name)]
        self.text.set_words(kept)

    def lora_targets(self) -> dict[str, Any]:
        """What a LoRA can change: component -> (its parameters, its config)."""
        networks = {self.family.denoiser: self.denoiser, **self.text.encoders}
        return {name: (self.params[name], network.config) for name, network in networks.items()}

    def _stack(self) -> None:
        components = (self.family.denoiser, *self.text.encoders)
        stacked = {name: lora.stack([trees.get(name, {}) for trees in self._loras]) for name in components}
        room = {name: lora.padded(tree, self.params[name]) for name, tree in stacked.items()}
        self._delta = jax.device_put(room, replicated(self.mesh))
        self.engine.set_delta(self._delta[self.family.denoiser])
        self.text.set_deltas({name: self._delta[name] for name in self.text.encoders}, len(self._loras))

    # ---- drawing ---------------------------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: Texts,
        negative_prompt: Texts | None = "",
        *,
        seeds: int | Sequence[int] = 0,
        guidance: Rule | Sequence[Rule] | None = None,
        num_inference_steps: int = 30,
        height: int | None = None,
        width: int | None = None,
        scheduler: str | None = None,
        timestep_spacing: str | None = None,
        guidance_rescale: float | Sequence[float] = 0.0,
        lora_scale: float | Sequence[float] | np.ndarray | None = None,
        noise: str = "jax",
        latents: np.ndarray | jax.Array | None = None,
        output_type: str = "pil",
        prompt_2: Texts | None = None,
        prompt_3: Texts | None = None,
        negative_prompt_2: Texts | None = None,
        negative_prompt_3: Texts | None = None,
        clip_skip: int | None = None,
        base_text: str = "base",
        max_sequence_length: int = 256,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        batch_size: int = 4,
        on_progress: OnProgress | None = None,
        on_images: OnImages | None = None,
    ) -> Output:
        """One picture per (prompt, seed). New values compile nothing; docs/compilation.md says what does.

        prompt, negative_prompt: str or one per prompt; negative_prompt=None is what the checkpoint's pipeline means by
            it (zeros for SDXL), "" is encoded. prompt_2, negative_prompt_2: for the second encoder; default: the same.
            prompt_3, negative_prompt_3: for SD3's third, T5; max_sequence_length: tokens that it reads, 1 to 512.
        seeds: one picture per prompt and seed, ordered prompt-major. 0 ≤ seed < 2^63.
        guidance: AutoLoRA (default when a LoRA is loaded), CFG (default when none is), NoGuidance, AutoGuidance,
            PersonalizationGuidance; its values may be sequences with one entry per picture, or give one rule each.
            CFG scales left open are the paper's for the model: 5.0 for SDXL, 7.0 for SD3.
        num_inference_steps: solver steps, 1 to the schedule's training timesteps.
        height, width: pixels, multiples of 8 (SDXL) or 16 (SD3); default the trained size.
        scheduler: None = the checkpoint's own; "ddim", "euler", "euler_ancestral", "dpmpp_2m", suffix "_karras"; for
            SD3 "flow_euler", "flow_dpmpp_2m".
        timestep_spacing: None = the checkpoint's own; "leading", "linspace", "trailing".
        guidance_rescale: 0..1, pulls the guided prediction's contrast back (arXiv 2305.08891); may be one per picture.
        lora_scale: overrides the scales given at load: a number, one per picture, [pictures or 1, LoRAs], or
            [pictures or 1, steps, LoRAs], a scale for each step; text encoders, which speak once, take the mean.
        noise: "jax", or "torch" for the values of torch's CPU generator, and so diffusers' pictures of a seed.
        latents: unit-variance initial noise [n, h/8, w/8, c] instead of noise from the seeds.
        output_type: "pil", "np" (uint8 [n h w 3]) or "latent" (float32 [n h/8 w/8 c]).
        base_text: what the base model's branches are told: "base" = by its own text encoders; "lora" = by the LoRA's,
            with its words, as the LoRA branches are, so that these differ from them by the denoiser alone.
        clip_skip, original_size, crops_coords_top_left, target_size and their negative_ forms: as in diffusers.
        batch_size: most pictures per device at once; more are drawn in turn. 4 fit a 16 GB chip at 1024², bfloat16.
        on_progress: called with Progress as the work proceeds; steps are reported as devices finish them, with what
            they have come to. What it raises ends the call, within a step or two, as Ctrl-C does.
        on_images: called with the Output of each batch, in order, as soon as it is drawn: what it saves is safe if a
            later batch fails, and the devices draw on meanwhile.
        Raises ValueError for arguments that can't be honoured. Warns when a picture comes out not finite.
        """
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type={output_type!r}: use 'pil', 'np' or 'latent'")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: need at least 1 picture per device")
        height, width = self._size(height, width)
        schedule = make_schedule(
            self.scheduler, num_inference_steps, scheduler, timestep_spacing, self._tokens(height, width)
        )
        size = Sizes(original_size or (height, width), crops_coords_top_left, target_size or (height, width))
        negative_size = size
        if negative_original_size and negative_target_size:  # diffusers takes them only together
            negative_size = Sizes(negative_original_size, negative_crops_coords_top_left, negative_target_size)
        request = Request.of(
            prompts=join_texts(prompt, prompt_2, prompt_3),
            negatives=join_negatives(negative_prompt, negative_prompt_2, negative_prompt_3),
            seeds=seeds,
            rules=self.filled(guidance),
            steps=num_inference_steps,
            guidance_rescale=guidance_rescale,
            lora_scale=[self._scales] if lora_scale is None else lora_scale,
            loras=len(self._loras),
            latents=latents,
            latent_shape=self._latent_shape(height, width),
            noise=noise,
            text=TextSettings((negative_size, size), clip_skip, max_sequence_length),
            base_text=base_text,
        )
        shared_settings = {
            "steps": num_inference_steps,
            "scheduler": scheduler or own_scheduler(self.scheduler),
            "size": (width, height),
            "model": self.name,
            "loras": [report.name for report in self.reports],
            "embeddings": [word.name for word in self.text.words if word.lora is None],
        }
        settings = [{**row, **shared_settings} for row in request.settings()]
        batches: list[Any] = []
        all_finite: list[bool] = []
        for pictures, finite in self.engine.draw(request, schedule, batch_size, output_type == "latent", on_progress):
            images = [Image.fromarray(p) for p in pictures] if output_type == "pil" else pictures
            if on_images:
                on_images(Output(images, settings[len(all_finite) : len(all_finite) + len(finite)]))
            batches.append(images)
            all_finite.extend(finite.tolist())
        bad = np.flatnonzero(~np.array(all_finite))
        if bad.size:
            seeds_of = [request.seeds[i] for i in bad]
            warnings.warn(
                f"pictures {bad.tolist()} (seeds {seeds_of}) came out not finite: NaN or infinite values; try lower "
                "guidance or LoRA scales, or dtype='float32'",
                stacklevel=2,
            )
        return Output([*chain(*batches)] if output_type == "pil" else np.concatenate(batches), settings)

    def filled(self, rules: Rule | Sequence[Rule] | None) -> Any:
        """Guidance, None being the default, with its open CFG scales at what is usual for this model."""
        usual = self.family.guidance_scale
        if rules is None:
            rules = AutoLoRA() if self._loras else CFG()
        return rules.filled(usual) if isinstance(rules, Rule) else [rule.filled(usual) for rule in rules]

    def encode_prompt(
        self,
        prompt: Texts,
        negative_prompt: Texts | None = "",
        *,
        clip_skip: int | None = None,
        base_text: str = "base",
        max_sequence_length: int = 256,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Conditioning by kind of weights: {"base", "lora"} -> network keyword -> [n, 2, …] (negative, positive)."""
        texts = join_texts(prompt, None, None)
        negatives = broadcast_negatives(join_negatives(negative_prompt, None, None), len(texts))
        scales = np.tile(np.asarray(self._scales, np.float32), (len(texts), 1))
        trained = self._size(None, None)
        sizes = Sizes(trained, (0, 0), trained)
        by_kind = text_scales({"base": np.zeros_like(scales), "lora": scales}, base_text)
        settings = TextSettings((sizes, sizes), clip_skip, max_sequence_length)
        return self.text.conditioning(texts, negatives, settings, by_kind)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pictures, uint8 [n h w 3], of latents [n h/8 w/8 c] as a call leaves them, or as a Progress holds them."""
        return self.engine.decode(latents)

    def warm_up(
        self,
        sizes: Sequence[Size] | None = None,
        *,
        batch_size: int = 4,
        guidance: Rule | Sequence[Rule] | None = None,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Compiles what later calls will need, or takes it from the compilation cache; how many programs that is.

        Load LoRAs first: without one, and with one, other programs run.

        sizes: (height, width) of pictures, pixels; default the trained size. batch_size: pictures a device at once.
        guidance: a rule, or several, that will be asked for; default as in a call.
        on_progress: told of the programs that are done, stage "compile".
        Raises ValueError for what can't be drawn.
        """
        rules = [guidance] if guidance is None or isinstance(guidance, Rule) else list(guidance)
        rehearsals = []
        for height, width in sizes or [self._size(None, None)]:
            height, width = self._size(height, width)
            schedule = make_schedule(self.scheduler, REHEARSED, image_seq_len=self._tokens(height, width))
            for rule in rules:
                request = Request.of(
                    prompts=[same_text(str(i)) for i in range(self.mesh.size * batch_size)],  # a text for each picture
                    negatives=[same_text("")],
                    seeds=0,
                    rules=self.filled(rule),
                    steps=REHEARSED,
                    guidance_rescale=0.0,
                    lora_scale=[self._scales],
                    loras=len(self._loras),
                    latents=None,
                    latent_shape=self._latent_shape(height, width),
                    noise="jax",
                    text=TextSettings((Sizes((height, width), (0, 0), (height, width)),) * 2),
                    base_text="base",
                )
                rehearsals.append((f"{width}×{height}, {batch_size} a device", request, schedule))
        return warm_up(self.engine, rehearsals, on_progress)

    # ---- sizes -----------------------------------------------------------------------------------------------------

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.vae.config.factor
        return height // factor, width // factor, self.denoiser.config.in_channels

    def _tokens(self, height: int, width: int) -> int:
        """Of a picture, as a flow's schedule counts them."""
        return height * width // (self.vae.config.factor * self.denoiser.config.patch_size) ** 2

    def _size(self, height: int | None, width: int | None) -> Size:
        """Pixels (height, width), whole patches of latent cells; the UNet copes with odd numbers of its single ones."""
        unit = self.vae.config.factor * self.denoiser.config.patch_size
        trained = self.denoiser.config.sample_size * self.vae.config.factor
        return picture_size(height, width, unit, trained)
