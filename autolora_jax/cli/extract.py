"""`autolora extract`."""

from autolora_jax.cli.console import reported, say
from autolora_jax.cli.lora_output import extracted, require_new, save
from autolora_jax.cli.progress import Display
from autolora_jax.lora import Truncation, extract
from autolora_jax.settings.programs.extract import CEILING, RANK, Extract
from autolora_jax.weights.checkpoint import open_checkpoint


def run(asked: Extract) -> None:
    """Makes a LoRA of the difference of two models, and says what it misses."""
    usual = RANK if asked.max_error is None else CEILING
    with reported(exit_code=2):
        truncation = Truncation(usual if asked.rank is None else asked.rank, asked.max_error, asked.conv_rank)
    require_new(asked.out, asked.dialect, asked.save_dtype)
    before, after = (open_checkpoint(source, variant=asked.variant) for source in (asked.base, asked.tuned))
    with Display() as display:
        trees, found = extract(
            before, after, truncation, lambda done, total, what: display.update("Compare", done, total, what)
        )
    say(str(found))
    header = extracted(found, before.family, asked.out)
    save(asked.out, trees, asked.dialect, header, before.networks[before.family.denoiser], asked.save_dtype)
