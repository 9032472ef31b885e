"""What can be asked of pictures: how noise becomes a picture, which prompts and seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar, cast

from autolora_jax.config import ConfigError
from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.settings.changes import read
from autolora_jax.settings.fields import Checked, Table, setting
from autolora_jax.settings.model import MODEL, ModelConfig
from autolora_jax.settings.rules import CFG, AutoLoRA, Rule, Skip, Value
from autolora_jax.settings.values import Lora, Loras, Seeds, Size, Texts, read_layers, tells_apart

PICTURES, SAMPLING, OUTPUT = "Pictures", "Sampling", "Output"  # panels of --help
BASE_TEXTS = ("base", "lora")
SKIP, SKIPPING = "skip_guidance_layers", [f"skip_layer_guidance_{name}" for name in Skip._fields]
USUAL_SKIP = Skip(2.8, 0.01, 0.2)  # diffusers'
STEPS = 30  # of a run where neither the user nor a LoRA says how many
Array = Any  # numpy's or JAX's
BUILTIN_PROMPTS = ("a zib in the forest at night", "a zib on the beach on a sunny day")


def _of_skipping(name: str, told: str, most: float | None = None, by_picture: bool = False) -> Any:
    """The setting of a number of skip-layer guidance."""
    return setting(
        None,
        f"(with --slg-layers) {told}",
        flag=f"--slg-{name}",
        panel=SAMPLING,
        shown=f"{getattr(USUAL_SKIP, name):g}",
        least=None if most is None else 0,
        most=most,
        column=f"skip_layer_guidance_{name}",
        png=f"SLG {name}",
        by_picture=by_picture,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingConfig(Checked):
    """How a model draws a picture, whatever its prompt and seed. Raises ConfigError for values that can't be meant."""

    PANEL: ClassVar[str] = SAMPLING

    guidance: Rule | Sequence[Rule] | None = setting(
        None,
        "autolora, cfg, none, autoguidance (guided by the base model, without CFG) or personalization (guided by a "
        "weaker LoRA, without prompt). Each value below is for the rules named before it.",
        panel=PANEL,
        shown="autolora with a LoRA, cfg without",
        metavar="RULE",
        offers=Table("settings.rules", "RULES"),
        by_picture=True,
    )
    base_text: str = setting(
        "base",
        "(autolora, autoguidance) What the base model is told: base, by its own text encoders; or lora, by those of "
        "the LoRA, with its words, so that only its denoiser differs.",
        panel=PANEL,
        metavar="WHOSE",
        choices=BASE_TEXTS,
        column="base_text",
        png="Base text",
    )
    guidance_rescale: Value = setting(
        0.0,
        "0 to 1: takes back contrast that guidance adds (arXiv 2305.08891).",
        panel=PANEL,
        least=0,
        most=1,
        column="guidance_rescale",
        png="Guidance rescale",
        by_picture=True,
    )
    skip_guidance_layers: str | Sequence[int] | None = setting(
        None,
        "(SD3) Layers, counted from 0, for skip-layer guidance: the prediction is moved away from the tuned model's "
        "without them, on a part of the steps. 7-9 for SD3.5 Medium.",
        flag="--slg-layers",
        panel=PANEL,
        metavar="LAYERS",
        column="skip_guidance_layers",
        png="SLG layers",
    )
    skip_layer_guidance_scale: Value | None = _of_skipping("scale", "How far.", by_picture=True)
    skip_layer_guidance_start: float | None = _of_skipping(
        "start", "It sets in after this fraction of the steps.", most=1
    )
    skip_layer_guidance_stop: float | None = _of_skipping("stop", "It ends before this one.", most=1)
    num_inference_steps: int | None = setting(
        None,
        "Solver steps; each is mostly 1 to 4 network evaluations.",
        flag="--steps",
        shown=f"{STEPS}",
        least=1,
        column="steps",
    )
    strength: float | None = setting(
        None,
        "(with an image) How much of it is changed, above 0 to 1: it gets so much noise, and so large a part of the "
        "steps is taken. Default as in diffusers: 0.3 for SDXL, 0.9999 with a mask; 0.6 for SD3.",
        panel=PANEL,
        least=0,
        most=1,
        column="strength",
        png="Denoising strength",
    )
    scheduler: str | None = setting(
        None,
        "ddim, euler, euler_ancestral, dpmpp_2m, dpmpp_2m_sde, unipc, lcm or tcd; for SD3 flow_euler or flow_dpmpp_2m. "
        "euler, dpmpp_2m, dpmpp_2m_sde, unipc and flow_euler also with _karras, _exponential or _beta at the end.",
        shown="the model's",
        choices=Table("schedules", "SOLVERS"),
        column="scheduler",
    )
    timestep_spacing: str | None = setting(
        None,
        "leading, linspace, trailing or distilled (those that LCM and TCD learn at).",
        shown="the model's; of lcm and tcd distilled",
        choices=Table("schedules", "SPACINGS"),
        column="timestep_spacing",
    )
    eta: float | None = setting(
        None,
        "(tcd) Share of fresh noise in a step, 0 to 1.",
        shown="0.3",
        least=0,
        most=1,
        column="eta",
        png="Eta",
    )
    noise: str = setting(
        "jax",
        "jax, or torch: the noise, and so the pictures, of diffusers' seeds.",
        choices=Table("noise", "STREAMS"),
        column="noise",
        png="Noise",
        always=True,
    )
    size: Size | None = setting(
        None,
        "Width, then height in pixels, as in A1111: 832x1216 is upright.",
        panel=PICTURES,
        shown="the model's",
        metavar="WIDTHxHEIGHT",
    )
    clip_skip: int | None = setting(
        None,
        "Text encoder layers to leave out, counted as diffusers does.",
        panel=PICTURES,
        least=0,
        column="clip_skip",
    )
    max_sequence_length: int = setting(
        256, "(SD3) What T5 reads, to 512.", panel=PICTURES, metavar="TOKENS", least=1, column="max_sequence_length"
    )
    prompt_syntax: str = setting(
        "plain",
        "What marks in prompts mean: plain, nothing, as in diffusers; a1111 or comfy, weights as (word:1.3), and what "
        "else those programs read.",
        panel=PICTURES,
        choices=("plain", "a1111", "comfy"),
        column="prompt_syntax",
        png="Prompt syntax",
    )
    prompt_chunks: int = setting(
        1,
        "Times 75 tokens of a prompt that CLIP reads, each with its own begin and end; what a prompt does not fill is "
        "empty.",
        panel=PICTURES,
        metavar="CHUNKS",
        least=1,
        column="prompt_chunks",
        png="Prompt chunks",
    )
    lora_scale: Value | Array | None = setting(
        None,
        "Strength of every LoRA that makes the tuned model (role tuned), instead of its own.",
        panel=MODEL,
        by_picture=True,
    )

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ConfigError(f"size = {self.size} should be a width and a height in pixels")
        if self.size is not None and any(side % 8 for side in self.size):
            near = "x".join(str(max(8, round(side / 8) * 8)) for side in self.size)
            raise ConfigError(f"size = {'x'.join(map(str, self.size))} is no multiple of 8 both ways; {near} is")
        object.__setattr__(self, SKIP, read_layers(self.skip_guidance_layers, SKIP))
        super().__post_init__()

    def sides(self) -> tuple[int | None, int | None]:
        """(width, height), None where it is the model's."""
        return self.size or (None, None)

    @property
    def skip(self) -> Skip | None:
        """The skip-layer guidance, if there is any."""
        if self.skip_guidance_layers is None:
            return None
        asked = {field: getattr(self, name) for field, name in zip(Skip._fields, SKIPPING, strict=True)}
        return USUAL_SKIP._replace(**{field: value for field, value in asked.items() if value is not None})

    @property
    def skipped_layers(self) -> tuple[int, ...]:
        """Those of skip-layer guidance."""
        layers: Any = self.skip_guidance_layers
        return () if layers is None else tuple(read(layers, Seeds, SKIP))

    def rule_of(self, tuned: bool, said: Rule | None = None) -> Any:
        """The guidance; by default what a distilled LoRA says (`said`), else AutoLoRA where a LoRA tells a tuned model
        from its base (`tuned`), else CFG."""
        return self.guidance if self.guidance is not None else said or (AutoLoRA() if tuned else CFG())


def negative_setting() -> Any:
    return setting(
        "",
        "What not to draw. By default an empty text is encoded; 'none': what the checkpoint's own pipeline means by "
        "none, zeros for SDXL.",
        short="-n",
        panel=PICTURES,
    )


def lora_dir_setting() -> Any:
    return setting(
        None,
        "(prompt_syntax a1111) Folder of the LoRAs that prompts name, <lora:NAME:0.8>: NAME.safetensors, or what a "
        "header's ss_output_name says.",
        panel=MODEL,
        metavar="DIR",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Many(Checked):
    """How many pictures of each prompt, and at once."""

    PANEL: ClassVar[str] = PICTURES

    seeds: Seeds | Sequence[int] | int | str = setting(
        (0,),
        "A picture each, 0 to 2^64 - 1: 0-15, or 1,5,9-12. Same seed, same noise.",
        metavar="SEEDS",
    )
    batch_size: int = setting(
        4,
        "Pictures per device at once; more are drawn in turn. Less needs less memory: 4 fit a chip of 16 GB at "
        "1024x1024 in bfloat16.",
        panel=SAMPLING,
        least=1,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", read_seeds(self.seeds, "seeds"))
        super().__post_init__()

    @property
    def all_seeds(self) -> Seeds:
        """The seeds, in whatever form they were given."""
        return cast(Seeds, self.seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedConfig(DrawingConfig):
    """How pictures are drawn, and with which files."""

    PANEL: ClassVar[str] = MODEL

    model: ModelConfig = ModelConfig()
    loras: Loras = setting(
        (),
        "LoRA file, folder or hub id, its strength (1; 0,1 rises over the steps), its block weights "
        "(down=1,mid=0.5,up=0, in square brackets) and its role: tuned, it makes the tuned model; all, the base model "
        "has it, too, as what makes it fast (LCM, Lightning); base, that alone has it. Repeat it to add several.",
        flag="--lora",
        metavar="FILE[:SCALE][[BLOCKS]][@ROLE]",
    )
    embeddings: Texts = setting(
        (),
        "Textual-inversion embedding (.safetensors): prompts call it by the file's name. Repeat it to add several. "
        "Those that a LoRA's file brings are loaded with it.",
        flag="--embedding",
        metavar="FILE",
    )

    def rule(self) -> Any:
        """The guidance of this run."""
        return self.rule_of(tells_apart(self.loras))

    def drawing(self) -> dict[str, Any]:
        """The part that a Call takes."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(DrawingConfig)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureConfig(LoadedConfig):
    """How a picture is drawn, whatever its prompt and seed, and with which files."""

    PANEL: ClassVar[str] = MODEL

    lora_dir: str | None = lora_dir_setting()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig(Many, PictureConfig):
    """A picture for every prompt and seed, and where they go."""

    PANEL: ClassVar[str] = OUTPUT

    prompts: Texts = setting(
        (), "What to draw. Repeat it for several prompts.", flag="--prompt", short="-p", panel=PICTURES
    )
    embeds: Texts = setting(
        (),
        "Embeddings in place of prompts (.safetensors): prompt_embeds, pooled_prompt_embeds and their negative "
        "companions, as diffusers calls them. Repeat it for several.",
        panel=PICTURES,
        metavar="FILE",
    )
    negative_prompt: str | None = negative_setting()
    image: Texts = setting(
        (),
        "Picture to be changed instead of drawn from noise. Repeat it for one a prompt, or one a picture. Its size is "
        "the new one's unless --size says another.",
        panel=PICTURES,
        metavar="FILE",
    )
    mask: Texts = setting(
        (),
        "(with --image) As large as it: white where it is drawn anew, black where it is kept. Repeat it as --image.",
        panel=PICTURES,
        metavar="FILE",
    )
    compare: bool = setting(
        False,
        "Draw also the base model and the LoRA with CFG, from the same noise, and grid.png of all.",
        flag="--compare/--no-compare",
    )
    out: str = setting("out", "Folder. Pictures are numbered on from those that are in it.", short="-o")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.all_seeds, self.noise)

    @classmethod
    def start(cls, changes: Mapping[str, Any], preset: "GenerateConfig | None" = None) -> "GenerateConfig":
        """What these changes are made to. A run without a model is one of the built-in one, with what that draws where
        nothing is said: without a preset, too, base model, LoRA and AutoLoRA side by side."""
        start = preset or cls()
        if (changes.get("model.source") or start.model.source) is not None:
            return start
        return dataclasses.replace(
            start,
            model=ModelConfig(dtype="float32") if start.model == ModelConfig() else start.model,
            loras=start.loras or (Lora(f"{BUILTIN}:character"),),
            prompts=start.prompts or (() if changes.get("embeds") or start.embeds else BUILTIN_PROMPTS),
            seeds=start.seeds if preset else (0, 1),
            compare=start.compare if preset else True,
        )


def read_seeds(value: Any, name: str) -> Seeds:
    """Seeds from a text, a number or several. Raises ConfigError."""
    if isinstance(value, str):
        return read(value, Seeds, name)
    try:
        seeds = (int(value),) if isinstance(value, Integral) else tuple(map(int, value))
    except (TypeError, ValueError):
        seeds = ()
    if not seeds or min(seeds) < -(2**63) or max(seeds) >= 2**64:
        raise ConfigError(f"{name} = {value!r} should be one or more whole numbers from 0 to 2^64 - 1{_BELOW}")
    return seeds


_BELOW = "; with noise='torch' down to -2^63, too"


def check_seeds(seeds: Sequence[int], noise: str, name: str = "seeds") -> None:
    """Raises ConfigError for seeds that a kind of noise does not have."""
    if noise != "torch" and (least := min(seeds)) < 0:
        raise ConfigError(f"{name} = {least} should be one or more whole numbers from 0 to 2^64 - 1{_BELOW}")
