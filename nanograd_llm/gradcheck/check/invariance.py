"""Does the gradient depend on how a batch is laid out?  Cut into pieces, reordered or padded it must be the same.

A loss is a mean over the targets that count. So the gradient of a batch is that of its pieces, each weighted by its
share of those targets. A loss that averages over rows first, or counts what it should ignore, breaks this and trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor, grad
from nanograd_llm.errors import GraphError, NanogradError, ShapeError
from nanograd_llm.gradcheck.check.function import Function
from nanograd_llm.gradcheck.check.rounding import DEPTH, nudged, widened
from nanograd_llm.ops.composed import count_targets
from nanograd_llm.settings import IGNORE_INDEX

_Batch = tuple[np.ndarray, np.ndarray]  # tokens and targets
_Layout = tuple[str, list[_Batch]]  # in words, and the pieces that the batch is cut into


class SplitError(NanogradError, AssertionError):
    """A loss whose gradient depends on how its batch is laid out."""


def assert_split_invariant(
    loss: Callable[[Any, Any], Tensor], batch: tuple[Any, Any], *, columns: bool = True, seed: int = 0
) -> None:
    """Raise SplitError unless the loss and its gradients are the same however the batch is laid out.

    loss: `loss(tokens, targets)`, a mean over the targets that are not -100, such as `model.loss`; without dropout.
    batch: tokens and targets, arrays of at least two rows and of any further axes.
    columns: also put padding in place of the last two columns (behind them where there are only two), which must be as
        if they were cut off. For a model in which later tokens do not reach earlier ones.
    seed: of the cuts, the order and the tokens of the padding.

    Tried: single rows, halves, two random cuts, two random orders, rows of padding on both ends, columns of padding.
    Computed in the parameters' own dtype; two layouts may differ by 64 ε Σ|terms| (the contributions of single rows)
    and the same share of the parameter's largest entry; beyond that by what rounding moves: see `check.rounding`.

    Raises GraphError for a loss that is no scalar Tensor or reaches no leaf, ShapeError for a batch that cannot be cut.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ShapeError(f"a batch is a pair (tokens, targets); got {batch!r:.100}")
    tokens, targets = (np.asarray(part) for part in batch)
    if tokens.ndim < 1 or targets.ndim < 1 or len(tokens) != len(targets) or len(tokens) < 2:
        raise ShapeError(
            f"a batch to cut is (tokens, targets) of the same number of rows, two at least; got {tokens.shape} and "
            f"{targets.shape}"
        )
    if not count_targets(targets):
        raise ShapeError(f"none of the {targets.size} targets counts; give a batch with targets that are not -100")
    function, rng = Function(functools.partial(loss, tokens, targets), ()), np.random.default_rng(seed)
    _hold(loss, function, (tokens, targets), _layouts(tokens, targets, rng), "", rng)
    if columns and tokens.ndim > 1 and targets.ndim > 1:
        if tokens[:, :-2].size and count_targets(targets[:, :-2]):
            tokens, targets = tokens[:, :-2], targets[:, :-2]
        padded = _padded(tokens, targets, 1, (0, 2), rng)
        hint = " Where later tokens reach earlier ones, or there is no room for padding, pass columns=False."
        _hold(loss, function, (tokens, targets), [("two columns of padding", [padded])], hint, rng)


def _hold(
    loss: Callable[[Any, Any], Tensor],
    function: Function,
    batch: _Batch,
    layouts: Iterable[_Layout],
    hint: str,
    rng: np.random.Generator,
) -> None:
    """Raise SplitError where one of these layouts gives something else than the batch as it is."""
    held, total = function.held_by_name(), count_targets(batch[1])
    arrays = [leaf.data for leaf in function.held]
    epsilon = max(float(np.finfo(a.dtype).eps) for a in arrays)
    whole, _ = _evaluate(loss, function.held, [batch], total)
    _, terms = _evaluate(loss, function.held, [(x[None], y[None]) for x, y in zip(*batch)], total)

    def again(pieces: Sequence[_Batch], place: int) -> np.ndarray:
        with function.borrowed():
            for leaf, near in zip(function.held, nudged(arrays, rng)):
                leaf.data = near
            one, other = (_evaluate(loss, function.held, cut, total)[0][place] for cut in ([batch], pieces))
        return (one - other).reshape(-1)

    for layout, pieces in layouts:
        try:
            found, _ = _evaluate(loss, function.held, pieces, total)
        except NanogradError as error:
            raise ShapeError(f"the loss does not run on {layout}: {error}.{hint}") from error
        for place, (name, a, b, size) in enumerate(zip(["loss", *held], whole, found, terms)):
            bound = DEPTH * epsilon * (size + np.max(size, initial=0)).reshape(-1)
            bound = widened(bound, (a - b).reshape(-1), functools.partial(again, pieces, place)).reshape(a.shape)
            off = np.abs(a - b)
            if not (off <= bound).all():
                index = np.unravel_index(int(np.argmax(np.where(off <= bound, 0, off))), off.shape)
                at = f" at {[int(i) for i in index]}" if index else ""
                raise SplitError(
                    f"{'the loss' if name == 'loss' else f'the gradient of {name}'} depends on how the batch is laid "
                    f"out: {float(a[index]):.9g} for the whole batch, {float(b[index]):.9g} for {layout}{at}; rounding "
                    f"explains {float(bound[index]):.1e}. Is the loss a mean over the targets that count, and over "
                    f"nothing else?{hint}"
                )


def _evaluate(
    loss: Callable[[Any, Any], Tensor], leaves: Sequence[Tensor], pieces: Sequence[_Batch], total: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Loss and gradients over these pieces together, and the sum of the sizes of what each adds."""
    sums = sizes = [np.zeros(())] * (1 + len(leaves))
    for tokens, targets in pieces:
        share = count_targets(targets) / total
        if share:
            y = loss(tokens, targets)
            if not isinstance(y, Tensor) or y.shape != ():
                raise GraphError(f"a loss is a Tensor of one number; this one is {y!r}")
            parts = [share * part for part in (y.data, *grad(y, leaves))]
            sums = [s + part for s, part in zip(sums, parts)]
            sizes = [s + np.abs(part) for s, part in zip(sizes, parts)]
    return sums, sizes


def _layouts(tokens: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Iterator[_Layout]:
    """Each way to lay out the batch in words, and the pieces it makes."""

    def cut(places: Sequence[int]) -> list[_Batch]:
        return [pair for pair in zip(np.split(tokens, places), np.split(targets, places)) if len(pair[0])]

    n = len(tokens)
    yield "single rows", cut(range(1, n))
    yield "halves", cut([n // 2])
    for _ in range(2):
        places = sorted(int(i) for i in rng.integers(0, n + 1, size=2))
        yield f"pieces cut at {places}", cut(places)
    for _ in range(2):
        order = rng.permutation(n)
        yield f"the rows in order {order.tolist()}", [(tokens[order], targets[order])]
    yield "rows of padding on both ends", [_padded(tokens, targets, 0, (1, 1), rng)]


def _padded(
    tokens: np.ndarray, targets: np.ndarray, axis: int, width: tuple[int, int], rng: np.random.Generator
) -> _Batch:
    """More entries before and behind an axis: tokens that occur, targets that are ignored."""
    widths = [(0, 0)] * axis + [width] + [(0, 0)] * max(tokens.ndim, targets.ndim)
    new = np.pad(np.zeros(tokens.shape, bool), widths[: tokens.ndim], constant_values=True)
    padded = np.pad(tokens, widths[: tokens.ndim])
    padded[new] = rng.choice(tokens.reshape(-1), int(new.sum()))
    return padded, np.pad(targets, widths[: targets.ndim], constant_values=IGNORE_INDEX)
