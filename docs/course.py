"""Read a lesson of the course as a notebook: a docstring, then cells that begin with `# %% Title`."""

from __future__ import annotations

import ast
import re

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def read(source: str) -> NotebookNode:
    """The notebook of a lesson. The docstring, the titles and the comments directly below a title become text."""
    lesson = ast.parse(source)
    number, title, text = re.split(r"  |: ", ast.get_docstring(lesson) or "", maxsplit=2)
    cells = [new_markdown_cell(f"# {number.lstrip('0')}. {title}\n\n{as_text(text[0].upper() + text[1:])}")]
    beginning, *titled = re.split(r"^# %% ", "\n".join(source.splitlines()[lesson.body[0].end_lineno :]), flags=re.M)
    cells += code(beginning)
    for cell in titled:
        title, comment, rest = re.fullmatch(r"(.*)\n((?:#.*\n)*)((?s:.*))", f"{cell}\n").groups()
        cells.append(new_markdown_cell(f"## {title}\n\n{as_text(re.sub('^# ?', '', comment, flags=re.M))}"))
        cells += code(rest)
    kernel = {"name": "python3", "display_name": "Python 3"}
    language = {"name": "python", "pygments_lexer": "ipython3"}  # which a page that is not run cannot ask the kernel
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": language})


def code(source: str) -> list[NotebookNode]:
    return [new_code_cell(source.strip())] if source.strip() else []


def as_text(comment: str) -> str:
    """Plain text as Markdown: stars and underscores are escaped; text in backticks and indented lines are code."""
    parts = re.split(r"(`[^`]*`|^    .*$)", comment, flags=re.MULTILINE)
    return "".join(part if i % 2 else re.sub(r"([*_<\[])", r"\\\1", part) for i, part in enumerate(parts))
