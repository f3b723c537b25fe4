"""Options of a command that are made from settings: each dataclass becomes a section of the help page.

A command gets only the options that are given on the command line; presets and files may set the others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from cyclopts import Group, Parameter

from nanograd_llm.cli.terminal import text_or_piped, warn_of_file
from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import Settings

Model = Annotated[
    str, Parameter(help="The folder of a run, or a pretrained model: a folder, a file or a name, such as gpt2.")
]
Filler = Annotated[
    str, Parameter(help="The folder of a run of the task masked-words, or of a pretrained BERT, such as my-bert.")
]
Translator = Annotated[
    str, Parameter(help="The folder of a run of the task translation, or of a pretrained Marian, such as my-marian.")
]
Labeller = Annotated[
    str,
    Parameter(
        help="The folder of a run of the task classification, or of a pretrained BertForSequenceClassification, such "
        "as my-classifier."
    ),
]
Encoder = Annotated[
    str,
    Parameter(
        help="The folder of a run, or of a pretrained model. A BERT for sentences is best, such as MiniLM: a folder of "
        "yours with the files of all-MiniLM-L6-v2."
    ),
]
Target = Annotated[
    tuple[str, ...],
    Parameter(
        show_default=False,
        help="What the model should say: the translation, the answer, the words at [MASK], or the class; its own "
        "prediction if not given. For a model of preferences the chosen answer, then in a second --target the "
        "rejected one; for a model of sentences a text to compare with; a language model takes none.",
        negative=(),
    ),
]
Device = Annotated[
    Literal["cpu", "cuda"],
    Parameter(help="Where to compute: cpu, or cuda for an NVIDIA GPU, which needs CuPy: see nanograd-llm doctor."),
]
Given = Mapping[str, Any]  # settings by name
NOTHING: Given = MappingProxyType({})
Command = TypeVar("Command", bound=Callable[..., Any])


def with_options(**sections: Any) -> Callable[[Command], Command]:
    """Fill parameters of a command, of type Given, from options: `@with_options(model=options(GPTConfig, "Model"))`."""

    def declare(command: Command) -> Command:
        command.__annotations__.update(sections)
        return command

    return declare


def options(kind: type[Settings], title: str, *, without: Collection[str] = (), shown: Given = NOTHING) -> Any:
    """The options for the settings of `kind`, as a type that cyclopts reads: see `fields_of`."""
    return as_options(kind.__name__, fields_of(kind, title, without=without, shown=shown))


def as_options(name: str, fields: Mapping[str, Any]) -> Any:
    """The options for these fields, as a type that cyclopts reads."""
    return Annotated[TypedDict(name, dict(fields), total=False), Parameter(name="*")]  # type: ignore[operator]


def fields_of(
    kind: type[Settings], title: str, *, without: Collection[str] = (), shown: Given = NOTHING, prefix: str = ""
) -> dict[str, Any]:
    """The options for the settings of `kind`, by name.

    title: of their section. prefix: of the options' names. without: options, or choices of one, that are left out.
    shown: defaults to show in the help, by option, in place of the field's own; None for no default.
    """
    group = _section(title)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        if name in without:
            continue
        choices = tuple(choice for choice in field.metadata["choices"] or () if choice not in without)
        accepted: Any = Literal[choices] if choices else kind.setting_types[field.name][0]
        several = accepted == tuple[str, ...]
        default = shown.get(name, field.default)
        help = field.metadata["help"] + ("" if default is None else f" [default: {default}]")
        parameter = Parameter(help=help, group=group, consume_multiple=several, negative=() if several else None)
        fields[name] = Annotated[list[str] if several else accepted, parameter]
    return fields


@functools.cache
def _section(title: str) -> Group:
    """The section of this title, one for all the options in it, in the order in which they are first made."""
    return Group.create_ordered(title)


def lines_of(file: Path) -> list[str]:
    """The lines of a file that are not blank. Raises ConfigError for rows, otherwise as `read_lines`."""
    from nanograd_llm.text import read_lines
    from nanograd_llm.text.sources import require_plain

    require_plain([str(file)], option="--file ")
    return read_lines(file)


def given_texts(
    texts: Sequence[str], file: Path | None, purpose: str, read: Callable[[Path], list[str]] = lines_of
) -> list[str]:
    """The texts of the command line, then those that `read` finds in the file, its lines; "-", or nothing, is what is
    piped in, a text a line. Raises ConfigError where there are none.
    """
    lines = [text for text in texts if text != "-"]
    for text in lines:
        warn_of_file(text)
    if "-" in (*texts, str(file)) or not (texts or file):
        lines += [line.strip() for line in (text_or_piped(None) or "").splitlines() if line.strip()]
    lines += read(file) if file is not None and str(file) != "-" else ()
    if not lines:
        raise ConfigError(
            f"there is nothing to {purpose}; give texts in quotes, or --file with a text on each line, or pipe lines in"
        )
    return lines


def given_text(text: str | None, purpose: str) -> str:
    """The text of the command line, or what is piped in. Raises ConfigError where there is none."""
    if (found := text_or_piped(text)) is None or (text is None and not found):
        raise ConfigError(f"there is nothing to {purpose}; give TEXT in quotes, or pipe it in")
    return found
