"""Evaluation: the loss, perplexity and bits per byte of a model on a text."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.errors import ConfigError, NonFiniteError, ShapeError
from nanograd_llm.inference.likelihood import (
    LOGITS_AT_ONCE,
    TOKENS_AT_ONCE,
    Hard,
    hardest,
    interval,
    score_text,
    windows_of,
)
from nanograd_llm.inference.sampling import NOT_FINITE
from nanograd_llm.models.gpt import GPT
from nanograd_llm.nn.module import Module, evaluating
from nanograd_llm.settings import counted, require_int, require_type
from nanograd_llm.text import IGNORE_INDEX, TokenFiles, Tokenizer, count_windows, sliding_windows


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """loss: nats per token. perplexity: e**loss. bits_per_byte: of UTF-8, comparable between tokenizers.

    interval: of 95 %, of the bits per byte; None where it is not known.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        within = "" if self.interval is None else "  (95 %: {:.4f} to {:.4f})".format(*self.interval)
        return (
            f"loss           {self.loss:.4f} nats per token\n"
            f"perplexity     {self.perplexity:.2f}\n"
            f"bits per byte  {self.bits_per_byte:.4f}{within}\n"
            f"over           {counted(self.tokens, 'token')}, {counted(self.bytes, 'byte')}"
        )


def evaluate(
    model: Module,
    ids: np.ndarray | TokenFiles,
    tokenizer: Tokenizer,
    *,
    context_length: int,
    stride: int | None = None,
    batch_size: int = 32,
    windows: int | None = None,
    progress: Callable[[float], object] | None = None,
) -> Evaluation:
    """Score a text, given as ids (N), over sliding windows; every id but the first is scored once.

    model: any whose `loss(tokens, targets)` is a mean over the targets that are not -100; scored in evaluation mode.
    stride: how far the window moves; context_length if not given. A smaller one gives every token more context.
    windows: score only this many windows, evenly spread and always the same; all if not given.
    progress: called with the share that is done, after each batch.
    Raises ShapeError if the text is shorter than a window, NonFiniteError if the loss is not finite, DtypeError for
    another kind of argument.
    """
    call = "evaluate(model, ids, tokenizer, context_length=...)"
    require_type("model", model, Module, f"a Module, as in {call}")
    require_type("tokenizer", tokenizer, Tokenizer, f"a Tokenizer, as in {call}")  # type: ignore[type-abstract]
    require_int("batch_size", batch_size, 1)
    stride = context_length if stride is None else stride
    total = count_windows(ids, context_length=context_length, stride=stride)
    rows = np.arange(total)
    if windows is not None and windows < total:
        require_int("windows", windows, 1)
        rows = np.linspace(0, total - 1, windows).astype(int)
    nats, count, size = 0.0, 0, 0
    with no_grad(), evaluating(model.modules()):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            tokens, targets = sliding_windows(
                ids, context_length=context_length, stride=stride, count_once=True, rows=batch
            )
            scored = targets[targets != IGNORE_INDEX]
            if len(scored):
                nats += model.loss(tokens, targets).item() * len(scored)
                count += len(scored)
                size += int(tokenizer.sizes(scored).sum())
            if progress is not None:
                progress((start + len(batch)) / len(rows))
    return _evaluation(nats, count, size)


def score_windows(
    model: GPT,
    ids: np.ndarray | TokenFiles,
    tokenizer: Tokenizer,
    *,
    stride: int | None = None,
    windows: int | None = None,
    progress: Callable[[float], object] | None = None,
) -> Evaluation:
    """Score a text, given as ids (N), in windows of the model's context, or of the text if that is shorter.

    stride: half a window if not given. windows, progress: as for `evaluate`. Raises ConfigError for a stride outside
    the window, ShapeError for fewer than two ids.
    """
    if len(ids) < 2:
        raise ShapeError(f"a text of {counted(len(ids), 'token')} has none to score; give a longer one")
    length, stride = windows_of(model, ids, stride)
    at_once = max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // model.config.vocab_size) // length)
    return evaluate(
        model,
        ids,
        tokenizer,
        context_length=length,
        stride=stride,
        windows=windows,
        batch_size=at_once,
        progress=progress,
    )


def evaluate_text(
    model: GPT,
    text: str,
    tokenizer: Tokenizer,
    *,
    stride: int | None = None,
    progress: Callable[[float], object] | None = None,
) -> Evaluation:
    """Score a text, each token once, with an interval: see `score_text`, which gives the loss of every token."""
    tell = (lambda _, share: progress(share)) if progress else (lambda *_: None)
    return score_texts(model, [("", text)], tokenizer, stride=stride, progress=tell).whole


@dataclasses.dataclass(frozen=True)
class TextScores:
    """What `score_texts` found: the figures of all texts together, those of each by its name, and the hardest tokens.

    In those of all together each token has the same weight.
    """

    whole: Evaluation
    each: Sequence[tuple[str, Evaluation]] = ()
    hardest: Sequence[Hard] = ()


def score_texts(
    model: GPT,
    texts: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    *,
    stride: int | None = None,
    top: int = 0,
    progress: Callable[[str, float], object] = lambda name, share: None,
) -> TextScores:
    """Score texts one after the other, each after its name, so that together they may be larger than the memory.

    stride: as for `score_text`. top: how many of the hardest tokens to find. progress: called with the name of a text
    and the share of it that is done. Raises as `score_text` does.
    """
    each, blocks, hard = [], [], list[Hard]()
    for name, text in texts:
        found = score_text(model, text, tokenizer, stride=stride, progress=functools.partial(progress, name))
        each.append((name, _evaluation(float(found.losses.sum()), len(found.losses), int(found.sizes.sum()))))
        blocks.append(found.blocks())
        hard = sorted([*hard, *hardest(found, tokenizer, top)], key=lambda token: -token.loss)[:top]
    if not blocks:
        raise ConfigError("there is no text to score; give at least one")
    rows = np.concatenate(blocks)
    whole = _evaluation(float(rows[:, 0].sum()), sum(one.tokens for _, one in each), int(rows[:, 1].sum()))
    return TextScores(dataclasses.replace(whole, interval=interval(rows)), each, hard)


def _evaluation(nats: float, count: int, size: int) -> Evaluation:
    if not math.isfinite(nats):
        raise NonFiniteError(f"the loss on {counted(count, 'token')} is {nats / count}; {NOT_FINITE}")
    loss = nats / count
    perplexity = math.exp(loss) if loss < 700 else math.inf  # e**710 overflows
    return Evaluation(loss, perplexity, nats / math.log(2) / max(1, size), count, size)
