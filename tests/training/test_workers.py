"""A batch split over threads and pieces has the loss and gradient of the whole batch."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, Tensor, checked, grad
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import DtypeError, IndexRangeError, NonFiniteError, ShapeError
from nanograd_llm.nn import Module
from nanograd_llm.training.adamw import AdamW
from nanograd_llm.training.flat import FlatParameters
from nanograd_llm.training.team import Threads
from nanograd_llm.training.workers import Workers

KEY = (0, 0)


def gpt(dtype: Any = np.float64, **changes: Any) -> GPT:
    sizes = dict(vocab_size=11, context_length=6, n_layer=2, n_head=2, n_embd=8)
    return GPT(GPTConfig(**{**sizes, **changes}), seed=0).astype(dtype)


def batch(rows: int, ignored: str = "none") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    tokens, targets = rng.integers(11, size=(2, rows, 6))
    if ignored == "some":
        targets[rng.random(targets.shape) < 0.4] = -100
    elif ignored == "first rows":
        targets[: rows // 2] = -100
    elif ignored == "all but one":
        targets[:] = -100
        targets[-1, 3] = 4
    return tokens, targets


def whole(model: GPT, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """One plain forward and backward of the whole batch."""
    parameters = FlatParameters(model.parameters()).parameters
    loss = model.loss(tokens, targets)
    return loss.item(), np.concatenate([g.reshape(-1) for g in grad(loss, parameters)])


def split(model: Module, *batch_: Any, **options: Any) -> tuple[float, np.ndarray]:
    workers = team(model, **options)
    workers.loss_and_gradient(batch(3), KEY)  # the next call must not depend on it
    loss, norm, _ = workers.loss_and_gradient(batch_, KEY)
    assert norm == pytest.approx(np.linalg.norm(workers.gradient), rel=1e-6)
    return loss, workers.gradient.copy()


def team(model: Module, count: int = 1, pieces: int = 1) -> Workers:
    return Workers(model, AdamW(model.trainable_parameters()), Threads(count), pieces)


@pytest.mark.parametrize("ignored", ["none", "some", "first rows", "all but one"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_a_split_batch_has_the_loss_and_gradient_of_the_whole(rows: int, count: int, pieces: int, ignored: str) -> None:
    model = gpt()
    tokens, targets = batch(rows, ignored)
    loss, gradient = split(model, tokens, targets, count=count, pieces=pieces)
    expected_loss, expected = whole(model, tokens, targets)
    assert loss == pytest.approx(expected_loss, rel=1e-14)
    assert np.allclose(gradient, expected, rtol=1e-11, atol=1e-15)


def test_workers_get_rows_that_cost_about_as_much() -> None:
    model, shares = gpt(), []
    tokens, targets = batch(8)
    targets[3:, 1:] = -100  # three rows of six tokens to compute, and five of one
    workers = team(model, 2)
    compute = workers.compute_share
    workers.compute_share = lambda n, pieces, *rest: shares.append(pieces[0].items) or compute(n, pieces, *rest)  # type: ignore
    workers.loss_and_gradient((tokens, targets), KEY)
    assert sorted(shares) == [11, 12]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_number_of_workers_gives_the_same_bits(count: int) -> None:
    results = [split(gpt(np.float32, dropout=0.2), *batch(7, "some"), count=count) for _ in range(3)]
    assert len({loss for loss, _ in results}) == 1
    assert len({gradient.tobytes() for _, gradient in results}) == 1


def test_dropout_follows_the_key_and_the_piece() -> None:
    model = gpt(dropout=0.4)
    tokens, targets = batch(4)
    workers = team(model, 2)
    loss, _, _ = workers.loss_and_gradient((tokens, targets), (7, 3))
    by_hand = []
    for piece in range(2):
        with noise(7, 3, piece):
            by_hand.append(model.loss(tokens[2 * piece : 2 * piece + 2], targets[2 * piece : 2 * piece + 2]).item())
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-14)
    assert loss != workers.loss_and_gradient((tokens, targets), (7, 4))[0]


def test_a_batch_in_which_no_target_counts_is_refused() -> None:
    tokens, targets = batch(4)
    with pytest.raises(ShapeError, match="none of the tokens of this batch counts"):
        split(gpt(), tokens, np.full_like(targets, -100), count=2)


@pytest.mark.parametrize(
    ("arrays", "shapes"),
    [
        ([np.zeros((4, 6)), np.zeros((2, 6))], r"\(4, 6\), \(2, 6\)"),
        ([np.zeros((4, 6)), np.zeros((4, 6)), np.zeros(3)], r"\(4, 6\), \(4, 6\), \(3,\)"),
    ],
)
def test_arrays_that_cannot_be_split_together_are_refused(arrays: list[Any], shapes: str) -> None:
    with pytest.raises(ShapeError, match=rf"the same number of rows \(axis 0\); got {shapes}$"):
        team(gpt(), 2).loss_and_gradient(arrays, KEY)


@pytest.mark.parametrize(("count", "pieces"), [(2, 1), (1, 2)])
def test_an_error_about_shapes_of_some_rows_has_those_of_the_whole_batch(count: int, pieces: int) -> None:
    tokens, targets = batch(4)
    with pytest.raises(ShapeError) as caught:
        team(gpt(), count, pieces).loss_and_gradient((tokens, targets[:, :3]), KEY)
    whole = f"{tokens.shape}, {targets[:, :3].shape}"
    assert str(caught.value).endswith(f"; these are shapes of a worker's rows; the whole batch has {whole}")
    with pytest.raises(ShapeError) as caught:
        team(gpt(), 1).loss_and_gradient((tokens, targets[:, :3]), KEY)
    assert "whole batch" not in str(caught.value)


class Changed(Module):
    """A GPT whose loss is a function that the test gives."""

    def __init__(self, loss: Any) -> None:
        self.gpt, self.function = gpt(), loss

    def loss(self, *batch: Any) -> Tensor:
        return self.function(*batch)


@pytest.mark.parametrize(
    ("loss", "error"),
    [(lambda x, y: 1.5, DtypeError), (lambda x, y: Tensor([1.0, 2.0], requires_grad=True), ShapeError)],
)
def test_a_loss_that_is_not_a_single_number_is_refused(loss: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="loss must return a Tensor of one number"):
        team(Changed(loss), 2).loss_and_gradient(batch(4), KEY)


def test_an_error_in_one_thread_waits_for_the_others() -> None:
    tokens, targets = batch(4)
    failed, ended = threading.Event(), threading.Event()

    def loss(x: np.ndarray, y: np.ndarray) -> Tensor:
        if np.array_equal(x, tokens[:2]):
            failed.set()
            raise IndexRangeError("the first shard fails")
        failed.wait()
        result = model.gpt.loss(x, y)
        ended.set()
        return result

    model = Changed(loss)
    workers = team(model, 2)
    with pytest.raises(IndexRangeError, match="the first shard fails"):
        workers.loss_and_gradient((tokens, targets), KEY)
    assert ended.is_set()
    model.function = model.gpt.loss
    workers.loss_and_gradient((tokens, targets), KEY)
    assert np.array_equal(workers.gradient, split(model, tokens, targets, count=2)[1])


@pytest.mark.parametrize("count", [1, 2])
def test_checked_mode_reaches_the_workers(count: int) -> None:
    model = gpt()
    model.blocks[1].mlp.up.bias.data[3] = np.inf
    with checked(), pytest.raises(NonFiniteError, match=r"in module blocks\.1\.mlp\.up, called at"):
        split(model, *batch(4), count=count)
