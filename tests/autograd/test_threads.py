"""Each thread has its own modes and tape, and only one thread at a time can walk a tape."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nanograd_llm import Parameter, Tensor, checked, grad, higher_order, no_grad, ops
from nanograd_llm.autograd.modes import modes, within_module
from nanograd_llm.errors import GraphError

MODES = {"recording": no_grad, "higher_order": higher_order, "checked": checked}


@pytest.mark.parametrize("name", MODES)
def test_a_mode_ends_with_its_block(name):
    before = getattr(modes(), name)
    with MODES[name]():
        assert getattr(modes(), name) is not before
        with MODES[name]():
            assert getattr(modes(), name) is not before
        assert getattr(modes(), name) is not before
    assert getattr(modes(), name) is before


@pytest.mark.parametrize("name", MODES)
def test_a_mode_ends_with_an_exception(name):
    before = getattr(modes(), name)
    with pytest.raises(ZeroDivisionError), MODES[name]():
        raise ZeroDivisionError
    assert getattr(modes(), name) is before


def test_a_mode_ends_when_an_op_or_a_rule_fails():
    x = Parameter([1.0])
    with pytest.raises(ValueError, match="add got"), checked(), higher_order():
        x + np.ones((2, 3)) + np.ones(5)
    x.register_hook(lambda g: g[None])
    with pytest.raises(ValueError, match="a hook replaced"), higher_order():
        (x * 2).sum().backward()
    assert (modes().recording, modes().higher_order, modes().checked) == (True, False, False)


def test_modes_nest_in_any_order():
    x = Parameter([1.0])
    with no_grad():
        with higher_order(), checked():
            assert not (x * 2).requires_grad
        assert (modes().recording, modes().higher_order, modes().checked) == (False, False, False)
    with checked(), checked(enabled=False):
        assert not modes().checked
    assert (x * 2).requires_grad


def test_a_mode_decorates_a_function():
    @no_grad()
    def f(x):
        return x * 2

    x = Parameter([1.0])
    assert not f(x).requires_grad and not f(x).requires_grad
    assert (x * 2).requires_grad


def test_the_module_path_follows_nested_blocks():
    with within_module("blocks.2"), within_module(""), within_module("attention"):
        assert modes().modules == ("blocks.2", "attention")
    assert modes().modules == ()


@pytest.mark.parametrize("name", MODES)
def test_another_thread_does_not_see_the_mode(name):
    default = getattr(modes(), name)
    with ThreadPoolExecutor(1) as pool, MODES[name]():
        assert pool.submit(lambda: getattr(modes(), name)).result() is default


@pytest.mark.parametrize("name", MODES)
def test_another_task_of_asyncio_does_not_see_the_mode(name):
    default = getattr(modes(), name)

    async def inside(entered, seen):
        with MODES[name]():
            entered.set()
            await seen.wait()
            return getattr(modes(), name)

    async def outside():
        entered, seen = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(inside(entered, seen))
        await entered.wait()
        here = getattr(modes(), name)
        seen.set()
        return here, await task

    here, there = asyncio.run(outside())
    assert here is default and there is not default


def test_a_thread_records_while_another_is_under_no_grad():
    x = Parameter([1.0])
    inside, done = threading.Event(), threading.Event()

    def quiet():
        with no_grad():
            inside.set()
            done.wait(10)
            return (x * 2).requires_grad

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(quiet)
        inside.wait(10)
        np.testing.assert_array_equal(grad((x * 2).sum(), x), [2])
        done.set()
        assert waiting.result() is False


# One tape, two threads


def held_open(x: Parameter, retain: bool):
    """A tape that another thread is walking, waiting in a hook, and a function that lets it continue."""
    reached, go_on = threading.Event(), threading.Event()
    shared = x * 2

    def wait(g):
        reached.set()
        assert go_on.wait(10)

    remove = shared.register_hook(wait)
    y = (shared * 3).sum()
    return y, shared, reached, go_on, remove


@pytest.mark.parametrize("retain", [True, False])
@pytest.mark.parametrize("part", ["whole", "below", "beside"])
def test_a_second_thread_on_a_tape_that_is_being_walked_is_refused(retain, part):
    x = Parameter([1.0])
    y, shared, reached, go_on, _ = held_open(x, retain)
    second = {"whole": y, "below": shared.sum(), "beside": (shared * 5).sum()}[part]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: y.backward(retain_graph=retain))
        assert reached.wait(10)
        with pytest.raises(GraphError, match="another backward is walking this tape|graph freed"):
            second.backward()
        assert x.grad is None
        go_on.set()
        first.result()
    np.testing.assert_array_equal(x.grad, [6])


def test_after_a_refusal_a_retained_tape_can_be_walked():
    x = Parameter([1.0])
    y, _, reached, go_on, remove = held_open(x, True)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: y.backward(retain_graph=True))
        assert reached.wait(10)
        with pytest.raises(GraphError, match="another backward"):
            y.backward()
        go_on.set()
        first.result()
    remove()
    y.backward()
    np.testing.assert_array_equal(x.grad, [12])


def test_many_threads_on_one_retained_tape_are_refused_or_get_the_right_gradient():
    x = Parameter(np.arange(1, 5, dtype=np.float64))
    y = x
    for _ in range(200):
        y = y * 1.0 + y * 0.0
    y = (y * y).sum()
    start = threading.Barrier(8)

    def work(_):
        start.wait(10)
        outcomes = []
        for _ in range(5):
            try:
                outcomes.append(grad(y, x, retain_graph=True))
            except GraphError as error:
                assert "another backward" in str(error)
        return outcomes

    with ThreadPoolExecutor(8) as pool:
        found = [g for outcomes in pool.map(work, range(8)) for g in outcomes]
    assert found
    for gradient in found:
        np.testing.assert_array_equal(gradient, 2 * x.data)


# Shared parameters, separate tapes


def loss(parameters: list[Parameter], x: np.ndarray) -> Tensor:
    w, scale, shift, v = parameters
    hidden = ops.gelu(ops.layernorm(ops.linear(Tensor(x), w), scale, shift))
    return ops.cross_entropy(hidden @ v + hidden @ v * 0.5, np.arange(len(x)) % 5)


def shards(count: int) -> tuple[list[Parameter], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    shapes = [(6, 8), (8,), (8,), (8, 5)]
    parameters = [Parameter(rng.standard_normal(s).astype(np.float32)) for s in shapes]
    return parameters, [rng.standard_normal((12, 6)).astype(np.float32) for _ in range(count)]


def test_threads_on_shared_parameters_get_the_bits_of_one_thread_alone():
    parameters, batches = shards(32)
    alone = [grad(loss(parameters, x), parameters) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: grad(loss(parameters, x), parameters), batches))
    for one, other in zip(alone, together):
        for a, b in zip(one, other):
            assert a.tobytes() == b.tobytes()
    assert all(p.grad is None for p in parameters)


def test_concurrent_backward_passes_add_all_gradients_to_shared_parameters():
    p = Parameter(np.zeros(3))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: (p * float(i)).sum().backward(), range(200)))
    np.testing.assert_array_equal(p.grad, np.full(3, sum(range(200))))


def test_threads_in_checked_mode_leave_the_shared_parameters_writeable():
    parameters, batches = shards(16)

    def work(x):
        with checked():
            return grad(loss(parameters, x), parameters)

    with ThreadPoolExecutor(4) as pool:
        checked_ones = list(pool.map(work, batches))
    for gradients, x in zip(checked_ones, batches):
        for a, b in zip(gradients, grad(loss(parameters, x), parameters)):
            np.testing.assert_array_equal(a, b)
    assert all(p.data.flags.writeable for p in parameters)
