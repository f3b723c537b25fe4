"""Graphs that Hypothesis grows op by op, with inputs used twice and branches that meet again, are checked whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from nanograd_llm import ops
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.gradcheck import GradientError, assert_gradients, mutants

SHAPES = [(2, 3), (3,), (1, 3), (2, 1), (1, 1), ()]  # all broadcast together
ONE = {
    "tanh": ops.tanh,
    "sin": ops.sin,
    "gelu": ops.gelu,
    "negative": ops.negative,
    "softmax": lambda x: ops.softmax(x) if x.ndim else x,
    "mean": lambda x: ops.mean(x, axis=-1, keepdims=True) if x.ndim else x,
    "backwards": lambda x: x[..., ::-1] if x.ndim else x,
    "with a row twice": lambda x: x[..., [0, 0, -1]] if x.ndim else x,
    "whole": lambda x: ops.broadcast_to(x, shape=(2, 3)),
    "squared": lambda x: ops.tanh(x * x),
}
TWO = {
    "add": ops.add,
    "subtract": ops.subtract,
    "multiply": lambda a, b: ops.tanh(a) * b,
    "divide": lambda a, b: a / (2 + ops.sin(b)),
    "where": lambda a, b: ops.where(np.array([True, False, True]), a, b),
    "attend": lambda a, b: ops.attention(*(ops.broadcast_to(x, shape=(2, 3)) for x in (a, b, a)), causal=True),
}


class Graph(RuleBasedStateMachine):
    """A value is a place: the leaves come first, then what was made, in order."""

    values = Bundle("values")

    def __init__(self):
        super().__init__()
        self.leaves = []
        self.made = []  # (the name of a function, the places of its inputs)

    @initialize(target=values, shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3), seed=st.integers(0))
    def start(self, shapes, seed):
        rng = np.random.default_rng(seed)
        self.leaves = [rng.standard_normal(shape) for shape in shapes]
        return 0

    @initialize(target=values)
    def last_leaf(self):
        return -1

    @rule(target=values, name=st.sampled_from(sorted(ONE)), x=values)
    def one(self, name, x):
        return self._make(name, x)

    @rule(target=values, name=st.sampled_from(sorted(TWO)), a=values, b=values)
    def two(self, name, a, b):
        return self._make(name, a, b)

    def _make(self, name, *places):
        self.made.append((name, [len(self.leaves) - 1 if place < 0 else place for place in places]))
        return len(self.leaves) + len(self.made) - 1

    def run(self, *leaves):
        """All that nothing else uses, side by side."""
        values = list(leaves)
        for name, places in self.made:
            values.append((ONE | TWO)[name](*(values[place] for place in places)))
        used = {place for _, places in self.made for place in places}
        ends = [value for place, value in enumerate(values) if place not in used]
        return ops.stack([ops.broadcast_to(end, shape=(2, 3)) for end in ends])

    def teardown(self):
        if self.leaves:
            assert_gradients(self.run, *self.leaves)


HOUSE = settings(max_examples=40, stateful_step_count=12, derandomize=True, deadline=None, database=None)


def test_the_gradient_of_every_graph_is_right():
    """`Graph.teardown` asserts it of each; the tests below show that it would fail."""
    run_state_machine_as_test(Graph, settings=HOUSE)


def finds_a_mistake():
    with pytest.raises(GradientError):
        run_state_machine_as_test(Graph, settings=settings(HOUSE, phases=[Phase.generate], print_blob=False))


def test_a_tape_that_keeps_the_last_of_several_contributions_is_found(monkeypatch):
    def put(self, node, cotangent, gradients):
        self.pending |= {source: g for source, g in zip(node.sources, gradients) if g is not None}

    monkeypatch.setattr(Sums, "add", put)
    finds_a_mistake()


@pytest.mark.parametrize("op", [ops.tanh, ops.getitem])
def test_a_mistake_in_a_rule_is_found_inside_a_graph(op):
    for mutant in [mutant for mutant in mutants(op) if mutant.sharp or "+=" in mutant.name]:
        with mutant.planted():
            finds_a_mistake()
