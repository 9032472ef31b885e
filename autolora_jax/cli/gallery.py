"""`autolora gallery`."""

from autolora_jax.batch import gallery, read_manifest
from autolora_jax.batch.gallery.thumbnails import SIZE
from autolora_jax.batch.storage import open_storage
from autolora_jax.display import Display, say
from autolora_jax.settings.programs.gallery import Gallery


def run(asked: Gallery) -> None:
    """Writes the page of a batch, and its sheets; says where it is."""
    storage, rows = open_storage(asked.out), read_manifest(asked.out)
    if not rows:
        raise ValueError(f"{asked.out} holds no pictures of a batch; give the --out of autolora batch")
    table = gallery.tabulate(rows)
    small = None
    with Display() as display:
        if asked.thumbnails is not None or asked.sheets or any(table.columns["member"].values):
            size = SIZE if asked.thumbnails is None else asked.thumbnails
            small = gallery.make_thumbnails(storage, table, size, display.row("Thumbnails"))
        if small and asked.sheets:
            gallery.write_sheets(storage, table, small, display.row("Sheets"))
    if small and small.problems:
        say(f"Warning: {len(small.problems)} have no thumbnail. The first: {small.problems[0]}", "yellow")
    page = gallery.write_page(storage, table, storage.where.rpartition("/")[2] or storage.where, small)
    print(f"{len(rows)} pictures in {storage.where}/{page}")
