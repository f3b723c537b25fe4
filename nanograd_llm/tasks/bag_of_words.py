"""The baseline of a classifier: the most probable class by the words of a text, without their order.

Naive Bayes: words are drawn independently, each with the frequency that it has in the texts of a class.
"""

# N texts, K classes

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

SMOOTHING = 0.1  # of a word, that every class is taken to have had besides


class NaiveBayes:
    """Learns from texts and the numbers (N,) of their classes; `guess(texts)` gives the likeliest class of each.

    >>> bayes = NaiveBayes(["good film", "bad film", "dull, bad"], np.array([1, 0, 0]), classes=2)
    >>> bayes.guess(["a good plot", "Bad."]).tolist()
    [1, 0]
    """

    def __init__(self, texts: Sequence[str], classes_of: np.ndarray, classes: int):
        found = [_words(text) for text in texts]
        self.places = {word: place for place, word in enumerate(dict.fromkeys(w for words in found for w in words))}
        counts = np.full((len(self.places), classes), SMOOTHING)
        for words, number in zip(found, classes_of):
            np.add.at(counts, (self._known(words), number), 1)
        self.log_likely = np.log(counts / counts.sum(axis=0))  # (words, K)
        self.log_prior = np.log(np.maximum(np.bincount(classes_of, minlength=classes), SMOOTHING) / len(texts))

    def guess(self, texts: Iterable[str]) -> np.ndarray:
        """N texts -> (N,)"""
        sums = [self.log_prior + self.log_likely[self._known(_words(text))].sum(axis=0) for text in texts]
        return np.array(sums).argmax(axis=1)

    def _known(self, words: Iterable[str]) -> list[int]:
        return [self.places[word] for word in words if word in self.places]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
