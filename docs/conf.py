"""The site: `pip install -e ".[docs]" && sphinx-build -W -n docs out/site`. What is generated is in generated.py."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # docstrings need no accelerator
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import generated

from autolora_jax import __version__

project = "autolora-jax"
author = copyright = "the autolora-jax authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["recipes"]
nitpicky = True
highlight_language = "text"  # of what is indented in a docstring

myst_heading_anchors = 4  # as GitHub makes them

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes, ranges and units; a signature stays readable
autodoc_preserve_defaults = True

copybutton_exclude = ".linenos, .gp, .go"

smartquotes = False  # flags and code are shown as they are typed
html_theme = "furo"
html_title = "autolora-jax"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]

setup = generated.setup
