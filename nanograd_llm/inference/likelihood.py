"""How likely a GPT, in evaluation mode, finds a text, a continuation, and each choice of a question.

The schemes are those of EleutherAI's lm-evaluation-harness, so its figures can be compared.  N tokens, V vocabulary
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.inference.sampling import log_probabilities
from nanograd_llm.models.gpt import GPT
from nanograd_llm.nn.module import evaluating
from nanograd_llm.settings import counted
from nanograd_llm.text import Tokenizer
from nanograd_llm.text.windows import require_stride

Progress = Callable[[float], object]
TOKENS_AT_ONCE, LOGITS_AT_ONCE = 4096, 2**23  # bound the memory
RESAMPLES = 1000
BEFORE = 60  # characters of context that are shown before a token


@dataclasses.dataclass(frozen=True)
class ScoredText:
    """The tokens of a text that were scored.  ids (N,), losses (N,) nats, sizes (N,) bytes

    block: tokens of a window.
    """

    ids: np.ndarray
    losses: np.ndarray
    sizes: np.ndarray
    block: int

    def blocks(self) -> np.ndarray:
        """The nats and the bytes of each window that begins where the one before ends.  -> (blocks, 2)"""
        starts = range(0, len(self.losses), self.block)
        return np.stack([np.add.reduceat(values, starts) for values in (self.losses, self.sizes)], axis=1)


class Hard(NamedTuple):
    """A token that a model found hard: its loss in nats, the text before it, and its own."""

    loss: float
    before: str
    token: str


def score_text(
    model: GPT, text: str, tokenizer: Tokenizer, *, stride: int | None = None, progress: Progress | None = None
) -> ScoredText:
    """Score a text over sliding windows as long as the model's context, or as the text if that is shorter.

    If the tokenizer has an end-of-text token, the first token is scored as its successor; otherwise it is left out.
    stride: how far the window moves, at most the model's context; half a window if not given. progress: called with the
    share that is done. Raises ConfigError for another stride, ShapeError for a text without a token to score,
    NonFiniteError if a logit is not finite.
    """
    ids = tokenizer.encode(text)
    if tokenizer.end_of_text is not None:
        ids = np.concatenate([np.array([tokenizer.end_of_text], ids.dtype), ids])
    if len(ids) < 2:
        raise ShapeError(f"a text of {counted(len(text), 'character')} has no token to score; give a longer one")
    window, stride = windows_of(model, ids, stride)
    losses = token_losses(model, ids, context_length=window, stride=stride, progress=progress)
    return ScoredText(ids[1:], losses, tokenizer.sizes(ids[1:]), window)


def windows_of(model: GPT, ids: Sized, stride: int | None) -> tuple[int, int]:
    """How long the windows of a text (N ids) are, and how far they move: half a window if `stride` is None.

    Raises ConfigError for a stride that is not from 1 to the model's context.
    """
    window = min(model.config.context_length, len(ids) - 1)
    if stride is None:
        return window, max(1, window // 2)
    require_stride(stride, model.config.context_length)
    return window, min(stride, window)


def token_losses(
    model: GPT, ids: np.ndarray, *, context_length: int, stride: int, progress: Progress | None = None
) -> np.ndarray:
    """The loss of every id but the first.  ids (N,) -> (N - 1,) float64, nats"""
    last = len(ids) - 1
    ends = [0, *range(context_length, last, stride), last]  # of the windows; each scores what is behind the one before
    rows = [(ids[end - context_length : end + 1], end - before) for before, end in itertools.pairwise(ends)]
    return -np.concatenate([found for found, _ in _scored(model, rows, progress)])


def interval(blocks: ArrayLike, seed: int = 0) -> tuple[float, float] | None:
    """A 95 % interval of the bits per byte, by resampling blocks of tokens (the bootstrap); None for less than two.

    blocks (N, 2): nats and bytes, as `ScoredText.blocks` gives them. Neighbouring tokens are alike, so blocks as long
    as a window are drawn, not tokens (Künsch 1989).
    """
    rng, rows = np.random.default_rng(seed), np.asarray(blocks)
    if len(rows) < 2:
        return None
    size = (10, len(rows))  # few at once, which bounds the memory
    drawn = [rows[rng.integers(len(rows), size=size)].sum(axis=1) for _ in range(RESAMPLES // 10)]
    nats, sizes = np.concatenate(drawn).T
    low, high = np.quantile(nats / np.log(2) / np.maximum(sizes, 1), [0.025, 0.975])
    return float(low), float(high)


def hardest(text: ScoredText, tokenizer: Tokenizer, count: int) -> list[Hard]:
    """The tokens of a text with the highest losses, the hardest first."""
    found = list[Hard]()
    for place in np.argsort(-text.losses, kind="stable")[:count].tolist() if count else ():
        before = tokenizer.decode(text.ids[max(0, place - BEFORE) : place])[-BEFORE:]
        found.append(Hard(float(text.losses[place]), before, tokenizer.decode(text.ids[place : place + 1])))
    return found


def log_likelihoods(
    model: GPT, pairs: Iterable[tuple[Sequence[int], Sequence[int]]], *, progress: Progress | None = None
) -> list[tuple[float, bool]]:
    """Of each (context, continuation), both ids: the log-likelihood of the continuation, and whether it is greedy.

    It is greedy if every token of it is the likeliest one. A context that is too long loses its beginning.
    Raises ShapeError for an empty context or continuation, or a continuation longer than the model's context.
    """
    T, rows = model.config.context_length, []
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not 0 < len(continuation) <= T:
            sizes = f"a context of {counted(len(context), 'token')} and a continuation of {len(continuation)}"
            raise ShapeError(f"pair {number} has {sizes}; the model takes at least 1 and from 1 to {T}")
        rows.append((np.array([*context, *continuation])[-T - 1 :], len(continuation)))
    return [(float(found.sum()), bool(greedy.all())) for found, greedy in _scored(model, rows, progress)]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a context and of its continuation, as they are when encoded together; spaces go to the continuation.

    An empty context is the end-of-text token. Raises ConfigError where there is none.

    >>> from nanograd_llm.text import ByteTokenizer
    >>> encode_pair(ByteTokenizer(), "a ", "b")
    ([97], [32, 98])
    """
    whole = context + continuation
    context = context.rstrip()
    ids, begin = tokenizer.encode(whole).tolist(), tokenizer.encode(context).tolist()
    if begin:
        return begin, ids[len(begin) :]
    if tokenizer.end_of_text is None:
        raise ConfigError(f"{tokenizer} has no end-of-text token to stand for an empty context; give a context")
    return [tokenizer.end_of_text], ids


@dataclasses.dataclass(frozen=True)
class Choices:
    """How many questions were answered rightly, by the sum of log-likelihoods, and by that sum per character."""

    questions: int
    right: int
    right_per_character: int

    def __str__(self) -> str:
        """With Wilson's intervals of 95 %.

        >>> print(Choices(4, 0, 2))
        right by likelihood 0.0 % (95 %: 0.0 to 49.0), per character 50.0 % (15.0 to 85.0), of 4 questions
        """
        shares = list[str]()
        for right in (self.right, self.right_per_character):
            low, high = (100 * end for end in share_interval(right, self.questions))
            shares.append(f"{100 * right / self.questions:.1f} % ({'' if shares else '95 %: '}{low:.1f} to {high:.1f})")
        return f"right by likelihood {shares[0]}, per character {shares[1]}, of {counted(self.questions, 'question')}"


def share_interval(count: int, of: int) -> tuple[float, float]:
    """A 95 % interval of a share, by the score test (Wilson 1927), which fits few and extreme counts as well.

    >>> [round(end, 3) for end in share_interval(2, 2)]
    [0.342, 1.0]
    """
    p, z = count / of, 1.959964
    middle, half = p + z**2 / (2 * of), z * math.sqrt(p * (1 - p) / of + (z / (2 * of)) ** 2)
    return max(0.0, (middle - half) / (1 + z**2 / of)), min(1.0, (middle + half) / (1 + z**2 / of))


def answer_choices(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[str, Sequence[str], int]],
    *,
    progress: Progress | None = None,
) -> Choices:
    """Answer questions, each a context, endings and the number of the right one, by the likelihood of the endings.

    This is HellaSwag's scheme (Zellers et al. 2019). An ending follows the context after a space.
    """
    pairs = [encode_pair(tokenizer, context, f" {ending}") for context, endings, _ in questions for ending in endings]
    likelihoods = iter(log_likelihoods(model, pairs, progress=progress))
    right = per_character = 0
    for _, endings, answer in questions:
        sums = np.array([next(likelihoods)[0] for _ in endings])
        right += int(sums.argmax()) == answer
        per_character += int((sums / [max(1, len(ending)) for ending in endings]).argmax()) == answer
    return Choices(len(questions), right, per_character)


def _scored(
    model: GPT, rows: Sequence[tuple[np.ndarray, int]], progress: Progress | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each row of ids, and how many of its last ids count: their log-probabilities, and which are the likeliest."""
    longest = max((len(ids) - 1 for ids, _ in rows), default=1)
    at_once = max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // model.config.vocab_size) // longest)
    for start in range(0, len(rows), at_once):
        batch = rows[start : start + at_once]
        tokens = np.zeros((len(batch), max(len(ids) for ids, _ in batch) - 1), np.int64)  # padded behind: unseen
        for row, (ids, _) in zip(tokens, batch):
            row[: len(ids) - 1] = ids[:-1]
        with no_grad(), evaluating(model.modules()):
            logits = model(tokens).numpy()
        for given, (ids, count) in zip(logits, batch):
            given, targets = given[len(ids) - 1 - count : len(ids) - 1], ids[-count:]
            found = np.empty(count)
            for first in range(0, count, 256):  # a block in float64 at a time
                block = slice(first, first + 256)
                found[block] = np.take_along_axis(log_probabilities(given[block]), targets[block, None], -1)[:, 0]
            yield found, given.argmax(axis=-1) == targets
        if progress is not None:
            progress((start + len(batch)) / len(rows))
