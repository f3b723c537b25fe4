"""Every op is timed inside the block, none after it, and no second is counted twice."""

from __future__ import annotations

import time

import pytest

from nanograd_llm.autograd.tensor import registry
from nanograd_llm.bench.decode import decoding
from nanograd_llm.bench.profile import PARTS, Stopwatch, profile, stopwatch
from nanograd_llm.bench.workloads import Workload, training_step
from nanograd_llm.models.gpt import GPTConfig
from nanograd_llm.training.workers import Workers

TINY = Workload("tiny", GPTConfig(vocab_size=7, context_length=4, n_layer=2, n_head=1, n_embd=4), 2, 4)


def functions():
    return [(op.forward, op.rule) for op in registry.values()] + [getattr(owner, method) for owner, method, _ in PARTS]


def test_the_times_of_ops_and_parts_make_up_the_step():
    rows = profile(training_step(TINY), 2)
    names = {name for name, *_ in rows}
    parts = {name for owner, _, name in PARTS if owner is Workers}
    assert {"layernorm", "layernorm, backward", "linear_cross_entropy", *parts} <= names
    assert sum(share for *_, share in rows) == pytest.approx(1)
    assert all(share >= 0 for *_, share in rows)
    calls = {name: count for name, count, *_ in rows}
    assert calls["layernorm"] == 2 * TINY.config.n_layer + 1
    assert calls["AdamW"] == 1


def test_the_parts_of_a_decoded_token_are_listed():
    rows = profile(decoding(TINY.config, 3), 2)
    calls = {name: count for name, count, *_ in rows}
    parts = {name for _, _, name in PARTS}
    assert {name: count for name, count in calls.items() if name in parts} == {
        "linear, one token": 3 * 4 * 2,
        "layernorm, one token": 3 * (2 * 2 + 1),
        "attention, one token": 3 * 2,
        "activation and sums, one token": 3 * 2,
        "embedding and head, one token": 3,
    }


def test_what_an_op_calls_is_counted_once():
    watch = Stopwatch()
    inner = watch.watch("inner", lambda: time.sleep(0.02))
    outer = watch.watch("outer", inner)
    began = time.perf_counter()
    outer()
    whole = time.perf_counter() - began
    assert 0.02 <= watch.times["inner"][1] <= sum(seconds for _, seconds in watch.times.values()) <= whole
    assert [calls for calls, _ in watch.times.values()] == [1, 1]


def test_nothing_is_timed_after_the_block_even_if_it_fails():
    before = functions()
    with pytest.raises(ZeroDivisionError), stopwatch():
        assert functions() != before
        raise ZeroDivisionError
    assert functions() == before
