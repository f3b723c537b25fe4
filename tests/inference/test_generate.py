"""Generation: with the cache as without, in a batch as alone, streamed as at once, also past the model's context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig
from nanograd_llm.errors import ConfigError, DtypeError, IndexRangeError, NonFiniteError, ShapeError, SignatureError
from nanograd_llm.inference import Sampling, generate, stream
from nanograd_llm.models import Classifier

GREEDY = Sampling(temperature=0)


def gpt(context_length: int = 8, **changes: Any) -> GPT:
    """A float64 model that does not repeat one token, and writes the same tokens in any order of its sums."""
    sizes = dict(vocab_size=13, context_length=context_length, n_layer=2, n_head=2, n_embd=16)
    model = GPT(GPTConfig(**{**sizes, **changes})).astype(np.float64)
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data += 0.6 * rng.standard_normal(parameter.shape)
    model.ln_f.weight.data[:] = rng.standard_normal(16)
    return model


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng((length, seed)).integers(13, size=length).tolist()


def by_hand(model: GPT, text: list[int], count: int) -> list[int]:
    """Greedy continuation, each token from a plain forward over the window."""
    context, text = model.config.context_length, list(text)
    for _ in range(count):
        start = 0
        while len(text) - start > context:
            start += max(1, context // 2)
        text.append(int(model(np.array([text[start:]])).data[0, -1].argmax()))
    return text[-count:]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("context_length", [1, 2, 5, 8])
@pytest.mark.parametrize("length", [1, 4, 8, 9, 21])
def test_each_token_is_the_likeliest_after_the_text_so_far(length: int, context_length: int, cache: bool) -> None:
    model = gpt(context_length)
    expected = by_hand(model, prompt(length), 20)
    assert generate(model, prompt(length), max_new_tokens=20, sampling=GREEDY, cache=cache) == [expected]
    assert context_length < 5 or len(set(expected)) > 1


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(seed=3), Sampling(temperature=0.7, top_k=5, seed=3), Sampling(top_p=0.8, seed=3)]
)
@pytest.mark.parametrize("lengths", [[3], [1, 8, 20], [12, 3, 3]])
def test_the_cache_changes_no_token(sampling: Sampling, lengths: list[int]) -> None:
    model, prompts = gpt(), [prompt(length) for length in lengths]
    cached, uncached = (
        generate(model, prompts, max_new_tokens=25, sampling=sampling, cache=cache) for cache in (True, False)
    )
    assert cached == uncached
    assert [len(row) for row in cached] == [25] * len(lengths)


def test_a_row_in_a_batch_is_written_as_alone() -> None:
    model = gpt()
    prompts = [prompt(length) for length in (5, 2, 11, 30)]
    together = generate(model, prompts, max_new_tokens=15, sampling=GREEDY)
    assert together == [generate(model, p, max_new_tokens=15, sampling=GREEDY)[0] for p in prompts]


def test_a_row_has_the_same_tokens_in_any_batch() -> None:
    model = gpt()
    first = generate(model, [prompt(2), prompt(6)], max_new_tokens=15, sampling=Sampling(seed=4))
    second = generate(model, [prompt(10), prompt(6), prompt(3)], max_new_tokens=15, sampling=Sampling(seed=4))
    assert first[1] == second[1]


def test_rows_with_the_same_prompt_get_different_tokens() -> None:
    rows = generate(gpt(), [prompt(4)] * 3, max_new_tokens=15)
    assert len({tuple(row) for row in rows}) == 3


def test_the_seed_decides_what_is_drawn() -> None:
    model = gpt()
    first, same, other = (
        generate(model, prompt(4), max_new_tokens=15, sampling=Sampling(seed=seed)) for seed in (1, 1, 2)
    )
    assert first == same != other


def test_the_greedy_choice_needs_no_seed() -> None:
    model = gpt()
    strategies = [Sampling(temperature=0, seed=seed) for seed in (1, 2)]
    assert len({tuple(generate(model, prompt(4), sampling=s, max_new_tokens=9)[0]) for s in strategies}) == 1


def test_a_stop_id_ends_its_row_only_and_is_not_part_of_it() -> None:
    model = gpt()
    prompts = [prompt(3), prompt(7)]
    free = generate(model, prompts, max_new_tokens=20, sampling=Sampling(seed=5))
    stop = free[0][4]
    stopped = generate(model, prompts, max_new_tokens=20, sampling=Sampling(seed=5), stop={stop})
    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]
    assert generate(model, prompts[0], max_new_tokens=20, sampling=Sampling(seed=5), stop=free[0][0]) == [[]]


def test_a_stop_id_in_a_prompt_does_not_stop() -> None:
    rows = generate(gpt(), [[1], [1, 2, 3, 4, 5]], max_new_tokens=4, stop={1, 2, 3, 4, 5}, sampling=Sampling(top_k=13))
    free = generate(gpt(), [[1], [1, 2, 3, 4, 5]], max_new_tokens=4, sampling=Sampling(top_k=13))
    for row, whole in zip(rows, free):
        assert row == whole[: next((i for i, token in enumerate(whole) if token in {1, 2, 3, 4, 5}), 4)]


def test_generation_ends_where_every_row_has_stopped() -> None:
    model = gpt()
    calls = shapes_shown(model)
    token = generate(model, prompt(3), max_new_tokens=1, sampling=GREEDY)[0][0]
    calls.clear()
    generate(model, prompt(3), max_new_tokens=100, sampling=GREEDY, stop=[token])
    assert len(calls) == 1


def shapes_shown(model: GPT) -> list[tuple[int, ...]]:
    """The shapes of the tokens that the model is shown, as they come."""
    shown: list[tuple[int, ...]] = []
    original = model.next_logits

    def next_logits(tokens: Any, caches: Any = None) -> np.ndarray:
        shown.append(np.shape(tokens))
        return original(tokens, caches)

    model.next_logits = next_logits  # type: ignore[method-assign]
    return shown


def test_with_the_cache_each_step_computes_the_new_token_only() -> None:
    model = gpt()
    shown = shapes_shown(model)
    generate(model, prompt(5), max_new_tokens=9)
    # place 9 outgrows the context of 8: half of it, and what followed, is read again
    assert shown == [(1, 5), (1, 1), (1, 1), (1, 1), (1, 5), (1, 1), (1, 1), (1, 1), (1, 5)]


@pytest.mark.parametrize("lengths", [[4], [2, 6, 6], [1, 30]])
def test_a_stream_gives_what_generate_gives(lengths: list[int]) -> None:
    model, prompts = gpt(), [prompt(length) for length in lengths]
    steps = list(stream(model, prompts, max_new_tokens=6, sampling=Sampling(seed=2)))
    rows = [[step[row] for step in steps if step[row] is not None] for row in range(len(lengths))]
    assert rows == generate(model, prompts, max_new_tokens=6, sampling=Sampling(seed=2))
    assert all(any(token is not None for token in step) for step in steps)


def test_a_stream_says_none_while_a_row_reads_and_when_it_has_ended() -> None:
    steps = list(stream(gpt(), [prompt(2), prompt(4)], max_new_tokens=3))
    assert [[token is None for token in step] for step in steps] == [
        *[[False, True]] * 2,
        [False, False],
        *[[True, False]] * 2,
    ]


def test_a_stream_computes_a_token_when_it_is_asked_for() -> None:
    model = gpt()
    shown = shapes_shown(model)
    tokens = stream(model, prompt(3), max_new_tokens=5)
    assert shown == []
    next(tokens)
    assert len(shown) == 1


def test_no_new_tokens_means_none() -> None:
    model = gpt()
    shown = shapes_shown(model)
    assert generate(model, [prompt(2), prompt(9)], max_new_tokens=0) == [[], []]
    assert shown == []


def test_dropout_does_not_act() -> None:
    model = gpt(dropout=0.5)
    first, second = (generate(model.train(), prompt(3), max_new_tokens=10, sampling=GREEDY) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "prompts",
    [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3], np.int32), [[1, 2, 3]], np.array([[1, 2, 3]]), [np.arange(1, 4)]],
)
def test_ids_come_in_any_sequence_and_go_as_integers(prompts: Any) -> None:
    (row,) = generate(gpt(), prompts, max_new_tokens=4)
    assert row == generate(gpt(), [1, 2, 3], max_new_tokens=4)[0]
    assert {type(token) for token in row} == {int}


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ShapeError, r"prompt 0 has shape \(0,\); give a row of at least one id"),
        ([[]], ShapeError, r"prompt 0 has shape \(0,\)"),
        ([[1], []], ShapeError, r"prompt 1 has shape \(0,\)"),
        (np.zeros((1, 2, 3), int), ShapeError, r"prompt 0 has shape \(2, 3\)"),
        (np.zeros((0, 3), int), ShapeError, r"prompt 0 has shape \(0, 3\)"),
        ("hello", DtypeError, r"got a str; encode it first: tokenizer.encode\(text\)"),
        ([1, 13], IndexRangeError, "token ids must be from 0 to 12; got 1 to 13"),
        ([[1], [-1]], IndexRangeError, "token ids must be from 0 to 12; got -1 to -1"),
        ([1.0], DtypeError, "token ids must be integers; got float64"),
        ([True], DtypeError, "token ids must be integers; got bool"),
    ],
)
@pytest.mark.parametrize("function", [generate, lambda *args: list(stream(*args))])
def test_prompts_that_are_no_ids_are_refused(function: Any, prompts: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        function(gpt(), prompts)


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_a_number_of_tokens_out_of_range_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^max_new_tokens must be an integer of at least 0; got {value}"):
        generate(gpt(), [1], max_new_tokens=value)


def test_a_model_that_gives_nan_writes_nothing() -> None:
    model = gpt()
    model.ln_f.bias.data[0] = np.nan
    with pytest.raises(NonFiniteError, match="look for NaN in the weights"):
        generate(model, [1], max_new_tokens=1)


@pytest.mark.parametrize("write", [generate, lambda *args, **named: next(stream(*args, **named))])
def test_arguments_of_sampling_and_texts_are_refused_with_what_to_write(write: Any) -> None:
    with pytest.raises(SignatureError, match=r"temperature=; give sampling=ng.inference.Sampling\(temperature=0\)"):
        write(gpt(), [1], temperature=0)
    with pytest.raises(SignatureError, match="did you mean max_new_tokens="):
        write(gpt(), [1], max_tokens=3)
    for text in ("The", ["The"]):
        with pytest.raises(DtypeError, match="got a str; encode it first"):
            write(gpt(), text)
    with pytest.raises(DtypeError, match=r"model must be a GPT, as in generate\(model, ids\)"):
        write([1], gpt())
    with pytest.raises(DtypeError, match="an EncoderDecoder takes inference.translate, a Classifier"):
        write(Classifier.on(gpt(), 2), [1])
