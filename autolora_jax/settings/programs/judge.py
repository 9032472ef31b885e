"""What `autolora judge` can be asked for."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from autolora_jax.settings.fields import Table, setting
from autolora_jax.settings.pictures import OUTPUT
from autolora_jax.settings.programs.asking import JUDGE, Asking
from autolora_jax.settings.values import Paths

QUESTION = "Question"  # panel of --help


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge(Asking):
    """Let a vision-language model score pictures: does it show the character, hold the prompt, keep the style?

    Any server with /v1/chat/completions will do. Verdicts are kept as they come, so nothing is asked twice. A picture
    that the judge refuses, or gives no usable answer on, has no score, rather than 0.
    """

    PANEL: ClassVar[str] = QUESTION

    places: Paths = setting(
        help="Folders of pictures (and subfolders), single pictures, or .tar shards.", argument=True, metavar="PLACE"
    )
    question: str = setting(
        help="cps (character presence), pc (prompt correspondence), sa (style adherence), or pc-sa (both in one "
        "question, as in the paper), 0 to 5; sf (subject fidelity, as DreamBench++ has it), 0 to 4; vqa (VQAScore: how "
        "likely the judge says yes, asked whether the picture shows its prompt), 0 to 1.",
        offers=Table("evaluation.judge.questions", "QUESTIONS"),
    )
    character: str | None = setting(None, "cps: who should be there.")
    description: str | None = setting(None, "cps: who that is, where the name is not enough.")
    prompt: str | None = setting(
        None,
        "pc, vqa: what was asked for. Pictures that autolora or A1111 saved say it; so may manifest.jsonl.",
        shown="what each picture says of itself",
    )
    style: str | None = setting(None, "sa: its name, such as 'pixel art'.")
    poor: str | None = setting(None, "sa: what shows that it is missed.", shown="known for pixel art")
    good: str | None = setting(None, "sa: what shows that it is met.", shown="known for pixel art")
    reference: Path | None = setting(None, "sf: a picture of the one that should be there.", metavar="FILE")
    subject: str | None = setting(None, "sf: which one in it, where it shows several.")
    model: str | None = setting(
        None, "Its name, as the server has it.", panel=JUDGE, shown="the only one that is served"
    )
    cache: Path | None = setting(
        None,
        "Every verdict, by picture, question, judge and how the picture was sent. Runs may share it.",
        panel=OUTPUT,
        shown=".autolora/verdicts.sqlite in the first place",
        metavar="FILE",
    )
    out: Path | None = setting(
        None,
        "Write means, judge, usage and each picture's verdict there, as JSON. Replaces an earlier one.",
        panel=OUTPUT,
        metavar="FILE",
    )

    EXAMPLES = """[bold]Serve a judge[/], on this machine or another (docs/guides/judges.md says which judge works how):

[cyan]vllm serve Qwen/Qwen2.5-VL-7B-Instruct[/]

[cyan]pip install "transformers\\[serving]" && transformers serve meta-llama/Llama-3.2-11B-Vision-Instruct[/]

The second is the judge of the paper, which vLLM has not served since 0.11. Both listen on port 8000. Hosted judges want
a key in OPENAI_API_KEY and their address in --base-url.

[bold]Ask it[/]

How surely is the character there, of which Table 1's CPS is the mean:

[cyan]autolora judge out --question cps --character Anna --description "a princess of Disney's Frozen"[/]

The paper's question about pixel art: prompt correspondence (PC) and style adherence (SA) in one answer:

[cyan]autolora judge out --question pc-sa --style "pixel art" --base-url http://gpu:8000/v1 --concurrency 32[/]

Is it still my cat? And does a picture show its prompt, by the probability of "yes" (the server has to give
log-probabilities, as vLLM and OpenAI do):

[cyan]autolora judge out --question sf --reference cat.jpg --subject "the cat"[/]
[cyan]autolora judge out --question vqa[/]

The same command again asks only about what has no verdict yet. A hosted judge, what it cost, and every verdict:

[cyan]autolora judge out --question cps --character Anna --base-url https://api.openai.com/v1 --model MODEL
--price-in 0.4 --price-out 1.6 --out anna.json[/]

[bold]Exit codes[/] 0: every picture has its score, or the judge refused it one. 3: some have none (each is named); the
same command asks about these again. 1: no answers are to be had. 130, 143: stopped; what came is kept.
"""
