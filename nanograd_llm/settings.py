"""Settings that check themselves. A setting is declared once: a field of a frozen dataclass, with its bounds and help.

    class Sampling(Settings):
        temperature: float = setting("0 always takes the likeliest token.", default=1.0, low=0)
        top_k: int | None = setting("Only the k likeliest tokens; all if not given.", default=None, low=1)

The error messages, the command line's options and the TOML files are made from that line. The checks of single values
that follow, and the words for messages at the end, are for every room.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import get_annotations
from numbers import Integral, Real
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from nanograd_llm.errors import ConfigError, DtypeError, SignatureError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform  # comes with every type checker; in Python since 3.11
else:

    def dataclass_transform(**_):
        return lambda kind: kind


IGNORE_INDEX = -100  # a target of this value is left out of every loss, here as in PyTorch
MAX_INT = 2**31 - 1
MAX_SEED = 2**64 - 1
OTHER_NAMES = {  # what settings, arguments and tasks are called in nanoGPT, PyTorch, transformers and the like
    "n_layer": "num_layers num_hidden_layers layers depth",
    "n_head": "num_heads num_attention_heads heads",
    "n_embd": "hidden_size embed_dim embedding_dim emb_dim d_model width dim",
    "context_length": "block_size seq_len seq_length sequence_length max_seq_len max_seq_length n_ctx n_positions "
    "max_position_embeddings",
    "steps": "max_iters iters iterations max_steps num_steps epoch epochs n_epochs num_epochs num_train_epochs",
    "batch_size": "bs micro_batch_size per_device_train_batch_size",
    "accumulate": "gradient_accumulation_steps grad_accum",
    "learning_rate": "lr max_lr",
    "schedule": "lr_scheduler lr_scheduler_type",
    "warmup": "warmup_iters warmup_steps warmup_ratio",
    "max_norm": "grad_clip clip clip_grad_norm max_grad_norm",
    "evaluate_every": "eval_interval eval_every eval_steps",
    "checkpoint_every": "save_interval save_every save_steps",
    "keep": "save_total_limit",
    "held_out": "validation validation_split val_split test_size",
    "workers": "threads num_threads num_workers",
    "device": "gpu cuda",
    "init": "model weights init_from pretrained base_model model_name_or_path",
    "resume": "resume_from_checkpoint",
    "out": "output output_dir out_dir save_dir",
    "max_new_tokens": "max_tokens max_length num_tokens tokens length",
    "n": "samples num_samples num_return_sequences",
    "beam": "num_beams",
    "prompt": "start text",
    "classification": "classify classifier",
    "masked_words": "mlm fill",
    "instruction": "sft chat",
    "preference": "dpo",
    "query": "text",
    "files": "input text corpus dataset data_dir train_file",
    "sources": "file files input text corpus dataset data_dir",
}


def setting(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    low: float = 0,
    why: str = "",
    high: float | None = None,
    below: bool = False,
    choices: Iterable[str] | None = None,
) -> Any:
    """A field of a Settings class.

    help: what it means, in sentences, with its unit. If it may be None, the help says what None stands for.
    low, high: bounds of a number. Without `high`, the largest integer is 2³¹ - 1. below: `high` itself is not allowed.
    why: why an integer must be at least `low`, for the error message. choices: the values that a str may have.
    Raises DtypeError for a bound that is no number.
    """
    for bound, value in (("low", low), ("high", high)):
        if value is not None:
            require_type(f"the bound {bound}", value, Real, f"a number, such as {bound}=1")
    bounds = {"low": low, "why": why, "high": high, "below": below, "choices": choices and tuple(choices)}
    return dataclasses.field(default=default, metadata={"help": help} | bounds)


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
class Settings:
    """Base class of settings: a derived class is a frozen dataclass whose fields are checked when it is made.

    A field is a bool, int, float, str, tuple[str, ...], or one of these and None. Checks of several fields together go
    into `__post_init__`, after `super().__post_init__()`. Raises ConfigError that names the field, its value and what
    is allowed, or the nearest field for an unknown name; where the class is declared, for a field that is none of this.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # for type checkers: this is a dataclass
    setting_types: ClassVar[dict[str, tuple[type, bool]]]  # by field: its type, and whether it may be None

    def __init_subclass__(cls) -> None:
        form = 'write NAME: TYPE = setting("what it means", default=VALUE)'
        try:
            dataclasses.dataclass(frozen=True)(cls)
            bases = reversed(cls.__mro__)  # typing.get_type_hints refuses the marker KW_ONLY in Python 3.10
            hints = {name: hint for base in bases for name, hint in get_annotations(base, eval_str=True).items()}
        except (NameError, TypeError, ValueError) as error:  # such as a type that is not known, or a list as default
            raise ConfigError(f"{cls.__name__}: {str(error).partition(': use ')[0]}; {form}") from None
        cls.setting_types = {}
        for field in dataclasses.fields(cls):
            if "help" not in field.metadata:
                raise ConfigError(f"{cls.__name__}.{field.name} is declared without setting(); {form}")
            parts = get_args(hint := hints[field.name])
            kind, *more = [one for one in parts if one is not NoneType] if NoneType in parts else [hint]
            if more or kind not in (bool, int, float, str, tuple[str, ...]):
                known = "bool, int, float, str, tuple[str, ...], or one of these | None"
                raise ConfigError(f"{cls.__name__}.{field.name} has the type {hint}; expected {known}")
            cls.setting_types[field.name] = kind, NoneType in parts

    def __new__(cls, *_: Any, **given: Any) -> Any:
        check_keys(given, cls.setting_types, cls.__name__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self))


def check_settings(kind: type[Settings], table: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError unless each value in `table` is allowed for its setting; settings may be missing.

    where: the start of the message, such as "config.toml [train]".
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
        require_int(name, value, low, MAX_INT if high is None else high, why=bounds["why"])
    elif kind is float:
        require_number(name, value, low, math.inf if high is None else high, below=bounds["below"])
    elif kind == tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not value or not all(isinstance(one, str) for one in value):
            raise ConfigError(f"{name} must be one or more strings; got {shown(value)}")
    elif not isinstance(value, kind):
        raise ConfigError(f"{name} must be a string; got {shown(value)}")


def require_int(field: str, value: Any, low: int, high: int = MAX_INT, *, why: str = "") -> None:
    """Raise ConfigError unless value is an integer of Python or NumPy from `low` to `high`; a bool is none.

    why: the reason for `low`, as the message gives it.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        reason = f" ({why})" if why else ""
        raise ConfigError(f"{field} must be an integer of at least {low}{reason}; got {shown(value)}")
    if int(value) > high:
        raise ConfigError(f"{field} must be an integer of at most {high:,}; got {shown(value)}")


def require_seed(value: Any) -> None:
    """Raise ConfigError unless value is a seed: an integer from 0 to 2⁶⁴ - 1."""
    require_int("seed", value, 0, MAX_SEED)


def require_number(field: str, value: Any, low: float, high: float = math.inf, *, below: bool = False) -> None:
    """Raise ConfigError unless value is a finite number with low ≤ value ≤ high; with `below`, value < high."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        is_number = is_number and math.isfinite(value)
    except OverflowError:  # an integer larger than every float
        is_number = False
    if not is_number or not low <= value <= high or (below and value == high):
        upper = "" if high == math.inf else f" {'<' if below else '≤'} {high}"
        raise ConfigError(f"{field} must be a finite number with {low} ≤ {field}{upper}; got {shown(value)}")


def require_type(field: str, value: Any, kind: type | tuple[type, ...], words: str) -> None:
    """Raise DtypeError unless value is an instance of `kind`, which the message calls `words`, such as "a str"."""
    if not isinstance(value, kind):
        raise DtypeError(f"{field} must be {words}; got {shown(value)}")


def require_several(field: str, texts: Any) -> None:
    """Raise DtypeError for a single str in place of several, whose letters would be taken one by one."""
    if isinstance(texts, str):
        raise DtypeError(f"{field} must be a list of texts, got a str; give [{shown(texts, 60)}]")


def require_choice(field: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ConfigError unless value is one of the allowed names; the message suggests the nearest."""
    names = list(allowed)
    if value not in names:
        near = nearest(str(value), names) if isinstance(value, str) else ""
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"{field} must be one of {', '.join(names)}; got {shown(value)}{hint}")


def check_keys(table: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise ConfigError that lists every unknown key with the nearest allowed one, or with all if none is near.

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


def require_known(
    other: Mapping[str, Any], owner: str, known: str, instead: Callable[[str, Any], str] = lambda name, value: ""
) -> None:
    """Raise SignatureError for the first of these arguments, which `owner` does not have.

    known: the names of those that it has, with spaces between. instead: what to write for a name and its value, or "".
    """
    for name, value in other.items():
        near, names = nearest(name, known.split()), ", ".join(f"{one}=" for one in known.split())
        hint = instead(name, value) or (f"did you mean {near}=?" if near else f"allowed are {names}")
        raise SignatureError(f"{owner} has no argument {name}=; {hint}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; raises ConfigError for a duplicate key. Made for `object_pairs_hook` of `json`.

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
    """The allowed name that was meant by `name`, as far as can be told; "" otherwise.

    In this order: one that is nearly the same, the one that other programs call so, the only one that begins so, one
    that is similar, one with the same letters, and the only one with these initials. Case does not matter, nor whether
    words are joined by - or _.

    >>> nearest("GPT-2", ["nano", "gpt2"]), nearest("lr", ["steps", "learning_rate"]), nearest("epochs", ["eps"])
    ('gpt2', 'learning_rate', '')
    >>> nearest("block-size", ["vocab_size", "context_length"]), nearest("chars", ["bytes", "characters"])
    ('context_length', 'characters')
    """
    import difflib  # here, because most names are right

    def folded(word: str) -> str:
        return word.casefold().replace("-", "_")

    word, by_folded = folded(name), {folded(choice): choice for choice in allowed}
    close = difflib.get_close_matches(word, by_folded, n=1, cutoff=0.88)  # the s of a plural in a word of four letters
    close += [choice for choice in by_folded if word in OTHER_NAMES.get(choice, "").split()]
    begin = word.removesuffix("s")  # of a plural in short, such as chars
    begun = [choice for choice in by_folded if len(begin) > 2 and choice.startswith(begin)]
    close += begun if len(begun) == 1 else []
    close += difflib.get_close_matches(word, by_folded, n=1, cutoff=0.7)
    by_initials = ["".join(part[:1] for part in choice.split("_")) == word for choice in by_folded]
    close += [choice for choice in by_folded if sorted(choice) == sorted(word)]
    close += [choice for choice, fits in zip(by_folded, by_initials) if fits and sum(by_initials) == 1]
    return by_folded[close[0]] if close else ""


# Words for messages


def shown(value: Any, most: int = 100) -> str:
    """A value in an error message: its repr in at most `most` characters; the class where a repr has several lines.

    >>> shown("a long text that ends here", 12)
    "'a long te…'"
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, or tables nested too deeply
        return f"{type(value).__name__} too large to show"
    if "\n" in text:
        return type(value).__name__
    if len(text) <= most:
        return text
    return f"{text[: most - 2]}…{text[-1]}" if isinstance(value, str) else f"{text[: most - 1]}…"


def listed(names: Sequence[object]) -> str:
    """Names from a file, for an error of one line: at most ten of them, and how many more there are.

    >>> listed(["wte.weight", "a\\nb"])
    "'wte.weight', 'a\\\\nb'"
    """
    first = ", ".join(f"{name!r:.100}" for name in names[:10])
    return first + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def counted(count: float, noun: str, plural: str = "") -> str:
    """A number of things. plural: if it is not the noun with an s.

    >>> counted(1, "token"), counted(2000, "token"), counted(2, "process", "processes")
    ('1 token', '2,000 tokens', '2 processes')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def told_apart(a: float, b: float, least: int) -> tuple[str, str]:
    """Two numbers with so many digits at least, and with as many more as show that they differ.

    >>> told_apart(1000.0, 1000.002, 4)
    ('1000', '1000.002')
    """
    off, size = abs(a - b), max(abs(a), abs(b))
    digits = least if not 0 < off < size < math.inf else max(least, min(17, 2 + math.ceil(-math.log10(off / size))))
    return f"{a + 0.0:.{digits}g}", f"{b + 0.0:.{digits}g}"  # + 0.0: no -0


# What moves the cursor, colours, rings, or reverses the direction of writing: control characters but tab and line end.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def wrapped(text: str, columns: int) -> str:
    """The text with lines of at most so many columns, broken at spaces where there are any; the rest is indented.

    >>> print(wrapped("  self.wpe[start : start + length]", 20))
      self.wpe[start :
        start + length]
    """
    import textwrap  # here, because most commands wrap nothing

    def folded(line: str) -> str:
        indent = line[: len(line) - len(line.lstrip())] + "  "
        indent = indent if len(indent) < columns // 2 else ""
        if len(line) <= columns:
            return line
        words = textwrap.TextWrapper(columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        return words.fill(line)

    return "\n".join(map(folded, text.split("\n")))


def printable(text: str) -> str:
    r"""A text from a model or a file, made safe for a terminal: each control character becomes its Python escape.

    >>> print(printable("\x1b[31mred"))
    \x1b[31mred
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))
