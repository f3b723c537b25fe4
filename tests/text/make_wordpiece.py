"""Writes wordpiece.json: strings of all scripts with the ids that the library `tokenizers` gives them.

python tests/text/make_wordpiece.py
"""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

FILE = Path(__file__).with_name("wordpiece.json")
WORDS = "the cat sees a small house unaffable houses don't naïve ÉTÉ Straße İstanbul ΣΊΣΥΦΟΣ".split()
WORDS += "漢字 かな 한국어 हिन्दी ไทย".split()
# Later versions of Unicode moved none of these to another category, so that every Python agrees on them.
_OLD = unicodedata.ucd_3_2_0
CHARACTERS = [
    character
    for character in map(chr, (*range(0xD800), *range(0xE000, 0x110000)))
    if _OLD.category(character) == unicodedata.category(character) != "Cn"
]


def random_string(rng: random.Random) -> str:
    """Known words, pieces of them, spaces, and neighbouring characters from anywhere in Unicode."""
    parts = []
    for _ in range(rng.randrange(1, 9)):
        start = rng.randrange(len(CHARACTERS))
        alphabet = CHARACTERS[start : start + 80]
        parts += [
            rng.choice(WORDS),
            rng.choice(WORDS) + rng.choice(WORDS).upper(),
            "".join(rng.choices(alphabet, k=rng.randrange(1, 5))),
            "".join(chr(rng.randrange(0x250)) for _ in range(rng.randrange(1, 5))),
        ][rng.randrange(4) :][:1]
        parts.append(rng.choice(["", " ", "  ", "\t", ", ", "-", "\n"]))
    return "".join(parts)


def theirs(vocab: list[str], **rules: object):
    """The tokenizer of `tokenizers` with this vocabulary and the rules of a BertNormalizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    found = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(vocab)}, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(**rules)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    return found


RULES = [
    {"lowercase": True, "strip_accents": None, "handle_chinese_chars": True},
    {"lowercase": False, "strip_accents": None, "handle_chinese_chars": True},
    {"lowercase": True, "strip_accents": False, "handle_chinese_chars": False},
    {"lowercase": False, "strip_accents": True, "handle_chinese_chars": True},
]


def vocabulary(strings: list[str]) -> list[str]:
    """Every second character that the strings have after any of the rules, alone and within a word, and some words."""
    from tokenizers import normalizers

    found = [normalizers.BertNormalizer(**rules).normalize_str(text) for rules in RULES for text in strings]
    characters = sorted({character for text in found for character in text if not character.isspace()})
    known = [character for i, character in enumerate(characters) if i % 2 or character.isascii()]
    pieces = ["the", "cat", "house", "##s", "un", "##aff", "##able", "##ou", "strasse", "ete", "été", "naive"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*dict.fromkeys([*special, *pieces, *known, *(f"##{character}" for character in known)])]


def main() -> None:
    rng = random.Random(0)
    strings = [random_string(rng) for _ in range(300)]
    strings += ["", " ", "a" * 100, "a" * 101, "[MASK]", "unaffable!", "\x00\ufffd\u200b", "a\u2028b", "e\u0301", "##s"]
    vocab = vocabulary(strings)
    rows = [[theirs(vocab, **rules).encode(text).ids for rules in RULES] for text in strings]
    content = {"vocab": vocab, "strings": strings, "ids": rows}
    FILE.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
