"""`autolora gallery`: the pictures of a batch as a page to look at, and as contact sheets."""

from typing import Annotated

import typer

from autolora_jax.cli.console import Debug, reported, say, terminable
from autolora_jax.cli.flags import option

OUTPUT = "Output"

EXAMPLES = """[bold]Examples[/]

[cyan]autolora batch job.py --out anna && autolora gallery anna[/]

Then open anna/index.html: no server is needed. Large pictures scroll smoothly with thumbnails, and shards need them:

[cyan]autolora gallery anna --thumbnails 384[/]

A contact sheet for every prompt, settings × seeds:

[cyan]autolora gallery anna --sheets[/]

Run it again when there are more pictures; it goes on from what is there.
"""


def gallery(
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Folder or URL that `autolora batch` drew into.", show_default=False),
    ],
    thumbnails: Annotated[
        int | None,
        option(
            "--thumbnails",
            panel=OUTPUT,
            metavar="SIZE",
            default="384 for shards and sheets, else none",
            help="Make thumbnails with a longer side of so many pixels.",
        ),
    ] = None,
    sheets: Annotated[
        bool, option("--sheets", panel=OUTPUT, help="Write contact sheets, too: sheets/0000-00.jpg and so on.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a page of a batch's pictures: filter by prompt and setting, set settings side by side at the same seed.

    It is index.html in OUT, with its data in gallery/, and works from a file:// URL, also while the batch is drawn.
    """
    with reported(debug), terminable():
        from autolora_jax.batch import gallery as pages
        from autolora_jax.batch import read_manifest
        from autolora_jax.batch.gallery.thumbnails import SIZE
        from autolora_jax.batch.storage import open_storage
        from autolora_jax.cli.progress import Display

        storage, rows = open_storage(out), read_manifest(out)
        if not rows:
            raise ValueError(f"{out} holds no pictures of a batch; give the --out of autolora batch")
        table = pages.tabulate(rows)
        small = None
        with Display() as display:
            if thumbnails is not None or sheets or any(table.columns["member"].values):
                small = pages.make_thumbnails(
                    storage,
                    table,
                    SIZE if thumbnails is None else thumbnails,
                    lambda done, total: display.update("Thumbnails", done, total),
                )
            if small and sheets:
                pages.write_sheets(storage, table, small, lambda done, total: display.update("Sheets", done, total))
        if small and small.problems:
            say(f"Warning: {len(small.problems)} have no thumbnail. The first: {small.problems[0]}", "yellow")
        page = pages.write_page(storage, table, storage.where.rpartition("/")[2] or storage.where, small)
    print(f"{len(rows)} pictures in {storage.where}/{page}")
