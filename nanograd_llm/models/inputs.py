"""What models are given: ids of tokens, and which of them are real, checked in one place.

B batch, T time
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import array_of
from nanograd_llm.backend.arrays import to_host
from nanograd_llm.errors import ConfigError, DtypeError, ShapeError
from nanograd_llm.ops.layout import array_like
from nanograd_llm.settings import IGNORE_INDEX


def token_ids(tokens: Any, context_length: int, start: int = 0, remedy: str = "") -> np.ndarray:
    """The ids as an array (B, T).

    start: how many tokens came before them. remedy: what the error advises where there are too many.
    Raises DtypeError for text, ShapeError for another shape or more tokens than the context holds.
    """
    ids = array_of(array_like(tokens))
    if ids.dtype.kind in "OSU":
        raise DtypeError(f"tokens are integer ids (B, T), as tokenizer.encode gives them; got {tokens!r:.100}")
    if ids.ndim != 2:
        advice = "; use tokens[None] for a single sequence" if ids.ndim == 1 else ""
        raise ShapeError(f"tokens must be (B, T); got shape {ids.shape}{advice}")
    end = start + ids.shape[1]
    if end > context_length:
        remedy = remedy or f"pass only the last ones, or windows of context_length={context_length}"
        raise ShapeError(f"context_length is {context_length} but {end} tokens were given; {remedy}")
    return ids


def reaching_targets(tokens: Any, targets: Any) -> np.ndarray | None:
    """Which tokens of a decoder reach a target that counts: those up to the last one of their row.  Both (B, T)

    None if all do, if no target counts, or if the shapes differ, which is for the loss to refuse. No token that counts
    sees the rest, so the rest need not be computed.

    >>> targets = np.array([[3, -100, 4, -100], [5, -100, -100, -100]])
    >>> reaching_targets(targets, targets).astype(int).tolist()
    [[1, 1, 1, 0], [1, 0, 0, 0]]
    """
    counted = to_host(array_of(targets)) != IGNORE_INDEX
    if counted.shape != np.shape(array_of(tokens)) or not counted.ndim:
        return None
    reaching = np.logical_or.accumulate(counted[..., ::-1], axis=-1)[..., ::-1]
    return reaching if reaching.any() and not reaching.all() else None


def warn_of_shift(tokens: Any, targets: Any) -> None:
    """Warn where the targets that count are the tokens at their own places, or those before, not the next.  Both (B, T)

    >>> import warnings
    >>> ids = np.array([[5, 6, 7, 8]])
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_of_shift(ids[:, :-1], ids[:, 1:])
    ...     warn_of_shift(ids, ids)
    ...     warn_of_shift(ids[:, 1:], ids[:, :-1])
    >>> [str(warning.message).partition(",")[0] for warning in caught]
    ['the targets are the tokens themselves', 'the targets are the tokens one place before']
    """
    ids, wanted = np.asarray(to_host(array_of(tokens))), np.asarray(to_host(array_of(targets)))
    if ids.shape != wanted.shape or ids.ndim != 2:
        return
    counted = wanted != IGNORE_INDEX
    if not (ids[:, 1:] != wanted[:, :-1])[counted[:, :-1]].any():
        return
    found = ""
    if (wanted == ids)[counted].all():
        found = "the targets are the tokens themselves, so the model learns only to copy"
    elif counted[:, 1:].any() and (wanted[:, 1:] == ids[:, :-1])[counted[:, 1:]].all():
        found = "the targets are the tokens one place before, as if the two were swapped"
    if found:
        warnings.warn(
            f"{found}; unless that is meant, targets are the next tokens: tokens = ids[:, :-1], targets = ids[:, 1:]",
            stacklevel=3,
        )


def real_tokens(shape: tuple[int, ...], lengths: Any, key_mask: Any) -> np.ndarray | None:
    """The key mask (B, T) of tokens of this shape, True where one is real; None where all are.

    lengths: how many tokens of each row are real, the rest being padding at its end. key_mask: given as it is.
    Raises ConfigError where both are given, ShapeError where one does not fit, DtypeError for another dtype.
    """
    if lengths is not None and key_mask is not None:
        raise ConfigError("give lengths or key_mask, not both")
    if lengths is None and key_mask is None:
        return None
    mask = ops.sequence_mask(array_of(lengths), shape[1]) if key_mask is None else to_host(array_of(key_mask))
    if mask.dtype != bool:
        raise DtypeError(f"key_mask is boolean, True where a token is real; got {mask.dtype}; write key_mask != 0")
    if mask.shape != shape:
        found = f"key_mask is {mask.shape}" if lengths is None else f"lengths are {np.shape(lengths)}"
        raise ShapeError(f"{found}, and tokens {shape}; give lengths (B,) or a key_mask (B, T) of the same B and T")
    return None if mask.all() else mask


def padded(rows: Sequence[Any], fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, filled up behind to one length, and their own lengths.  B rows -> (B, T) int32, (B,)

    >>> tokens, lengths = padded([[5, 6, 7], [8]])
    >>> tokens.tolist(), lengths.tolist()
    ([[5, 6, 7], [8, 0, 0]], [3, 1])
    """
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), lengths.max()), fill, np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return ids, lengths
