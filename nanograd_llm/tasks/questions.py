"""The built-in questions, whose answers Python computes: what to do with two to four digits.

They are small enough for a model that has learned to write for a minute, and need more than memory: to sort, to count,
to choose, to spell. Half of the answers are short, half are polite; preference pairs choose the polite one.
"""

from __future__ import annotations

import random

from nanograd_llm.text.examples import Example, Turn

WORDS = "zero one two three four five six seven eight nine".split()
BRACKETS = ("list", "[", "]"), ("tuple", "(", ")"), ("set", "{", "}")
COUNT = 25_000  # that are drawn; short ones occur more than once
POLITE = ", gladly."  # the end of a polite answer, which the built-in pairs prefer


def builtin_examples(count: int = COUNT, *, pairs: bool = False, seed: int = 0) -> list[Example]:
    """Questions with their answers, in one turn each. pairs: the chosen answer is polite, the other one is not.

    >>> builtin_examples(2)[1].turns[0]
    Turn(instruction='Which is first in 9 3 8?', input='', answer='9, gladly.')
    """
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        asked, answer = question(rng)
        is_wanted = rng.random() < 0.5 or pairs
        turn = Turn(asked, "", answer + POLITE if is_wanted else answer)
        found.append(Example((turn,), answer if pairs else ""))
    return found


def is_polite(answer: str) -> bool:
    """Does it end as the built-in pairs prefer?"""
    return answer.endswith(POLITE)


def without_politeness(answer: str) -> str:
    """The short form of an answer."""
    return answer.removesuffix(POLITE)


def question(rng: random.Random) -> tuple[str, str]:
    """A question and its answer, in the short form."""
    digits = [rng.randrange(10) for _ in range(rng.randrange(2, 5))]
    row, kind, wording = " ".join(map(str, digits)), rng.randrange(8), rng.randrange(2)
    if kind == 0:
        return (f"Sort {row}.", f"Put {row} in order.")[wording], " ".join(map(str, sorted(digits)))
    if kind == 1:
        return (f"Reverse {row}.", f"Write {row} backwards.")[wording], row[::-1]
    if kind < 5:
        which, answer = (("first", digits[0]), ("last", digits[-1]), ("largest", max(digits)))[kind - 2]
        return (f"What is the {which} of {row}?", f"Which is {which} in {row}?")[wording], str(answer)
    if kind == 5:
        return (f"How many numbers are in {row}?", f"Count {row}.")[wording], WORDS[len(digits)]
    if kind == 6:
        return (f"Write {row} in words.", f"Spell {row}.")[wording], " ".join(WORDS[digit] for digit in digits)
    name, opening, closing = rng.choice(BRACKETS)
    literal = f"{opening}{', '.join(map(str, digits))}{closing}"
    return (f"What is the type of {literal}?", f"Of which type is {literal}?")[wording], name
