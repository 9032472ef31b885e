"""How a vision-language judge is asked: options that `autolora judge` and `autolora reproduce` share."""

import dataclasses
from typing import ClassVar

from autolora_jax.settings.fields import Table, setting
from autolora_jax.settings.programs.program import Program

JUDGE, REQUESTS, PRICES = "Judge", "Requests", "Prices"  # panels of --help


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking(Program):
    """Where a judge is served, and how it is asked."""

    PANEL: ClassVar[str] = REQUESTS

    base_url: str = setting("http://localhost:8000/v1", "Where the judge is served.", panel=JUDGE, metavar="URL")
    api_key: str | None = setting(
        None,
        "Better set in the environment, where others can't read it. It is sent to --base-url, and never kept.",
        panel=JUDGE,
        environment="OPENAI_API_KEY",
        secret=True,
    )
    max_tokens: int = setting(512, "Of an answer, thoughts among them.", panel=JUDGE, least=1)
    concurrency: int = setting(8, "Requests at a time.", least=1)
    timeout: float = setting(120.0, "Seconds for a whole answer.", least=0.1)
    tries: int = setting(
        8,
        "Of a request that fails in passing (busy, timed out, cut off), ever longer apart: 8 take 2 minutes.",
        least=1,
    )
    image_format: str = setting(
        "png", "png, or jpeg for a fifth of it.", choices=Table("evaluation.judge.run", "FORMATS")
    )
    max_side: int = setting(1024, "Larger pictures are shrunk to it.", least=1)
    price_in: float = setting(0.0, "Of a million tokens sent.", panel=PRICES, least=0)
    price_out: float = setting(0.0, "Of a million tokens answered.", panel=PRICES, least=0)
