"""What `autolora gallery` can be asked for."""

import dataclasses
from typing import ClassVar

from autolora_jax.settings.fields import setting
from autolora_jax.settings.pictures import OUTPUT
from autolora_jax.settings.programs.program import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery(Program):
    """Write a page of a batch's pictures: filter by prompt and setting, set settings side by side at the same seed.

    It is index.html in OUT, with its data in gallery/, and works from a file:// URL, also while the batch is drawn.
    """

    PANEL: ClassVar[str] = OUTPUT

    out: str = setting(help="Folder or URL that `autolora batch` drew into.", argument=True, metavar="OUT")
    thumbnails: int | None = setting(
        None,
        "Make thumbnails with a longer side of so many pixels.",
        shown="384 for shards and sheets, else none",
        metavar="SIZE",
    )
    sheets: bool = setting(False, "Write contact sheets, too: sheets/0000-00.jpg and so on.")

    EXAMPLES = """[bold]Examples[/]

[cyan]autolora batch job.py --out anna && autolora gallery anna[/]

Then open anna/index.html: no server is needed. Large pictures scroll smoothly with thumbnails, and shards need them:

[cyan]autolora gallery anna --thumbnails 384[/]

A contact sheet for every prompt, settings × seeds:

[cyan]autolora gallery anna --sheets[/]

Run it again when there are more pictures; it goes on from what is there.
"""
