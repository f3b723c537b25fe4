"""Translation: an encoder-decoder writes the target of a source, by beam search; a beam of one is greedy.

Each step scores every token after every hypothesis, and keeps the best. A hypothesis that ends is finished; those of
one source compete by the sum of their log-probabilities divided by length^alpha, the end counted (Wu et al. 2016,
without the coverage term). The division is for finished ones only: hypotheses of one length need none.

N hypotheses of all sources, K of one source (beam), S source time, V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.errors import ShapeError
from nanograd_llm.inference.generate import id_rows
from nanograd_llm.inference.sampling import log_probabilities
from nanograd_llm.models.inputs import padded
from nanograd_llm.nn.module import evaluating
from nanograd_llm.settings import Settings, setting, shown
from nanograd_llm.text import Tokenizer

if TYPE_CHECKING:
    from nanograd_llm.models.encoder_decoder import EncoderDecoder

SHADES = " ░▒▓█"


class BeamSearch(Settings):
    """How a translation is looked for. Raises ConfigError naming the field that cannot be."""

    beam: int = setting("Translations kept while writing; 1 always takes the likeliest word.", default=1, low=1)
    alpha: float = setting(
        "Divide the score of a finished translation by its length to this power; a higher power gives longer ones.",
        default=1.0,
    )
    max_new_tokens: int | None = setting(
        "Tokens of a translation at most; as many as the model takes if not given.", default=None, low=1
    )


@dataclasses.dataclass
class _Search:
    """What is known of one source. live: hypotheses, as (score, tokens). finished: as (score, tokens with the end)."""

    live: list[tuple[float, tuple[int, ...]]]
    finished: list[tuple[float, tuple[int, ...]]] = dataclasses.field(default_factory=list)

    def best(self, alpha: float) -> tuple[int, ...]:
        """The best finished hypothesis, its end left out; where none is finished, the best there is."""
        if self.finished:
            return max(self.finished, key=lambda one: one[0] / len(one[1]) ** alpha)[1][:-1]
        return max(self.live)[1]

    def decided(self, alpha: float) -> tuple[int, ...]:
        """The tokens that the result begins with, whatever comes."""
        if not self.live:
            return self.best(alpha)
        first, *others = [tokens for _, tokens in self.live] + [tokens[:-1] for _, tokens in self.finished]
        same = [all(other[i : i + 1] == first[i : i + 1] for other in others) for i in range(len(first))]
        return first[: (same + [False]).index(False)]


def translate(
    model: EncoderDecoder, sources: Any, *, search: BeamSearch | None = None, cache: bool = True
) -> list[list[int]]:
    """The target ids of each source, without start and end.

    sources: ids, one sequence (S) or several, also of different lengths. A row does not depend on the others.
    cache: keep keys and values, of the source and of the tokens so far, instead of computing them again.

    The model computes in evaluation mode. Raises ShapeError for an empty source or one that is too long,
    IndexRangeError for an id outside the vocabulary, NonFiniteError where the model gives no usable logits.
    """
    search = search or BeamSearch()
    *_, rows = _steps(model, sources, search, cache)
    return [list(row.best(search.alpha)) for row in rows]


def stream_translation(
    model: EncoderDecoder, tokenizer: Tokenizer, text: str, *, search: BeamSearch | None = None, cache: bool = True
) -> Iterator[str]:
    """The translation of a text in pieces, each as soon as all that may win agree on it. Raises as `translate`."""
    search, ids = search or BeamSearch(), tokenizer.encode(text)
    if not len(ids):
        raise ShapeError(f"the text is {text!r:.60}, which has no words; give one to translate")
    if len(ids) > (longest := model.config.context_length):
        given = f"context_length is {longest} but {len(ids)} tokens were given"
        raise ShapeError(f"{shown(text, 60)}: {given}; give a shorter source")

    def tokens() -> Iterator[int]:
        written, row = 0, None
        for (row,) in _steps(model, ids, search, cache):
            decided = row.decided(search.alpha)
            yield from decided[written:]
            written = max(written, len(decided))
        if row is not None:
            yield from row.best(search.alpha)[written:]

    return tokenizer.decode_stream(tokens())


def show_attention(queries: Sequence[str], keys: Sequence[str], weights: np.ndarray) -> str:
    """Attention weights (T, S) as a text: a line for each query, where each key is as dark as it is looked at.

    >>> print(show_attention(["le", "chat"], ["the", "cat"], np.array([[0.9, 0.1], [0.3, 0.7]])))
         the cat
    le   ███
    chat ░░░ ▓▓▓
    """
    width = max(map(len, queries)) + 1
    lines = [" " * width + " ".join(keys)]
    for query, row in zip(queries, weights):
        shades = [SHADES[min(4, int(4 * weight + 0.5))] * len(key) for key, weight in zip(keys, row)]
        lines.append(f"{query:<{width}}{' '.join(shades)}".rstrip())
    return "\n".join(lines)


def _steps(model: EncoderDecoder, sources: Any, search: BeamSearch, cache: bool) -> Iterator[list[_Search]]:
    """What is known of each source, after each token."""
    c, (tokens, lengths) = model.config, padded(id_rows(sources, "source", len(model.source_table)))
    modules = model.modules()
    longest = min(c.context_length, search.max_new_tokens or c.context_length)
    rows = [_Search([(0.0, ())]) for _ in tokens]
    with no_grad(), evaluating(modules):
        memory, mask = model.encode(tokens, lengths)
    caches = model.new_caches(len(rows), tokens.shape[1]) if cache else None
    owners = np.arange(len(rows))  # (N,): the source of each hypothesis, which are in the order of their sources
    texts = np.full((len(rows), 1), c.start_id)  # (N, n)
    for n in range(1, longest + 1):
        seen = None if mask is None else mask[owners]
        with evaluating(modules):
            if caches and n > 1:
                logits = model.next_logits(texts[:, -1:], None, seen, caches)
            else:
                logits = model.next_logits(texts, memory[owners], seen, caches)
        scores = log_probabilities(logits)  # (N, V)
        parents: list[int] = []
        first = 0
        for row in rows:
            if row.live:
                before, first = first, first + len(row.live)
                parents += [before + parent for parent in _extend(row, scores[before:first], c.end_id, search, longest)]
        yield rows
        if not parents:
            break
        if caches and parents != [*range(len(texts))]:
            for both in caches:
                for one in both:
                    one.reorder(parents)
        owners = owners[parents]
        texts = np.array([(c.start_id, *tokens) for row in rows for _, tokens in row.live])


def _extend(row: _Search, scores: np.ndarray, end_id: int, search: BeamSearch, longest: int) -> list[int]:
    """Let the hypotheses of a source grow by a token; returns which of them each new one comes from."""
    total = (np.array([score for score, _ in row.live])[:, None] + scores).reshape(-1)  # (K, V) -> (K V)
    count = min(2 * search.beam, len(total))  # as many may end, at most one of each
    found = np.argpartition(-total, count - 1)[:count]
    before, row.live = row.live, []
    parents: list[int] = []
    for place in sorted(found.tolist(), key=lambda place: (-total[place], place)):
        parent, token = divmod(place, scores.shape[1])
        tokens = (*before[parent][1], token)
        if len(row.live) + len(row.finished) >= search.beam:
            break
        if token == end_id:
            row.finished.append((float(total[place]), tokens))
        elif np.isfinite(total[place]):
            row.live.append((float(total[place]), tokens))
            parents.append(parent)
    if row.finished and row.live:  # scores only fall, so none of the others can win below this
        best = max(score / len(tokens) ** search.alpha for score, tokens in row.finished)
        if max(row.live)[0] / longest**search.alpha <= best:
            row.live, parents = [], []
    return parents
