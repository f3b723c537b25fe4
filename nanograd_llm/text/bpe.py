"""Byte pair encoding: find the pair of neighbouring tokens that occurs most often, make it one token, and repeat.

Start with a word as bytes (this is the example of Wikipedia's article; Z, Y, X are the new tokens):

    a a a b d a a a b a c      'a' + 'a' occurs 4 times, more than any other pair: it becomes the token Z
    Z a b d Z a b a c          Z + 'a' and 'a' + 'b' both occur twice: smaller ids come first, so 'a' + 'b' becomes Y
    Z Y d Z Y a c              Z + Y occurs twice: it becomes X
    X d X a c                  no pair occurs twice: done

>>> for left, right in train_bpe("aaabdaaabac", vocab_size=256 + 3 + 1):    # bytes, merges, end of text
...     print(left, right)
b'a' b'a'
b'a' b'b'
b'aa' b'ab'

To encode a word, apply the merges in the order in which they were learned. Philip Gage, "A New Algorithm for Data
Compression", 1994; Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016.
Bytes instead of characters, and the split into words, come from GPT-2 (Radford et al., 2019).
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import require_int
from nanograd_llm.text.corpora import texts_of, well_formed

# A merge never crosses the end of a word. This finds the same words as GPT-2's pattern. Possessive and atomic groups
# avoid backtracking over a run of a million letters or spaces; tiktoken limits backtracking.
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

Report = Callable[[str, float], object]  # what is being done, and the share of it that is done
BYTES = [bytes([byte]) for byte in range(256)]  # the first tokens, by id
_WORD_END = -1  # separates words, and marks places whose token was merged into the one before it


def train_bpe(
    text: str | Iterable[str], vocab_size: int, report: Report = lambda doing, share: None
) -> list[tuple[bytes, bytes]]:
    """Learn the merges of a vocabulary of `vocab_size` tokens, and return them in the order in which they were learned.

    The vocabulary is 256 bytes, one token for each merge, and end-of-text: `vocab_size - 257` merges, or fewer if no
    other pair occurs twice. Of pairs that occur equally often, the one with the smaller token ids comes first (left id,
    then right id). A merge visits only the places where its pair occurs.
    text: or several texts, which are read one after the other; only their different words are kept.
    report: called with what is being done, and the share of it that is done.

    Raises ConfigError if `vocab_size` is not an integer of at least 257.
    """
    import regex  # type: ignore[import-untyped]

    require_int("vocab_size", vocab_size, len(BYTES) + 1, why="256 bytes and end of text")
    counts: Counter[str] = Counter()
    for one in texts_of(text):
        counts.update(regex.findall(SPLIT_PATTERN, well_formed(one)))
    words = {word.encode("utf-8"): n for word, n in counts.items()}
    del counts  # of a text of many words it is large
    pieces = list(BYTES)
    merges: list[tuple[bytes, bytes]] = []
    for left, right in learn_merges(words, len(BYTES), vocab_size - 1 - len(BYTES), report):
        merges.append((pieces[left], pieces[right]))
        pieces.append(pieces[left] + pieces[right])
    return merges


def learn_merges(
    words: Mapping[Any, int], alphabet: int, most: int, report: Report = lambda doing, share: None
) -> list[tuple[int, int]]:
    """At most `most` pairs of ids in the order in which they were joined; pair i makes the id `alphabet + i`.

    words: each a sequence of ids below `alphabet`, and how often it occurs.
    """
    # All distinct words in one doubly linked list of tokens, so that a merge changes only its neighbours.
    token = array("i", [_WORD_END])  # arrays take a quarter of the memory of lists
    weight = array("q", [0])  # how often the word at this place occurs in the text
    for word, count in words.items():
        token.extend([*word, _WORD_END])
        weight.extend([count] * (len(word) + 1))
    before = array("q", range(-1, len(token) - 1))
    after = array("q", range(1, len(token) + 1))

    counts: defaultdict[tuple[int, int], int] = defaultdict(int)
    # places of the left token; some are outdated
    places: defaultdict[tuple[int, int], array[int]] = defaultdict(lambda: array("q"))
    for place, pair in enumerate(pairwise(token)):
        if _WORD_END not in pair:
            counts[pair] += weight[place]
            places[pair].append(place)

    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < most:
        count, pair = heapq.heappop(heap)
        if -count != counts[pair]:  # outdated: other merges have removed some of its places
            heapq.heappush(heap, (-counts[pair], pair))
            continue
        if counts[pair] < 2:
            break
        left, right = pair
        new = alphabet + len(merges)
        new_pairs = set()
        # The places of a list are in rising order, so "aaa" merges from the left.
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
        merges.append(pair)
        if len(merges) % 100 == 0:
            report("training the tokenizer", len(merges) / most)
    return merges


def check_merges(merges: list[tuple[bytes, bytes]]) -> None:
    """Raise ConfigError unless each merge joins two known tokens into a new one, and can happen.

    tiktoken finds a token by its bytes, whichever two parts it was made of. The result equals applying the merges in
    order if, for each token, encoding the token's own bytes gives that token by its own merge.
    """
    order: dict[tuple[bytes, bytes], int] = {}
    made_by = dict.fromkeys(BYTES, -1)
    for i, (left, right) in enumerate(merges):
        for part in (left, right):
            if part not in made_by:
                raise ConfigError(f"merges[{i}] joins {readable(part)}, which no earlier merge makes")
        if left + right in made_by:
            raise ConfigError(f"merges[{i}] makes {readable(left + right)}, which merges[{made_by[left + right]}] made")
        # Does an earlier merge join across the border between left and right? Go back in time. The two tokens at the
        # border both exist from the merge that made the later of them (a merge works from left to right, so the left
        # one is made first) up to `until`. Before that, the later one was still two parts.
        before, after, until = left, right, i
        while True:
            across = order.get((before, after), i)
            if across < until:
                raise ConfigError(
                    f"merges[{i}] ({readable(left)} + {readable(right)}) can never happen: merges[{across}] "
                    f"({readable(before)} + {readable(after)}) comes first and joins the two across their border; "
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
    r"""A piece as a Python literal, so that spaces and line ends are visible; bytes if it is not valid UTF-8.

    >>> print(readable(b" the"), readable(b"\n"), readable(b"\xe2\x80"))
    ' the' '\n' b'\xe2\x80'
    """
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece)
