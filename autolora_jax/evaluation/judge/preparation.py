"""A picture as judges get it: in the request itself, without what its file says of how it was made."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

# How Pillow writes them. PNG: speed before size, the pixels are the same.
FORMATS = {"png": {"compress_level": 1}, "jpeg": {"quality": 95, "subsampling": 0}}


@dataclass(frozen=True)
class Preparation:
    """format: png or jpeg (quality 95, full chroma); max_side: pixels, larger pictures are shrunk with Lanczos."""

    format: str = "png"
    max_side: int = 1024

    def __post_init__(self) -> None:
        if self.format not in FORMATS or self.max_side < 1:
            raise ValueError(
                f"pictures can be sent as {' or '.join(FORMATS)} with a side of 1 pixel or more, not as {self.format} "
                f"of {self.max_side}"
            )

    def __str__(self) -> str:
        """What was done, as caches and reports state it."""
        return f"{self.format}, at most {self.max_side} pixels a side"

    def data_uri(self, image: Image.Image) -> str:
        """An RGB picture, never enlarged."""
        scale = self.max_side / max(image.size)
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        image.save(content, self.format, **FORMATS[self.format])
        return f"data:image/{self.format};base64,{base64.b64encode(content.getvalue()).decode()}"
