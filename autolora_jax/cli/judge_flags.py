"""Flags of the programs that ask a vision-language judge."""

from typing import Annotated

import typer

JUDGE, REQUESTS, PRICES = "Judge", "Requests", "Prices"  # panels of --help
BASE_URL = "http://localhost:8000/v1"

BaseUrl = Annotated[
    str, typer.Option("--base-url", help="Where the judge is served.", rich_help_panel=JUDGE, metavar="URL")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="OPENAI_API_KEY",
        help="Better set in the environment, where others can't read it. It is sent to --base-url, and never kept.",
        rich_help_panel=JUDGE,
        show_default=False,
    ),
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", help="Of an answer, thoughts among them.", rich_help_panel=JUDGE, min=1)
]
Concurrency = Annotated[int, typer.Option("--concurrency", help="Requests at a time.", rich_help_panel=REQUESTS, min=1)]
Timeout = Annotated[
    float, typer.Option("--timeout", help="Seconds for a whole answer.", rich_help_panel=REQUESTS, min=0.1)
]
Tries = Annotated[
    int,
    typer.Option(
        "--tries",
        help="Of a request that fails in passing (busy, timed out, cut off), ever longer apart: 8 take 2 minutes.",
        rich_help_panel=REQUESTS,
        min=1,
    ),
]
ImageFormat = Annotated[
    str, typer.Option("--image-format", help="png, or jpeg for a fifth of it.", rich_help_panel=REQUESTS)
]
MaxSide = Annotated[
    int, typer.Option("--max-side", help="Larger pictures are shrunk to it.", rich_help_panel=REQUESTS, min=1)
]
PriceIn = Annotated[float, typer.Option("--price-in", help="Of a million tokens sent.", rich_help_panel=PRICES, min=0)]
PriceOut = Annotated[
    float, typer.Option("--price-out", help="Of a million tokens answered.", rich_help_panel=PRICES, min=0)
]
