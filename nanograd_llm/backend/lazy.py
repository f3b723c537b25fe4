"""Packages that load their names when they are first used (PEP 562; Scientific Python's SPEC 1): the front doors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names are loaded when they are first used.

    homes: a module below the package -> the names that come from it; "" for the module itself, under its last name.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}
    module_of = {home.rpartition(".")[2]: home for home, names in homes.items() if not names}
    known = sorted([*home_of, *module_of])

    def load(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found: Any = importlib.import_module(f"{package}.{home_of.get(name) or module_of[name]}")
        if name in home_of:
            found = getattr(found, name)
        setattr(sys.modules[package], name, found)  # the next use finds it there
        return found

    return load, lambda: sorted({*vars(sys.modules[package]), *known}), known
