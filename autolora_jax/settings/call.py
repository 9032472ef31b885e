"""What a pipeline can be called with: how a picture is drawn, its texts and seeds, and what only Python gives."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from autolora_jax.config import ConfigError
from autolora_jax.settings.fields import setting
from autolora_jax.settings.pictures import Array, DrawingConfig, Many, check_seeds, lora_dir_setting, negative_setting
from autolora_jax.settings.values import Size

if TYPE_CHECKING:
    from autolora_jax.progress import OnProgress
else:
    OnProgress = Any  # numpy, which its home imports, is not for `autolora --help` to wait for

Text = str | Sequence[str]  # one for all, or one each


@dataclasses.dataclass(frozen=True)
class Call(Many, DrawingConfig):
    """What a call of a pipeline takes: pictures of every prompt and seed, ordered (p0,s0), (p0,s1), …, (p1,s0), …

    Raises ConfigError, a ValueError, for values that can't be meant.
    """

    prompt: Text | None = setting(None, "What to draw: a text, or several.")
    negative_prompt: Text | Sequence[str | None] | None = negative_setting()
    _: dataclasses.KW_ONLY
    prompt_2: Text | None = setting(None, "What the second text encoder reads; by default the same.")
    prompt_3: Text | None = setting(None, "What SD3's third, T5, reads; by default the same.")
    negative_prompt_2: Text | None = setting(None, "The same of the negative prompt.")
    negative_prompt_3: Text | None = setting(None, "The same of the negative prompt.")
    lora_dir: str | None = lora_dir_setting()
    prompt_embeds: Array | None = setting(
        None,
        "[n, tokens, width], instead of prompts, together with pooled_prompt_embeds: see encode_prompt. One array for "
        "all that the guidance asks, or {'base': …, 'lora': …}.",
    )
    negative_prompt_embeds: Array | None = setting(None, "The same of negative prompts: one, or one per prompt.")
    pooled_prompt_embeds: Array | None = setting(None, "[n, width], of the same encoders.")
    negative_pooled_prompt_embeds: Array | None = setting(None, "The same of negative prompts.")
    height: int | None = setting(None, "Pixels, multiples of 8 (SDXL) or 16 (SD3), instead of `size`.")
    width: int | None = setting(None, "As height.")
    original_size: Size | None = setting(None, "(height, width), SDXL's, as in diffusers; by default the picture's.")
    crops_coords_top_left: Size = setting((0, 0), "(top, left), SDXL's, as in diffusers.")
    target_size: Size | None = setting(None, "(height, width), SDXL's, as in diffusers; by default the picture's.")
    negative_original_size: Size | None = setting(None, "As diffusers, together with negative_target_size alone.")
    negative_crops_coords_top_left: Size = setting((0, 0), "As the others.")
    negative_target_size: Size | None = setting(None, "As diffusers, together with negative_original_size alone.")
    latents: Array | None = setting(None, "Unit-variance initial noise [n, h/8, w/8, c], instead of that of the seeds.")
    image: Any = setting(
        None,
        "A picture to be changed instead of drawn from noise: a path, a PIL image or an array [h w 3] of uint8 or "
        "floats from 0 to 1; or several, one a prompt or one a picture. Its size, cut to a multiple of 8 (SDXL) or 16 "
        "(SD3), is the new one's where none is given; else it is resized.",
    )
    mask_image: Any = setting(
        None,
        "As large as the image: white where that is drawn anew, black where it is kept; what is kept passes through "
        "the VAE. One for all, one a prompt or one a picture.",
    )
    output_type: str = setting(
        "pil", '"pil", "np" (uint8 [n h w 3]) or "latent" (float32 [n h/8 w/8 c]).', choices=("pil", "np", "latent")
    )
    paired: bool = setting(False, "Picture i is prompt i with seed i, instead of every prompt with every seed.")
    progress: bool | None = setting(
        None, "Whether a bar is shown; by default on a terminal and in a notebook, unless on_progress is told."
    )
    on_progress: OnProgress | None = setting(
        None,
        "Called with Progress as the work proceeds; steps are reported as devices finish them, with what they have "
        "come to. What it raises ends the call, within a step or two, as Ctrl-C does.",
    )
    on_images: Callable[[Any], None] | None = setting(
        None,
        "Called with the Output of each batch, in order, as soon as it is drawn: what it saves is safe if a later "
        "batch fails, and the devices draw on meanwhile.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.all_seeds, self.noise)
        if self.size and (self.width or self.size[0], self.height or self.size[1]) != self.size:
            raise ConfigError(f"size = {self.size}, but width = {self.width} and height = {self.height}: give one")
        for embeds in ("prompt_embeds", "negative_prompt_embeds"):
            text = embeds.removesuffix("_embeds")
            given = [name for name in (text, f"{text}_2", f"{text}_3") if getattr(self, name)]
            if getattr(self, embeds) is not None and given:
                raise ConfigError(f"{given[0]} and {embeds} are both given: a picture is told one of them")
        if self.prompt_embeds is not None and self.clip_skip is not None:
            raise ConfigError(f"clip_skip = {self.clip_skip} is of texts that are encoded here; prompt_embeds are none")
        if self.prompt is None and self.prompt_embeds is None:
            raise ConfigError("draw what? give prompt, or prompt_embeds with pooled_prompt_embeds")

    def sides(self) -> tuple[int | None, int | None]:
        return self.size or (self.width, self.height)
