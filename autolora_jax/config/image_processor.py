"""How a vision model wants its pictures: the preprocessor_config.json beside its weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from autolora_jax.config.base import C, ConfigError, JsonConfig, Values, keys

BICUBIC = 3  # Pillow's number of it, which these files hold


@dataclasses.dataclass(frozen=True)
class ImageProcessorConfig(JsonConfig):
    """transformers' BitImageProcessor (DINOv2) and CLIPImageProcessor: shortest edge, centre, mean and deviation.

    size: pixels of the shortest edge after resizing; crop_size: of the square that is cut from the middle.
    image_mean, image_std: of R, G, B in 0..1.
    """

    size: int
    crop_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    FIXED: ClassVar[Values] = {
        "do_resize": (True,),
        "do_center_crop": (True,),
        "do_rescale": (True,),
        "do_normalize": (True,),
        "do_convert_rgb": (True,),
        "resample": (BICUBIC,),
        "rescale_factor": (1 / 255, 0.00392156862745098),
    }
    # feature_extractor_type: what old files call image_processor_type.
    IRRELEVANT: ClassVar[frozenset[str]] = keys("""
        data_format device feature_extractor_type image_processor_type input_data_format processor_class
    """)

    @classmethod
    def from_dict(cls: type[C], raw: Mapping[str, Any], where: str = "config") -> C:
        return super().from_dict({**raw, **_plain(raw, "size", "shortest_edge"), **_plain(raw, "crop_size")}, where)

    def __post_init__(self) -> None:
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ConfigError(f"image_mean {self.image_mean} and image_std {self.image_std} should hold 3 numbers each")
        if not 0 < self.crop_size <= self.size:
            raise ConfigError(f"crop_size = {self.crop_size} should be at most size = {self.size}, and positive")


def _plain(raw: Mapping[str, Any], name: str, edge: str | None = None) -> dict[str, Any]:
    """A size as one number: old files have that, newer ones {"shortest_edge": 256} or {"height": 224, "width": 224}."""
    match raw.get(name):
        case {"height": height, "width": width, **rest} if not rest and height == width and edge is None:
            return {name: height}
        case {"shortest_edge": shortest, **rest} if not rest and edge == "shortest_edge":
            return {name: shortest}
    return {}


# What the published files say.
DINOV2 = ImageProcessorConfig(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ImageProcessorConfig(224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
