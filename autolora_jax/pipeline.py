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
from autolora_jax.canvas import Canvas
from autolora_jax.compilation import keep_programs
from autolora_jax.config import SchedulerConfig
from autolora_jax.demo import MODEL
from autolora_jax.display import shown
from autolora_jax.engine import Engine, texts_of, warm_up
from autolora_jax.loading import load_parts
from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.output import Output
from autolora_jax.pictures import Picture
from autolora_jax.progress import OnProgress
from autolora_jax.request import Request, Texts, text_scales
from autolora_jax.sampler import Model
from autolora_jax.settings.arguments import advice, only_known, taking
from autolora_jax.settings.call import Call
from autolora_jax.settings.model import INT8, TUNED_WEIGHTS, full_dtype
from autolora_jax.settings.rules import CFG, Rule
from autolora_jax.settings.values import strength_text
from autolora_jax.sharding import data_mesh
from autolora_jax.shown import Shown
from autolora_jax.text import Prompts, TextStage, Word
from autolora_jax.text.embeds import Embeds
from autolora_jax.text.mentions import read_mentions
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.families import Family
from autolora_jax.weights.lora.embeddings import read_embedding
from autolora_jax.weights.lora.metadata import listing
from autolora_jax.with_loras import WithLoras

Tree = Mapping[str, Any]
Size = tuple[int, int]
REHEARSED = 30  # steps of a run that is only compiled for: enough for any interval to show


OnImages = Callable[[Output], None]


class AutoLoRAPipeline(WithLoras, Shown):
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
        tuned_weights: str = "auto",
    ) -> None:
        self.family = family
        self.denoiser: Any = denoiser
        self.vae, self.text = vae, text
        self.params = params  # by component: "unet" or "transformer", "vae", "text_encoder", …
        self.scheduler = scheduler
        self.mesh = mesh
        self.name = name
        model = Model(params[family.denoiser], {}, {})
        self._progress: bool | None = None  # of calls that do not say
        self.engine = Engine(self.denoiser, vae, text, model, params["vae"], mesh, tuned_weights)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a pipeline has no {name!r}{advice(name)}")

    def __str__(self) -> str:
        rows = [
            ("family", self.family.name),
            ("pictures", f"{self.canvas.cells * self.canvas.factor} pixels a side, unless asked otherwise"),
            ("computes in", jnp.dtype(self.denoiser.dtype).name),
            ("devices", f"{self.mesh.size} × {self.mesh.devices.flat[0].device_kind}"),
            *(("LoRA", str(each)) for each in self.loras),
            *(("embedding", word.name) for word in self.text.words),
        ]
        return listing(self.name, rows)

    @property
    def canvas(self) -> Canvas:
        """What the model says of its pictures."""
        return Canvas.of(self.denoiser.config, self.vae.config, self.family.guidance_scale, self.scheduler)

    # ---- loading ---------------------------------------------------------------------------------------------------

    @classmethod
    @only_known
    def from_pretrained(
        cls,
        source: str | PathLike[str] | None = None,
        *,
        dtype: DTypeLike = "bfloat16",
        vae_dtype: DTypeLike | None = None,
        devices: Sequence[jax.Device] | None = None,
        weight_shards: int = 1,
        tuned_weights: str = "auto",
        int8: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        tokenizer: str | PathLike[str] | None = None,
        text_encoders: str | PathLike[str] | None = None,
        text_encoder_3: str | None = "device",
        vae: str | PathLike[str] | None = None,
        prediction_type: str | None = None,
        rescale_betas_zero_snr: bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        compilation_cache: str | PathLike[str] | None = None,
        progress: bool | None = None,
        on_progress: OnProgress | None = None,
    ) -> "AutoLoRAPipeline":
        """A pipeline on the given devices (default: all), weights placed tensor by tensor.

        source: a diffusers folder, a hub id, a single .safetensors file, or a converted Orbax folder; nothing is the
            built-in model, "builtin".
        dtype: "bfloat16" (float32 where it matters: norm statistics, softmax, step arithmetic, the VAE), "float16" (the
            same, more exact, where the device has it: no TPU has) or "float32" (float32 products too, on every device).
        vae_dtype: what the VAE computes in; None: float32 that on accelerators takes faster products unless `dtype` is
            float32, too; or `dtype` where the VAE's config allows (force_upcast is false).
        weight_shards: devices that hold one copy of the weights together, for a model too large for one of them.
        tuned_weights: "kept": a copy of the denoiser's weights with the LoRAs in it, which makes steps shorter, for as
            much memory again. "merged": none, each step builds it layer by layer. "auto": kept on GPUs that have three
            times its size free when a LoRA is loaded.
        int8: whose kernels are kept in 8 bits, "t5", "denoiser" or "both", for what else does not fit; see models.int8.
        variant: "fp16" takes the `*.fp16.safetensors` files of a diffusers folder or hub repository.
        tokenizer: folder or hub id that holds tokenizer/, tokenizer_2/, …; needed offline for a single file.
        text_encoders: folder, file or hub id with the text encoders that a single file of SD3 leaves out; needed
            offline for CLIP, and for T5, which else stays out.
        text_encoder_3: where SD3's T5 and its 9.5 GB are. "device": with the rest. "host": in host memory, from where
            they pass through the first device, once for the new prompts of a batch. None: nowhere; the model then sees
            zeros for it, as it did in a part of its training.
        vae: another VAE: a folder of one or of a whole model, a .safetensors file, or a hub id.
        prediction_type, rescale_betas_zero_snr: of the noise schedule, where the model's files do not say so: many
            single files of v-prediction models ("v_prediction", often with True) have no mark.
        compilation_cache: where compiled programs are kept for other processes: a folder, a bucket's URL or "off";
            by default in the user's cache folder, see compilation.keep_programs. JAX has one for the whole process.
        progress: whether a bar is shown; None: on a terminal and in a notebook, unless on_progress is told.
        Raises WeightsError or ConfigError that name the file, what was expected and what to do.
        """
        if tuned_weights not in TUNED_WEIGHTS:
            raise ValueError(f"tuned_weights={tuned_weights!r}: use one of {', '.join(map(repr, TUNED_WEIGHTS))}")
        if int8 not in (*INT8, None):
            raise ValueError(f"int8={int8!r}: use one of {', '.join(map(repr, INT8))}, or None")
        keep_programs(compilation_cache)
        source = source if source is not None else MODEL
        computes_in = jnp.dtype(full_dtype(dtype))
        decodes_in = None if vae_dtype is None else jnp.dtype(full_dtype(vae_dtype))
        mesh = data_mesh(devices, weight_shards)
        checkpoint = open_checkpoint(
            source,
            variant=variant,
            revision=revision,
            tokenizer=tokenizer,
            text_encoders=text_encoders,
            vae=vae,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
            cache_dir=cache_dir,
        )
        with shown(progress, on_progress) as tell:
            parts = load_parts(checkpoint, computes_in, mesh, decodes_in, text_encoder_3, int8, tell)
        name = Path(source).name
        return cls(**parts._asdict(), scheduler=checkpoint.scheduler, mesh=mesh, name=name, tuned_weights=tuned_weights)

    from_single_file = from_pretrained  # diffusers' name for it, where the source is a file

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

    # ---- drawing ---------------------------------------------------------------------------------------------------

    @taking(Call)
    def __call__(self, call: Call) -> Output:
        """One picture per (prompt, seed). New values compile nothing; docs/explanations/compilation.md says what does.

        Texts are one for all pictures or one per prompt; negative_prompt=None is 'none'. guidance is an AutoLoRA (the
        default where a LoRA is loaded), CFG (where none is), NoGuidance, AutoGuidance or PersonalizationGuidance, or
        one of them per picture; its numbers, too, may be one per picture. CFG scales left open are the paper's for the
        model: 5.0 for SDXL, 7.0 for SD3. lora_scale is a number, one per picture, [pictures or 1, LoRAs], or [pictures
        or 1, steps, LoRAs], a scale for each step; text encoders, which speak once, take the mean.

        Raises ValueError for arguments that can't be honoured. Warns when a picture comes out not finite.
        """
        request = self.request(call)
        schedule = self.canvas.schedule(request.call, request.masked)
        words = [word.name for word in self.text.words if word.lora is None]
        settings = [
            {**row, "model": self.name, **self._loras_of(row), "embeddings": words} for row in request.settings()
        ]
        as_pictures, as_latents = call.output_type == "pil", call.output_type == "latent"
        batches: list[Any] = []
        all_finite: list[bool] = []
        with shown(self._progress if call.progress is None else call.progress, call.on_progress) as tell:
            for pictures, finite in self.engine.draw(request, schedule, call.batch_size, as_latents, tell):
                rows = settings[len(all_finite) : len(all_finite) + len(finite)]
                images = [*map(Picture.of, pictures, rows)] if as_pictures else pictures
                if call.on_images:
                    call.on_images(Output(images, rows))
                batches.append(images)
                all_finite.extend(finite.tolist())
        bad = np.flatnonzero(~np.array(all_finite))
        if bad.size:
            seeds_of = [request.seeds[i] for i in bad]
            warnings.warn(
                f"pictures {bad.tolist()} (seeds {seeds_of}) came out not finite: NaN or infinite values; try lower "
                "guidance or LoRA scales, or dtype='float32'",
                stacklevel=3,
            )
        return Output([*chain(*batches)] if as_pictures else np.concatenate(batches), settings)

    def request(self, call: Call) -> Request:
        """What a call asks of the loaded model, for the engine. Raises ValueError for what can't be honoured."""
        request = Request.of(self._without_mentions(call), self.canvas, self.loras)
        told = texts_of(request, np.arange(len(request.seeds)))
        self.text.check_given(told)
        if (shared := next((given.name for given in told.given if given and given.shared), None)) and not (
            self.text.reads_as_one(told.scales)
        ):
            kinds = ", ".join(f"{kind!r}: …" for kind in told.scales)
            raise ValueError(
                f"{shared} is one for all, but the LoRA has a part for the text encoders, so that the models which the "
                f"guidance compares read a prompt differently. Give each its own, {{{kinds}}}: pipe.encode_prompt(…, "
                "lora_scale=0.0) makes the base model's. Or let it read what the LoRA reads: base_text='lora'"
            )
        return request

    @only_known
    def set_progress_bar_config(self, *, disable: bool | None = None) -> None:
        """Whether later calls show a bar, where they do not say so themselves; None: on a terminal, in a notebook."""
        self._progress = None if disable is None else not disable

    def _without_mentions(self, call: Call) -> Call:
        """A call whose prompts name no LoRAs any more: they are loaded, and its lora_scale says how strong each is.

        Raises ConfigError, WeightsError for LoRAs that are not there, and for several scales beside them.
        """
        texts = [] if call.prompt is None else [call.prompt] if isinstance(call.prompt, str) else list(call.prompt)
        named = read_mentions(texts, call.prompt_syntax, call.lora_dir)
        self._load_named(named.files)
        if not named.files:
            return call
        own = self.loras[: len(self.loras) - len(named.files)]
        told = [[*[0.0] * len(own), *(scales.get(file, 0.0) for file in named.files)] for scales in named.scales]
        rows: Any = np.ma.array(told)
        rows[:, : len(own)] = np.ma.masked  # these have strengths of their own
        if call.lora_scale is not None:
            if np.ndim(call.lora_scale):
                raise ValueError(
                    f"lora_scale has shape {np.shape(call.lora_scale)} beside LoRAs that prompts name; give one "
                    "number, instead of all their strengths, or none"
                )
            tuned = [each.role == "tuned" for each in own]
            changed = [[*tuned, *(file in scales for file in named.files)] for scales in named.scales]
            rows[np.array(changed)] = call.lora_scale
        repeat = 1 if call.paired else len(call.all_seeds)
        return dataclasses.replace(call, prompt=named.prompts, lora_scale=rows.repeat(repeat, axis=0))

    def _loras_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The LoRAs of a picture: all that were loaded, and of those that prompts name its own."""
        own, scales = len(self.loras) - len(self._named), row["lora_scales"]
        enabled = [i for i, each in enumerate(self.loras) if each.enabled]
        kept = [i for i in enabled if i < own or (scales and scales[i])]
        loras = [self.loras[i] for i in kept]
        return {
            "loras": [each.report.name for each in loras],
            "lora_scales": [scales[i] for i in kept if scales],
            "lora_roles": [each.role for each in loras] if any(each.role != "tuned" for each in loras) else None,
            "lora_strengths": _strengths_of([(self.loras[i], scales[i]) for i in kept]) if scales else None,
            "lora_blocks": [lora.spelled(each.blocks) for each in loras]
            if any(each.blocks for each in loras)
            else None,
        }

    def encode_prompt(self, prompt: Texts, negative_prompt: Texts | None = "", **drawing: Any) -> Embeds:
        """What the model is told of prompts: a call takes each array under its name, in place of texts.

        It is the tuned model's; lora_scale=0.0 gives the base model's, where a LoRA changes the text encoders.
        drawing: as for a call, of which what concerns texts matters, and lora_scale.
        """
        told = self.conditioning(prompt, negative_prompt, **drawing)["lora"]
        arrays = (told[name][:, side] for name in (self.text.STATES, self.text.POOLED) for side in (1, 0))
        return Embeds(*arrays)

    def conditioning(
        self, prompt: Texts, negative_prompt: Texts | None = "", **drawing: Any
    ) -> dict[str, dict[str, np.ndarray]]:
        """All that the network is told, by kind of weights: {"base", "lora"} -> its keyword -> [n, 2, …] (negative,
        positive). drawing: as for encode_prompt."""
        request = self.request(Call(prompt, negative_prompt, guidance=CFG(), **drawing))
        scales = lora.by_kind(request.strengths, self.loras, request.plan.weak_factor)
        two = {kind: scales[kind].mean(axis=1) for kind in ("base", "lora")}
        told = text_scales(two, request.call.base_text)
        return self.text.conditioning(Prompts(request.positive, request.negative, request.text, told))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pictures, uint8 [n h w 3], of latents [n h/8 w/8 c] as a call leaves them, or as a Progress holds them."""
        return self.engine.decode(latents)

    def warm_up(
        self,
        sizes: Sequence[Size] | None = None,
        *,
        batch_size: int = 4,
        guidance: Rule | Sequence[Rule] | None = None,
        image: bool = False,
        mask_image: bool = False,
        skip_guidance_layers: Sequence[int] | str | None = None,
        max_sequence_length: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Compiles what later calls will need, or takes it from the compilation cache; how many programs that is.

        Load LoRAs first: without one, and with one, other programs run.

        sizes: (height, width) of pictures, pixels; default the trained size. batch_size: pictures a device at once.
        guidance: a rule, or several, that will be asked for; default as in a call.
        image, mask_image: whether they will change pictures, and parts of pictures.
        skip_guidance_layers: as in a call; which they are is no program's matter. max_sequence_length: as in a call.
        on_progress: told of the programs that are done, stage "compile".
        Raises ValueError for what can't be drawn.
        """
        rules = [guidance] if guidance is None or isinstance(guidance, Rule) else list(guidance)
        texts = [str(i) for i in range(self.mesh.size * batch_size)]  # one for each picture
        blank = Image.new("RGB", (self.canvas.cells * self.canvas.factor,) * 2)
        given: dict[str, Any] = {"image": blank, "strength": 1.0} if image or mask_image else {}
        given |= {"mask_image": blank} if mask_image else {}
        given |= {"skip_guidance_layers": skip_guidance_layers}
        given |= {"max_sequence_length": max_sequence_length} if max_sequence_length else {}
        rehearsals = []
        for size in sizes or (None,):
            for rule in rules:
                wanted = None if size is None else (size[1], size[0])
                request = self.request(Call(texts, guidance=rule, num_inference_steps=REHEARSED, size=wanted, **given))
                about = f"{'×'.join(map(str, request.call.size or ()))}, {batch_size} a device"
                rehearsals.append((about, request, self.canvas.schedule(request.call, request.masked)))
        return warm_up(self.engine, rehearsals, on_progress)


def _strengths_of(loras: Sequence[tuple[lora.Loaded, Any]]) -> list[str] | None:
    """How strong LoRAs were, if one's scale changes over the steps: as it was given, or what it was at each step."""
    if not any(isinstance(scale, list) for _, scale in loras):
        return None

    def text(each: lora.Loaded, scale: Any) -> str:
        is_given = not callable(each.scale) and np.array_equal(each.over(np.size(scale)), np.ravel(scale))
        told: Any = each.scale if is_given else scale
        return strength_text(tuple(map(float, told)) if np.ndim(told) else float(told))

    return [text(*each) for each in loras]
