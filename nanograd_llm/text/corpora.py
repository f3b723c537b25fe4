"""Sources of text: the reference manual that comes with CPython, or any UTF-8 file; and the split for evaluation."""

from __future__ import annotations

import codecs
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from nanograd_llm.errors import BadFileError, ConfigError, DtypeError, ShapeError, StorageError
from nanograd_llm.files.atomic import read_bytes, write_atomically
from nanograd_llm.settings import counted, require_number, require_type


def builtin_corpus() -> str:
    """The Python reference manual in English, about 465 KB: the texts of `pydoc_data.topics`, by topic name.

    Topics are separated by two empty lines. The text differs a little between versions of Python.
    Raises StorageError if this Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise StorageError(
            "this Python was installed without pydoc_data.topics, the built-in corpus; give a text file instead"
        ) from error
    return "\n\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n"


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file. Line endings are kept; a byte order mark at the start is left out.

    Raises StorageError if the file is missing, unreadable or not a regular file, BadFileError if it is empty or not
    UTF-8.
    """
    return decoded(read_bytes(path), os.fspath(path))


def decoded(data: bytes, name: str) -> str:
    """The text of UTF-8 bytes, without a byte order mark. Raises BadFileError if there is none, or it is not UTF-8.

    UTF-16 is named as that: with its mark, or where nearly every second byte is 0.
    """
    return "".join(decoded_blocks([data], name))


def decoded_blocks(blocks: Iterable[bytes], name: str) -> Iterator[str]:
    """As `decoded`, for bytes that come in blocks; a character may lie in two of them."""
    decoder, offset, head, is_empty = codecs.getincrementaldecoder("utf-8")(), 0, b"", True
    for block in itertools.chain(blocks, [b""]):
        if not offset:
            head = block[: 2**16]
            _refuse_utf16(head, name)
        waiting = decoder.getstate()[0]  # the beginning of a character
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            controls = sum(head.count(byte) for byte in (*range(8), *range(14, 27), *range(28, 32)))
            if 0 in head or controls > len(head) // 50:
                remedy = "it looks like a binary file; give a text"
            else:
                remedy = f"convert it to UTF-8 first, for example: {_conversion('WINDOWS-1252', name)}"
            data, place = waiting + block, offset - len(waiting) + error.start
            raise BadFileError(
                f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {place} ({error.reason}); {remedy}"
            ) from error
        offset += len(block)
        text = text.removeprefix("\ufeff") if is_empty else text
        is_empty = is_empty and not text
        yield text
    if is_empty:
        raise BadFileError(f"{name} is empty; expected text")


def _refuse_utf16(head: bytes, name: str) -> None:
    few, many = sorted((head[::2].count(0), head[1::2].count(0)))
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) >= 8 and many > len(head) // 3 and few < many // 2):
        raise BadFileError(f"{name} is UTF-16; convert it to UTF-8 first: {_conversion('UTF-16', name)}")


def _conversion(encoding: str, name: str) -> str:
    """The command that makes UTF-8 of the file of this name; without names where it is no file, as standard input."""
    import shlex  # here, because most files are UTF-8

    if not os.path.exists(name):
        return f"iconv -f {encoding} -t UTF-8"
    stem, ending = os.path.splitext(name)
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > {shlex.quote(f'{stem}-utf8{ending}')}"


def warn_of_repeated(source: str | os.PathLike[str], rows: int, different: int) -> None:
    """Warn where rows of a file occur again, which are left out."""
    if rows > different:
        left_out = rows - different
        does = "occurs again and is" if left_out == 1 else "occur again and are"
        warnings.warn(f"{source}: {left_out:,} of {counted(rows, 'row')} {does} left out", stacklevel=3)


def split_text(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """Split into (train, held out). held_out: the part of the characters, at the end, to keep for evaluation.

    Raises ConfigError unless 0 < `held_out` < 1, ShapeError if either part would be empty, DtypeError for the name of a
    file.

    >>> split_text("0123456789")
    ('012345678', '9')
    """
    require_text(text)
    require_number("held_out", held_out, 0, 1, below=True)
    if held_out == 0:
        raise ConfigError("held_out must be above 0; got 0, which leaves no text for evaluation; 0.1 is usual")
    cut = int(len(text) * (1 - held_out))
    if not 0 < cut < len(text):
        raise ShapeError(f"held_out={held_out} of {len(text)} characters leaves one part empty; use more text")
    return text[:cut], text[cut:]


def text_hash(*parts: str) -> str:
    """The SHA-256 of the UTF-8 bytes of these parts, one after the other, in hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8"))
    return digest.hexdigest()


def save_hash(path: str | os.PathLike[str], digest: str, name: str) -> None:
    """Write a hash and the name of what it is of, as the program sha256sum does. Raises StorageError."""
    write_atomically(path, f"{digest}  {name}\n".encode("utf-8", "backslashreplace"))


def require_text(text: Any) -> None:
    """Raise DtypeError unless this is a str, and for the path of a file that exists: the text in it is meant."""
    is_path = isinstance(text, os.PathLike) or (isinstance(text, str) and len(text) < 256 and "." in text)
    if is_path and "\0" not in os.fspath(text) and os.path.isfile(text):
        name = os.fspath(text)
        raise DtypeError(f"{name!r} is the name of a file, not its text; read it: ng.text.read_text({name!r})")
    require_type("text", text, str, "a str")


def texts_of(text: str | Iterable[str]) -> Iterable[str]:
    """One text, or several, as several. Raises DtypeError as `require_text`, and for what is neither."""
    if isinstance(text, (str, bytes)) or not isinstance(text, Iterable):
        require_text(text)
        return [str(text)]
    return text


def nul_remark(count: int) -> str:
    """What to add to a line about a text with so many NUL characters; "" without any.

    >>> nul_remark(2), nul_remark(0)
    ('; 2 characters of it NUL, as in a binary file', '')
    """
    return f"; {counted(count, 'character')} of it NUL, as in a binary file" if count else ""


def well_formed(text: str) -> str:
    r"""Replace what UTF-8 cannot hold: a surrogate pair becomes its character, a lone surrogate becomes U+FFFD.

    >>> well_formed("\ud83d\ude00 \ud83d!") == "\U0001f600 \ufffd!"
    True
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
