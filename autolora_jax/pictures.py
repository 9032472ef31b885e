"""Pictures as PNG files that say how they were made.

A PNG carries two text chunks. `parameters` is what A1111's web UI, and after it ComfyUI and civitai, read: the prompt,
a line "Negative prompt: …", a line "Steps: 30, Sampler: Euler, …". `autolora` is JSON and holds every setting.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from autolora_jax import foreign
from autolora_jax.files import writing
from autolora_jax.settings.fields import settings_of
from autolora_jax.settings.pictures import DrawingConfig
from autolora_jax.settings.rules import CFG, AutoLoRA, PersonalizationGuidance, Rule, to_dict
from autolora_jax.version import __version__

# Our solver -> A1111's name of it; the end of a name becomes its "Schedule type".
SAMPLERS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
    "flow_euler": "Euler",
    "flow_dpmpp_2m": "DPM++ 2M",
}
SCHEDULE_TYPES = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}


class Picture(Image.Image):
    """A PIL image that keeps the settings it was made with in the files that it is saved to: PNG, JPEG and WebP."""

    settings: Mapping[str, Any]

    @classmethod
    def of(cls, pixels: np.ndarray, settings: Mapping[str, Any]) -> "Picture":
        """Of uint8 [h w 3]."""
        picture = cls()
        picture.__dict__.update(Image.fromarray(pixels).__dict__)
        picture.settings = settings
        return picture

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As PIL's; what is given is not overridden."""
        suffix = Path(fp).suffix.lower() if isinstance(fp, str | Path) else ""
        kind = (format or Image.registered_extensions().get(suffix, "")).upper()
        if kind == "PNG":
            params.setdefault("pnginfo", png_info(chunks(self.settings)))
        elif kind in ("JPEG", "WEBP"):  # where A1111 writes it
            exif = Image.Exif()
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + parameters(
                self.settings
            ).encode("utf-16-be", "replace")
            params.setdefault("exif", exif)
        super().save(fp, format, **params)


def save_png(path: Path, image: Image.Image, settings: Mapping[str, Any], overwrite: bool = False) -> None:
    """Writes a picture with its settings.

    settings: an entry of Output.settings, and what else should be kept. "lora_hashes" (one lora_hash per LoRA) lets
        civitai recognise them.
    Raises as write_png.
    """
    write_png(path, image, chunks(settings), overwrite)


def chunks(settings: Mapping[str, Any]) -> dict[str, str]:
    """The text chunks that say how a picture was made. settings: as for save_png."""
    return {"parameters": parameters(settings), "autolora": json.dumps(settings, default=_plain)}


def png_bytes(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """A PNG file of a picture with text chunks, in any script."""
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=png_info(texts))
    return file.getvalue()


def png_info(texts: Mapping[str, str]) -> PngInfo:
    """Text chunks, in any script."""
    info = PngInfo()
    for key, text in texts.items():
        text = text.encode("utf-8", "replace").decode()  # lone surrogates: bytes of a terminal that are no UTF-8
        if text.isascii():
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    return info


def write_png(path: Path, image: Image.Image, texts: Mapping[str, str], overwrite: bool = False) -> None:
    """Writes a picture with text chunks. The file appears whole or not at all.

    Raises FileExistsError if there is such a file and `overwrite` is false, OSError if it can't be written.
    """
    with writing(path, overwrite=overwrite) as file:
        file.write(png_bytes(image, texts))


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that save_png put into a picture. Raises ValueError if there are none, OSError as foreign does."""
    foreign.check_regular(path)
    try:
        with Image.open(path) as image:
            text = image.text.get("autolora") if isinstance(image, PngImageFile) else None
        found = {} if text is None else foreign.parse_object(text)
    except Exception as e:  # whatever Pillow's decoders raise
        raise ValueError(f"{path} can't be read as a picture ({e or type(e).__name__})") from None
    if not found:
        raise ValueError(f"{path} says nothing about how it was made: it is not a picture as autolora saved it")
    return found


def told(image: Image.Image) -> dict[str, Any]:
    """What an opened picture says of itself before its pixels, which are not decoded: {} when that is nothing.

    The settings that save_png put into it; else prompt and seed of a `parameters` chunk, without mentions of LoRAs.
    """
    if settings := image.info.get("autolora"):
        return foreign.parse_object(settings)
    text = image.info.get("parameters")
    if not isinstance(text, str):
        return {}
    prompt = re.split(r"\n(?=Negative prompt: |Steps: )", text, maxsplit=1)[0]
    found: dict[str, Any] = {"prompt": re.sub(r"\s*<lora:[^<>]*>", "", prompt).strip()}
    if seed := re.search(r"\bSeed: (-?\d+)", text.rpartition("\n")[2]):
        found["seed"] = int(seed[1])
    return found


def parameters(settings: Mapping[str, Any]) -> str:
    """Settings as A1111 writes them; its names where it has one, then AutoLoRA's own."""
    rule: Rule = settings["guidance"]
    solver = settings["scheduler"]
    name, _, spacing = solver.rpartition("_")
    sampler = name if spacing in SCHEDULE_TYPES else solver
    # A scale that changes over the steps is told by its mean; the JSON holds it whole.
    loras = {
        name: float(np.mean(scale)) for name, scale in zip(settings["loras"], settings["lora_scales"], strict=False)
    }
    hashes = dict(zip(settings["loras"], settings.get("lora_hashes", ()), strict=False))
    clip_skip = settings["clip_skip"]
    _, *values = to_dict(rule).items()
    fields = {
        "Steps": settings["steps"],
        "Sampler": SAMPLERS.get(sampler, sampler),
        "Schedule type": SCHEDULE_TYPES.get(spacing),
        "CFG scale": _cfg_scale(rule),
        "Seed": settings["seed"],
        "Size": "{}x{}".format(*settings["size"]),
        "Model": settings["model"],
        # A1111 counts from the last layer, where SDXL reads the last but one; diffusers counts from there.
        "Clip skip": None if clip_skip is None else clip_skip + 2,
        "Lora hashes": ", ".join(f"{name}: {digest}" for name, digest in hashes.items()) or None,
        "Guidance": type(rule).__name__,
        # Names of one letter are not read by A1111.
        **{name if len(name) > 1 else f"guidance {name}": value for name, value in values},
        "Prompt embeds": settings.get("prompt_embeds"),
        "Negative prompt embeds": settings.get("negative_prompt_embeds"),
        "LoRA scales": " ".join(f"{scale:g}" for scale in loras.values()) or None,
        "LoRA strengths": " ".join(settings.get("lora_strengths") or ()) or None,
        "LoRA blocks": " ".join(f"[{each}]" for each in settings.get("lora_blocks") or ()) or None,
        "LoRA roles": " ".join(settings.get("lora_roles") or ()) or None,
        **_own(settings),
        **_made_from(settings),
        "Version": f"autolora-jax {__version__}",
    }
    prompt = " ".join([settings["prompt"] or "", *(f"<lora:{name}:{scale:g}>" for name, scale in loras.items())])
    negative = settings["negative_prompt"]
    lines = [
        prompt,
        *([f"Negative prompt: {negative}"] if negative else []),
        ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None),
    ]
    return "\n".join(lines)


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What A1111 has no name for, of those settings that have one in its line; at its default only what is `always`."""
    named = ((field, settings.get(field.said.column)) for field in settings_of(DrawingConfig) if field.said.column)
    return {
        field.said.png: value
        for field, value in named
        if field.said.png and (field.said.always or value not in (None, field.default))
    }


def _made_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The given picture, and the mask, by the name of its file and the first digits of its hash."""
    found = {}
    for name in ("image", "mask"):
        found[name.title()] = settings.get(name)
        found[f"{name.title()} hash"] = (settings.get(f"{name}_sha256") or "")[:12] or None
    return found


def _cfg_scale(rule: Rule) -> Any:
    """What the tuned model's prompt is amplified with; 1 is not at all."""
    if isinstance(rule, AutoLoRA):
        return rule.w2
    return rule.w if isinstance(rule, CFG | PersonalizationGuidance) else 1.0


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return to_dict(value)
    raise TypeError(f"settings can't hold a {type(value).__name__}")


def lora_hash(path: Path) -> str:
    """civitai's AutoV3 hash of a .safetensors file, 12 hex digits: SHA-256 of its data without its header."""
    with path.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little") + 8)
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
