"""Beam search finds the best translations; the caches, the padding and the neighbours change nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from nanograd_llm import EncoderDecoder, EncoderDecoderConfig
from nanograd_llm.errors import ConfigError, DtypeError, IndexRangeError, NonFiniteError, ShapeError
from nanograd_llm.inference import BeamSearch, stream_translation, translate
from nanograd_llm.nn import KeyValueCache
from nanograd_llm.text import WordTokenizer

SIZES: dict[str, Any] = dict(vocab_size=6, context_length=5, n_layer=1, n_head=2, n_embd=8)
SOURCES = [[1, 2, 3], [4], [5, 4, 3, 2, 1], [2, 2]]


@pytest.fixture(params=range(3))
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    """A model that is sure of little, so that every hypothesis has a chance."""
    config = EncoderDecoderConfig(**SIZES, norm_first=request.param != 1)
    model, rng = EncoderDecoder(config, seed=request.param).astype(np.float64), np.random.default_rng(request.param)
    for parameter in model.parameters():
        parameter.data += 0.25 * rng.standard_normal(parameter.shape)
    return model


def log_probability(model: EncoderDecoder, source: list[int], target: tuple[int, ...]) -> float:
    """Of these tokens, the end included where it is there."""
    logits = model(np.array([source]), np.array([[0, *target[:-1]]])).data[0]
    p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(p[np.arange(len(target)), target].sum())


def finished(longest: int) -> list[tuple[int, ...]]:
    """Every translation that ends within so many tokens, the end included."""
    return [(*body, 0) for n in range(longest) for body in itertools.product(range(1, 6), repeat=n)]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_beam_that_holds_everything_finds_the_best_finished_translation(model: EncoderDecoder, alpha: float) -> None:
    for source in SOURCES[:2]:
        best = max(finished(3), key=lambda t: log_probability(model, source, t) / len(t) ** alpha)
        search = BeamSearch(beam=1000, alpha=alpha, max_new_tokens=3)
        assert translate(model, source, search=search) == [list(best[:-1])]


def test_greedy_takes_the_likeliest_token_each_time(model: EncoderDecoder) -> None:
    for source, found in zip(SOURCES, translate(model, SOURCES)):
        written = [0]
        while len(written) < 6 and (len(written) == 1 or written[-1] != 0):
            written.append(int(model(np.array([source]), np.array([written])).data[0, -1].argmax()))
        assert found == [token for token in written[1:] if token != 0]


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_a_row_depends_neither_on_the_cache_nor_on_neighbours_or_padding(model: EncoderDecoder, beam: int) -> None:
    search = BeamSearch(beam=beam)
    together = translate(model, SOURCES, search=search)
    assert together == translate(model, SOURCES, search=search, cache=False)
    assert together == [translate(model, source, search=search)[0] for source in SOURCES]
    assert together[::-1] == translate(model, SOURCES[::-1], search=search)


def test_a_wider_beam_never_ends_worse_by_its_own_measure_here(model: EncoderDecoder) -> None:
    def score(source: list[int], target: list[int]) -> float:
        whole = (*target, 0) if len(target) < 5 else tuple(target)
        return log_probability(model, source, whole) / len(whole)

    search = BeamSearch(beam=50)
    for source, one, other in zip(SOURCES, translate(model, SOURCES), translate(model, SOURCES, search=search)):
        assert score(source, other) >= score(source, one) - 1e-12 or len(one) == 5  # one that never ended


def test_a_translation_stops_at_its_limit(model: EncoderDecoder) -> None:
    model.head_bias = None
    for beam in (1, 3):
        found = translate(model, SOURCES, search=BeamSearch(beam=beam, max_new_tokens=2))
        assert all(len(ids) <= 2 for ids in found)
    assert all(len(ids) <= 5 for ids in translate(model, SOURCES))  # the context


@pytest.mark.parametrize("beam", [1, 4])
def test_streamed_words_are_those_of_the_translation(model: EncoderDecoder, beam: int) -> None:
    tokenizer = WordTokenizer.train(["a b c d e"])
    for text in ("a b c", "e", "d c a a"):
        (ids,) = translate(model, tokenizer.encode(text), search=BeamSearch(beam=beam))
        pieces = list(stream_translation(model, tokenizer, text, search=BeamSearch(beam=beam)))
        assert "".join(pieces) == tokenizer.decode(ids)
        assert sum(bool(piece) for piece in pieces) == len(ids)


def test_a_text_without_words_is_refused(model: EncoderDecoder) -> None:
    with pytest.raises(ShapeError, match="the text is '  ', which has no words"):
        stream_translation(model, WordTokenizer.train(["a b c d e"]), "  ")


def test_a_text_that_is_too_long_is_named_before_anything_is_written(model: EncoderDecoder) -> None:
    with pytest.raises(ShapeError, match="^'a a a a a b': context_length is 5 but 6 tokens were given; give a shorter"):
        stream_translation(model, WordTokenizer.train(["a b c d e"]), "a a a a a b")


def test_rows_of_a_cache_can_be_put_in_another_order(rng: np.random.Generator) -> None:
    cache = KeyValueCache(2, 1, 4, 3, np.float64)
    keys, values = rng.standard_normal((2, 2, 1, 2, 3))
    cache.extend(keys, values)
    cache.reorder([1, 1, 0])
    for stored, given in zip(cache.stored(), (keys, values)):
        assert np.array_equal(stored, given[[1, 1, 0]])
    assert cache.extend(keys[[0, 0, 0], :, :1], values[[0, 0, 0], :, :1])[0].shape == (3, 1, 3, 3)


@pytest.mark.parametrize(
    ("sources", "error", "said"),
    [
        ([1, 2, 3, 4, 5, 1], ShapeError, "context_length is 5 but 6 tokens were given; give a shorter source"),
        ([[1], []], ShapeError, "source 1 has shape .0,.; give a row of at least one id"),
        ([1, 6], IndexRangeError, "token ids must be from 0 to 5; got 1 to 6"),
        ("one", DtypeError, r"a source is a row of ids, got a str; encode it first: tokenizer.encode\(text\)"),
        (["one"], DtypeError, "got a str; encode it first"),
    ],
)
def test_a_source_that_cannot_be_is_refused(sources: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        translate(EncoderDecoder(EncoderDecoderConfig(**SIZES)), sources)


def test_weights_that_are_not_finite_are_told() -> None:
    model = EncoderDecoder(EncoderDecoderConfig(**SIZES))
    model.decoder[0].mlp.down.bias.data[0] = np.nan  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match="look for NaN in the weights"):
        translate(model, [1])


@pytest.mark.parametrize("settings", [{"beam": 0}, {"alpha": -1}, {"max_new_tokens": 0}])
def test_a_search_that_cannot_be_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        BeamSearch(**settings)
