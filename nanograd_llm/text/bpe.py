"""Byte pair encoding: find the pair of neighbouring tokens that occurs most often, make it one token, and repeat.

Start with a word as bytes (this is the example of Wikipedia's article, where Z, Y, X name the new tokens):

    a a a b d a a a b a c      'a' + 'a' occurs 4 times, more than any other pair: make it the token Z
    Z a b d Z a b a c          Z + 'a' and 'a' + 'b' both occur twice: the older tokens go first, so 'a' + 'b' is Y
    Z Y d Z Y a c              Z + Y occurs twice: X
    X d X a c                  no pair occurs twice: done

>>> for left, right in train_bpe("aaabdaaabac", vocab_size=256 + 3 + 1):    # bytes, merges, end of text
...     print(left, right)
b'a' b'a'
b'a' b'b'
b'aa' b'ab'

To encode a word, apply the merges in the order in which they were learned. Philip Gage, "A New Algorithm for Data
Compression", 1994; Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016;
bytes instead of characters, and the split into words, are GPT-2's (Radford et al., 2019).
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from itertools import pairwise

from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import require_int, require_type
from nanograd_llm.text.corpora import well_formed

# Merges stay within words. These are the words of GPT-2's pattern, spelled with possessive and atomic groups, so that a
# run of a million letters or spaces costs the regular expression engine no backtracking, which tiktoken limits.
SPLIT_PATTERN = "|".join(
    [
        r"'(?:[sdmt]|ll|ve|re)",  # the end of a contraction: it's, I'll
        r" ?\p{L}++",  # letters, with the one space before them
        r" ?\p{N}++",  # digits
        r" ?[^\s\p{L}\p{N}]++",  # punctuation
        r"\s++$",  # white space up to the end of the text,
        r"(?>\s{1,999}(?!\S))++",  # or all of it but the last character before a word
        r"\s",
    ]
)

BYTES = [bytes([byte]) for byte in range(256)]  # the tokens to start with, by id
_WORD_END = -1  # stands between words, where no pair is


def train_bpe(text: str, vocab_size: int) -> list[tuple[bytes, bytes]]:
    """The merges, in the order in which they were learned, that make a vocabulary of `vocab_size` tokens.

    The vocabulary is 256 bytes, one token for each merge, and end-of-text, so there are `vocab_size - 257` merges;
    fewer where the text runs out of pairs that occur twice. Of pairs that occur equally often the one with the smaller
    token ids comes first (left id, then right id). A merge visits only the places where it happens.

    Raises ConfigError if `vocab_size` is not an integer of at least 257.
    """
    import regex  # type: ignore[import-untyped]

    require_type("text", text, str, "a str")
    require_int("vocab_size", vocab_size, len(BYTES) + 1)

    # All distinct words in one row of tokens, linked in both directions, so that a merge is a local repair.
    token = [_WORD_END]
    weight = [0]  # how often the text has the word that this place belongs to
    for word, count in Counter(regex.findall(SPLIT_PATTERN, well_formed(text))).items():
        raw = word.encode("utf-8")
        token += [*raw, _WORD_END]
        weight += [count] * (len(raw) + 1)
    before = list(range(-1, len(token) - 1))
    after = list(range(1, len(token) + 1))

    counts: defaultdict[tuple[int, int], int] = defaultdict(int)
    places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # of the left token; some become outdated
    for place, pair in enumerate(pairwise(token)):
        if _WORD_END not in pair:
            counts[pair] += weight[place]
            places[pair].append(place)

    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    pieces = list(BYTES)
    merges: list[tuple[bytes, bytes]] = []
    while heap and len(pieces) < vocab_size - 1:
        count, pair = heapq.heappop(heap)
        if -count != counts[pair]:  # other merges took some of its places
            heapq.heappush(heap, (-counts[pair], pair))
            continue
        if counts[pair] < 2:
            break
        left, right = pair
        new = len(pieces)
        new_pairs = set()
        # Places rise in every list, which is what makes "aaa" merge from the left.
        for place in places.pop(pair):
            follower = after[place]
            if token[place] != left or token[follower] != right:
                continue
            previous, following = before[place], after[follower]
            if token[previous] != _WORD_END:
                counts[token[previous], left] -= weight[place]
                counts[token[previous], new] += weight[place]
                places[token[previous], new].append(previous)
                new_pairs.add((token[previous], new))
            if token[following] != _WORD_END:
                counts[right, token[following]] -= weight[place]
                counts[new, token[following]] += weight[place]
                places[new, token[following]].append(place)
                new_pairs.add((new, token[following]))
            token[place], token[follower] = new, _WORD_END
            after[place], before[following] = following, place
        del counts[pair]
        for new_pair in new_pairs:
            heapq.heappush(heap, (-counts[new_pair], new_pair))
        merges.append((pieces[left], pieces[right]))
        pieces.append(pieces[left] + pieces[right])
    return merges


def check_merges(merges: list[tuple[bytes, bytes]]) -> None:
    """Raise ConfigError unless each merge joins two known tokens into an unknown one, and really happens.

    tiktoken looks tokens up by their bytes alone and forgets of which two parts they were made. That gives what the
    merges give, applied in order, as long as encoding a token's own bytes arrives at that token through its own merge.
    """
    order: dict[tuple[bytes, bytes], int] = {}
    made_by = dict.fromkeys(BYTES, -1)
    for i, (left, right) in enumerate(merges):
        for part in (left, right):
            if part not in made_by:
                raise ConfigError(f"merges[{i}] joins {readable(part)}, which no earlier merge makes")
        if left + right in made_by:
            raise ConfigError(f"merges[{i}] makes {readable(left + right)}, which merges[{made_by[left + right]}] made")
        # Would an earlier merge join across the border between left and right? Walk back in time: the two tokens at
        # the border are there from when the later of them was made (a merge works from left to right, so the one on
        # the left is made first) until `until`, and then the later one falls apart again.
        before, after, until = left, right, i
        while True:
            across = order.get((before, after), i)
            if across < until:
                raise ConfigError(
                    f"merges[{i}] ({readable(left)} + {readable(right)}) can never happen: merges[{across}] "
                    f"({readable(before)} + {readable(after)}) comes before it and joins across the two; "
                    "keep merges in the order in which they were learned"
                )
            if made_by[before] > made_by[after]:
                until, before = made_by[before], merges[made_by[before]][1]
            elif made_by[after] >= 0:
                until, after = made_by[after] + 1, merges[made_by[after]][0]
            else:
                break
        order[left, right] = i
        made_by[left + right] = i


def readable(piece: bytes) -> str:
    r"""A piece as a Python literal, so that spaces and line ends show; bytes where it is no whole UTF-8.

    >>> print(readable(b" the"), readable(b"\n"), readable(b"\xe2\x80"))
    ' the' '\n' b'\xe2\x80'
    """
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece)
