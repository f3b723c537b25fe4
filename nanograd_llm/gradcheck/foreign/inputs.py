"""The inputs of a function, and a gradient that comes in the same form: one array for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck.check.function import is_integer
from nanograd_llm.gradcheck.check.trees import branches, is_array_like, leaves, rebuilt
from nanograd_llm.gradcheck.foreign.library import Library
from nanograd_llm.settings import counted


class Inputs:
    """Inputs that may be lists, tuples and dicts of arrays.

    names, values, originals: of the float arrays among them, which are checked.
    constants: all others.  integers: names of those that are integers, for which a gradient came all the same.
    all_names: of the inputs, and of the parts of each.
    """

    def __init__(self, inputs: Sequence[Any], names: Sequence[str], library: Library):
        self._inputs, self._input_names, self._library = list(inputs), list(names), library
        self._leaves = [pair for x, name in zip(inputs, names) for pair in leaves(x, name)]
        whole = (leaves(x, name) for x, name in zip(inputs, names) if name in library.unused)
        unused = {*library.unused, *(name for tree in whole for name, _ in tree)}
        self._checked = [name not in unused and library.is_checked(leaf, name) for name, leaf in self._leaves]
        self.all_names = [name for name in dict.fromkeys([*names, *(name for name, _ in self._leaves)]) if name]
        checked = [pair for pair, is_checked in zip(self._leaves, self._checked) if is_checked]
        self.constants = [leaf for (_, leaf), is_checked in zip(self._leaves, self._checked) if not is_checked]
        self.integers: dict[str, None] = {}
        self.names = [name for name, _ in checked]
        self.originals = [leaf for _, leaf in checked]
        self.values = [np.array(library.to_numpy(leaf)) for leaf in self.originals]

    def having(self, values: Iterator[Any]) -> list[Any]:
        """The inputs with these in the places of the values."""
        constant = self._library.constant
        pairs = zip(self._leaves, self._checked)
        new = iter([next(values) if checked else constant(leaf) for (_, leaf), checked in pairs])
        return [rebuilt(x, new) for x in self._inputs]

    def gradients(self, returned: Any, who: str) -> list[Any]:
        """What a function returned as the gradient of each value; None where it says that there is none.

        It may be a list or tuple with an entry for each input, or for each that is checked, or a dict of these by the
        inputs' names; for a single one also the entry itself. The entry for a list or dict of arrays has the same form.
        Raises NanogradError for anything else.
        """
        flags = iter(self._checked)
        places = [i for i, x in enumerate(self._inputs) if any([next(flags) for _ in leaves(x)])]
        entries = self._entries(returned, places, who)
        found: list[Any] = []
        for i, (x, name) in enumerate(zip(self._inputs, self._input_names)):
            found += _like(x, entries.get(i), name, who)
        for (name, x), g, is_checked in zip(self._leaves, found, self._checked):
            if not is_checked and (isinstance(x, int) or is_integer(x)) and _is_nonzero(g):
                self.integers[name] = None
        return [g for g, is_checked in zip(found, self._checked) if is_checked]

    def _entries(self, returned: Any, places: Sequence[int], who: str) -> dict[int, Any]:
        """What was returned for each input that is checked."""
        if returned is None and places:
            raise NanogradError(f"{who} returned None; return one array for each input")
        at = {self._input_names[i]: i for i in places}
        is_by_name = isinstance(returned, dict) and not any(isinstance(self._inputs[i], dict) for i in places)
        if is_by_name and {*returned} == {*at}:
            return {i: returned[name] for name, i in at.items()}
        parts = branches(returned) if isinstance(returned, (list, tuple)) else None
        if parts is not None and len(parts) == len(self._inputs):
            return {i: part for i, (_, part) in enumerate(parts)}
        if parts is not None and len(parts) == len(places):
            return {i: part for i, (_, part) in zip(places, parts)}
        if not places and not parts:  # of a layer whose parameters alone are checked: it may return nothing
            return {0: returned} if self._inputs else {}
        if len(places) == 1 and not is_by_name and (parts is None or branches(self._inputs[places[0]]) is not None):
            return {places[0]: returned}
        if isinstance(returned, (list, tuple)) and len(returned) in (len(places), len(self._inputs)):  # of numbers
            return dict(zip(places if len(returned) == len(places) else range(len(returned)), returned))
        names = [self._input_names[i] for i in places]
        by_name = ", or a dict by these names" if is_by_name else ""
        constant = f", or name inputs that are constants, as in unused={names[-1:]}" if len(names) > 1 else ""
        raise NanogradError(
            f"{who} returned {described(returned)} for {counted(len(places), 'input')} ({', '.join(names)}); return "
            f"one array for each{by_name}{constant}"
        )


def _is_nonzero(g: Any) -> bool:
    return isinstance(g, (float, np.floating, np.ndarray)) and np.asarray(g).dtype.kind == "f" and bool(np.any(g))


def _like(x: Any, g: Any, name: str, who: str) -> Iterator[Any]:
    """The leaves of a gradient that has the form of this input."""
    parts, given = branches(x), branches(g)
    if parts is None:
        yield g
    elif g is None:
        yield from (None for _ in leaves(x))
    elif given is None or isinstance(x, dict) != isinstance(g, dict) or {*dict(parts)} != {*dict(given)}:
        expected = f"a dict of {list(x)}" if isinstance(x, dict) else f"{len(x)} arrays"
        raise NanogradError(f"{who} returned {described(g)} for {name}; it should be {expected}, as {name} is")
    else:
        for suffix, part in parts:
            yield from _like(part, dict(given)[suffix], name + suffix, who)


def described(value: Any) -> str:
    """An array by its shape and dtype, a list by its length, anything else by its type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of {value.dtype} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {list(value)}"
    if isinstance(value, (list, tuple)):
        of = f" numbers of {np.asarray(value).dtype}" if is_array_like(value) else ""
        return f"a {type(value).__name__} of {len(value)}{of}"
    return "None" if value is None else f"a value of type {type(value).__name__}"
