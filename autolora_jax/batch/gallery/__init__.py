"""A job's pictures to look at: index.html, which needs no server, thumbnails for it, and contact sheets.

manifest → table → page; pictures → thumbnails → page, sheets. All of it can be deleted and made again.
"""

from autolora_jax.batch.gallery.page import write_page
from autolora_jax.batch.gallery.table import Table, tabulate
from autolora_jax.batch.gallery.thumbnails import make_thumbnails, write_sheets

__all__ = ["Table", "make_thumbnails", "tabulate", "write_page", "write_sheets"]
