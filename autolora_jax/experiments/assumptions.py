"""What the paper does not say and was chosen here, as this run has it: flags change seeds, steps, sizes and scales."""

import re
from collections.abc import Mapping

from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.demo.classifier import SIZE
from autolora_jax.experiments.experiment import Experiment
from autolora_jax.settings.pictures import read_seeds

STEPS = {"num_inference_steps", "sampler.steps"}  # its name, now and in version 0.1
FEW = 3  # seeds that are named one by one
TRAINED = 1024  # pixels of a side, of SDXL and SD3


def told(experiment: Experiment) -> tuple[str, ...]:
    """The experiment's assumptions with {steps}, {size}, … as they are in this run; without those that are empty."""
    known = _facts(experiment)
    texts = (re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], found[0]), each) for each in experiment.assumptions)
    return tuple(filter(None, texts))


def _facts(experiment: Experiment) -> Mapping[str, str]:
    """What stands for a name in braces."""
    job, settings = experiment.job, experiment.job.settings
    own = {name for cell in experiment.cells for name in cell.settings}
    seeds, usual = [*map(str, read_seeds(job.seeds, "seeds"))], SIZE if settings.model.source == BUILTIN else TRAINED
    width, height = settings.size or (usual, usual)
    none = "none, as the checkpoint's own pipeline means it (zeros for SDXL)"
    streams = {"jax": "JAX's, so compositions differ from those of other programs"}
    sd3 = "SD3, which is no ε model, has its own flow-matching Euler solver."
    return {
        "steps": "each cell's own steps" if own & STEPS else f"{settings.num_inference_steps} steps",
        "size": f"{width} × {height} pixels",
        "negative": none if job.negative_prompt is None else f"“{job.negative_prompt}”",
        "seeds": ", ".join(seeds if len(seeds) <= FEW else [*seeds[:FEW], "…"]),
        "count": f"{len(seeds):,}",
        "prompts": f"{len(job.prompts):,}",
        "noise": streams.get(settings.noise, f"{settings.noise}'s"),
        "solver": settings.scheduler or "the checkpoint's own solver",
        "scale": ", ".join(f"{scale:g}" for scale in settings.scales()),
        "sd3": sd3 if "model.source" in own else "",
    }
