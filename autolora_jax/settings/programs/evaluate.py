"""What `autolora evaluate` can be asked for."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from autolora_jax.config import ConfigError
from autolora_jax.settings.fields import choose, setting
from autolora_jax.settings.pictures import OUTPUT
from autolora_jax.settings.programs.program import Program
from autolora_jax.settings.values import Paths

METRICS, MODELS = "Metrics", "Models"  # panels of --help
DIVERSITY, VENDI, CONDITIONAL, CLIPSCORE, PICKSCORE = KNOWN = (
    *("diversity", "vendi", "conditional-vendi"),
    *("clipscore", "pickscore"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Program):
    """Measure pictures: how varied are those of a prompt, and how well do they fit it?

    Features are kept as they come, so a run that is stopped goes on where it was. Grids made by autolora are left out.
    """

    PANEL: ClassVar[str] = MODELS

    places: Paths = setting(
        help="Folders of pictures (and subfolders), single pictures, or .tar shards; or of the features that autolora "
        "batch kept of pictures. Their prompts are told by the pictures themselves, a JSON file of their name or a "
        "manifest.jsonl.",
        argument=True,
        metavar="PLACE",
    )
    metrics: str = setting(
        "diversity,vendi",
        "diversity (0: all alike), vendi (how many different ones: 1 to all), conditional-vendi (the same over many "
        "prompts, what they explain left out), clipscore (0 to 100: do picture and prompt fit?), pickscore (some 17 to "
        "24: would people choose it?).",
        panel=METRICS,
        offers=KNOWN,
    )
    scores: Paths = setting(
        (),
        "A report of autolora judge: its scores' means, and their products with diversity. Repeatable.",
        panel=METRICS,
        metavar="FILE",
    )
    group_by: str = setting(
        "",
        "What pictures that are compared have in common: prompt, folder, or whatever is told of them, such as "
        "prompt,guidance; none: compare all. The last row averages over groups.",
        panel=METRICS,
        shown="prompt, where one is known",
        metavar="FIELDS",
    )
    confidence: float = setting(0.95, "Of the intervals.", panel=METRICS, metavar="LEVEL")
    features: str | None = setting(
        None,
        "By whose eyes pictures differ: dinov2-giant (the paper's), -large, -base, -small, clip, builtin (the built-in "
        "model's pictures only; offline), or a folder or hub id of a DINOv2 or CLIP.",
        shown="dinov2-giant, or whose features there are in place of pictures",
        metavar="MODEL",
        offers=("builtin", "clip", "dinov2-giant", "dinov2-large", "dinov2-base", "dinov2-small"),
    )
    clip: str = setting(
        "clip",
        "CLIPScore's, and what conditional-vendi reads prompts with: clip (openai/clip-vit-large-patch14), or a folder "
        "or hub id.",
        metavar="MODEL",
    )
    pickscore: str = setting(
        "pickscore",
        "PickScore's: pickscore (yuvalkirstain/PickScore_v1), or a folder or hub id.",
        metavar="MODEL",
    )
    dtype: str = setting("float32", "float32, or bfloat16 for half the memory.", choices=("float32", "bfloat16"))
    batch_size: int = setting(16, "Pictures a device.", least=1)
    cache: Path | None = setting(
        None,
        "Where features are kept, by picture and model: what was computed once is not computed again.",
        panel=OUTPUT,
        shown=".autolora in the first place",
        metavar="DIR",
    )
    json: Path | None = setting(
        None, "Write the table there, too. Replaces an earlier one.", panel=OUTPUT, metavar="FILE"
    )

    def check(self) -> None:
        for name in self.names:
            choose(KNOWN, name, "--metrics")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"--confidence {self.confidence:g} should be between 0 and 1, such as 0.95")

    @property
    def names(self) -> list[str]:
        """The metrics."""
        return [name.strip() for name in self.metrics.split(",")]

    EXAMPLES = """[bold]Examples[/]

Diversity (Eq. 8 of the paper) and Vendi score of each prompt's pictures, by DINOv2-giant; the second run is free:

[cyan]autolora evaluate out[/]

Offline, for what the built-in model drew with --compare, apart by guidance:

[cyan]autolora evaluate out --features builtin --group-by prompt,guidance,lora_scales[/]

What autolora batch --format features kept in place of pictures; no model is needed any more:

[cyan]autolora evaluate anna --group-by prompt,guidance[/]

Tar shards in WebDataset's form, and CLIPScore, too:

[cyan]autolora evaluate shards/*.tar --metrics diversity,vendi,clipscore --json table.json[/]

With the scores of a judge: Div-CPS and the like.

[cyan]autolora judge out --question cps --character Anna --out anna.json[/]
[cyan]autolora evaluate out --scores anna.json[/]

[bold]Exit codes[/] 0: all is measured. 3: some pictures can't be read; each is named, the figures are of the others.
"""
