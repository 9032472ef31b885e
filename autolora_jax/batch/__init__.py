"""Large jobs: prompts × settings × seeds as pictures with a manifest, on machines that may vanish at any moment.

job → plan → draw → store → work → run, and verify → repair of what became of it. Each part is usable alone:

    work = open_work(job, "out")                  # what is planned, done, left
    run(work, Artist())                           # draws what is left; Artist is the pipeline, any `Draw` will do
    work.finish()                                 # manifest.jsonl
"""

from autolora_jax.batch.book import Trouble
from autolora_jax.batch.draw import Artist, Draw, Drawing, Pictures
from autolora_jax.batch.manifest import read_manifest
from autolora_jax.batch.owner import OwnedError
from autolora_jax.batch.repair import Repair, repair
from autolora_jax.batch.run import Summary, draw_job, run
from autolora_jax.batch.storage import StorageError
from autolora_jax.batch.verify import Report, verify
from autolora_jax.batch.work import Work, open_work
from autolora_jax.settings.jobs import Job, OutputConfig, Prompt, Settings

__all__ = [
    "Artist",
    "Draw",
    "Drawing",
    "Job",
    "OutputConfig",
    "OwnedError",
    "Pictures",
    "Prompt",
    "Repair",
    "Report",
    "Settings",
    "StorageError",
    "Summary",
    "Trouble",
    "Work",
    "draw_job",
    "open_work",
    "read_manifest",
    "repair",
    "run",
    "verify",
]
