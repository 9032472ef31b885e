"""The families of models that can be drawn with: which networks and tokenizers each is made of, and what they must
agree on. A new family is a row here, a text stage in `text/` and, for single files, a layout in `layouts.py`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from autolora_jax.config import CLIPTextConfig, ConfigError, JsonConfig, MMDiTConfig, T5Config, UNetConfig, VAEConfig
from autolora_jax.models.networks import Networks


class Part(NamedTuple):
    """A network of a pipeline, in the diffusers layout."""

    config: type[JsonConfig]
    classes: tuple[str, ...]  # that model_index.json may name; the first is written
    stem: str  # of its files of weights


class Tokenizer(NamedTuple):
    """A tokenizer of a pipeline. needs: one of these sets of files."""

    classes: tuple[str, ...]
    needs: tuple[frozenset[str], ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """What all checkpoints of a kind have in common."""

    name: str
    pipeline: str  # diffusers' class; its variants' names begin alike
    denoiser: str  # the component that takes the steps
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, Tokenizer]
    optional: frozenset[str]  # components and tokenizers that a checkpoint may lack
    disagreements: Callable[[Networks], list[str]]
    guidance_scale: float  # the w that is usual
    zeros_for_no_prompt: bool  # what model_index.json means when it does not say force_zeros_for_empty_prompt
    repository: str  # that has what a single file may lack

    @property
    def encoders(self) -> tuple[str, ...]:
        """The text encoders."""
        return tuple(name for name in self.parts if name.startswith("text_encoder"))

    def problems(self, networks: Networks, where: str) -> list[str]:
        """Why networks of these configs can't work together; empty when all is well."""
        if missing := [name for name in self.parts if name not in networks and name not in self.optional]:
            return [f"{where} has no {', '.join(missing)}"]
        wrong = self.disagreements(networks)
        return [f"{where} can't be run as {self.name}: {'; '.join(wrong)}; each pair must agree"] if wrong else []


_CLIP_TOKENIZER = Tokenizer(
    ("CLIPTokenizer", "CLIPTokenizerFast"),
    (frozenset({"vocab.json", "merges.txt"}), frozenset({"tokenizer.json"})),
)
_T5_TOKENIZER = Tokenizer(
    ("T5TokenizerFast", "T5Tokenizer"), (frozenset({"tokenizer.json"}), frozenset({"spiece.model"}))
)
_VAE = Part(VAEConfig, ("AutoencoderKL",), "diffusion_pytorch_model")
_PROJECTED = Part(CLIPTextConfig, ("CLIPTextModelWithProjection",), "model")
_KINDS = {8: " (as an InstructPix2Pix model has)", 9: " (as an inpainting model has)"}

Pair = tuple[str, int, str, int]  # what, its value, what else, its value


def _differing(*pairs: Pair) -> list[str]:
    return [f"{a} is {x}{_KINDS.get(x, '')}, {b} {y}" for a, x, b, y in pairs if x != y]


def _latents(whose: str, denoiser: Any, vae: VAEConfig) -> list[Pair]:
    sides = {"in_channels": denoiser.in_channels, "out_channels": denoiser.out_channels}
    return [(f"{whose} {side}", n, "the VAE's latent_channels", vae.latent_channels) for side, n in sides.items()]


def _sdxl_disagreements(networks: Networks) -> list[str]:
    one, two, unet, vae = (networks[name] for name in ("text_encoder", "text_encoder_2", "unet", "vae"))
    return _differing(
        *_latents("the UNet's", unet, vae),
        (
            "the UNet's cross_attention_dim",
            unet.cross_attention_dim,
            "the sum of the text encoders' hidden_size",
            one.hidden_size + two.hidden_size,
        ),
        (
            "the UNet's projection_class_embeddings_input_dim",
            unet.projection_class_embeddings_input_dim,
            "text_encoder_2's projection_dim and six embedded sizes",
            two.projection_dim + 6 * unet.addition_time_embed_dim,
        ),
    )


def _sd3_disagreements(networks: Networks) -> list[str]:
    one, two, transformer, vae = (networks[name] for name in ("text_encoder", "text_encoder_2", "transformer", "vae"))
    t5 = networks.get("text_encoder_3")
    width = "the transformer's joint_attention_dim", transformer.joint_attention_dim
    wrong = _differing(
        *_latents("the transformer's", transformer, vae),
        (
            "the transformer's pooled_projection_dim",
            transformer.pooled_projection_dim,
            "the sum of the CLIP encoders' projection_dim",
            one.projection_dim + two.projection_dim,
        ),
        *([(*width, "text_encoder_3's d_model", t5.d_model)] if t5 else []),
    )
    if one.hidden_size + two.hidden_size > transformer.joint_attention_dim:
        wrong.append(f"{width[0]} is {width[1]}, less than the CLIP encoders' {one.hidden_size} and {two.hidden_size}")
    return wrong


SDXL = Family(
    name="SDXL",
    pipeline="StableDiffusionXLPipeline",
    denoiser="unet",
    parts={
        "text_encoder": Part(CLIPTextConfig, ("CLIPTextModel",), "model"),
        "text_encoder_2": _PROJECTED,
        "unet": Part(UNetConfig, ("UNet2DConditionModel",), "diffusion_pytorch_model"),
        "vae": _VAE,
    },
    tokenizers={"tokenizer": _CLIP_TOKENIZER, "tokenizer_2": _CLIP_TOKENIZER},
    optional=frozenset(),
    disagreements=_sdxl_disagreements,
    guidance_scale=5.0,
    zeros_for_no_prompt=True,
    repository="stabilityai/stable-diffusion-xl-base-1.0",
)
SD3 = Family(
    name="Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    denoiser="transformer",
    parts={
        "text_encoder": _PROJECTED,
        "text_encoder_2": _PROJECTED,
        "text_encoder_3": Part(T5Config, ("T5EncoderModel",), "model"),
        "transformer": Part(MMDiTConfig, ("SD3Transformer2DModel",), "diffusion_pytorch_model"),
        "vae": _VAE,
    },
    tokenizers={"tokenizer": _CLIP_TOKENIZER, "tokenizer_2": _CLIP_TOKENIZER, "tokenizer_3": _T5_TOKENIZER},
    optional=frozenset({"text_encoder_3", "tokenizer_3"}),
    disagreements=_sd3_disagreements,
    guidance_scale=7.0,
    zeros_for_no_prompt=False,
    repository="stabilityai/stable-diffusion-3-medium-diffusers",
)
FAMILIES = (SDXL, SD3)


def family_of(networks: Networks) -> Family:
    """The family that a set of components belongs to."""
    return next(family for family in FAMILIES if family.denoiser in networks)


def check_together(networks: Networks, where: str) -> None:
    """Raises ConfigError when the networks can't work together; `where` names the checkpoint."""
    for problem in family_of(networks).problems(networks, where):
        raise ConfigError(problem)
