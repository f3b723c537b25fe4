"""Settings that check themselves: each refusal names the field, what it holds and what would be allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from nanograd_llm.errors import ConfigError, DtypeError

IGNORE_INDEX = -100  # a target of this value is left out of every loss, here as in PyTorch


def require_int(field: str, value: Any, low: int, high: int = 2**31 - 1) -> None:
    """Raise ConfigError unless value is an integer (Python's or NumPy's, no bool) from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ConfigError(f"{field} must be an integer of at least {low}; got {value!r:.100}")
    if int(value) > high:
        raise ConfigError(f"{field} must be an integer of at most {high:,}; got {value!r:.100}")


def require_seed(value: Any) -> None:
    """Raise ConfigError unless value can be the seed of all randomness: an integer of 64 bits at most."""
    require_int("seed", value, 0, 2**64 - 1)


def require_bool(field: str, value: Any) -> None:
    """Raise ConfigError unless value is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{field} must be True or False; got {value!r}")


def require_number(field: str, value: Any, low: float, high: float = math.inf, *, below: bool = False) -> None:
    """Raise ConfigError unless low <= value <= high, a finite number; `below` excludes `high` itself."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        is_number = is_number and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        is_number = False
    if not is_number or not low <= value <= high or (below and value == high):
        upper = "" if high == math.inf else f" {'<' if below else '≤'} {high}"
        raise ConfigError(f"{field} must be a finite number with {low} ≤ {field}{upper}; got {value!r:.100}")


def require_type(field: str, value: Any, kind: type | tuple[type, ...], words: str) -> None:
    """Raise DtypeError unless value is of this kind, which `words` name, such as "a str"."""
    if not isinstance(value, kind):
        raise DtypeError(f"{field} must be {words}; got {value!r:.100}")


def require_choice(field: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ConfigError unless value is one of the allowed names; the nearest one is suggested."""
    names = list(allowed)
    if value not in names:
        near = nearest(str(value), names)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"{field} must be one of {', '.join(names)}; got {value!r}{hint}")


def check_keys(table: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    """Refuse keys of a config table that nobody reads.

    >>> check_keys({"n_layers": 4}, ["n_layer", "n_head"], "config.toml [model]")
    Traceback (most recent call last):
    nanograd_llm.errors.ConfigError: config.toml [model]: unknown 'n_layers', did you mean 'n_layer'?

    Raises ConfigError with every unknown key and its nearest match, or with all that is allowed where none is near.
    """
    names = list(allowed)
    complaints = []
    for key in table:
        if key not in names:
            near = nearest(key, names)
            complaints.append(
                f"unknown {key!r}, " + (f"did you mean {near!r}?" if near else f"allowed are {', '.join(names)}")
            )
    if complaints:
        raise ConfigError(f"{where}: {'; '.join(complaints)}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The table of these pairs; as an `object_pairs_hook` it stops `json` from taking the last of two equal keys.

    >>> unique_keys([("steps", 3), ("steps", 4)])
    Traceback (most recent call last):
    nanograd_llm.errors.ConfigError: the key 'steps' stands there twice; expected each once

    Raises ConfigError with the first key that repeats.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ConfigError(f"the key {key!r:.100} stands there twice; expected each once")
            seen.add(key)
    return table


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The allowed name most like `name`, whatever the case of either; "" where none is near.

    >>> nearest("GPT-2", ["nano", "gpt2"])
    'gpt2'
    """
    by_folded = {choice.casefold(): choice for choice in allowed}
    return next((by_folded[near] for near in difflib.get_close_matches(name.casefold(), by_folded, n=1)), "")
