"""Does the gradient depend on how a batch is laid out?  Cut into pieces, reordered or padded it must be the same.

So a text must not see its neighbours in the batch, nor the padding that fills it up to their length.

A loss is a mean over the targets that count. So the gradient of a batch is that of its pieces, each weighted by its
share of those targets. A loss that averages over rows first, or counts what it should ignore, breaks this and trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.backend.arrays import beside
from nanograd_llm.errors import GraphError, NanogradError, ShapeError
from nanograd_llm.gradcheck.check.function import Function, grad
from nanograd_llm.gradcheck.check.rounding import DEPTH, nudged, widened
from nanograd_llm.ops.composed import count_targets
from nanograd_llm.settings import IGNORE_INDEX

_Batch = tuple[np.ndarray, ...]  # tokens, targets, and perhaps lengths or other arrays
_Layout = tuple[str, list[_Batch]]  # in words, and the pieces that the batch is cut into


class SplitError(NanogradError, AssertionError):
    """A loss whose gradient depends on how its batch is laid out."""


def assert_split_invariant(
    loss: Callable[..., Tensor],
    batch: tuple[Any, ...],
    *,
    columns: bool = True,
    seed: int = 0,
    count: Callable[..., int] = lambda tokens, targets, *others: count_targets(targets),
) -> None:
    """Raise SplitError unless the loss and its gradients are the same however the batch is laid out.

    loss: `loss(tokens, targets)`, a mean over the targets that are not -100, such as `model.loss`; without dropout. For
        a model that takes the lengths of its rows, such as BERT, `loss(tokens, targets, lengths)`.
    batch: tokens and targets, arrays of at least two rows and of any further axes, the last of which is time; and then
        lengths (B,), integers: how many tokens of each row are real, to which all targets belong that are not -100; or
        other numbers (B, ...), such as those of a reference.
    columns: also put padding in place of the last two columns (behind them where there are only two), which must be as
        if they were cut off. For a model in which later tokens do not reach earlier ones, or that is given lengths:
        then padding is put behind, and in place of what stands behind the length of each row.
    seed: of the cuts, the order and the tokens of the padding.
    count: how many items the loss of a batch is a mean over, such as `model.loss_count`, if not the targets.

    Tried: single rows, halves, two random cuts, two random orders, rows of padding on both ends, columns of padding,
    other tokens as padding.
    Computed in the parameters' own dtype; two layouts may differ by 64 ε Σ|terms| (the contributions of single rows)
    and the same share of the parameter's largest entry; beyond that by what rounding moves: see `check.rounding`.

    Raises GraphError for a loss that is no scalar Tensor or reaches no leaf, ShapeError for a batch that cannot be cut.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise ShapeError(
            f"a batch is a pair (tokens, targets), or these and lengths or other numbers; got {batch!r:.100}"
        )
    whole = tuple([np.asarray(part) for part in batch])
    tokens, targets, *others = whole
    lengths = [part for part in others if part.ndim == 1]
    if tokens.ndim < 1 or targets.ndim < 1 or len({len(part) for part in whole if part.ndim}) > 1 or len(tokens) < 2:
        raise ShapeError(
            f"a batch to cut is (tokens, targets) of the same number of rows, two at least; got {tokens.shape} and "
            f"{targets.shape}"
        )
    if not count_targets(targets):
        raise ShapeError(f"none of the {targets.size} targets counts; give a batch with targets that are not -100")
    if lengths:
        _require_lengths(*whole)
    function, rng = Function(functools.partial(loss, *whole), ()), np.random.default_rng(seed)
    _hold(loss, count, function, whole, _layouts(whole, rng), "", rng)
    if columns and tokens.ndim > 1 and (targets.ndim > 1 or lengths):
        if not lengths and tokens[..., :-2].size and count_targets(targets[..., :-2]):
            whole = tokens[..., :-2], targets[..., :-2], *others
        layouts = [("two columns of padding", [_padded(whole, tokens.ndim - 1, (0, 2), rng)])]
        hint = " Where later tokens reach earlier ones, or there is no room for padding, pass columns=False."
        if lengths:
            is_real = np.arange(tokens.shape[1]) < lengths[0][:, None]
            fresh = np.where(is_real, tokens, rng.permutation(tokens.reshape(-1)).reshape(tokens.shape))
            layouts.append(("other tokens as padding", [(fresh, targets, *lengths)]))
            hint = " Where there is no room for padding, pass columns=False."
        _hold(loss, count, function, whole, layouts, hint, rng)


def _require_lengths(tokens: np.ndarray, targets: np.ndarray, lengths: np.ndarray) -> None:
    """Raise ShapeError for lengths that do not fit, or a target that counts behind one."""
    fits = tokens.ndim == 2 and lengths.shape == tokens.shape[:1] and lengths.dtype.kind in "iu"
    if not fits or not 0 <= lengths.min() <= lengths.max() <= tokens.shape[1]:
        raise ShapeError(f"lengths {lengths.shape} do not fit tokens {tokens.shape}; give one integer a row, at most T")
    if targets.ndim > 1 and count_targets(targets[np.arange(tokens.shape[1]) >= lengths[:, None]]):
        raise ShapeError("a target behind the length of its row counts; make it -100, or the length larger")


def _hold(
    loss: Callable[..., Tensor],
    count: Callable[..., int],
    function: Function,
    batch: _Batch,
    layouts: Iterable[_Layout],
    hint: str,
    rng: np.random.Generator,
) -> None:
    """Raise SplitError where one of these layouts gives something else than the batch as it is."""
    held, total = dict(zip(function.names, function.held)), count(*batch)  # f is given no inputs
    arrays = [leaf.numpy() for leaf in function.held]
    epsilon = max(float(np.finfo(a.dtype).eps) for a in arrays)

    def evaluate(pieces: Sequence[_Batch]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Loss and gradients over pieces, each with its share, together; and the sum of the sizes of what each adds."""
        sums = sizes = [np.zeros(())] * (1 + len(function.held))
        for piece in pieces:
            if share := count(*piece) / total:
                y = loss(*piece)
                if not isinstance(y, Tensor) or y.shape != ():
                    raise GraphError(f"a loss is a Tensor of one number; this one is {y!r}")
                parts = [share * part for part in (y.numpy(), *grad(y, function.held))]
                sums = [s + part for s, part in zip(sums, parts)]
                sizes = [s + np.abs(part) for s, part in zip(sizes, parts)]
        return sums, sizes

    whole, _ = evaluate([batch])
    _, terms = evaluate([tuple([x[None] for x in row]) for row in zip(*batch)])

    def again(pieces: Sequence[_Batch], place: int) -> np.ndarray:
        with function.borrowed():
            for leaf, near in zip(function.held, nudged(arrays, rng)):
                leaf.data = beside(near, leaf.data)
            one, other = (evaluate(cut)[0][place] for cut in ([batch], pieces))
        return (one - other).reshape(-1)

    for layout, pieces in layouts:
        try:
            found, _ = evaluate(pieces)
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


def _layouts(batch: _Batch, rng: np.random.Generator) -> Iterator[_Layout]:
    """Each way to lay out the batch in words, and the pieces it makes."""

    def cut(places: Sequence[int]) -> list[_Batch]:
        return [piece for piece in zip(*(np.split(part, places) for part in batch)) if len(piece[0])]

    n = len(batch[0])
    yield "single rows", cut(range(1, n))
    yield "halves", cut([n // 2])
    for _ in range(2):
        places = sorted(int(i) for i in rng.integers(0, n + 1, size=2))
        yield f"pieces cut at {places}", cut(places)
    for _ in range(2):
        order = rng.permutation(n)
        yield f"the rows in order {order.tolist()}", [tuple([part[order] for part in batch])]
    yield "rows of padding on both ends", [_padded(batch, 0, (1, 1), rng)]


def _padded(batch: _Batch, axis: int, width: tuple[int, int], rng: np.random.Generator) -> _Batch:
    """More entries before and behind an axis: tokens that occur, ignored targets; a new row has the whole length."""
    tokens, targets, *others = batch
    widths = [(0, 0)] * axis + [width] + [(0, 0)] * max(tokens.ndim, targets.ndim)
    new = np.pad(np.zeros(tokens.shape, bool), widths[: tokens.ndim], constant_values=True)
    padded = np.pad(tokens, widths[: tokens.ndim])
    padded[new] = rng.choice(tokens.reshape(-1), int(new.sum()))
    more = [np.pad(x, [*widths[:1], *[(0, 0)] * (x.ndim - 1)], constant_values=tokens.shape[-1]) for x in others]
    return padded, np.pad(targets, widths[: targets.ndim], constant_values=IGNORE_INDEX), *more
