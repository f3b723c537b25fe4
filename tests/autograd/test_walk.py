"""The walk along the tape can be run step by step, and stopped between two nodes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from nanograd_llm import Parameter, Tensor, grad
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import backward, walk
from nanograd_llm.errors import GraphError

ONE = np.ones((), np.float32)


@pytest.fixture
def x() -> Parameter:
    return Parameter([1.0, 2.0])


@pytest.fixture
def y(x: Parameter) -> Tensor:
    bias = Parameter([[1.0], [2.0], [3.0]])
    return ((x * 3.0 + bias) * x).sum()  # (2), (3, 1) -> ()


def test_each_step_is_a_node_with_its_cotangent_and_the_gradients_of_its_inputs(x: Parameter, y: Tensor) -> None:
    steps = [
        (node.op.name, cotangent.copy(), [g if g is None else g.copy() for g in gradients])
        for node, cotangent, gradients in walk(y._node, ONE, Sums())
    ]
    assert [name for name, _, _ in steps] == ["sum", "multiply", "add", "multiply"]
    (_, (of_product,)), (dy, (of_sum, dx)), (of_sum_whole, (of_scaled, dbias)), (of_scaled_whole, last) = [
        step[1:] for step in steps
    ]
    np.testing.assert_array_equal(dy, of_product)
    np.testing.assert_array_equal(dx, (3 * x.data + [[1], [2], [3]]).sum(0))  # broadcasting is undone
    np.testing.assert_array_equal(of_sum_whole, of_sum)
    np.testing.assert_array_equal(dbias, [[3], [3], [3]])
    np.testing.assert_array_equal(of_scaled_whole, of_scaled)
    assert last[1] is None  # the gradient of the number 3.0
    np.testing.assert_array_equal(last[0] + dx, grad(((x * 3.0 + [[1.0], [2.0], [3.0]]) * x).sum(), x))


def test_the_sums_at_the_leaves_are_their_gradients(x: Parameter, y: Tensor) -> None:
    expected = grad(y, x, retain_graph=True)
    sums = Sums()
    for _ in walk(y._node, ONE, sums):
        pass
    np.testing.assert_array_equal(sums.pending[x], expected)


def test_a_rule_runs_when_its_step_is_requested(x: Parameter, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for op in {node.op for node, _, _ in walk(y._node, ONE, Sums(), retain=True)}:
        monkeypatch.setattr(op, "rule", lambda *args, op=op, rule=op.rule: (ran.append(op.name), rule(*args))[1])
    steps = walk(y._node, ONE, Sums())
    assert ran == []
    next(steps)
    assert ran == ["sum"]
    next(steps)
    assert ran == ["sum", "multiply"]


@pytest.mark.parametrize("stop", ["close", "drop"])
def test_after_a_stopped_walk_another_one_can_start(stop: str, x: Parameter, y: Tensor) -> None:
    expected = grad(y, x, retain_graph=True)
    steps: Any = walk(y._node, ONE, Sums(), retain=True)
    next(steps)
    with pytest.raises(GraphError, match="another backward is walking this tape"):
        y.backward()
    with ThreadPoolExecutor(1) as pool, pytest.raises(GraphError, match="another backward"):
        pool.submit(y.backward).result()
    if stop == "close":
        steps.close()
    del steps
    np.testing.assert_array_equal(grad(y, x), expected)


def test_only_nodes_that_a_walk_has_passed_are_freed(x: Parameter) -> None:
    scaled = x * 3.0
    y = (scaled * x).sum()
    steps = walk(y._node, ONE, Sums())
    next(steps), next(steps)  # the node of the sum is behind
    steps.close()
    with pytest.raises(GraphError, match="graph freed: backward already passed through sum"):
        y.backward()
    np.testing.assert_array_equal(grad(scaled.sum(), x), [3, 3])


def test_a_walk_from_a_leaf_has_no_steps(x: Parameter) -> None:
    seed = np.array([5.0, 7.0], np.float32)
    assert list(walk(x, seed, Sums())) == []
    assert backward(x, seed, Sums())[x].tolist() == [5, 7]
