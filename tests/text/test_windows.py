"""Windows: targets are the next ids, batches depend only on (seed, step), and sliding windows miss no target."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanograd_llm.errors import ConfigError, DtypeError, IndexRangeError, ShapeError
from nanograd_llm.text import (
    IGNORE_INDEX,
    BPETokenizer,
    ByteTokenizer,
    count_windows,
    random_windows,
    show_batch,
    sliding_windows,
)

IDS = np.random.default_rng(0).integers(0, 1000, 500).astype(np.int32)
BYTES = ByteTokenizer()


def draw(ids=IDS, context_length=16, batch_size=8, seed=3, step=5):
    return random_windows(ids, context_length=context_length, batch_size=batch_size, seed=seed, step=step)


def test_random_windows_are_crops_and_their_targets_the_next_ids():
    tokens, targets = draw(np.arange(500, dtype=np.int32))
    assert tokens.shape == targets.shape == (8, 16)
    np.testing.assert_array_equal(tokens, tokens[:, :1] + np.arange(16))
    np.testing.assert_array_equal(targets, tokens + 1)


def test_a_batch_depends_only_on_seed_and_step():
    again = draw()
    np.random.default_rng(0).random(100)
    draw(step=6)
    np.testing.assert_array_equal(draw(), again)
    for other in (draw(step=6), draw(seed=4), draw(seed=5, step=3)):
        assert (other[0] != again[0]).any()


def test_random_windows_reach_both_ends_of_the_ids():
    ids = np.arange(10)
    drawn = [draw(ids, context_length=4, batch_size=16, step=step) for step in range(10)]
    assert {int(row[0]) for tokens, _ in drawn for row in tokens} == set(range(6))
    assert max(targets.max() for _, targets in drawn) == 9


def test_ids_of_the_minimum_length_have_one_window():
    tokens, targets = draw([7, 8, 9], context_length=2, batch_size=3)
    assert tokens.tolist() == [[7, 8]] * 3
    assert targets.tolist() == [[8, 9]] * 3


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", "int32"), ("uint16", "int32"), ("int32", "int32"), ("uint32", "int64"), ("int64", "int64")],
)
def test_windows_are_signed_so_that_a_target_can_be_ignored(dtype, expected):
    ids = np.arange(20).astype(dtype)
    for tokens, targets in (draw(ids), sliding_windows(ids, context_length=4, stride=3, count_once=True)):
        assert tokens.dtype == targets.dtype == expected
    assert (targets == IGNORE_INDEX).any()


def test_writing_into_a_batch_does_not_change_the_ids():
    ids = IDS.copy()
    for tokens, targets in (draw(ids), sliding_windows(ids, context_length=4, stride=4)):
        before = tokens.copy()
        targets[:] = IGNORE_INDEX
        np.testing.assert_array_equal(tokens, before)
    np.testing.assert_array_equal(ids, IDS)


sizes = st.integers(1, 12).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t), st.integers(t + 1, 60)))


@settings(derandomize=True)
@given(sizes)
def test_with_count_once_the_targets_are_all_ids_but_the_first_in_order(size):
    context_length, stride, n = size
    ids = np.arange(100, 100 + n)
    tokens, targets = sliding_windows(ids, context_length=context_length, stride=stride, count_once=True)
    assert targets[targets != IGNORE_INDEX].tolist() == ids[1:].tolist()
    assert (targets == tokens + 1)[targets != IGNORE_INDEX].all()


@settings(derandomize=True)
@given(sizes)
def test_sliding_windows_advance_by_stride_and_the_last_ends_with_the_ids(size):
    context_length, stride, n = size
    tokens, targets = sliding_windows(np.arange(n), context_length=context_length, stride=stride)
    np.testing.assert_array_equal(tokens, tokens[:, :1] + np.arange(context_length))
    np.testing.assert_array_equal(targets, tokens + 1)
    steps = np.diff(tokens[:, 0])
    assert (steps[:-1] == stride).all()
    assert (steps > 0).all()
    assert (steps <= stride).all()
    assert tokens[0, 0] == 0
    assert targets[-1, -1] == n - 1


@pytest.mark.parametrize("n", [0, 1, 4])
def test_the_error_for_too_few_ids_gives_both_sizes_and_the_remedy(n):
    message = f"{n} ids are too few for context_length=4: .* 5; use more text or a smaller context_length"
    for windows in (draw, lambda ids, context_length: sliding_windows(ids, context_length=context_length, stride=1)):
        with pytest.raises(ShapeError, match=message):
            windows(list(range(n)), context_length=4)


def test_ids_must_be_one_row_of_integers():
    with pytest.raises(ShapeError, match=r"one row \(N,\), got shape \(5, 100\)"):
        draw(IDS.reshape(5, 100))
    with pytest.raises(DtypeError, match="float64"):
        draw(IDS * 1.0)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2", None])
@pytest.mark.parametrize("name", ["context_length", "batch_size"])
def test_a_size_that_is_not_a_positive_integer_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be an integer of at least 1; got {value!r}"):
        draw(**{name: value})


@pytest.mark.parametrize("name", ["seed", "step"])
def test_a_negative_seed_or_step_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"{name} must be an integer of at least 0; got -1"):
        draw(**{name: -1})


def test_a_stride_that_skips_targets_is_refused():
    with pytest.raises(ConfigError, match="stride is 5, which skips targets; expected at most context_length=4"):
        sliding_windows(IDS, context_length=4, stride=5)
    with pytest.raises(ConfigError, match="stride must be an integer of at least 1; got 0"):
        sliding_windows(IDS, context_length=4, stride=0)


def test_a_batch_is_shown_as_input_and_target_at_each_position():
    tokenizer = BPETokenizer([(b" ", b"c"), (b"a", b"t")])
    tokens, targets = sliding_windows(tokenizer.encode("a cat\né"), context_length=3, stride=3, count_once=True)
    assert show_batch(tokens, targets, tokenizer).splitlines() == [
        "row 0",
        "    0   'a' -> ' c'",
        "    1  ' c' -> 'at'",
        "    2  'at' -> '\\n'",
        "row 1",
        "    0     'at' -> (ignored)",
        "    1     '\\n' -> b'\\xc3'",
        "    2  b'\\xc3' -> b'\\xa9'",
    ]


def test_wrongly_shifted_labels_are_marked():
    ids = BYTES.encode("abcdef")
    shown = show_batch(ids[None, :4], ids[None, 2:], BYTES).splitlines()
    assert shown[1] == "    0  'a' -> 'c'    but the next input is 'b'"
    tokens, targets = sliding_windows(ids, context_length=4, stride=4)
    assert "but" not in show_batch(tokens, targets, BYTES)


def test_a_batch_of_wrong_shapes_or_ids_is_not_shown():
    with pytest.raises(ShapeError, match=r"tokens \(2, 3\) and targets \(2, 4\)"):
        show_batch(np.zeros((2, 3), int), np.zeros((2, 4), int), BYTES)
    with pytest.raises(ShapeError, match=r"must both be \(B, T\)"):
        show_batch(np.zeros(3, int), np.zeros(3, int), BYTES)
    with pytest.raises(IndexRangeError, match="id 999"):
        show_batch(np.array([[999]]), np.array([[0]]), BYTES)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [5, 6, 7, 8, 9, 13])
def test_chosen_windows_are_those_rows_of_all_windows(size: int, stride: int) -> None:
    settings = {"context_length": 4, "stride": stride, "count_once": True}
    tokens, targets = sliding_windows(range(size), **settings)  # type: ignore[arg-type]
    assert len(tokens) == count_windows(range(size), context_length=4, stride=stride)
    for rows in ([0], [len(tokens) - 1], range(0, len(tokens), 2)):
        some, wanted = sliding_windows(range(size), **settings, rows=np.array(rows))  # type: ignore[arg-type]
        assert np.array_equal(some, tokens[rows]) and np.array_equal(wanted, targets[rows])


@pytest.mark.parametrize("windows", [draw, lambda ids: count_windows(ids, context_length=4, stride=4)])
def test_a_text_in_place_of_ids_is_refused(windows):
    with pytest.raises(DtypeError, match="got a str; encode it first"):
        windows("some text, not encoded")
