"""Sphinx's settings. This builds the site, without a network, in a minute or two:

    pip install ".[test,docs]"
    sphinx-build -W --keep-going -j auto docs docs/_build/html

It runs every lesson and guide; an exception or a warning is an error.
"""

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

import nanograd_llm

DOCS = Path(__file__).parent
PACKAGE = str(Path(nanograd_llm.__file__).parent)
sys.path.insert(0, str(DOCS))

project = "nanograd_llm"
author = "the nanograd_llm authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "api"]
exclude_patterns = ["_build", "*.py"]  # course.py is the reader; the lessons are in course/
highlight_language = "text"
smartquotes = False

html_theme = "furo"
html_title = "nanograd_llm"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False
pygments_style, pygments_dark_style = "default", "monokai"

myst_heading_anchors = 3
myst_enable_extensions = []
nb_custom_formats = {".py": "course.read"}
nb_execution_mode = "force"
if tags.has("python_runs_elsewhere"):  # noqa: F821  Sphinx hands `tags` to this file; see `.ci/run`
    nb_execution_mode = "off"
    suppress_warnings = ["myst-nb.lexer"]  # a cell's language is known once it has run
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "DTypeLike": "DTypeLike"}  # otherwise a page of unions
autodoc_default_options = {"members": True}


def shorten_paths(app: Sphinx, page: nodes.document) -> None:
    """Remove the paths of this machine from what a page prints."""
    for block in page.findall(nodes.literal_block):
        text = block.astext().replace(PACKAGE, "nanograd_llm")
        block.rawsource = re.sub(r"\S+ipykernel_\d+\S+\.py", "this page", text)
        block[:] = [nodes.Text(block.rawsource)]


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", shorten_paths)
