"""A vision-language model as the judge of pictures: CPS, PC and SA of arXiv 2410.03941, appendix A.

question = QUESTIONS["cps"].about(character="Anna")
with Judge("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-7B-Instruct") as by, VerdictCache(Path("verdicts")) as cache:
    judged = judge(Pictures("out"), question, by, cache)
cps = scores(judged, "CPS")  # NaN where there is none
"""

from autolora_jax.evaluation.judge.client import Judge, JudgeError
from autolora_jax.evaluation.judge.protocol import Patience
from autolora_jax.evaluation.judge.questions import QUESTIONS, Question
from autolora_jax.evaluation.judge.report import Prices, Report, report, scores
from autolora_jax.evaluation.judge.run import Judged, Preparation, Progress, judge
from autolora_jax.evaluation.judge.verdicts import Usage, Verdict, VerdictCache, Version

__all__ = [
    "QUESTIONS",
    "Judge",
    "JudgeError",
    "Judged",
    "Patience",
    "Preparation",
    "Prices",
    "Progress",
    "Question",
    "Report",
    "Usage",
    "Verdict",
    "VerdictCache",
    "Version",
    "judge",
    "report",
    "scores",
]
