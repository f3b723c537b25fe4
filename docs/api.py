"""The pages of the API: a directive that documents the public names of a module, and docstrings as reStructuredText.

The docstrings of the package are plain text. In a paragraph, `name: text` explains an argument, and a line with an
arrow is a shape line: x (*) -> y (*). An indented paragraph is code.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from nanograd_llm.autograd.op import Op

ARGUMENT = re.compile(r"([a-z]\w*(?:, [a-z]\w*)*):((?: .*)?)")


class PublicNames(SphinxDirective):
    """`{public-names} MODULE`: an autodoc entry for each name that a user imports from this module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines = []
        for name, value in public_names(importlib.import_module(self.arguments[0])):
            kind = "class" if isinstance(value, type) else "function" if callable(value) else "data"
            lines += [f".. auto{kind}:: {name}", ""]
        return self.parse_text_to_nodes("```{eval-rst}\n" + "\n".join(lines) + "\n```")


def public_names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The names in `__all__`; without it, the functions and classes; without these, those of each submodule."""
    found = {name: getattr(module, name) for name in getattr(module, "__all__", vars(module))}
    if not hasattr(module, "__all__"):
        room = module.__name__ if hasattr(module, "__path__") else f"{module.__name__}."
        found = {
            name: value
            for name, value in found.items()
            if callable(value) and not name.startswith("_") and f"{value.__module__}.".startswith(room)
        }
    for name, value in sorted(found.items()):
        if not inspect.ismodule(value):
            yield f"{module.__name__}.{name}", value
    if not found:
        for part in pkgutil.iter_modules(module.__path__, f"{module.__name__}."):
            yield from public_names(importlib.import_module(part.name))


def without_needs(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """The signature for a caller: without `needs`, which the engine gives to an op."""
    if isinstance(value, Op):
        wanted = inspect.signature(value.forward)
        wanted = wanted.replace(parameters=[p for p in wanted.parameters.values() if p.name != "needs"])
        return str(wanted), "Tensor"
    return signature, returns


def as_rst(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place. An op's formula, adjoints and composition follow its first paragraph."""
    paragraphs = re.split(r"\n(?: *\n)+", "\n".join(lines).strip("\n"))
    try:
        names = {*inspect.signature(value).parameters}
    except (TypeError, ValueError):  # data, properties and exceptions
        names = set()
    rst: list[list[str]] = []
    for is_code, group in itertools.groupby(paragraphs, key=lambda paragraph: paragraph.startswith(" ")):
        if is_code:
            rst.append(literal("\n\n".join(group).splitlines(), "python"))
        else:
            rst += [paragraph_as_rst(paragraph, names) for paragraph in group]
    if isinstance(value, Op):
        equals = [f"equals composed.{value.equals.__name__}"] if value.equals else []
        rst.insert(1, literal([value.formula, value.adjoint, *equals]))
    if what == "data" or lines[:1] and lines[0].startswith("Alias for field number"):
        rst = []  # a docstring of Python's own
    lines[:] = [line for paragraph in rst for line in (*paragraph, "")]


def paragraph_as_rst(paragraph: str, names: set[str]) -> list[str]:
    if paragraph.startswith(">>>"):
        return paragraph.splitlines()
    lines = re.sub(r"`[^`]+`", lambda code: " ".join(code[0].split()), paragraph).splitlines()
    rst: list[str] = []
    in_list = True  # because a paragraph may begin with an argument
    for line in lines:
        argument = ARGUMENT.fullmatch(line)
        if argument and (in_list or names.issuperset(argument[1].split(", "))):
            rst += [""] * (not in_list) + [f"- ``{argument[1]}``:{inline(argument[2])}"]
            in_list = True
        elif in_list and rst and line.startswith(" "):
            rst.append(f"  {inline(line.strip())}")
        else:
            rst += [""] * (in_list and bool(rst)) + [inline(line.strip())]
            in_list = False
    return rst


def literal(lines: list[str], language: str = "text") -> list[str]:
    return [f".. code-block:: {language}", "", *(f"    {line}" for line in lines)]


def inline(line: str) -> str:
    """A line of plain text: code in backticks and shape lines become literals, everything else is escaped."""
    line = re.sub(r"(?:(?<=  )|^)((?:\w+(?:, \w+)* )?\([^`]* -> [^`(]*\([^)]*\))", r"`\1`", line)
    parts = re.split(r"`([^`]+)`", line)
    return "".join(
        rf"\ ``{part}``\ " if i % 2 else re.sub(r"([\\*|_`])", r"\\\1", part) for i, part in enumerate(parts)
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-signature", without_needs)
    app.connect("autodoc-process-docstring", as_rst)
    return {"parallel_read_safe": True}
