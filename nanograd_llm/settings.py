"""Settings that check themselves. A setting is declared once: a field of a frozen dataclass, with its bounds and help.

    class Sampling(Settings):
        temperature: float = setting("0 takes the likeliest token always.", default=1.0, low=0)
        top_k: int | None = setting("Only the k likeliest tokens; all if not given.", default=None, low=1)

The error messages, the options of the command line and the TOML files follow from that line.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints

from nanograd_llm.errors import ConfigError, DtypeError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform  # type checkers bring it along; Python itself from 3.11 on
else:

    def dataclass_transform(**_):
        return lambda kind: kind


IGNORE_INDEX = -100  # a target of this value is left out of every loss, here as in PyTorch
MAX_INT = 2**31 - 1
MAX_SEED = 2**64 - 1


def setting(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    low: float = 0,
    high: float | None = None,
    below: bool = False,
    choices: Iterable[str] | None = None,
) -> Any:
    """A field of a Settings class.

    help: what it means, in sentences, with its unit; of one that may be None, what holds if it is not given.
    low, high: bounds of a number. Without `high`, integers end at 2³¹ - 1. below: `high` itself is not allowed.
    choices: the names that a text may be.
    """
    bounds = {"low": low, "high": high, "below": below, "choices": choices and tuple(choices)}
    return dataclasses.field(default=default, metadata={"help": help} | bounds)


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
class Settings:
    """Base of settings; a class derived from it is a frozen dataclass whose fields are checked when it is made.

    A field is a bool, int, float or str, or one of these and None. Checks of several fields together go into
    `__post_init__`, after `super()`'s. Raises ConfigError that names the field, its value and what is allowed.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # for type checkers: this is a dataclass
    setting_types: ClassVar[dict[str, tuple[type, bool]]]  # of each field, and whether it may be None

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True)(cls)
        hints = get_type_hints(cls)
        kinds = {field.name: get_args(hints[field.name]) or (hints[field.name],) for field in dataclasses.fields(cls)}
        cls.setting_types = {name: (kind[0], NoneType in kind) for name, kind in kinds.items()}

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self))


def check_settings(kind: type[Settings], table: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError unless each of these values is one that its setting may have; not all need be there.

    where: begins the message, such as "config.toml [train]".
    """
    fields, types = kind.__dataclass_fields__, kind.setting_types
    check_keys(table, types, where or kind.__name__)
    for name, value in table.items():
        try:
            _check(name, value, *types[name], fields[name].metadata)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _check(name: str, value: Any, kind: type, optional: bool, bounds: Mapping[str, Any]) -> None:
    low, high = bounds["low"], bounds["high"]
    if optional and value is None:
        return
    if bounds["choices"]:
        require_choice(name, value, bounds["choices"])
    elif kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False; got {shown(value)}")
    elif kind is int:
        require_int(name, value, low, MAX_INT if high is None else high)
    elif kind is float:
        require_number(name, value, low, math.inf if high is None else high, below=bounds["below"])
    elif not isinstance(value, kind):
        raise ConfigError(f"{name} must be a text; got {shown(value)}")


def shown(value: Any) -> str:
    """A value in an error message: short, whatever it is."""
    try:
        return f"{value!r:.100}"
    except (ValueError, RecursionError):  # an integer of too many digits, tables too deep in each other
        return f"{type(value).__name__} too large to show"


def listed(names: Sequence[object]) -> str:
    """Names out of a file, for an error of one line.

    >>> listed(["wte.weight", "a\\nb"])
    "'wte.weight', 'a\\\\nb'"
    """
    first = ", ".join(f"{name!r:.100}" for name in names[:10])
    return first + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def require_int(field: str, value: Any, low: int, high: int = MAX_INT) -> None:
    """Raise ConfigError unless value is an integer (Python's or NumPy's, no bool) from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ConfigError(f"{field} must be an integer of at least {low}; got {shown(value)}")
    if int(value) > high:
        raise ConfigError(f"{field} must be an integer of at most {high:,}; got {shown(value)}")


def require_seed(value: Any) -> None:
    """Raise ConfigError unless value can be the seed of all randomness: an integer of 64 bits at most."""
    require_int("seed", value, 0, MAX_SEED)


def require_number(field: str, value: Any, low: float, high: float = math.inf, *, below: bool = False) -> None:
    """Raise ConfigError unless low <= value <= high, a finite number; `below` excludes `high` itself."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        is_number = is_number and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        is_number = False
    if not is_number or not low <= value <= high or (below and value == high):
        upper = "" if high == math.inf else f" {'<' if below else '≤'} {high}"
        raise ConfigError(f"{field} must be a finite number with {low} ≤ {field}{upper}; got {shown(value)}")


def require_type(field: str, value: Any, kind: type | tuple[type, ...], words: str) -> None:
    """Raise DtypeError unless value is of this kind, which `words` name, such as "a str"."""
    if not isinstance(value, kind):
        raise DtypeError(f"{field} must be {words}; got {shown(value)}")


def require_choice(field: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ConfigError unless value is one of the allowed names; the nearest one is suggested."""
    names = list(allowed)
    if value not in names:
        near = nearest(str(value), names) if isinstance(value, str) else ""
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"{field} must be one of {', '.join(names)}; got {shown(value)}{hint}")


def check_keys(table: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    """Raise ConfigError with every unknown key and its nearest match, or with all that is allowed where none is near.

    >>> check_keys({"n_layers": 4}, ["n_layer", "n_head"], "config.toml [model]")
    Traceback (most recent call last):
    nanograd_llm.errors.ConfigError: config.toml [model]: unknown 'n_layers', did you mean 'n_layer'?
    """
    names, complaints = list(allowed), []
    for key in [key for key in table if key not in names]:
        near = nearest(key, names)
        hint = f"did you mean {near!r}?" if near else f"allowed are {', '.join(names)}"
        complaints.append(f"unknown {key!r}, {hint}")
    if complaints:
        raise ConfigError(f"{where}: {'; '.join(complaints)}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The table of these pairs; as an `object_pairs_hook` it stops `json` from taking the last of two equal keys.

    >>> unique_keys([("steps", 3), ("steps", 4)])
    Traceback (most recent call last):
    nanograd_llm.errors.ConfigError: duplicate key 'steps'
    """
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ConfigError(f"duplicate key {key!r:.100}")
        table[key] = value
    return table


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The allowed name most like `name`, whatever the case of either; "" where none is near.

    >>> nearest("GPT-2", ["nano", "gpt2"])
    'gpt2'
    """
    by_folded = {choice.casefold(): choice for choice in allowed}
    return next((by_folded[near] for near in difflib.get_close_matches(name.casefold(), by_folded, n=1)), "")
