"""Evaluation scores every token once, for any windows, and its bits per byte are those of the text's bytes."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, NanogradError, Tensor, nn
from nanograd_llm.errors import ConfigError, DtypeError, NonFiniteError, ShapeError
from nanograd_llm.inference import evaluate, evaluate_text
from nanograd_llm.text import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

TEXT = "It was — häufig — a naïve text, and then some more of it."
BYTES = ByteTokenizer()


class Priced(nn.Module):
    """A model whose loss at each target is a number from a table, for any input."""

    def __init__(self, price: Any) -> None:
        self.price = np.asarray(price, dtype=np.float64)
        self.batches: list[int] = []

    def loss(self, tokens: Any, targets: Any) -> Tensor:
        self.batches.append(len(tokens))
        return Tensor(self.price[targets[targets != -100]].mean())


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("context_length", [1, 4, 7, 62])
@pytest.mark.parametrize("stride", [None, 1, 2, 3])
def test_every_token_is_scored_once_for_any_windows(batch_size: int, context_length: int, stride: int | None) -> None:
    ids = BYTES.encode(TEXT)
    price = np.random.default_rng(0).random(257)
    stride = min(stride, context_length) if stride else None
    found = evaluate(Priced(price), ids, BYTES, context_length=context_length, stride=stride, batch_size=batch_size)
    assert found.tokens == found.bytes == len(ids) - 1
    assert found.loss == pytest.approx(price[ids[1:]].mean(), rel=1e-12)


def test_a_uniform_model_has_the_logarithm_of_the_vocabulary() -> None:
    found = evaluate(Priced(np.full(257, math.log(257))), BYTES.encode(TEXT), BYTES, context_length=8)
    assert found.loss == pytest.approx(math.log(257))
    assert found.perplexity == pytest.approx(257)
    assert found.bits_per_byte == pytest.approx(math.log2(257))  # a token is a byte


def test_bits_per_byte_are_of_the_bytes_after_the_first_token() -> None:
    tokenizer = CharTokenizer.train(TEXT)
    price = np.full(tokenizer.vocab_size, 3 * math.log(2))  # three bits a character
    found = evaluate(Priced(price), tokenizer.encode(TEXT), tokenizer, context_length=8)
    assert found.tokens == len(TEXT) - 1
    assert found.bytes == len(TEXT[1:].encode()) == len(TEXT) - 1 + 6
    assert found.bits_per_byte == pytest.approx(3 * (len(TEXT) - 1) / found.bytes)


@pytest.mark.parametrize("tokenizer", [BYTES, BPETokenizer.train("yes, yes", vocab_size=258)])
def test_an_end_of_text_is_a_token_that_is_scored_and_no_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    ids = np.tile([*tokenizer.encode("yes"), tokenizer.end_of_text], 10)
    found = evaluate(Priced(np.full(tokenizer.vocab_size, math.log(2))), ids, tokenizer, context_length=8)
    assert (found.tokens, found.bytes) == (len(ids) - 1, 30 - tokenizer.sizes(ids[:1])[0])
    assert found.bits_per_byte == pytest.approx(found.tokens / found.bytes)  # a bit a token


def test_a_gpt_is_scored_by_its_own_logits() -> None:
    model = GPT(GPTConfig(vocab_size=257, context_length=6, n_layer=1, n_head=1, n_embd=8, dropout=0.5))
    ids = BYTES.encode(TEXT)[:15]
    found = evaluate(model, ids, BYTES, context_length=6, stride=2, batch_size=2)
    model.eval()
    losses = []
    for place in range(1, 15):
        start = max(0, math.ceil((place - 6) / 2) * 2)  # of the first window that has this place as a target
        logits = model(ids[None, start:place]).data[0, -1].astype(float)
        losses.append(np.log(np.exp(logits).sum()) - logits[ids[place]])
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_dropout_does_not_act() -> None:
    model = GPT(GPTConfig(vocab_size=257, context_length=6, n_layer=1, n_head=1, n_embd=8, dropout=0.5))
    first, second = (evaluate(model.train(), BYTES.encode(TEXT), BYTES, context_length=6) for _ in range(2))
    assert first == second


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    found = evaluate(Priced(np.full(257, 1000.0)), BYTES.encode(TEXT), BYTES, context_length=8)
    assert found.loss == pytest.approx(1000)
    assert found.perplexity == math.inf


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="the loss on 62 tokens is nan"):
        evaluate(Priced(np.full(257, np.nan)), BYTES.encode(TEXT), BYTES, context_length=8)


def test_no_more_rows_than_asked_for_are_scored_at_a_time() -> None:
    model = Priced(np.ones(257))
    evaluate(model, BYTES.encode(TEXT), BYTES, context_length=4, batch_size=3)
    assert model.batches == [3, 3, 3, 3, 3, 1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(context_length=100), ShapeError, "63 ids are too few for context_length=100"),
        (dict(context_length=8, stride=0), ConfigError, "stride must be .* got 0"),
        (dict(context_length=8, stride=9), ConfigError, "stride is 9, which skips targets"),
        (dict(context_length=8, batch_size=0), ConfigError, "batch_size must be an integer of at least 1"),
        (dict(context_length=0), ConfigError, "context_length must be .* got 0"),
    ],
)
def test_windows_that_do_not_fit_are_refused(options: dict[str, int], error: type[NanogradError], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(Priced(np.ones(257)), BYTES.encode(TEXT), BYTES, **options)


@pytest.mark.parametrize("size", [1, 5, 16, 17, 100])
@pytest.mark.parametrize("stride", [None, 1, 4])
def test_every_byte_of_a_text_is_scored_once(size: int, stride: int | None) -> None:
    model = GPT(GPTConfig(vocab_size=257, context_length=16, n_layer=1, n_head=2, n_embd=8))
    text = "abcdé" * 100
    text = text.encode()[:size].decode("utf-8", "replace")
    found = evaluate_text(model, text, ByteTokenizer(), stride=min(stride, size) if stride else None)
    assert found.bytes == found.tokens == len(text.encode())
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))


def test_a_text_is_scored_from_its_first_token_on_after_an_end_of_text() -> None:
    model = GPT(GPTConfig(vocab_size=257, context_length=8, n_layer=1, n_head=2, n_embd=8), seed=3).astype("float64")
    text = "abcdefgh"
    ids = np.array([256, *text.encode()])
    expected = model.loss(ids[None, :-1], ids[None, 1:]).item()
    assert evaluate_text(model, text, ByteTokenizer()).loss == pytest.approx(expected, rel=1e-12)


def test_without_an_end_of_text_the_first_token_is_left_out() -> None:
    model = GPT(GPTConfig(vocab_size=3, context_length=8, n_layer=1, n_head=2, n_embd=8))
    tokenizer = CharTokenizer("abc")
    assert evaluate_text(model, "abcabc", tokenizer).bytes == 5
    with pytest.raises(ShapeError, match="a text of 1 character has no token to score"):
        evaluate_text(model, "a", tokenizer)


def test_progress_rises_to_one() -> None:
    model = GPT(GPTConfig(vocab_size=257, context_length=16, n_layer=1, n_head=2, n_embd=8))
    shares: list[float] = []
    evaluate_text(model, "abc" * 5000, ByteTokenizer(), progress=shares.append)
    assert len(shares) > 2 and shares == sorted(shares) and shares[-1] == 1


def test_memory_does_not_grow_with_the_number_of_windows() -> None:
    ids = np.zeros(400_000, np.int32)
    tracemalloc.start()
    evaluate(Priced(np.ones(257)), ids, BYTES, context_length=50, stride=1, batch_size=1000, windows=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # all windows together are 160 MB


def test_arguments_of_evaluate_in_another_order_are_refused_with_the_call() -> None:
    model, ids = Priced([1.0] * 256), BYTES.encode(TEXT)
    for model_given, ids_given, tokenizer in ((ids, model, BYTES), (model, BYTES, ids), (BYTES, model, ids)):
        with pytest.raises(DtypeError, match=r"evaluate\(model, ids, tokenizer, context_length=...\)"):
            evaluate(model_given, ids_given, tokenizer, context_length=8)  # type: ignore[arg-type]
