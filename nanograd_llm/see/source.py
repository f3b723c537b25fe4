"""The source of functions of the package, or of a user, as it can stand in a script of its own.

Every name in a function is looked up where the function was defined. Functions come along, with what they use in turn;
constants become literals; modules of NumPy and of Python are imported. What cannot come along is refused by name.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from nanograd_llm.autograd import op, tensor
from nanograd_llm.backend import arrays, threads
from nanograd_llm.errors import GraphError, NanogradError

KEEP = '''class Kept(tuple):
    """An op's result, and the values that it keeps for its rule."""


def keep(y, **extras):
    return Kept((y, extras))'''

# What arrays of NumPy, on one device and in one thread, make simpler: by name, where one of these modules has it.
_SIMPLIFIED = arrays, threads, tensor, op
_SIMPLER = {
    "keep": "",
    "share_out": "def share_out(work, size, *_):\n    return [work(slice(0, size))]",
    "xp": "def xp(x):\n    return np",
    "as_array": "def as_array(x, *made_of):\n    is_scalar = isinstance(x, (np.generic, int, float, complex))\n"
    "    return no_wider(np.asarray(x), *made_of) if is_scalar else x",
    "beside": "def beside(x, like):\n    return np.asarray(x)",
    "gpu_in_use": "gpu_in_use = False",
    "Tensor": "Tensor = ()  # no array is one: isinstance(x, ()) is False",
}
_VALUE_OF = '''def value_of(forward, **static):
    """An op as other functions call it: its result alone."""

    def call(*inputs, **others):
        y = forward(*inputs, **static, **others)
        return y[0] if type(y) is Kept else y

    return call'''


def source_lines(f: Any) -> list[str]:
    """The lines of a function's source, then of the functions of its file that it calls, and of those that they call.

    One line that says so where its source is not in a file.
    """
    lines: list[str] = []
    for part in _called(inspect.unwrap(f), []):
        try:
            source = textwrap.dedent(inspect.getsource(part)).rstrip().splitlines()
        except (OSError, TypeError):
            source = ["(its source is not in a file)"]
        lines += ["", *source] if lines else source
    return lines


def _called(f: Any, found: list[Any]) -> list[Any]:
    """The functions found so far, then f and those of its file that it calls."""
    found.append(f)
    for name in _mentioned(f.__code__) if isinstance(f, FunctionType) else ():
        other = f.__globals__.get(name)
        other = inspect.unwrap(other) if callable(other) and not isinstance(other, op.Op) else None
        if isinstance(other, FunctionType) and other not in found and inspect.getfile(other) == inspect.getfile(f):
            _called(other, found)
    return found


def _mentioned(code: CodeType) -> Iterator[str]:
    """The global names in a function, and in the functions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _mentioned(inner)


class Sources:
    """Collects definitions, each under one name, in an order in which they can be run.

    text: the definitions.  imports: the import lines.  store: puts an array into the file beside the script and
    returns the expression that reads it.
    """

    def __init__(self, store: Callable[[str, np.ndarray], str]):
        self.store = store
        self.text: list[str] = []
        self.imports: set[str] = set()
        self.names: dict[Any, str] = {}
        self.taken = {"np", "os", "sys", "library", "Kept", *_SIMPLER, *dir(builtins)}
        self.alive: list[Any] = []  # what is known by its id must live

    def free(self, name: str) -> str:
        """This name, with an underscore or more behind it where it means something else already."""
        name = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
        name = name if name.isidentifier() else f"x_{name}"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def function(self, f: Any, who: str) -> str:
        """The name under which this function is defined in the script. who: what needs it, for the refusal."""
        f = inspect.unwrap(getattr(f, "__wrapped__", f))
        if not isinstance(f, FunctionType):
            raise GraphError(f"a script cannot hold {who}: it is a {type(f).__name__}, not a function with its source")
        if f.__code__ in self.names:
            return self.names[f.__code__]
        try:
            source = textwrap.dedent(inspect.getsource(f))
            tree = ast.parse(source).body[0]
        except (OSError, TypeError, SyntaxError) as error:
            raise GraphError(f"a script cannot hold {who}: the source of {f.__name__} is not found") from error
        if not isinstance(tree, ast.FunctionDef):
            raise GraphError(f"a script cannot hold {who}: write it as a function with def")
        name = self.names[f.__code__] = self.free(f.__name__)
        self.text.append(_Rewriter(self, f, source, tree, name, who).rewritten())
        return name

    def expression(self, x: Any, wanted: str, who: str) -> str:
        """An expression of the script for something that a function mentions by the name `wanted`."""
        if isinstance(x, op.Op):
            name = self.function(x.forward, f"the op {x.name}")
            if not (x.wants_needs or "keep(" in inspect.getsource(x.forward)):
                return name
            if _VALUE_OF not in self.text:
                self.text.append(_VALUE_OF)
            return f"value_of({name}" + (f", needs=(False,) * {len(x.inputs)})" if x.wants_needs else ")")
        if wanted in _SIMPLER and any(getattr(module, wanted, None) is x for module in _SIMPLIFIED):
            return self.simpler(wanted)
        if isinstance(x, ModuleType):
            return self.imported(f"import {x.__name__}", wanted, x)
        if isinstance(x, type) and issubclass(x, NanogradError):
            if id(x) not in self.names:
                self.text.append(f"class {self.taken_by(x, x.__name__)}(Exception):\n    pass")
            return self.names[id(x)]
        if isinstance(x, (FunctionType, *_WRAPPED)) and not _is_foreign(x):
            return self.function(x, who)
        if isinstance(x, np.ndarray):
            return self.store(wanted, x)
        if _is_foreign(x):
            return self.imported(f"from {x.__module__} import {x.__name__}", wanted, x)
        try:
            return literal(x, lambda a: self.store(wanted, a))
        except ValueError:
            raise GraphError(f"a script cannot hold {who}: it uses {wanted}, a {type(x).__name__}") from None

    def simpler(self, name: str) -> str:
        """The name of one of _SIMPLER, whose definition comes along."""
        if name == "as_array":
            self.function(arrays.no_wider, name)
        if _SIMPLER[name] and _SIMPLER[name] not in self.text:
            self.text.append(_SIMPLER[name])
        return name

    def constant(self, x: Any, wanted: str, who: str) -> str:
        """As `expression`, but numbers and tuples of them keep their names."""
        is_data = isinstance(x, (int, float, str, tuple, list, dict, np.ndarray))
        if is_data and id(x) not in self.names and wanted not in _SIMPLER:
            text = self.expression(x, wanted, who)
            self.text.append(f"{self.taken_by(x, wanted)} = {text}")
        return self.names.get(id(x)) or self.expression(x, wanted, who)

    def taken_by(self, x: Any, wanted: str) -> str:
        self.alive.append(x)
        self.names[id(x)] = self.free(wanted)
        return self.names[id(x)]

    def imported(self, line: str, wanted: str, x: Any) -> str:
        if x is np:
            return "np"
        if id(x) not in self.names:
            alias = self.taken_by(x, wanted)
            self.imports.add(line if line.endswith(f" {alias}") else f"{line} as {alias}")
        return self.names[id(x)]


_WRAPPED = (type(__import__("functools").lru_cache(lambda: None)),)


def _is_foreign(x: Any) -> bool:
    """Is it a class or function of NumPy or of Python, which can be imported by its name?"""
    module, name = getattr(x, "__module__", None), getattr(x, "__name__", "")
    known = isinstance(module, str) and module.partition(".")[0] in {*sys.stdlib_module_names, "numpy"} - {"__main__"}
    return known and getattr(sys.modules.get(str(module)), name, None) is x


def literal(x: Any, store: Callable[[np.ndarray], str]) -> str:
    """An expression that gives x again, exactly; arrays are stored. Raises ValueError for what has none."""
    if isinstance(x, (list, tuple)):
        inner = ", ".join(literal(part, store) for part in x)
        return f"[{inner}]" if isinstance(x, list) else f"({inner}{',' * (len(x) == 1)})"
    if isinstance(x, (np.ndarray, np.generic)):
        return store(np.asarray(x))
    if isinstance(x, float) and not math.isfinite(x):
        return f'float("{x}")'
    if x is Ellipsis:
        return "..."
    if x is None or isinstance(x, (bool, int, float, str)):
        return repr(x)
    if isinstance(x, slice):
        return f"slice({literal(x.start, store)}, {literal(x.stop, store)}, {literal(x.step, store)})"
    if isinstance(x, np.dtype) or (isinstance(x, type) and issubclass(x, (np.generic, int, float))):
        return f'np.dtype("{np.dtype(x)}")'
    raise ValueError(type(x).__name__)


class _Rewriter:
    """Rewrites one function: other names for what it mentions, without decorators, docstring and argument checks."""

    def __init__(self, sources: Sources, f: Any, source: str, tree: ast.FunctionDef, name: str, who: str):
        self.sources, self.f, self.tree, self.name, self.who = sources, f, tree, name, who
        self.source = source.encode()
        lines = self.source.splitlines(keepends=True)
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line))
        closure = inspect.getclosurevars(f).nonlocals
        self.scope: Mapping[str, Any] = {**f.__globals__, **closure}
        self.bound = set(_bound(tree)) - {tree.name}
        self.edits: list[tuple[int, int, str]] = []

    def rewritten(self) -> str:
        self.drop_statements(self.tree)
        for default in [*self.tree.args.defaults, *filter(None, self.tree.args.kw_defaults)]:
            self.visit(default)
        for statement in self.tree.body:
            self.visit(statement)
        begin = self.starts[self.tree.lineno - 1] + self.tree.col_offset
        after_name = begin + len(b"def ") + len(self.tree.name.encode())
        self.edits.append((begin, after_name, f"def {self.name}"))
        text = self.source
        for start, end, new in sorted(self.edits, reverse=True):
            text = text[:start] + new.encode() + text[end:]
        lines = text[begin:].decode().rstrip().splitlines()
        return "\n".join(line for i, line in enumerate(lines) if line.strip() or (i and lines[i - 1].strip()))

    def span(self, node: Any) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def drop_statements(self, tree: ast.AST) -> None:
        """Take out docstrings and the checks of arguments, which the recorded call has passed."""
        for node in ast.walk(tree):
            for body in (getattr(node, part, None) for part in ("body", "orelse")):
                dropped = [s for s in body if self.is_dropped(s)] if isinstance(body, list) else []
                for statement in dropped:
                    start, end = self.span(statement)
                    if len(dropped) < len(body):  # type: ignore[arg-type]
                        start = self.source.rfind(b"\n", 0, start) + 1
                        end = self.source.find(b"\n", end) + 1 or len(self.source)
                    self.edits.append((start, end, "pass" if len(dropped) == len(body) else ""))  # type: ignore[arg-type]

    def is_dropped(self, statement: ast.stmt) -> bool:
        if not isinstance(statement, ast.Expr):
            return False
        value = statement.value
        if isinstance(value, ast.Constant):
            return isinstance(value.value, str)
        called = value.func if isinstance(value, ast.Call) else None
        name = called.id if isinstance(called, ast.Name) else ""
        home = getattr(self.scope.get(name), "__module__", "")
        return home.startswith("nanograd_llm.") and name.startswith(("require_", "check_"))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt) and self.is_dropped(node):
            return
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            found = self.resolved(node)
            if found is not None:
                x, wanted = found
                self.edits.append((*self.span(node), self.sources.constant(x, wanted, self.who)))
                return
        for name, child in ast.iter_fields(node):
            if name not in ("annotation", "returns"):
                for part in child if isinstance(child, list) else [child]:
                    if isinstance(part, ast.AST):
                        self.visit(part)

    def resolved(self, node: ast.AST) -> tuple[Any, str] | None:
        """What a name, or a name in a module of the package, stands for outside the function; None for locals."""
        if isinstance(node, ast.Attribute):
            owner = self.resolved(node.value)
            if owner is None or not isinstance(owner[0], ModuleType):
                return None
            is_own = owner[0].__name__.partition(".")[0] == "nanograd_llm"
            return (getattr(owner[0], node.attr), node.attr) if is_own else None
        if not isinstance(node, ast.Name) or node.id in self.bound:
            return None
        if node.id in self.scope:
            return self.scope[node.id], node.id
        if hasattr(builtins, node.id):
            return None
        raise GraphError(f"a script cannot hold {self.who}: {node.id} in {self.f.__name__} is not defined")


def _bound(tree: ast.AST) -> Iterator[str]:
    """Every name that a function, or one in it, gives a value to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
