"""`autolora judge`: a vision-language model scores pictures."""

from pathlib import Path
from typing import Annotated

import typer

from autolora_jax.cli.console import Debug, reported, terminable
from autolora_jax.cli.flags import option
from autolora_jax.cli.judge_flags import (
    BASE_URL,
    JUDGE,
    ApiKey,
    BaseUrl,
    Concurrency,
    ImageFormat,
    MaxSide,
    MaxTokens,
    PriceIn,
    PriceOut,
    Timeout,
    Tries,
)

QUESTION, OUTPUT = "Question", "Output"
INCOMPLETE = 3  # exit code: some pictures got no score, and another run may get them one

EXAMPLES = """[bold]Serve a judge[/], on this machine or another (docs/judges.md says which judge works how):

[cyan]vllm serve Qwen/Qwen2.5-VL-7B-Instruct[/]

[cyan]pip install "transformers\\[serving]" && transformers serve meta-llama/Llama-3.2-11B-Vision-Instruct[/]

The second is the judge of the paper, which vLLM has not served since 0.11. Both listen on port 8000. Hosted judges want
a key in OPENAI_API_KEY and their address in --base-url.

[bold]Ask it[/]

How surely is the character there, of which Table 1's CPS is the mean:

[cyan]autolora judge out --question cps --character Anna --description "a princess of Disney's Frozen"[/]

The paper's question about pixel art: prompt correspondence (PC) and style adherence (SA) in one answer:

[cyan]autolora judge out --question pc-sa --style "pixel art" --base-url http://gpu:8000/v1 --concurrency 32[/]

The same command again asks only about what has no verdict yet. A hosted judge, what it cost, and every verdict:

[cyan]autolora judge out --question cps --character Anna --base-url https://api.openai.com/v1 --model MODEL
--price-in 0.4 --price-out 1.6 --out anna.json[/]

[bold]Exit codes[/] 0: every picture has its score, or the judge refused it one. 3: some have none (each is named); the
same command asks about these again. 1: no answers are to be had. 130, 143: stopped; what came is kept.
"""


def judge(
    places: Annotated[
        list[Path],
        typer.Argument(help="Folders of pictures (and subfolders), single pictures, or .tar shards.", metavar="PLACE"),
    ],
    question: Annotated[
        str,
        option(
            "--question",
            panel=QUESTION,
            help="cps (character presence), pc (prompt correspondence), sa (style adherence), or pc-sa (both in one "
            "question, as in the paper). Scores are 0 to 5.",
        ),
    ],
    character: Annotated[str | None, option("--character", panel=QUESTION, help="cps: who should be there.")] = None,
    description: Annotated[
        str | None, option("--description", panel=QUESTION, help="cps: who that is, where the name is not enough.")
    ] = None,
    prompt: Annotated[
        str | None,
        option(
            "--prompt",
            panel=QUESTION,
            default="what each picture says of itself",
            help="pc: what was asked for. Pictures that autolora or A1111 saved say it; so may manifest.jsonl.",
        ),
    ] = None,
    style: Annotated[str | None, option("--style", panel=QUESTION, help="sa: its name, such as 'pixel art'.")] = None,
    poor: Annotated[
        str | None,
        option("--poor", panel=QUESTION, default="known for pixel art", help="sa: what shows that it is missed."),
    ] = None,
    good: Annotated[
        str | None,
        option("--good", panel=QUESTION, default="known for pixel art", help="sa: what shows that it is met."),
    ] = None,
    base_url: BaseUrl = BASE_URL,
    model: Annotated[
        str | None,
        option("--model", panel=JUDGE, default="the only one that is served", help="Its name, as the server has it."),
    ] = None,
    api_key: ApiKey = None,
    max_tokens: MaxTokens = 512,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    tries: Tries = 8,
    image_format: ImageFormat = "png",
    max_side: MaxSide = 1024,
    cache: Annotated[
        Path | None,
        option(
            "--cache",
            panel=OUTPUT,
            default=".autolora/verdicts.sqlite in the first place",
            metavar="FILE",
            help="Every verdict, by picture, question, judge and how the picture was sent. Runs may share it.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "--out",
            panel=OUTPUT,
            metavar="FILE",
            help="Write means, judge, usage and each picture's verdict there, as JSON. Replaces an earlier one.",
        ),
    ] = None,
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
    debug: Debug = False,
) -> None:
    """Let a vision-language model score pictures: does it show the character, hold the prompt, keep the style?

    Any server with /v1/chat/completions will do. Verdicts are kept as they come, so nothing is asked twice. A picture
    that the judge refuses, or gives no usable answer on, has no score, rather than 0.
    """
    given = dict(character=character, description=description, prompt=prompt, style=style, poor=poor, good=good)
    with reported(debug, exit_code=2):
        from autolora_jax.cli.judging import Service, asked_for
        from autolora_jax.evaluation.judge import Preparation, Prices

        wanted = asked_for(question, {name: text for name, text in given.items() if text})
        service = Service(
            base_url=base_url,
            model=model,
            api_key=api_key,
            max_tokens=max_tokens,
            concurrency=concurrency,
            timeout=timeout,
            tries=tries,
            preparation=Preparation(image_format, max_side),
            prices=Prices(price_in, price_out),
        )
    with reported(debug), terminable():
        from autolora_jax.cli.judging import ask

        whole = ask(places, wanted, cache, out, service)
    if not whole:
        raise typer.Exit(INCOMPLETE)
