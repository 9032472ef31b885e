"""Which model: where its files are, and how its weights are loaded and kept."""

import dataclasses
from typing import Any, ClassVar

from autolora_jax.settings.fields import Checked, setting

MODEL = "Model"  # panel of --help
DTYPES = ("bfloat16", "float16", "float32")
SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}  # what people write
T5_PLACES = ("device", "host")
TUNED_WEIGHTS = ("auto", "kept", "merged")
INT8 = ("t5", "denoiser", "both")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclasses.dataclass(frozen=True)
class Checkpoint(Checked):
    """Where a model is."""

    PANEL: ClassVar[str] = MODEL

    source: str | None = setting(
        None,
        "Diffusers folder, single .safetensors file, converted folder, or hub id such as "
        "stabilityai/stable-diffusion-xl-base-1.0. A preset may name it instead. "
        "Without any, the small built-in model draws, to try the program.",
        flag="model",
        argument=True,
    )
    _: dataclasses.KW_ONLY
    variant: str | None = setting(None, "'fp16' takes the *.fp16.safetensors files of a folder or hub repository.")
    revision: str | None = setting(None, "Branch, tag or commit of a hub repository.")
    tokenizer: str | None = setting(
        None, "Folder or hub id with tokenizer/, tokenizer_2/, …. A single file has none; offline it needs this."
    )
    text_encoders: str | None = setting(
        None,
        "Folder, file or hub id with the text encoders that a single file of SD3 leaves out: CLIP, and T5, which else "
        "stays out.",
        flag="--text-encoders-from",
        metavar="PLACE",
    )
    cache_dir: str | None = setting(None, "Where hub files are kept.", shown="the hub's own", metavar="DIR")
    vae: str | None = setting(
        None,
        "Another VAE: a folder, a .safetensors file, or hub id such as madebyollin/sdxl-vae-fp16-fix.",
        shown="the model's",
        metavar="PLACE",
    )
    prediction_type: str | None = setting(
        None,
        "What the denoiser predicts, where its file does not say so: v_prediction for v models of NoobAI, Illustrious "
        "or Pony, whose single files may have no mark; epsilon; or sample. Not for SD3.",
        shown="the model's",
        choices=PREDICTIONS,
    )
    rescale_betas_zero_snr: bool | None = setting(
        None,
        "Whether the model was trained down to pure noise (zero terminal SNR), where a file does not say so. With it, "
        "timestep_spacing=trailing begins there.",
        flag="--rescale-betas-zero-snr/--no-rescale-betas-zero-snr",
        shown="the model's",
    )

    def files(self) -> dict[str, Any]:
        """Arguments of weights.checkpoint.open_checkpoint beside the source."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Checkpoint)[1:]}


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checkpoint):
    """Which model, and how it is loaded."""

    PANEL: ClassVar[str] = MODEL

    dtype: str = setting(
        "bfloat16",
        "bfloat16 (float32 where it matters: norm statistics, softmax, step arithmetic, the VAE); float16, which "
        "rounds an eighth as much, not on TPUs; or float32: exact, slow, twice the memory.",
        choices=DTYPES,
        column="dtype",
    )
    text_encoder_3: str | None = setting(
        "device",
        "Where SD3's largest text encoder, T5, and its 9.5 GB are: device; host, of a chip it would not fit on, from "
        "where it passes through the first device; or none: the model sees zeros for it, as in a part of its training.",
        flag="--t5",
        metavar="PLACE",
        choices=T5_PLACES,
    )
    weight_shards: int = setting(
        1,
        "How many devices hold one copy of the weights together: for a model too large for one.",
        metavar="DEVICES",
        least=1,
    )
    tuned_weights: str = setting(
        "auto",
        "kept: a copy of the denoiser's weights with the LoRAs in it: shorter steps, more memory; merged: none, each "
        "step builds it layer by layer; auto: kept on GPUs that have three times its size free.",
        choices=TUNED_WEIGHTS,
    )
    vae_dtype: str | None = setting(
        None,
        "What the VAE computes in: float32, exactly; bfloat16; or float16, which overflows in SDXL's own. By default "
        "what keeps 999 of 1000 values within a grey level of float32's: float32 whose products may be faster (three "
        "bfloat16 passes on TPUs, TF32 on GPUs).",
        shown="float32 with faster products",
        choices=DTYPES,
        column="vae_dtype",
    )

    int8: str | None = setting(
        None,
        "Whose kernels are kept as 8-bit whole numbers, a factor for each output: half their memory, no shorter steps, "
        "and less exact: for a model that else does not fit. LoRAs stay as they are. t5, of SD3; denoiser; or both.",
        shown="nobody's",
        metavar="WHOSE",
        choices=INT8,
        column="int8",
    )

    def __post_init__(self) -> None:
        for name in ("dtype", "vae_dtype"):
            object.__setattr__(self, name, full_dtype(getattr(self, name)))
        super().__post_init__()


def full_dtype(dtype: Any) -> Any:
    """A dtype's name without "torch.", and in full; what is neither is returned as it is."""
    name = str(dtype).removeprefix("torch.")
    return SHORT_DTYPES.get(name, name) if isinstance(dtype, str) or str(dtype) != name else dtype
