"""Arrays in lists, tuples, dicts and dataclasses, each with a name: `params['W']`, `layers[0].b`.

A library may know further containers, as JAX does the classes that are registered there: it adds to `openers`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Parts = list[tuple[str, Any]]
Opened = tuple[Parts, Callable[[Sequence[Any]], Any]]  # the parts of a container, and what makes one of other parts
openers: list[Callable[[Any], Opened | None]] = []


def branches(value: Any) -> Parts | None:
    """The parts of a list, tuple, dict, ..., each with what to add to its name; None for anything else.

    A list of numbers is one array, not a list of parts.
    """
    opened = _opened(value)
    return opened and opened[0]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree, with its name, in order."""
    parts = branches(value)
    if parts is None:
        yield name, value
    else:
        for suffix, part in parts:
            yield from leaves(part, name + suffix)


def rebuilt(value: Any, new: Iterator[Any]) -> Any:
    """The same tree with other leaves."""
    opened = _opened(value)
    return opened[1]([rebuilt(part, new) for _, part in opened[0]]) if opened else next(new)


def _opened(value: Any) -> Opened | None:
    if isinstance(value, dict):
        return [(f"[{key!r}]", part) for key, part in value.items()], lambda parts: dict(zip(value, parts))
    if isinstance(value, (list, tuple)):
        if is_array_like(value):
            return None
        fields, kind = getattr(value, "_fields", None), type(value)  # of a named tuple
        named = [(f".{fields[i]}" if fields else f"[{i}]", part) for i, part in enumerate(value)]
        return named, kind if fields is None else lambda parts: kind(*parts)
    for opener in openers:
        if opened := opener(value):
            return opened
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    names = [field.name for field in dataclasses.fields(value)]

    def made(parts: Sequence[Any]) -> Any:
        new = copy.copy(value)
        for name, part in zip(names, parts):
            object.__setattr__(new, name, part)  # also where it is frozen
        return new

    return [(f".{name}", getattr(value, name)) for name in names], made


def is_array_like(value: list[Any] | tuple[Any, ...]) -> bool:
    """Is this a list of numbers, or of lists of numbers?"""
    return bool(value) and all(
        is_array_like(part) if isinstance(part, (list, tuple)) else isinstance(part, (int, float, np.number))
        for part in value
    )
