"""Generation: compute the logits of the next token, choose a token, append it, and repeat.

With the cache each step computes only the new token; without it the whole window. Both give the same tokens.

B batch, T time
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from nanograd_llm.backend.randomness import generator
from nanograd_llm.errors import DtypeError, ShapeError
from nanograd_llm.inference.decoder import Decoder, can_decode
from nanograd_llm.inference.sampling import Sampling, likeliest
from nanograd_llm.models.encoder_decoder import EncoderDecoder
from nanograd_llm.models.gpt import GPT
from nanograd_llm.models.heads import Classifier
from nanograd_llm.nn.module import evaluating
from nanograd_llm.ops.layout import check_ids
from nanograd_llm.settings import require_int, require_known, require_type


def generate(
    model: GPT,
    prompts: Any,
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    stop: int | Collection[int] = (),
    cache: bool = True,
    **other: Any,
) -> list[list[int]]:
    """Continue each prompt; returns the new ids of each, cut before the first stop id.

    prompts: ids, one sequence (T) or several (B, T), also of different lengths. Rows do not affect each other.
    stop: an id that ends a row, or several.

    Whenever the context is full, its older half is dropped. The model computes in evaluation mode. Raises ShapeError
    for an empty prompt, IndexRangeError for an id outside the vocabulary, NonFiniteError if the largest logit is not
    finite.
    """
    require_known(other, "generate", "max_new_tokens sampling stop cache", _in_sampling)
    rows = _prompts(prompts, model)
    ends = stop if isinstance(stop, Collection) else (stop,)
    written: list[list[int]] = [[] for _ in rows]
    open_rows = set(range(len(rows)))
    for ids in stream(model, rows, max_new_tokens=max_new_tokens, sampling=sampling, cache=cache):
        for row, token in enumerate(ids):
            if token in ends:
                open_rows.discard(row)
            elif token is not None and row in open_rows:
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
    cache: bool = True,
    **other: Any,
) -> Iterator[list[int | None]]:
    """As `generate`, one token at a time: yields a list with the new id of each row, or None.

    It is None while a longer prompt of the row is still being read, and after the row has its max_new_tokens.
    """
    require_known(other, "stream", "max_new_tokens sampling cache", _in_sampling)
    require_int("max_new_tokens", max_new_tokens, 0)
    rows = _prompts(prompts, model)
    sampling = sampling or Sampling()
    modules = model.modules()
    text = np.zeros((len(rows), max(map(len, rows)) + max_new_tokens), dtype=np.int64)
    for row, prompt in enumerate(rows):
        text[row, : len(prompt)] = prompt
    start, caches, decoder = -1, model.new_caches(0), None
    with evaluating(modules):
        has_decoder = cache and can_decode(model)
    for n in range(min(map(len, rows)), text.shape[1]):
        writing = [len(prompt) <= n < len(prompt) + max_new_tokens for prompt in rows]
        if not any(writing):
            continue
        before, start = start, _window_start(n, model.config.context_length)
        if cache and start != before:
            caches = model.new_caches(len(rows))
            decoder = Decoder(model, caches) if has_decoder else None
        new = text[:, (start + caches[0].length if cache else start) : n]
        with np.errstate(all="ignore"):  # numbers that are not finite raise below
            if decoder and new.shape[1] == 1:
                logits = decoder(new[:, 0])
            else:
                with evaluating(modules):
                    logits = model.next_logits(new, caches if cache else None)
        logits = sampling.penalised(logits, text[:, :n])
        if sampling.temperature == 0:
            chosen = likeliest(logits)
        else:
            uniform = [generator(sampling.seed, row, n).random() for row in range(len(rows))]
            chosen = sampling.choose(logits, np.array(uniform))
        ids = [int(token) if is_writing else None for token, is_writing in zip(chosen, writing)]
        for row, token in enumerate(ids):
            if token is not None:
                text[row, n] = token
        yield ids


def _in_sampling(name: str, value: Any) -> str:
    """How to give an argument that is a setting of `Sampling`; "" for another."""
    return f"give sampling=ng.inference.Sampling({name}={value!r:.50})" if name in Sampling.setting_types else ""


def _window_start(n: int, context_length: int) -> int:
    """Where the window that predicts token n begins: at 0, or at a multiple of half the context."""
    half = max(1, context_length // 2)
    return max(0, math.ceil((n - context_length) / half)) * half


def _prompts(prompts: Any, model: GPT) -> list[np.ndarray]:
    """The prompts as checked rows of ids."""
    if not hasattr(model, "config") or isinstance(model, (Classifier, EncoderDecoder)):
        others = "an EncoderDecoder takes inference.translate, a Classifier inference.classify"
        require_type("model", model, GPT, f"a GPT, as in generate(model, ids); {others}")
    return id_rows(prompts, "prompt", model.config.vocab_size)


def id_rows(given: Any, what: str, vocab_size: int) -> list[np.ndarray]:
    """Ids, one sequence or several, as checked arrays of one axis. what: each is, for errors."""
    if isinstance(given, str) or (len(given) and isinstance(given[0], str)):
        raise DtypeError(f"a {what} is a row of ids, got a str; encode it first: tokenizer.encode(text)")
    several = len(given) > 0 and np.ndim(given[0]) > 0
    rows = [np.asarray(ids) for ids in (given if several else [given])]
    for place, ids in enumerate(rows):
        if ids.ndim != 1 or not ids.size:
            raise ShapeError(
                f"{what} {place} has shape {ids.shape}; give a row of at least one id, such as end-of-text, or what "
                "tokenizer.encode(text) gives"
            )
        check_ids(ids, vocab_size, "token id")
    return rows
