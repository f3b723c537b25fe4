"""Batches for a language model: windows of ids, and as targets the same windows shifted by one position.

A random batch depends only on (seed, step), so a resumed run gets the same batches as one that was not stopped.
"""

# B batch (windows), T context_length, N ids

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanograd_llm.errors import ConfigError, DtypeError, ShapeError
from nanograd_llm.settings import IGNORE_INDEX, require_int, require_seed
from nanograd_llm.text.bpe import readable
from nanograd_llm.text.prepared import TokenFiles
from nanograd_llm.text.tokenizers import Tokenizer

Batch = tuple[NDArray[np.integer], NDArray[np.integer]]
Row = NDArray[Any] | TokenFiles


def random_windows(ids: ArrayLike | TokenFiles, *, context_length: int, batch_size: int, seed: int, step: int) -> Batch:
    """(tokens, targets), each (B, T): `batch_size` windows of ids (N,) at random places, all equally likely.

    The same arguments always give the same batch. The dtype is int32, or int64 if the ids' dtype does not fit.
    Raises ShapeError unless N > context_length, ConfigError for a size below 1 or a negative seed or step.

    >>> tokens, targets = random_windows(range(100), context_length=4, batch_size=2, seed=0, step=7)
    >>> bool((targets == tokens + 1).all())
    True
    """
    row = _ids(ids, context_length)
    require_int("batch_size", batch_size, 1)
    require_seed(seed)
    require_int("step", step, 0)
    starts = np.random.default_rng((seed, step)).integers(len(row) - context_length, size=batch_size)
    return _windows(row, starts, context_length)


def mixed_windows(
    sources: Sequence[ArrayLike | TokenFiles],
    weights: Sequence[float],
    *,
    context_length: int,
    batch_size: int,
    seed: int,
    step: int,
) -> Batch:
    """As `random_windows`, but each window is of one of several rows of ids, which is drawn by its weight."""
    rows = [_ids(ids, context_length) for ids in sources]
    rng = np.random.default_rng((seed, step))
    chosen = [rows[i] for i in rng.choice(len(rows), batch_size, p=np.asarray(weights) / sum(weights))]
    windows = [_windows(row, rng.integers(len(row) - context_length, size=1), context_length) for row in chosen]
    tokens, targets = zip(*windows)
    return np.concatenate(tokens), np.concatenate(targets)


def epoch_windows(ids: ArrayLike | TokenFiles, *, context_length: int, batch_size: int, seed: int, step: int) -> Batch:
    """As `random_windows`, but every window of the ids comes once, in random order, before any comes again.

    An epoch is `(N - 1) // T` windows, one after the other, whose first begins at a random place below T. Each has its
    own order and place, which depend only on the seed and its number.

    >>> batches = [epoch_windows(range(13), context_length=3, batch_size=2, seed=0, step=step) for step in range(2)]
    >>> sorted(int(row[0]) for tokens, _ in batches for row in tokens)
    [0, 3, 6, 9]
    """
    row = _ids(ids, context_length)
    count = (len(row) - 1) // context_length
    numbers, epochs = epoch_rows(count, batch_size=batch_size, seed=seed, step=step)
    starts = context_length * numbers
    for epoch in {*epochs.tolist()}:
        first = np.random.default_rng((seed, epoch, 1)).integers(len(row) - count * context_length)
        starts[epochs == epoch] += first
    return _windows(row, starts, context_length)


def epoch_rows(count: int, *, batch_size: int, seed: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the rows of a batch, below `count`, and the epoch of each, both (B,).

    In an epoch every row comes once, in an order that depends only on the seed and the number of the epoch.

    >>> sorted(int(i) for step in range(3) for i in epoch_rows(6, batch_size=2, seed=0, step=step)[0])
    [0, 1, 2, 3, 4, 5]
    """
    require_int("step", step, 0)
    places = step * batch_size + np.arange(batch_size)
    numbers, epochs = places % count, places // count
    for epoch in {*epochs.tolist()}:
        keys = np.random.default_rng((seed, epoch)).integers(2**63, size=4, dtype=np.uint64)
        numbers[epochs == epoch] = shuffled(numbers[epochs == epoch], count, keys)
    return numbers, epochs


def shuffled(numbers: NDArray[np.integer], count: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each of these numbers is in a random order of those below `count`, without that order in memory.

    A Feistel network with a round for each key permutes the numbers below a power of four; one that comes out too
    large is permuted again (Black and Rogaway 2002).
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask, places = (np.uint64(1) << half) - np.uint64(1), numbers.astype(np.uint64)
    again = np.ones(len(places), bool)
    while again.any():
        left, right = places[again] >> half, places[again] & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        places[again] = left << half | right
        again = places >= count
    return places.astype(np.int64)


def sliding_windows(
    ids: ArrayLike | TokenFiles,
    *,
    context_length: int,
    stride: int,
    count_once: bool = False,
    rows: NDArray[np.integer] | None = None,
) -> Batch:
    r"""(tokens, targets), each (B, T): windows of ids (N,) in order, each `stride` places after the one before.

    The last window is moved back so that it ends with the ids, and every id but the first is a target, some more than
    once. With `count_once` a target that an earlier window has is IGNORE_INDEX. The dtype is as in `random_windows`.
    rows: the numbers of the windows to return, from 0 to `count_windows` - 1; all if not given.

    Raises ShapeError unless N > context_length, ConfigError unless 1 <= stride <= context_length.

    >>> tokens, targets = sliding_windows(range(8), context_length=4, stride=4, count_once=True)
    >>> print(tokens, targets, sep="\n")
    [[0 1 2 3]
     [3 4 5 6]]
    [[   1    2    3    4]
     [-100    5    6    7]]
    """
    if rows is None:
        rows = np.arange(count_windows(ids, context_length=context_length, stride=stride))
    row = _ids(ids, context_length)
    starts = np.minimum(rows * stride, len(row) - context_length - 1)
    tokens, targets = _windows(row, starts, context_length)
    if count_once:
        overlap = (rows > 0) * ((rows - 1) * stride + context_length - starts)  # targets that the window before has too
        targets[np.arange(context_length) < overlap[:, None]] = IGNORE_INDEX
    return tokens, targets


def count_windows(ids: ArrayLike | TokenFiles, *, context_length: int, stride: int) -> int:
    """How many windows `sliding_windows` makes of these ids. Raises as it does."""
    row = _ids(ids, context_length)
    require_stride(stride, context_length)
    return 1 - (context_length + 1 - len(row)) // stride


def require_stride(stride: int, context_length: int) -> None:
    """Raise ConfigError unless windows that move by `stride` have every id but the first as a target."""
    require_int("stride", stride, 1)
    if stride > context_length:
        raise ConfigError(f"stride is {stride}, which skips targets; expected at most context_length={context_length}")


def show_batch(tokens: NDArray[np.integer], targets: NDArray[np.integer], tokenizer: Tokenizer) -> str:
    """A batch (B, T) as text: a line for each position, input -> target.

    A target that differs from the next input of its row is marked: the labels may be shifted wrongly. Raises ShapeError
    unless both are (B, T), IndexRangeError for an id outside the vocabulary.

    >>> from nanograd_llm.text import ByteTokenizer
    >>> tokenizer = ByteTokenizer()
    >>> print(show_batch(*sliding_windows(tokenizer.encode("to be"), context_length=4, stride=4), tokenizer))
    row 0
        0  't' -> 'o'
        1  'o' -> ' '
        2  ' ' -> 'b'
        3  'b' -> 'e'
    """
    if tokens.ndim != 2 or tokens.shape != targets.shape:
        raise ShapeError(f"tokens {tokens.shape} and targets {targets.shape} must both be (B, T)")
    lines = []
    for b, (inputs, wanted) in enumerate(zip(tokens.tolist(), targets.tolist(), strict=True)):
        lines.append(f"row {b}")
        shown = [readable(tokenizer.decode_bytes([i])) for i in inputs]
        width = max(map(len, shown), default=0)
        for t, target in enumerate(wanted):
            ignored = target == IGNORE_INDEX
            line = f"{t:>5}  {shown[t]:>{width}} -> "
            line += "(ignored)" if ignored else readable(tokenizer.decode_bytes([target]))
            if not ignored and t + 1 < len(inputs) and target != inputs[t + 1]:
                line += f"    but the next input is {shown[t + 1]}"
            lines.append(line)
    return "\n".join(lines)


def _windows(row: Row, starts: NDArray[np.integer], context_length: int) -> Batch:
    dtype = np.int32 if np.can_cast(row.dtype, np.int32) else np.int64
    both: NDArray[Any] = np.stack([row[start : start + context_length + 1] for start in starts.tolist()])  # (B, T+1)
    both = both.astype(dtype)
    return both[:, :-1].copy(), both[:, 1:].copy()


def _ids(ids: ArrayLike | TokenFiles, context_length: int) -> Row:
    """`ids` as an array of one row that is long enough for a window."""
    require_int("context_length", context_length, 1)
    if isinstance(ids, str):
        raise DtypeError("ids must be one row of integers, got a str; encode it first: tokenizer.encode(text)")
    row: Row = ids if isinstance(ids, TokenFiles) else np.asarray(ids)
    if not isinstance(row, TokenFiles) and row.ndim != 1:
        raise ShapeError(f"ids must be one row (N,), got shape {row.shape}")
    if len(row) and row.dtype.kind not in "iu":
        raise DtypeError(f"ids must be integers, got dtype {row.dtype}")
    if len(row) <= context_length:
        raise ShapeError(
            f"{len(row)} ids are too few for context_length={context_length}: a window and its targets need "
            f"{context_length + 1}; use more text or a smaller context_length"
        )
    return row
