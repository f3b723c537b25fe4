"""What is wrong with a command line, in a sentence: what arrived, what was expected, what to do."""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cyclopts import CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from nanograd_llm.settings import OTHER_NAMES, nearest

PLACED = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL  # given without an option
NARROW = 70  # columns
RESUMING = "to go on with a run: nanograd-llm train --resume RUN"


def usage(name: str, command: Callable[..., Any]) -> str:
    """The line that shows the arguments of a command by their names.

    >>> def classify(model: str, /, *texts: str, out: str, top: int = 3): ...
    >>> usage("classify", classify)
    'Usage: nanograd-llm classify --out OUT [OPTIONS] MODEL [TEXTS...]'
    """
    needed, words = [], ["[OPTIONS]"]
    for parameter in inspect.signature(command).parameters.values():
        word, is_needed = parameter.name.upper(), parameter.default is inspect.Parameter.empty
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            words.append(f"[{word}...]")
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            word += "..." * ("list[" in str(parameter.annotation))
            words.append(word if is_needed else f"[{word}]")
        elif is_needed:
            needed.append(f"--{parameter.name.replace('_', '-')} {word}")
    return " ".join([f"Usage: nanograd-llm {name}", *needed, *words])


def help_formatter(columns: int) -> Any:
    """How a help page is laid out: in few columns each description is below its names, which are not broken then."""
    if columns >= NARROW:
        return None  # as cyclopts does it, in a table
    from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, NameRenderer
    from rich.console import Group
    from rich.padding import Padding

    def below(entry: Any) -> Group:
        return Group(NameRenderer()(entry), Padding(DescriptionRenderer()(entry), (0, 0, 0, 2)))

    return DefaultFormatter(column_specs=(ColumnSpec(renderer=below),))


def explained(error: CycloptsError, examples: Mapping[str, Sequence[str]]) -> str:
    """What is wrong, in a sentence, and which help page to read. examples: of each command, one shows its form."""
    name = " ".join(error.command_chain or ())
    fault = _fault(error, [one for one in examples.get(name, ()) if one != name])
    page = " ".join(("nanograd-llm", *(error.command_chain or ()), "--help"))
    return f"{fault} See {page}" if fault.endswith("?") else f"{fault}; see {page}"


def as_typed(message: str, options: Iterable[str]) -> str:
    """A message in which settings have the names of the options that set them. Paths and quoted names stay.

    A setting of one word may be a word of the sentence as well, so it is looked for where messages name settings.

    >>> as_typed("held_out must be below 1; init takes n_layer, data from it", ["--data", "--held-out", "--n-layer"])
    '--held-out must be below 1; init takes --n-layer, --data from it'
    """
    names = {option.removeprefix("--").replace("-", "_"): option for option in options}
    listing = re.compile(r"(?<= takes )\w+(, \w+)*(?=,? from )")
    message = listing.sub(lambda found: ", ".join(names.get(word, word) for word in found[0].split(", ")), message)
    for name, option in names.items():
        found = re.escape(name)
        if "_" in name:
            places = rf"(?<![\w/.'\"-]){found}(?![\w/.'\"]|-\w)"
        else:
            places = (
                rf"(?:^|(?<=; )|(?<=, )){found}(?= must| is | takes | names | cannot|( and [\w-]+)? are both given)"
                rf"|(?<= and ){found}(?= are)|^{found}=True|(?<=leave ){found}(?= out)|(?<=set ){found}(?= to )"
                rf"|(?<=with ){found}$|(?<=weights of ){found}\b"
            )
        reprs = r"(?P<repr>\w\([^()]*\))"  # such as BPETokenizer(vocab_size=400), which stays
        renamed: Callable[[re.Match[str]], str] = functools.partial(_renamed, option)
        message = re.sub(f"{reprs}|(?:{places})", renamed, message)
    return re.sub(r"\bfile(?= and --data are both given)", "FILE", message)


def _renamed(option: str, found: re.Match[str]) -> str:
    return found["repr"] or option


def _fault(error: CycloptsError, examples: Sequence[str]) -> str:
    command = " ".join(error.command_chain or ("nanograd-llm",))
    if isinstance(error, UnknownCommandError) and error.unused_tokens and error.app is not None:
        names = [name for name in error.app if not name.startswith("-")]
        if error.unused_tokens[0].startswith("-"):
            return _unknown_option(error.unused_tokens[0], list(error.app), "nanograd-llm")
        near = nearest(error.unused_tokens[0], names)
        hint = f"did you mean {near}?" if near else f"the commands are {', '.join(names)}"
        if error.unused_tokens[0] in ("resume", "continue"):
            hint = RESUMING
        return f"{_shown(error.unused_tokens[0])} is no command; {hint}"
    if isinstance(error, UnknownOptionError):
        word, given = error.token.keyword or error.token.value, error.root_input_tokens or []
        if "--" in given and word not in given[: given.index("--")]:  # after it, nothing is an option
            if word.startswith("--"):
                return f"{word} comes after --, where everything is text; put options before --, and the text last"
            return _too_many([word], error, command) + _example(error, examples)
        names = [name for argument in error.argument_collection for name in argument.names]
        return _unknown_option(word, [*names, "--help"], command, error.target)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return _too_many(error.unused_tokens, error, command) + _example(error, examples)
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice; give it once"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        if name in (error.unused_tokens or ()):
            if name == "--resume":
                run = next(filter(os.path.isdir, error.root_input_tokens or ()), "RUN")
                return f"{name} is given without a value; {RESUMING.replace('RUN', shlex.quote(run))}"
            return f"{name} is given without a value; put {_expected(error.argument.hint)} after it"
        choices = f", {_expected(error.argument.hint)}" if _choices(error.argument.hint) else ""
        return f"{command} needs {name}{choices}{_example(error, examples)}"
    if isinstance(error, CoercionError) and error.token is not None and error.argument is not None:
        value = error.token.value
        near = nearest(value, _choices(error.argument.hint))
        hint = f"; did you mean {near}?" if near else ""
        return f"{error.argument.name} must be {_expected(error.argument.hint)}; got {_shown(value)}{hint}"
    return str(error).rstrip(".")


def _example(error: CycloptsError, examples: Sequence[str]) -> str:
    """What to add to a fault: the first example, or the words that were given, with --model before their model."""
    command, *words = error.root_input_tokens or [""]
    model = next(filter(os.path.isdir, words), "")
    if model and "--model" not in words and any("--model" in one for one in examples):
        words.remove(model)
        return f"; for example: nanograd-llm {shlex.join([command, '--model', model, *words])}"
    return f"; for example: nanograd-llm {examples[0]}" if examples else ""


def flag_before(word: str, arguments: Sequence[str], known: Iterable[Any]) -> str:
    """What to say of a word that was taken for a file, where it stands after an option without a value; "" elsewhere.

    known: the arguments of the command, as cyclopts has them.
    """
    flags = {name for argument in known if bool in (argument.hint, *get_args(argument.hint)) for name in argument.names}
    for flag in [before for before, after in zip(arguments, arguments[1:]) if after == word and before in flags]:
        near = nearest(flag.strip("-"), OTHER_NAMES) if word.isdecimal() else ""
        hint = f"did you mean --{near.replace('_', '-')}?" if near else "check the path, or leave it out"
        return f"{flag} takes no value, and {word} is no file; {hint}"
    return ""


def _unknown_option(word: str, options: list[str], command: str, target: Callable[..., Any] | None = None) -> str:
    """An unknown option; what was meant is suggested, for a single letter the only one that begins with it."""
    short = word.strip("-").lower()
    if short in ("resume", "continue"):
        return f"{word} is no option of {command}; {RESUMING}"
    names = {name.strip("-"): name for name in options if name.startswith("--")}
    first = [name for name in names if name[0] == short]
    places = [parameter.name for parameter in _kinds(target) if parameter.kind in PLACED]
    first = [short] if short in names else first
    near = nearest(short, [*places, *names]) if word.startswith("--") else first[0] if len(first) == 1 else ""
    if near in places:
        form = usage(command, target).removeprefix("Usage: ") if target else ""
        return f"{word} is no option of {command}; give {near.upper()} without an option: {form}"
    if near:
        return f"{word} is no option of {command}; did you mean {names[near]}?"
    if len(short) == 1 and len(first) > 1:
        return f"{word} is no option of {command}; did you mean one of {', '.join(names[name] for name in first)}?"
    if word.startswith("--") and " " not in word:
        return f"{word} is no option of {command}"
    return f"{_shown(word)} is no option of {command}; put a text that begins with a dash last, after --"


def _kinds(target: Callable[..., Any] | None) -> Iterable[inspect.Parameter]:
    return inspect.signature(target).parameters.values() if target is not None else ()


def _too_many(words: list[str], error: CycloptsError, command: str) -> str:
    kinds = _kinds(error.target)
    takes = [parameter.name.upper() for parameter in kinds if parameter.kind is inspect.Parameter.POSITIONAL_ONLY]
    options = [parameter.name for parameter in kinds if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    model = ", and a model with --model" if "model" in options else ""
    is_quoted = any(" " in word for word in error.root_input_tokens or ())
    quotes = (
        "; put quotes around a text with spaces" if {"TEXT", "PROMPT", "QUERY"} & {*takes} and not is_quoted else ""
    )
    what = f"takes only {' and '.join(takes) or 'options'}{model}{quotes}"
    return f"{', '.join(map(_shown, words))}: too many words; {command} {what}"


def _choices(kind: Any) -> list[str]:
    parts = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    return [str(choice) for part in parts for choice in get_args(part)]


def _expected(kind: Any) -> str:
    """What the value of an option may be, in words.

    >>> _expected(int | None), _expected(Literal["hf", "numpy"])
    ('an integer', 'one of hf, numpy')
    """
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}"
    words = {int: "an integer", float: "a number", bool: "true or false", Path: "a path"}
    return next((words[part] for part in (kind, *get_args(kind)) if part in words), "a value")


def _shown(word: str) -> str:
    return f"{word!r:.80}"
