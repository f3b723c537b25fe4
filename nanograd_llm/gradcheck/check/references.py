"""What a function refers to: closure, globals that its code loads, defaults, its object, and what they hold."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nanograd_llm.gradcheck.check.trees import branches

_MOST = 10_000  # values that are looked at: a function may refer to a logger, and it to half of the program


def references(
    roots: Iterable[tuple[str, Any]], is_wanted: Callable[[Any], bool], library: str
) -> Iterator[tuple[str, Any]]:
    """Every wanted value that the roots refer to, and its name, nearest first; nothing within such a value.

    library: in whose own functions nothing is looked for.
    """
    queue, seen = deque(roots), dict[int, Any]()
    while queue and len(seen) < _MOST:
        name, value = queue.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if is_wanted(value):
            yield name, value
        elif str(getattr(value, "__module__", "")).partition(".")[0] != library:
            queue.extend(_parts(name, value))


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """What this value refers to itself. Variables of a function have their own names, whatever the function's is."""
    if isinstance(value, functools.partial):
        names = [*_parameters(value.func)] if value.args else []
        return [*zip(names, value.args), *value.keywords.items(), ("", value.func)]
    if inspect.ismethod(value):
        return [(name, value.__self__), ("", value.__func__)]
    if inspect.isfunction(value):
        cells = zip(value.__code__.co_freevars, value.__closure__ or ())
        loaded = [key for key in _loaded(value.__code__) if key in value.__globals__]
        return [
            *((key, cell.cell_contents) for key, cell in cells if cell != types.CellType()),  # which has no value yet
            *((key, value.__globals__[key]) for key in loaded),
            *((name, p.default) for name, p in _parameters(value, follow_wrapped=False).items()),
            *vars(value).items(),
        ]
    if isinstance(value, (dict, list, tuple)):
        return [(name + suffix, part) for suffix, part in branches(value) or ()]
    if isinstance(value, (type, types.ModuleType)) or not hasattr(value, "__dict__"):
        return []
    return [(f"{name}.{key}".removeprefix("."), part) for key, part in vars(value).items()]


def _parameters(f: Any, *, follow_wrapped: bool = True) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(f, follow_wrapped=follow_wrapped).parameters
    except (TypeError, ValueError):  # a builtin says nothing
        return {}


def _loaded(code: types.CodeType) -> Iterator[str]:
    """The names of the globals that this code, or a function within it, loads: co_names has attributes as well."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _loaded(constant)
