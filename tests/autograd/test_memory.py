"""The tape saves only what rules name, is freed during backward, and has no cycles; no function recurses."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from nanograd_llm import Parameter, Tensor, checked, grad, higher_order, no_grad, ops

LONG = 100_000


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The cycle collector is off, so that a cycle would keep memory alive."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def chain(x: Tensor, length: int) -> Tensor:
    y = x
    for _ in range(length):
        y = y * 1.0
    return y


def network() -> tuple[list[Parameter], np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(16, 256), (256,), (256,), (256,), (256, 16)]
    return [Parameter(rng.standard_normal(s).astype(np.float32)) for s in shapes], rng.standard_normal((64, 16))


def loss_and_interior(parameters: list[Parameter], x: np.ndarray) -> tuple[Tensor, list[weakref.ref]]:
    """A loss through primitive and fused ops, and weak references to every Tensor and array on the way."""
    w, b, scale, shift, v = parameters
    hidden = ops.linear(Tensor(x.astype(np.float32)), w, b)
    normal = ops.layernorm(hidden, scale, shift)
    active = ops.gelu(normal)
    gate = ops.tanh(hidden) * active + active
    out = gate @ v
    p = ops.softmax(out)
    interior = [hidden, normal, active, gate, out, p]
    return (p * out).mean(), [weakref.ref(o) for t in interior for o in (t, t.data, t._node)]


# Long chains


def test_a_chain_of_100_000_ops_goes_forward_and_backward():
    x = Parameter([1.0, 2.0])
    y = chain(x, LONG)
    y.backward([3.0, 4.0])
    np.testing.assert_array_equal(x.grad, [3, 4])
    del y


def test_a_chain_of_100_000_ops_can_be_dropped_without_a_backward(no_collector):
    x = Parameter([1.0])
    y = chain(x, LONG)
    nodes = []
    node = y._node
    for _ in range(3):
        nodes.append(weakref.ref(node))
        node = node.sources[0]
    del y, node
    assert [n() for n in nodes] == [None] * 3


def test_a_long_chain_can_be_dropped_halfway_through_a_failed_backward():
    x = Parameter([1.0])
    middle = chain(x, 10_000)

    def fails(g):
        raise ZeroDivisionError

    middle.register_hook(fails)
    y = chain(middle, 10_000)
    with pytest.raises(ZeroDivisionError):
        y.backward([1.0])
    del y, middle
    assert x.grad is None


def test_a_chain_of_ops_can_be_differentiated_twice_and_dropped():
    x = Parameter(np.array([1.0]))
    with higher_order():
        y = x * x
        for _ in range(10_000):
            y = y * 1.0
        (first,) = grad(y.sum(), [x])
        (second,) = grad(first.sum(), [x])
    assert (first.item(), second.item()) == (2, 2)
    del y, first, second


def test_a_sum_of_10_000_terms_is_differentiated():
    x = Parameter(np.array(1.0))
    total = x * 0.0
    for _ in range(10_000):
        total = total + x
    assert grad(total, x) == 10_000


# Freed memory


def test_after_backward_only_leaves_and_gradients_are_alive(no_collector):
    parameters, x = network()
    loss, interior = loss_and_interior(parameters, x)
    kept = {id(s) for node in _tape(loss) for s in node.saved if isinstance(s, np.ndarray)}
    saved = [weakref.ref(s) for node in _tape(loss) for s in node.saved if isinstance(s, np.ndarray)]
    assert len(kept) > 5
    loss.backward()
    mine = {id(p.data) for p in parameters} | {id(loss.data)}
    assert [ref for ref in interior if ref() is not None] == []
    assert {id(s()) for s in saved if s() is not None} <= mine
    assert all(p.grad is not None for p in parameters)


def test_arrays_are_freed_during_backward(no_collector):
    x = Parameter(np.ones(4))
    early = x * 2
    late = early * early * 3
    seen = weakref.ref(late.data)
    alive_below = []
    early.register_hook(lambda g: alive_below.append(seen() is not None))
    y = (late * late).sum()
    del late
    y.backward()
    assert alive_below == [False]


@pytest.mark.parametrize("how", ["never walked", "retained", "grad to one leaf", "failed"])
def test_a_dropped_tape_is_freed_without_the_cycle_collector(how, no_collector):
    parameters, x = network()
    loss, interior = loss_and_interior(parameters, x)
    if how == "retained":
        loss.backward(retain_graph=True)
    elif how == "grad to one leaf":
        grad(loss, parameters[-1], retain_graph=True)
    elif how == "failed":
        fails = parameters[0].register_hook(lambda g: g[0])
        with pytest.raises(ValueError, match="a hook replaced"):
            loss.backward()
        fails()
    del loss
    assert [ref for ref in interior if ref() is not None] == []


def test_a_tape_recorded_under_higher_order_is_freed_without_the_cycle_collector(no_collector):
    parameters, x = network()
    with higher_order():
        loss, interior = loss_and_interior(parameters, x)
        gradients = grad(loss, parameters)
        total = sum((g * g).sum() for g in gradients)
        interior += [weakref.ref(o) for g in gradients for o in (g, g.data)]
    total.backward()
    del loss, gradients, total
    assert [ref for ref in interior if ref() is not None] == []


def test_a_tape_recorded_in_checked_mode_is_freed_without_the_cycle_collector(no_collector):
    parameters, x = network()
    with checked():
        loss, interior = loss_and_interior(parameters, x)
        loss.backward()
    assert [ref for ref in interior if ref() is not None] == []


def test_retain_grad_does_not_keep_its_tensor_alive(no_collector):
    x = Parameter([1.0])
    y = x * 2
    y.retain_grad()
    z = y.sum()
    seen = weakref.ref(y)
    del y
    assert seen() is None
    z.backward()
    np.testing.assert_array_equal(x.grad, [2])


def test_a_hook_is_freed_with_its_pass(no_collector):
    class Big:
        def __call__(self, g):
            return None

    x = Parameter([1.0])
    hook = Big()
    seen = weakref.ref(hook)
    y = x * 2
    y.register_hook(hook)
    z = y.sum()
    del hook
    z.backward()
    assert seen() is None


def test_only_the_arrays_that_a_rule_names_are_saved(no_collector):
    x = Parameter(np.ones(4))
    a, b = x * 2, x * 3
    seen = [weakref.ref(a.data), weakref.ref(b.data)]
    y = a + b
    del a, b
    assert [ref() for ref in seen] == [None, None]
    np.testing.assert_array_equal(grad(y.sum(), x), np.full(4, 5.0))


def test_under_no_grad_nothing_is_kept(no_collector):
    parameters, x = network()
    with no_grad():
        loss, _ = loss_and_interior_without_nodes(parameters, x)
    assert loss._node is None


def loss_and_interior_without_nodes(parameters, x):
    hidden = ops.tanh(ops.linear(Tensor(x.astype(np.float32)), *parameters[:2]))
    return hidden.sum(), weakref.ref(hidden)


def test_memory_returns_to_leaves_and_gradients_after_each_step(no_collector):
    parameters, x = network()

    def step():
        loss, _ = loss_and_interior(parameters, x)
        loss.backward()
        return loss

    step()  # fills caches
    size = sum(p.data.nbytes for p in parameters)
    for p in parameters:
        p.grad = None
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    losses = [step() for _ in range(5)]
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(losses) == 5
    one_interior_array = 64 * 256 * 4
    assert after - before < size + one_interior_array // 2
    assert peak - before > size + 5 * one_interior_array  # the peak includes arrays that were freed again


def _tape(y: Tensor) -> list:
    nodes, stack = [], [y._node]
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack += [s for s in node.sources if hasattr(s, "sources")]
    return nodes
