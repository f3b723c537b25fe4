"""Every function of inference computes without dropout, and leaves each module in the mode that it had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm import nn
from nanograd_llm.errors import NanogradError
from nanograd_llm.inference import Sampling, classify, embed, evaluate, fill, generate, score_text, stream, translate
from nanograd_llm.models import BERT, BERTConfig, SentenceEncoder
from nanograd_llm.models.heads import Classifier
from nanograd_llm.text import ByteTokenizer, WordPieceTokenizer
from nanograd_llm.text.wordpiece import SPECIAL

SIZES: dict[str, Any] = dict(context_length=12, n_layer=1, n_head=2, n_embd=8, dropout=0.5)
BYTES, WORDS = ByteTokenizer(), WordPieceTokenizer([*SPECIAL, "the", "cat"])
GPT = ng.GPT(ng.GPTConfig(vocab_size=257, **SIZES), seed=1)
ENCODER_DECODER = ng.EncoderDecoder(ng.EncoderDecoderConfig(vocab_size=6, **SIZES), seed=1)
READER = BERT(BERTConfig(vocab_size=7, **SIZES), seed=1)
TEXT = "a cat sees the house"
IDS = BYTES.encode(TEXT)
CALLS: dict[str, tuple[nn.Module, Callable[[Any], Any]]] = {
    "generate": (GPT, lambda model: generate(model, IDS, max_new_tokens=9, sampling=Sampling(seed=1))),
    "generate without cache": (GPT, lambda model: generate(model, IDS, max_new_tokens=9, cache=False)),
    "stream, ended early": (GPT, lambda model: next(stream(model, IDS))),
    "evaluate": (GPT, lambda model: evaluate(model, IDS, BYTES, context_length=8)),
    "score_text": (GPT, lambda model: score_text(model, TEXT, BYTES).losses.tolist()),
    "translate": (ENCODER_DECODER, lambda model: translate(model, [1, 2, 3])),
    "fill": (READER, lambda model: fill(model, WORDS, "the [MASK]")),
    "embed": (SentenceEncoder(READER), lambda model: embed(model, WORDS, ["the cat"]).tolist()),
    "classify": (Classifier.on(READER, 2, dropout=0.5), lambda model: classify(model, WORDS, ["the cat"]).tolist()),
}


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("name", CALLS)
def test_it_computes_without_dropout_and_leaves_each_module_in_its_mode(name: str) -> None:
    model, call = CALLS[name]
    expected = call(model.eval())
    assert not any(modes(model))
    model.train()
    model.modules()[-1].training = False
    before = modes(model)
    assert call(model) == expected
    assert modes(model) == before


def test_an_error_and_a_pause_between_two_tokens_leave_each_module_in_its_mode() -> None:
    GPT.train()
    written = stream(GPT, IDS)
    next(written)
    assert all(modes(GPT))  # what the caller does here, such as a step of training, is not in evaluation mode
    bad = ng.GPT(ng.GPTConfig(vocab_size=257, **SIZES), seed=1)
    bad.wte.data[...] = np.nan
    for call in ("generate", "evaluate", "score_text"):
        with pytest.raises(NanogradError):
            CALLS[call][1](bad)
        assert all(modes(bad))
