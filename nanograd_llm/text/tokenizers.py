"""One interface from text to ids and back, with three vocabularies: bytes, characters, and learned byte pairs.

A tokenizer has a table of pieces, which are the bytes of each id, and a way to split text into pieces.
"""

from __future__ import annotations

import codecs
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanograd_llm.errors import ConfigError, DtypeError, IndexRangeError, ShapeError
from nanograd_llm.files.atomic import write_atomically
from nanograd_llm.settings import require_int
from nanograd_llm.text.bpe import BYTES, SPLIT_PATTERN, Report, check_merges, readable, train_bpe
from nanograd_llm.text.corpora import texts_of, well_formed

if TYPE_CHECKING:
    import tiktoken

AnyTokenizer = TypeVar("AnyTokenizer", bound="Tokenizer")
END_OF_TEXT = "<|endoftext|>"
MAX_PADDING = 2**16  # unused ids that a file may have; models are padded to a multiple of 128 or so


class Tokenizer(ABC):
    """Text to ids and back. A subclass gives the table of pieces, and encodes ordinary text.

    kind: the name of the class in a saved file.
    fields: what the file holds besides kind and vocab_size.
    optional: what it may also hold.
    end_of_text: the id of `<|endoftext|>`, or None if the vocabulary has none.
    known: how many ids stand for something. Those beyond, which a padded vocabulary has, decode to nothing.
    """

    kind: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    end_of_text: int | None

    def __init__(self, table: Sequence[bytes], end_of_text: int | None, vocab_size: int | None = None) -> None:
        self.known = len(table)
        size = self.known if vocab_size is None else vocab_size
        require_int("vocab_size", size, self.known)
        self._table = [*table, *[b""] * (size - self.known)]
        self.end_of_text = end_of_text

    @property
    def vocab_size(self) -> int:
        """The number of ids, including end-of-text and padding."""
        return len(self._table)

    def encode(self, text: str, *, allow_special: bool = False) -> NDArray[np.int32]:
        """The ids of `text`, int32 (N,). Surrogates are replaced first: see `corpora.well_formed`.

        `<|endoftext|>` is encoded as ordinary text. With `allow_special` it becomes the id `end_of_text`, if there is
        one.
        """
        if not isinstance(text, str):
            remedy = "; decode bytes first" if isinstance(text, (bytes, bytearray)) else ""
            if np.asarray(text).dtype.kind in "iu":
                remedy = "; ids are encoded already, and decode(ids) is their text"
            raise DtypeError(f"encode takes a str, got {type(text).__name__}{remedy}")
        text, whole = well_formed(text), self._whole_tokens(allow_special)
        if not whole:
            return self._encode_ordinary(text)
        longest_first = sorted(whole, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)  # parts 1, 3, 5, ... are whole tokens
        rows = [np.array([whole[x]], np.int32) if i % 2 else self._encode_ordinary(x) for i, x in enumerate(parts)]
        return np.concatenate(rows)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids (N,); bytes that are not valid UTF-8 become U+FFFD. Raises as `decode_bytes`."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The bytes of ids (N,). They may end in the middle of a character.

        Raises IndexRangeError for an id outside the vocabulary, DtypeError for ids that are not integers, ShapeError if
        ids is not one row.
        """
        return b"".join([self._table[i] for i in self._checked(ids).tolist()])

    def sizes(self, ids: ArrayLike) -> NDArray[np.int64]:
        """How many bytes of a text each id stands for, none for a special token.  (N,) -> (N,)

        Raises as `decode_bytes`.

        >>> ByteTokenizer().sizes([104, 256]).tolist()
        [1, 0]
        """
        occurring, places = np.unique(self._checked(ids), return_inverse=True)
        special = {*self._whole_tokens(True).values(), self.end_of_text} - {*self._whole_tokens(False).values()}
        found = [0 if i in special else len(self._table[i]) for i in occurring.tolist()]
        return np.array(found, np.int64)[places]

    def _checked(self, ids: ArrayLike) -> NDArray[np.integer]:
        """These ids as one row. Raises as `decode_bytes`."""
        row = np.asarray(ids)
        if row.size == 0:
            return np.zeros(0, np.int32)
        if row.dtype.kind not in "iu":
            raise DtypeError(f"ids must be integers, got dtype {row.dtype}")
        if row.ndim != 1:
            raise ShapeError(f"ids must be one row (N,), got shape {row.shape}; decode row by row")
        outside = (row < 0) | (row >= self.vocab_size)
        if outside.any():
            place = int(np.argmax(outside))
            raise IndexRangeError(
                f"id {row[place]} at position {place} is outside the vocabulary of {self.vocab_size} tokens; "
                "decode with the tokenizer that made the ids, and give its model vocab_size=tokenizer.vocab_size"
            )
        return row

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come. A character of several ids is given when its last byte has come."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for i in ids:
            yield decoder.decode(self.decode_bytes([i]))
        yield decoder.decode(b"", final=True)

    def pieces(self, text: str, *, allow_special: bool = False) -> list[tuple[int, bytes]]:
        """Each id of `text` with its bytes. allow_special: as for `encode`."""
        return [(i, self._table[i]) for i in self.encode(text, allow_special=allow_special).tolist()]

    @property
    def byte_merges(self) -> Sequence[tuple[bytes, bytes]]:
        """The merges that make pieces of bytes, in the order in which they were learned; () without byte pairs."""
        return ()

    @cached_property
    def _made_by(self) -> dict[bytes, int]:
        return {left + right: i for i, (left, right) in enumerate(self.byte_merges)}

    def merges_of(self, piece: bytes) -> list[int]:
        """The numbers of the merges that make a piece out of its bytes, in the order of the merges.

        >>> BPETokenizer.train("the thin theory, then the other", vocab_size=260).merges_of(b" the")
        [0, 1, 2]
        """
        found, parts = set(), [piece]
        while parts:
            i = self._made_by.get(parts.pop())
            if i is not None and i not in found:
                found.add(i)
                parts += self.byte_merges[i]
        return sorted(found)

    def show_merges(self, n: int = 20) -> str:
        r"""The first `n` merges, one on each line, with their numbers.

        >>> print(BPETokenizer.train("the thin theory, then the other", vocab_size=260).show_merges())
        0: 't' + 'h' -> 'th'
        1: 'th' + 'e' -> 'the'
        2: ' ' + 'the' -> ' the'
        """
        return "\n".join(
            f"{i}: {readable(left)} + {readable(right)} -> {readable(left + right)}"
            for i, (left, right) in enumerate(self.byte_merges[:n])
        )

    def special_id(self, token: str) -> int | None:
        """The id of a special token such as [MASK]; None where the vocabulary has none of that name."""
        return self._whole_tokens(True).get(token)

    def has_same_ids(self, other: Tokenizer) -> bool:
        """Does each id stand for the same bytes in the other one?"""
        return self._table == other._table and self.end_of_text == other.end_of_text

    def wrap(self, ids: ArrayLike) -> NDArray[np.int32]:
        """The ids of a text (N,) between [CLS] and [SEP], as BERT expects them; either is left out if it is unknown."""
        before, behind = ([] if i is None else [i] for i in map(self.special_id, ("[CLS]", "[SEP]")))
        return np.array([*before, *np.asarray(ids).tolist(), *behind], np.int32)

    @cached_property
    def continues(self) -> NDArray[np.bool_]:
        """(V,): does this piece continue the word before it? So does one that begins with a letter or a digit."""
        return np.array([piece[:1].isalnum() or piece[:1] >= b"\x80" for piece in self._table])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file for `load_tokenizer`, all or nothing. Raises StorageError."""
        content = {"kind": self.kind, "vocab_size": self.vocab_size} | self._saved()
        import json  # here, because most programs do not save a tokenizer

        write_atomically(path, json.dumps(content).encode("ascii") + b"\n")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"

    def _whole_tokens(self, allow_special: bool) -> dict[str, int]:
        """The strings that are one token wherever they occur in a text, with their ids."""
        return {END_OF_TEXT: self.end_of_text} if allow_special and self.end_of_text is not None else {}

    @abstractmethod
    def _encode_ordinary(self, text: str) -> NDArray[np.int32]:
        """The ids of well-formed text without special tokens."""

    def _saved(self) -> dict[str, Any]:
        """The `fields` and `optional` of the saved file, and their values."""
        return {field: getattr(self, field) for field in (*self.fields, *self.optional)}

    def changed(self: AnyTokenizer, **settings: Any) -> AnyTokenizer:
        """The same tokenizer with another vocab_size, or other settings that are `optional`."""
        own = {name: getattr(self, name) for name in ("vocab_size", *self.optional)}
        return type(self)(*(getattr(self, field) for field in self.fields), **own | settings)

    @classmethod
    def _restored(cls, content: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer from the content of a saved file. Raises ConfigError."""
        return cls(*(content[field] for field in cls.fields))


class ByteTokenizer(Tokenizer):
    """The 256 bytes, and end-of-text. Text is encoded as UTF-8.

    >>> ByteTokenizer().encode("hé").tolist()
    [104, 195, 169]
    """

    kind = "bytes"
    fields = ()

    def __init__(self) -> None:
        super().__init__([*BYTES, END_OF_TEXT.encode()], end_of_text=len(BYTES))

    def _encode_ordinary(self, text: str) -> NDArray[np.int32]:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


class CharTokenizer(Tokenizer):
    """The characters of one text, in the order of their code points. There is no end-of-text.

    >>> tokenizer = CharTokenizer.train("to be or not to be")
    >>> tokenizer.characters
    ' benort'
    >>> tokenizer.encode("to be").tolist()
    [6, 4, 0, 1, 2]
    """

    kind = "characters"
    fields = ("characters",)

    def __init__(self, characters: str) -> None:
        """Raises ConfigError if `characters` is empty, has duplicates or surrogates, or is not in order."""
        if not isinstance(characters, str) or not characters:
            raise ConfigError(f"characters is {characters!r}; expected a str of at least one character")
        if well_formed(characters) != characters:
            raise ConfigError("characters holds surrogates, which UTF-8 text cannot have; train on well-formed text")
        for one, following in pairwise(characters):
            if one >= following:
                raise ConfigError(
                    f"characters holds {one!r} before {following!r}; expected no duplicates, in order of code points"
                )
        super().__init__([character.encode("utf-8") for character in characters], end_of_text=None)
        self.characters = characters
        self._code_points = np.frombuffer(characters.encode("utf-32-le"), "<u4")

    @classmethod
    def train(cls, text: str | Iterable[str]) -> CharTokenizer:
        """The tokenizer of all characters in a text, or in several. Other characters cannot be encoded."""
        return cls("".join(sorted(set().union(*(set(well_formed(one)) for one in texts_of(text))))))

    def _encode_ordinary(self, text: str) -> NDArray[np.int32]:
        code_points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = np.searchsorted(self._code_points, code_points).astype(np.int32)
        unknown = self._code_points[np.minimum(ids, self.vocab_size - 1)] != code_points
        if unknown.any():
            place = int(np.argmax(unknown))
            raise IndexRangeError(
                f"character {text[place]!r} at position {place} is not among the {self.vocab_size} characters of the "
                "vocabulary; train the tokenizer on a text that has it, or use bytes or BPE, which can encode any text"
            )
        return ids


class BPETokenizer(Tokenizer):
    """Byte pair encoding as in GPT-2: `merges[i]` makes id 256 + i, and end-of-text is the last id.

    Byte b has the id b (GPT-2's own vocabulary has the bytes in another order). tiktoken does the encoding: `encoding`
    is the same vocabulary as a `tiktoken.Encoding`.
    """

    kind = "bpe"
    fields = ("merges",)

    def __init__(self, merges: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises ConfigError, which names the merge, if training cannot learn `merges` in this order."""
        self.merges = [(left, right) for left, right in merges]
        check_merges(self.merges)
        table = [*BYTES, *(left + right for left, right in self.merges), END_OF_TEXT.encode()]
        super().__init__(table, end_of_text=len(table) - 1)

    @classmethod
    def train(
        cls, text: str | Iterable[str], vocab_size: int = 1024, report: Report = lambda doing, share: None
    ) -> BPETokenizer:
        """Learn merges from a text, or from several, up to `vocab_size` tokens: see `bpe.train_bpe`."""
        return cls(train_bpe(text, vocab_size, report))

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """This vocabulary as a `tiktoken.Encoding`; its ranks are the ids."""
        import tiktoken

        return tiktoken.Encoding(
            "nanograd_llm",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks={piece: i for i, piece in enumerate(self._table[:-1])},
            special_tokens={END_OF_TEXT: self.vocab_size - 1},
        )

    @property
    def byte_merges(self) -> Sequence[tuple[bytes, bytes]]:
        """See `Tokenizer.byte_merges`."""
        return self.merges

    def _encode_ordinary(self, text: str) -> NDArray[np.int32]:
        return self.encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32)

    def _saved(self) -> dict[str, Any]:
        # JSON has no bytes. Each byte is written as the character with the same number, so English stays readable.
        return {"merges": [(left.decode("latin-1"), right.decode("latin-1")) for left, right in self.merges]}

    @classmethod
    def _restored(cls, content: Mapping[str, Any]) -> BPETokenizer:
        merges = content["merges"]
        if not isinstance(merges, list):
            raise ConfigError(f"merges is a {type(merges).__name__}; expected a list of pairs")
        pairs = []
        for i, merge in enumerate(merges):
            try:
                left, right = merge
                pairs.append((left.encode("latin-1"), right.encode("latin-1")))
            except (TypeError, ValueError, AttributeError) as error:
                raise ConfigError(
                    f"merges[{i}] is {merge!r}; expected two strings with a character up to U+00FF for each byte"
                ) from error
        return cls(pairs)


def require_size(vocab_size: Any, known: int) -> None:
    """Raise ConfigError unless a file's vocab_size is that of so many pieces, perhaps padded."""
    require_int("vocab_size", vocab_size, known, known + MAX_PADDING)
