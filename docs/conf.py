"""The documentation as a site: `make docs`. Its pages are the Markdown files of this folder, readable without it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from reco_ray import __version__

project = "reco-ray"
release = version = __version__
copyright = "the reco-ray authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_code"]
exclude_patterns = ["_extensions"]
myst_heading_anchors = 3

html_theme = (
    "furo"  # brings its own styles and scripts and uses the system's fonts: nothing is loaded from elsewhere
)
html_title = f"reco-ray {version}"
html_copy_source = False

default_role = "literal"  # docstrings have `code` in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes as fields of the class: they are documented where they are defined, too
