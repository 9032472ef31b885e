"""`autolora ui`."""

from autolora_jax.compilation import keep_programs
from autolora_jax.config import ConfigError
from autolora_jax.settings.programs.ui import Ui


def run(asked: Ui) -> None:
    """Serves the page until Ctrl-C. Raises ConfigError without Gradio, OSError where no port is free."""
    try:
        from autolora_jax.ui.page import Page
    except ModuleNotFoundError as e:
        if e.name != "gradio":
            raise
        raise ConfigError("the page needs Gradio: pip install 'autolora-jax[ui]'") from None
    from autolora_jax.ui.studio import Studio

    keep_programs(asked.compilation_cache)
    Page(Studio(asked.settings)).serve(
        server_name=asked.host, server_port=asked.port, share=asked.share, inbrowser=asked.browser
    )
