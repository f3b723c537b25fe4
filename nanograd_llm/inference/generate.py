"""Generation: ask for the next token's logits, choose one, append it, and ask again.

With the cache each step computes the new token only; without it the whole window again. Both give the same tokens.

B batch, T time
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.errors import ShapeError
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.models.gpt import GPT
from nanograd_llm.ops.layout import check_ids
from nanograd_llm.randomness import generator
from nanograd_llm.settings import require_int


def generate(
    model: GPT,
    prompts: Any,
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Collection[int] = (),
    cache: bool = True,
) -> list[list[int]]:
    """Continue each prompt; returns the new ids of each, cut before the first stop id.

    prompts: ids, one sequence (T) or several (B, T), also of different lengths. Rows do not depend on each other, and a
    row draws the same numbers whatever else is in the batch with it at its place.
    Raises ShapeError for an empty prompt, IndexRangeError for an id outside the vocabulary.
    """
    rows = _rows(prompts, model)
    written: list[list[int]] = [[] for _ in rows]
    open_rows = set(range(len(rows)))
    for ids in stream(model, rows, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, cache=cache):
        for row, token in enumerate(ids):
            if token in stop:
                open_rows.discard(row)
            elif row in open_rows and token is not None and len(written[row]) < max_new_tokens:
                written[row].append(token)
        if not open_rows:
            break
    return written


def stream(
    model: GPT,
    prompts: Any,
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    seed: int = 0,
    cache: bool = True,
) -> Iterator[list[int | None]]:
    """As `generate`, a token at a time: yields each row's new id, None while a longer prompt is still being read.

    Where the text outgrows the model's context, the model goes on from the last half of what it holds.
    """
    require_int("max_new_tokens", max_new_tokens, 0)
    require_int("seed", seed, 0)
    rows = _rows(prompts, model)
    sampling = sampling or Sampling()
    context = model.config.context_length
    model.eval()
    text = np.zeros((len(rows), max(map(len, rows)) + max_new_tokens), dtype=np.int64)
    for row, prompt in enumerate(rows):
        text[row, : len(prompt)] = prompt
    start, read = 0, min(map(len, rows))  # the window is text[:, start:read]
    if read > context:
        start = read - context
    caches, stored = model.new_caches(len(rows)), start
    for n in range(read, text.shape[1]):
        if n - start > context:
            start = n - max(1, context // 2)
            caches, stored = model.new_caches(len(rows)), start
        if cache:
            logits = model.next_logits(text[:, stored:n], caches)
            stored = n
        else:
            logits = model.next_logits(text[:, start:n])
        chances = np.array([generator(seed, row, n).random() for row in range(len(rows))])
        chosen = sampling.choose(logits, chances)
        new: list[int | None] = []
        for row, prompt in enumerate(rows):
            if n >= len(prompt):
                text[row, n] = chosen[row]
            new.append(int(text[row, n]) if n >= len(prompt) else None)
        yield new


def _rows(prompts: Any, model: GPT) -> list[np.ndarray]:
    """The prompts as rows of ids, each checked."""
    several = bool(len(prompts)) and isinstance(prompts[0], (Sequence, np.ndarray))
    rows = [np.asarray(p) for p in (prompts if several else [prompts])]
    for row, ids in enumerate(rows):
        if ids.ndim != 1 or not ids.size:
            raise ShapeError(f"prompt {row} has shape {ids.shape}; give at least one id, such as end-of-text, in a row")
        check_ids(ids, model.config.vocab_size, "token id")
    return rows
