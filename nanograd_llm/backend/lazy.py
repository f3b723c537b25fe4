"""Packages that load their public names when these are first used (PEP 562; Scientific Python's SPEC 1)."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping

TYPE_CHECKING = False  # as in the package's own __init__
if TYPE_CHECKING:
    from typing import Any

# One thread loads at a time: Python's locks, one for each module, fail if two threads load a package and its submodule.
_loading = threading.RLock()
if hasattr(os, "register_at_fork"):  # a lock held by another thread at the fork would stay locked in the child
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


def absent(owner: str, name: str, instead: Mapping[str, str]) -> AttributeError:
    """The error for a name that `owner` does not have. instead: PyTorch's name -> what to write here."""
    advice = f"; use {instead[name]}" if name in instead else ""
    return AttributeError(f"{owner} has no attribute {name!r}{advice}", name=name)


def lazily(
    package: str, homes: Mapping[str, str], instead: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names are loaded when they are first used.

    homes: a module in the package -> the names that it defines, separated by spaces; "" for the module itself, under
        the last part of its name. Of several modules, as in "ops autograd.tensor", all are loaded and the last one
        defines the names.
    instead: names that people look for here -> what to use, for the error. Of a package with rooms, as the root has,
        the error also says in which of them a name is.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}
    module_of = {home.rpartition(".")[2]: home for home, names in homes.items() if not names}
    known = sorted([*home_of, *module_of])

    def load(name: str) -> Any:
        if name not in known:
            rooms = [] if "." in package or name.startswith("_") else module_of
            seen = [(name, f"ng.{r}.{name}") for r in rooms if name in dir(importlib.import_module(f"{package}.{r}"))]
            raise absent(f"module {package!r}", name, {**dict(seen), **(instead or {})})
        with _loading:
            for home in (home_of.get(name) or module_of[name]).split():
                found: Any = importlib.import_module(f"{package}.{home}")
        if name in home_of:
            found = getattr(found, name)
        setattr(sys.modules[package], name, found)  # later uses do not call this function
        return found

    return load, lambda: sorted({*vars(sys.modules[package]), *known}), known
