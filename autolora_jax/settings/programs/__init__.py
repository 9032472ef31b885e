"""The programs of `autolora`, in the order of its --help."""

from autolora_jax.settings.programs.batch import Batch
from autolora_jax.settings.programs.convert import Convert
from autolora_jax.settings.programs.distill import Distill
from autolora_jax.settings.programs.doctor import Doctor
from autolora_jax.settings.programs.evaluate import Evaluate
from autolora_jax.settings.programs.extract import Extract
from autolora_jax.settings.programs.gallery import Gallery
from autolora_jax.settings.programs.generate import Generate
from autolora_jax.settings.programs.info import Info
from autolora_jax.settings.programs.judge import Judge
from autolora_jax.settings.programs.merge import Merge
from autolora_jax.settings.programs.program import Program
from autolora_jax.settings.programs.reproduce import Reproduce
from autolora_jax.settings.programs.resize import Resize
from autolora_jax.settings.programs.train import Train
from autolora_jax.settings.programs.ui import Ui
from autolora_jax.settings.programs.warmup import Warmup

PROGRAMS: tuple[type[Program], ...] = (
    Generate,
    Ui,
    Train,
    Distill,
    Batch,
    Gallery,
    Evaluate,
    Judge,
    Reproduce,
    Warmup,
    Doctor,
    Convert,
    Info,
    Merge,
    Extract,
    Resize,
)
