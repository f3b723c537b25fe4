"""Does the gradient depend on how a batch is laid out?  Cut into pieces, reordered or padded it must be the same.

A loss is a mean over the targets that count. So the gradient of a batch is that of its pieces, each weighted by its
share of those targets; the order of the rows does not matter, and rows or columns that do not count change nothing. A
loss that averages over rows first, or counts what it should ignore, breaks this and still trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor, grad
from nanograd_llm.errors import GraphError, NanogradError, ShapeError
from nanograd_llm.gradcheck.check.comparison import DEPTH
from nanograd_llm.gradcheck.check.function import Function
from nanograd_llm.ops.composed import count_targets
from nanograd_llm.settings import IGNORE_INDEX

_REPEATS = 4

_Layout = tuple[str, list[tuple[np.ndarray, np.ndarray]]]  # in words, and the pieces that the batch is cut into


class SplitError(NanogradError, AssertionError):
    """A loss whose gradient depends on how its batch is laid out."""


def assert_split_invariant(
    loss: Callable[[Any, Any], Tensor], batch: tuple[Any, Any], *, columns: bool = True, seed: int = 0
) -> None:
    """Raise SplitError unless the loss and its gradients are the same however the batch is laid out.

    loss: `loss(tokens, targets)`, a mean over the targets that are not -100, such as `model.loss`; without dropout.
    batch: tokens and targets, arrays of at least two rows and of any further axes.
    columns: also put padding in place of the last two columns, which must be as if they were cut off: sequences of
        different lengths share a batch so. For a model in which later tokens do not reach earlier ones.
    seed: of the cuts, the order and the tokens of the padding.

    Tried: single rows, halves, two random cuts into unequal pieces, two random orders, rows of padding on both ends,
    columns of padding (behind the last where there are only two). Computed in the parameters' own dtype; two layouts
    may differ by c ε Σ|terms|, where the terms are the entry's contributions from single rows, ε is the dtype's machine
    epsilon, c = 64, plus the same share of the largest entry of that parameter, since an entry is itself a sum of such
    products; where that is exceeded, also by what moving every weight by a few ulps moves it.

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
    total = count_targets(targets)
    if total == 0:
        raise ShapeError(f"none of the {targets.size} targets counts; give a batch with targets that are not -100")
    leaves = Function(functools.partial(loss, tokens, targets), ()).held_by_name()
    names = ["loss", *leaves]

    def evaluate(pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Loss and gradients over these pieces together, and the sum of the sizes of what each adds."""
        sums, sizes = [np.zeros(())] * len(names), [np.zeros(())] * len(names)
        for piece_tokens, piece_targets in pieces:
            share = count_targets(piece_targets) / total
            if share == 0:
                continue
            y = loss(piece_tokens, piece_targets)
            if not isinstance(y, Tensor) or y.shape != ():
                raise GraphError(f"a loss is a Tensor of one number; this one is {y!r}")
            parts = [y.data, *grad(y, list(leaves.values()))]
            sums = [s + share * part for s, part in zip(sums, parts)]
            sizes = [s + share * np.abs(part) for s, part in zip(sizes, parts)]
        return sums, sizes

    def wobble(batch: tuple[np.ndarray, np.ndarray], place: int) -> float:
        """How much rounding moves this gradient where its own terms cancel: seen by moving every weight by an ulp."""
        before = {name: leaf.data for name, leaf in leaves.items()}
        try:
            seen = []
            for _ in range(_REPEATS):
                for name, leaf in leaves.items():
                    nudge = 1 + np.finfo(leaf.dtype).eps * rng.integers(-2, 3, leaf.shape)
                    leaf.data = (before[name] * nudge).astype(leaf.dtype)
                seen.append(evaluate([batch])[0][place])
        finally:
            for name, leaf in leaves.items():
                leaf.data = before[name]
        return 4 * float(np.ptp(seen, axis=0).max(initial=0))

    def hold(batch: tuple[np.ndarray, np.ndarray], layouts: Iterable[_Layout], hint: str) -> None:
        """Raise SplitError where one of these layouts of the batch gives something else than the batch as it is."""
        whole, _ = evaluate([batch])
        _, terms = evaluate([(batch[0][i : i + 1], batch[1][i : i + 1]) for i in range(len(batch[0]))])
        for layout, pieces in layouts:
            try:
                found, _ = evaluate(pieces)
            except NanogradError as error:
                raise ShapeError(f"the loss does not run on {layout}: {error}.{hint}") from error
            for place, (name, a, b, size) in enumerate(zip(names, whole, found, terms)):
                bound = DEPTH * epsilon * (size + np.max(size, initial=0))
                off = np.abs(a - b)
                if not (off <= bound).all():
                    bound = bound + wobble(batch, place)
                if not (off <= bound).all():
                    index = np.unravel_index(int(np.argmax(np.where(off <= bound, 0, off))), off.shape)
                    at = f" at {[int(i) for i in index]}" if off.ndim else ""
                    raise SplitError(
                        f"{'the loss' if name == 'loss' else f'the gradient of {name}'} depends on how the batch is "
                        f"laid out: {float(a[index]):.9g} for the whole batch, {float(b[index]):.9g} for {layout}{at}; "
                        f"rounding explains {float(np.broadcast_to(bound, off.shape)[index]):.1e}. Is the loss a mean "
                        f"over the targets that count, and over nothing else?{hint}"
                    )

    rng = np.random.default_rng(seed)
    epsilon = max(float(np.finfo(leaf.dtype).eps) for leaf in leaves.values())
    hold((tokens, targets), _layouts(tokens, targets, rng), "")
    if columns and tokens.ndim > 1 and targets.ndim > 1:
        shorter = tokens[:, :-2], targets[:, :-2]
        batch = shorter if shorter[0].size and count_targets(shorter[1]) else (tokens, targets)
        padded = _padded(batch[0], 1, 0, rng), _padded(batch[1], 1, 0, None)
        hint = " Where later tokens reach earlier ones, or there is no room for padding, pass columns=False."
        hold(batch, [("two columns of padding", [padded])], hint)


def _layouts(tokens: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Iterator[_Layout]:
    """Each way to lay out the batch in words, and the pieces it makes."""

    def cut(places: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
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
    yield "rows of padding on both ends", [(_padded(tokens, 0, 1, rng), _padded(targets, 0, 1, None))]


def _padded(array: np.ndarray, axis: int, before: int, rng: np.random.Generator | None) -> np.ndarray:
    """More entries at the end of an axis (and `before` it): values that occur or, without an rng, ignored ones."""
    after = 1 if axis == 0 else 2
    widths = [(before, after) if i == axis else (0, 0) for i in range(array.ndim)]
    padded = np.pad(array, widths, constant_values=IGNORE_INDEX if rng is None else 0)
    if rng is not None:
        new = np.pad(np.zeros(array.shape, bool), widths, constant_values=True)
        padded[new] = rng.choice(array.reshape(-1), int(new.sum()))
    return padded
