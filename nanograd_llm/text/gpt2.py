"""GPT-2's form of a vocabulary: how its files write bytes, ids and merges.

The files write a piece as text. A printable byte is written as its own character; the other 68 are written as the
characters from U+0100 on, in order: a space is Ġ, a new line is Ċ. The first ids are the bytes in the order of that
alphabet, then one id for each merge; `<|endoftext|>` is the last. (Radford et al. 2019, encoder.py.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import listed, require_int, shown
from nanograd_llm.text.bpe import BYTES
from nanograd_llm.text.tokenizers import END_OF_TEXT, BPETokenizer, ByteTokenizer, Tokenizer, require_size

_PRINTED = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
ALPHABET = {byte: chr(byte) for byte in _PRINTED} | {byte: chr(256 + place) for place, byte in enumerate(_OTHERS)}
_BYTE = {character: byte for byte, character in ALPHABET.items()}
SPECIAL = r"<.+>|\[[A-Z]+\]"  # names of special tokens in models that derive from GPT-2


def spell(piece: bytes) -> str:
    """A piece as GPT-2's files write it.

    >>> spell(b" the")
    'Ġthe'
    """
    return "".join(ALPHABET[byte] for byte in piece)


def unspell(spelled: str) -> bytes:
    """The piece that GPT-2's files write as `spelled`. Raises ConfigError for a character outside the alphabet."""
    try:
        return bytes(_BYTE[character] for character in spelled)
    except KeyError as error:
        raise ConfigError(
            f"{shown(spelled, 100)} has the character {error.args[0]!r}, which is not in GPT-2's alphabet of bytes"
        ) from None


class GPT2Tokenizer(Tokenizer):
    """A vocabulary in the form of GPT-2's files: `vocab`, each piece with its id, and `merges`, the first one first.

    vocab: the 256 bytes, the result of each merge, and added tokens. Other tokens in brackets are decoded to their
        names and never encoded. The ids are 0, 1, ... without a gap.
    vocab_size: may be larger than the vocabulary; the ids beyond it are padding, and decode to nothing.
    added: tokens that `encode` finds in a text, and whether each is special. A special token is found only with
        `allow_special`.
    end_of_text: an id; by default that of `<|endoftext|>`.
    add_prefix_space: put a space before a text that does not begin with white space.

    Raises ConfigError, which names the piece, id or merge that does not fit.

    >>> tokenizer = GPT2Tokenizer.of(BPETokenizer.train("the thin theory, then the other", vocab_size=260))
    >>> tokenizer.merges
    [('t', 'h'), ('th', 'e'), ('Ġ', 'the')]
    >>> tokenizer.pieces(" then")
    [(258, b' the'), (110, b'n')]
    """

    kind = "gpt2"
    fields = ("vocab", "merges")
    optional = ("added", "end_of_text", "add_prefix_space")

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Iterable[tuple[str, str]],
        vocab_size: int | None = None,
        *,
        added: Mapping[str, bool] | None = None,
        end_of_text: int | None = None,
        add_prefix_space: bool = False,
    ):
        self.vocab, self.merges = dict(vocab), [(left, right) for left, right in merges]
        self._ranked = BPETokenizer(_unspelled(self.merges))
        pieces = [*BYTES, *(left + right for left, right in self._ranked.merges)]
        spelled = [spell(piece) for piece in pieces]
        self.added = {END_OF_TEXT: True} if END_OF_TEXT in self.vocab else {}
        self.added |= {} if added is None else added
        self.add_prefix_space = add_prefix_space
        _check(self.vocab, spelled, self.added)
        self._ids = np.array([self.vocab[name] for name in spelled], np.int32)
        table = [b""] * len(self.vocab)
        for name, i in self.vocab.items():
            table[i] = name.encode("utf-8")
        for i, piece in zip(self._ids.tolist(), pieces):
            table[i] = piece
        super().__init__(table, self.vocab.get(END_OF_TEXT) if end_of_text is None else end_of_text, vocab_size)
        if end_of_text is not None:
            require_int("end_of_text", end_of_text, 0, self.vocab_size - 1)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> GPT2Tokenizer:
        """The same vocabulary and ids in this form. Raises ConfigError unless the tokenizer is made of bytes."""
        if isinstance(tokenizer, GPT2Tokenizer):
            return tokenizer
        if not isinstance(tokenizer, (BPETokenizer, ByteTokenizer)):
            raise ConfigError(f"{tokenizer} is not made of bytes and merges, as GPT-2's form requires")
        merges = tokenizer.merges if isinstance(tokenizer, BPETokenizer) else []
        spelled = [(spell(left), spell(right)) for left, right in merges]
        pieces = [*map(spell, BYTES), *(left + right for left, right in spelled), END_OF_TEXT]
        return cls({piece: i for i, piece in enumerate(pieces)}, spelled)

    @property
    def byte_merges(self) -> Sequence[tuple[bytes, bytes]]:
        """See `Tokenizer.byte_merges`."""
        return self._ranked.merges

    def with_special(self, token: str) -> GPT2Tokenizer:
        """The same tokenizer with one more special token; its id is the first that stands for nothing."""
        vocab = {**self.vocab, token: len(self.vocab)}
        settings: dict[str, Any] = {"end_of_text": self.end_of_text, "add_prefix_space": self.add_prefix_space}
        size, added = max(self.vocab_size, len(vocab)), {**self.added, token: True}
        return GPT2Tokenizer(vocab, self.merges, size, added=added, **settings)

    def _whole_tokens(self, allow_special: bool) -> dict[str, int]:
        return {token: self.vocab[token] for token, special in self.added.items() if allow_special or not special}

    def _encode_ordinary(self, text: str) -> NDArray[np.int32]:
        if self.add_prefix_space and text and not text[0].isspace():
            text = f" {text}"
        return self._ids[self._ranked._encode_ordinary(text)]

    def _saved(self) -> dict[str, Any]:
        merges = [f"{left} {right}" for left, right in self.merges]
        return super()._saved() | {"merges": merges}

    @classmethod
    def _restored(cls, content: Mapping[str, Any]) -> GPT2Tokenizer:
        vocab, merges = content["vocab"], content["merges"]
        if not isinstance(vocab, dict) or not isinstance(merges, list):
            raise ConfigError("vocab must be an object and merges a list")
        require_size(content["vocab_size"], len(vocab))
        settings = {name: content[name] for name in cls.optional if name in content}
        added, prefix = settings.get("added", {}), settings.get("add_prefix_space", False)
        if not isinstance(added, dict) or not {type(x) for x in (prefix, *added.values())} <= {bool}:
            raise ConfigError("added must be an object with the values true and false, add_prefix_space true or false")
        return cls(vocab, [split_merge(merge) for merge in merges], content["vocab_size"], **settings)


def split_merge(merge: Any) -> tuple[str, str]:
    """The two parts of a merge as GPT-2's files write it, with one space between them. Raises ConfigError."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise ConfigError(f"{shown(merge, 100)} is not a merge; expected two pieces with one space between them")
    return parts[0], parts[1]


def _unspelled(merges: Iterable[tuple[str, str]]) -> Iterator[tuple[bytes, bytes]]:
    for i, (left, right) in enumerate(merges):
        try:
            yield unspell(left), unspell(right)
        except ConfigError as error:
            raise ConfigError(f"merges[{i}]: {error}") from None


def _check(vocab: Mapping[str, int], spelled: list[str], added: Mapping[str, bool]) -> None:
    """Raise ConfigError unless the ids are 0, 1, ... and every piece is in `spelled` or `added`, or is special."""
    by_id: dict[int, str] = {}
    for piece, i in vocab.items():
        if type(i) is not int:
            raise ConfigError(f"vocab has an id that is not an integer: {shown(piece, 50)}: {shown(i, 50)}")
        if by_id.setdefault(i, piece) != piece:
            raise ConfigError(f"vocab gives the id {i} to two pieces, {shown(by_id[i], 50)} and {shown(piece, 50)}")
    gap = next((i for i in range(len(vocab)) if i not in by_id), None)
    if gap is not None:
        raise ConfigError(f"vocab has a gap: no piece has the id {gap}, of {len(vocab)} pieces")
    missing = [token for token in added if not token or token not in vocab]
    if missing:
        raise ConfigError(f"vocab lacks added tokens: {listed(missing)}")
    missing = [piece for piece in spelled if piece not in vocab]
    if missing:
        raise ConfigError(f"vocab lacks bytes, or results of merges: {listed(missing)}")
    made = {*spelled, *added}
    unmade = [piece for piece in vocab if piece not in made and not re.fullmatch(SPECIAL, piece)]
    if unmade:
        raise ConfigError(
            f"vocab has pieces that no merge makes: {listed(unmade)}; do the merges belong to this vocab?"
        )
