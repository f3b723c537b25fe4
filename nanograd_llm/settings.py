"""Settings that check themselves: each refusal names the field, what it holds and what would be allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from nanograd_llm.errors import ConfigError


def require_int(field: str, value: Any, low: int) -> None:
    """Raise ConfigError unless value is an integer (and no bool) of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{field} must be an integer of at least {low}; got {value!r}")


def require_number(field: str, value: Any, low: float, high: float = math.inf, *, below: bool = False) -> None:
    """Raise ConfigError unless low <= value <= high, a finite number; `below` excludes `high` itself."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (below and value == high):
        sign = "<" if below else "≤"
        raise ConfigError(f"{field} must be a finite number with {low} ≤ {field} {sign} {high}; got {value!r}")


def require_choice(field: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ConfigError unless value is one of the allowed names; the nearest one is suggested."""
    names = list(allowed)
    if value not in names:
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{field} must be one of {', '.join(names)}; got {value!r}{hint}")
