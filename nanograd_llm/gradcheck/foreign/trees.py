"""Arrays in lists, tuples and dicts, each with a name: `params['W']`, `layers[0].b`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

IsLeaf = Callable[[Any], bool]


def branches(value: Any) -> list[tuple[str, Any]] | None:
    """The parts of a list, tuple or dict, each with what to add to its name; None for anything else.

    A list of numbers is one array, not a list of parts.
    """
    if isinstance(value, dict):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if not isinstance(value, (list, tuple)) or is_array_like(value):
        return None
    fields = getattr(value, "_fields", None)  # of a named tuple
    return [(f".{fields[i]}" if fields else f"[{i}]", part) for i, part in enumerate(value)]


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
    parts = branches(value)
    if parts is None:
        return next(new)
    made = [rebuilt(part, new) for _, part in parts]
    if isinstance(value, dict):
        return dict(zip(value, made))
    return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)


def is_array_like(value: list[Any] | tuple[Any, ...]) -> bool:
    """Is this a list of numbers, or of lists of numbers?"""
    return bool(value) and all(
        is_array_like(part) if isinstance(part, (list, tuple)) else isinstance(part, (int, float, np.number))
        for part in value
    )
