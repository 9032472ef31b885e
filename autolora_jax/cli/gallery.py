"""`autolora gallery`."""

from autolora_jax.batch import gallery, read_manifest
from autolora_jax.batch.gallery.thumbnails import SIZE
from autolora_jax.batch.manifest import MANIFEST
from autolora_jax.batch.storage import open_storage
from autolora_jax.batch.store import absent, pieces_in, shard_file
from autolora_jax.display import Display, say
from autolora_jax.evaluation.pictures import VERIFY
from autolora_jax.settings.programs.gallery import Gallery
from autolora_jax.weights.errors import shorten


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
    to_come = {shard_file(piece.shard) for piece in pieces_in(storage)}
    if gone := absent(storage, {row["file"] for row in rows} - to_come - {None}):
        files = shorten(gone, 3)
        say(f"Warning: {len(gone)} files of {MANIFEST} are not there ({files}); {VERIFY}", "yellow")
    page = gallery.write_page(storage, table, storage.where.rpartition("/")[2] or storage.where, small)
    print(f"{len(rows)} pictures in {storage.where}/{page}")
