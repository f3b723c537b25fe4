"""Where text comes from: the manual that every CPython carries, or any UTF-8 file; and its split for evaluation."""

from __future__ import annotations

import os

from nanograd_llm.errors import BadFileError, ConfigError, ShapeError, StorageError
from nanograd_llm.files.atomic import read_bytes
from nanograd_llm.settings import require_number


def builtin_corpus() -> str:
    """The Python reference manual in English, about 465 KB: the texts of `pydoc_data.topics`, by topic name.

    Two empty lines stand between topics. The text differs a little from one Python version to the next.
    Raises StorageError where a Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise StorageError(
            "this Python was installed without pydoc_data.topics, the built-in corpus; give a text file instead"
        ) from error
    return "\n\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n"


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, line endings as they are, a byte order mark at its start left out.

    Raises StorageError if the file is missing, unreadable or no regular file, BadFileError if it is empty or not UTF-8.
    """
    raw = read_bytes(path)
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadFileError(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} ({error.reason}); "
            "convert it to UTF-8 first"
        ) from error
    if not text:
        raise BadFileError(f"{path} is empty; expected text")
    return text


def split_text(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """(train, held out): the last `held_out` part of the characters is kept for evaluation.

    Raises ConfigError unless 0 < `held_out` < 1, ShapeError if either part would be empty.

    >>> split_text("0123456789")
    ('012345678', '9')
    """
    require_number("held_out", held_out, 0, 1, below=True)
    if held_out == 0:
        raise ConfigError("held_out must be above 0; got 0: an evaluation needs text; 0.1 is usual")
    cut = int(len(text) * (1 - held_out))
    if not 0 < cut < len(text):
        raise ShapeError(f"held_out={held_out} of {len(text)} characters leaves one part empty; give more text")
    return text[:cut], text[cut:]


def well_formed(text: str) -> str:
    r"""`text` as UTF-8 can hold it: a surrogate pair becomes its character, a lone surrogate becomes U+FFFD.

    >>> well_formed("\ud83d\ude00 \ud83d!") == "\U0001f600 \ufffd!"
    True
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
