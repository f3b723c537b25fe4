"""Sentences to vectors: how many a second, by a BERT of MiniLM's sizes, and against transformers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from nanograd_llm.backend.threads import cpu_count
from nanograd_llm.bench.figures import Figure, OpTime, Report
from nanograd_llm.bench.profile import profile
from nanograd_llm.bench.race import Maker, Step, contenders, race, warm_up
from nanograd_llm.models.bert import BERT, BERTConfig
from nanograd_llm.models.heads import SentenceEncoder

OURS, RIVAL = "nanograd_llm", "transformers"
MINILM = BERTConfig(
    vocab_size=30522, context_length=512, n_layer=6, n_head=12, n_embd=384, n_inner=1536, masked_word_head=False
)


def sentences(config: BERTConfig, count: int) -> list[np.ndarray]:
    """`count` sentences of random ids, whose lengths are log-normal: half of them have 15 to 31 tokens."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.1, 0.5, count), 3, config.context_length).astype(int)
    return [rng.integers(config.vocab_size, size=length) for length in lengths]


def bench(
    against: bool, rounds: int | None = None, *, config: BERTConfig = MINILM, count: int = 256
) -> Iterator[Report]:
    """Sentences a second, `count` of them at once."""
    makers: dict[str, Maker] = {OURS: functools.partial(embedding, config, count)}
    if against:
        makers[RIVAL] = functools.partial(transformers_embedding, config, count)
    with contenders(makers) as field:
        yield from warm_up(field, "embed")
        speed = {name: count / seconds for name, seconds in race(field, rounds, 1, most=5).items()}
        yield Figure("embed", "sentences", speed[OURS], "sentences/s")
        if against:
            yield Figure("embed", f"sentences, {RIVAL}", speed[RIVAL], "sentences/s")
            yield Figure("embed", f"sentences/s ÷ {RIVAL}", speed[OURS] / speed[RIVAL], "ratio")
        for row in field[OURS].ask(profile, 1):
            yield OpTime("embed", *row)


def embedding(config: BERTConfig, count: int) -> Step:
    """All vectors, in batches of almost one length."""
    encoder, texts = SentenceEncoder(BERT(config)), sentences(config, count)
    encoder.eval()
    return lambda: encoder.embed(texts)


def transformers_embedding(c: BERTConfig, count: int, batch_size: int = 32) -> Step:
    """The same by transformers, as sentence-transformers does it: sorted by length, 32 at a time, padded, masked."""
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(cpu_count())
    sizes: dict[str, Any] = dict(vocab_size=c.vocab_size, hidden_size=c.n_embd, num_hidden_layers=c.n_layer)
    sizes |= dict(num_attention_heads=c.n_head, intermediate_size=c.n_inner, max_position_embeddings=c.context_length)
    model = BertModel(BertConfig(**sizes, attn_implementation="sdpa"), add_pooling_layer=False).eval()
    texts = [torch.from_numpy(text) for text in sorted(sentences(c, count), key=len, reverse=True)]

    @torch.inference_mode()
    def step() -> list[np.ndarray]:
        vectors = []
        for start in range(0, count, batch_size):
            some = texts[start : start + batch_size]
            ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in some])[:, None]
            x = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state * mask[..., None]
            vectors.append(torch.nn.functional.normalize(x.sum(dim=1) / mask.sum(dim=1, keepdim=True)).numpy())
        return vectors

    return step
