"""Heads for a whole text on an encoder: its class, or a vector to compare it with other texts.

B batch, T time, C channels, K classes
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.autograd.tensor import Tensor, array_of
from nanograd_llm.backend.arrays import beside
from nanograd_llm.backend.threads import cpu_count, keep_heap, share_out
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.models.bert import BERT, BERTConfig
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.models.inputs import padded, real_tokens, token_ids
from nanograd_llm.models.transformer import take_arrays
from nanograd_llm.nn.layers import Dropout, Linear, Unfilled
from nanograd_llm.nn.module import Module
from nanograd_llm.ops.composed import count_targets, unpacked
from nanograd_llm.settings import IGNORE_INDEX, require_choice, require_int, require_type, setting

ENCODERS: dict[str, Any] = {"gpt": (GPT, GPTConfig), "bert": (BERT, BERTConfig)}
POOLINGS = ("mean", "first", "last", "pooled")
BATCH_TOKENS = 1024  # of a batch that is embedded: enough rows for a fast product, few enough to stay in the caches
SHORT = 32  # tokens so few that padding up to them costs less than one more batch


def text_vectors(model: BERT | GPT, pooling: str, tokens: Any, lengths: Any = None, types: Any = None) -> Tensor:
    """One vector for each text, from the last hidden states of its real tokens.  tokens (B, T) -> (B, C)

    pooling: mean of the tokens; the first or the last one; or pooled, by the pooler of a BERT.
    lengths (B,): how many tokens of each row are real. types (B, T): of a BERT.
    """
    B, T = token_ids(tokens, model.config.context_length).shape
    mask = real_tokens((B, T), lengths, None)
    if isinstance(model, BERT):
        x = model.hidden(tokens, types, key_mask=mask, skip_padding=True)
    elif types is None:
        x = unpacked(model.hidden(tokens, real=mask), mask)
    else:
        raise ConfigError("a GPT has one kind of tokens; leave out types")
    counts = np.full(B, T) if mask is None else mask.sum(axis=1)
    if B and not counts.min():
        raise ShapeError("a text has no token at all, and so no vector; leave it out")
    if pooling == "pooled":
        if not isinstance(model, BERT):
            raise ConfigError("a GPT has no pooler; take the mean or the last token")
        return model.pooled(x)
    if pooling != "mean":
        return x[:, 0] if pooling == "first" else x[np.arange(B), counts - 1]
    return ops.sum(x, axis=1) / beside(counts[:, None].astype(x.dtype), x.data)  # (B, T, C) -> (B, C)


class ClassifierConfig(GPTConfig, BERTConfig):
    """The sizes of a Classifier: of its encoder, a GPT or a BERT, each with its own settings, and of the head on it."""

    encoder: str = setting("What reads the text: a gpt or a bert.", default="gpt", choices=ENCODERS)
    classes: int = setting("How many classes there are; 1 for a head that gives a score.", default=2, low=1)
    pooling: str = setting(
        "The vector of a text: the mean over its tokens, the first token, the last token, or pooled, from a BERT's "
        "pooler.",
        default="mean",
        choices=POOLINGS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling == "pooled" and self.encoder == "gpt":
            raise ConfigError("pooling is pooled, but a GPT has no pooler; take the mean or the last token")

    @classmethod
    def of(cls, encoder: GPTConfig | BERTConfig, classes: int, pooling: str) -> ClassifierConfig:
        """For an encoder of these sizes; heads of its own, which predict words, are left out."""
        sizes: dict[str, Any] = {name: getattr(encoder, name) for name in type(encoder).setting_types}
        kind = "bert" if isinstance(encoder, BERTConfig) else "gpt"
        own = {"masked_word_head": False, "pooler": pooling == "pooled"} if kind == "bert" else {}
        sizes |= own or {"tie_word_embeddings": True}
        return cls(**sizes, encoder=kind, classes=classes, pooling=pooling)

    @property
    def of_encoder(self) -> GPTConfig | BERTConfig:
        """The sizes of the encoder alone."""
        kind = ENCODERS[self.encoder][1]
        return kind(**{name: getattr(self, name) for name in kind.setting_types})


class Classifier(Module):
    """Logits of the classes of a text: `Classifier(config).loss(tokens, targets, lengths)`, with targets (B,).

    seed: decides every number, as for a GPT. dropout: also on the vector of a text, which `text_vectors` makes;
    BertForSequenceClassification of transformers has the pooling `pooled`.
    """

    loss_items = "texts"

    def __init__(self, config: ClassifierConfig, seed: int | None = 0):
        expected = "a ClassifierConfig; for an existing model: Classifier.on(model, classes)"
        require_type("config", config, ClassifierConfig, expected)
        rng: Any = Unfilled() if seed is None else np.random.default_rng((seed, 1))  # other numbers than the encoder's
        self.config = config
        self.model: GPT | BERT = ENCODERS[config.encoder][0](config.of_encoder, seed)
        self.dropout = Dropout(config.dropout)
        self.classes = Linear(config.n_embd, config.classes, std=0.02, rng=rng)

    @classmethod
    def on(
        cls, model: GPT | BERT, classes: int, *, pooling: str = "mean", dropout: float = 0.0, seed: int = 0
    ) -> Classifier:
        """A fresh head on a model, whose arrays are taken without a copy: `Classifier.on(model, 2)`.

        Its own head is left out; a pooler that it lacks is fresh.
        """
        require_type("model", model, (BERT, GPT), "a BERT or a GPT")
        config = ClassifierConfig.of(model.config, classes, pooling)
        made = cls(dataclasses.replace(config, dropout=dropout), seed)
        made.take(model)
        return made

    def take(self, model: GPT | BERT | Classifier) -> None:
        """Use the arrays of this encoder or Classifier, without a copy, where there is one of the same name here.

        The other parameters, such as a head, keep their values, and are `fresh` from then on.
        """
        start = "" if isinstance(model, Classifier) else "model."
        self.astype(model.parameters()[0].dtype)
        take_arrays(self, {f"{start}{name}": x for name, x in model.arrays().items()})

    def top(self, blocks: int = 0) -> list[Module]:
        """The head, with the pooler where that is used; and so many of the last blocks, then with the last norm."""
        model, parts = self.model, [self.classes]
        if isinstance(model, BERT) and model.pooler is not None:
            parts.append(model.pooler)
        if not blocks:
            return [*parts]
        has_norm = isinstance(model, GPT) or model.config.norm_first  # a post-norm block has its norms inside
        norms = [model.ln_f if isinstance(model, GPT) else model.norm] if has_norm else []
        return [*parts, *model.blocks[-blocks:], *norms]

    def forward(self, tokens: Any, lengths: Any = None, types: Any = None) -> Tensor:
        """tokens (B, T), lengths (B,), types (B, T) -> (B, K)"""
        return self.classes(self.dropout(text_vectors(self.model, self.config.pooling, tokens, lengths, types)))

    def loss(self, tokens: Any, targets: Any, lengths: Any = None, types: Any = None) -> Tensor:
        """Mean cross-entropy in nats over the targets that are not -100.  targets (B,) -> ()"""
        return ops.cross_entropy(self(tokens, lengths, types), targets)

    def loss_count(self, *batch: np.ndarray) -> int:
        """How many of the targets, the second array, count."""
        return count_targets(batch[1])

    def probabilities(self, texts: Sequence[Any], *, batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """Of each class for each text; see `in_batches`.  N sequences of ids -> array (N, K)"""

        def compute(*batch: np.ndarray) -> Tensor:
            return ops.softmax(self(*batch))

        return in_batches(compute, texts, self.model, self.config.classes, batch_tokens)

    def example_batch(self, draw: Any) -> tuple[np.ndarray, ...]:
        """See `Module.example_batch`: (tokens, targets, lengths)"""
        B, T = 4, min(8, self.config.context_length)
        lengths = draw.integers(1, T + 1, (B,))
        targets = draw.integers(0, self.config.classes, (B,))
        lengths[0], targets[1] = T, IGNORE_INDEX
        return draw.integers(0, self.config.vocab_size, (B, T)), targets, lengths


class SentenceEncoder(Module):
    """Vectors of length 1, near each other where texts mean the same (Reimers and Gurevych 2019, Sentence-BERT).

    pooling: as for `text_vectors`. normalise: divide each vector by its length; then their dot product is the cosine.
    max_length: tokens that a text may have; those of the model's context if None.
    """

    def __init__(
        self, model: BERT | GPT, *, pooling: str = "mean", normalise: bool = True, max_length: int | None = None
    ):
        require_type("model", model, (BERT, GPT), "a BERT or a GPT")
        require_choice("pooling", pooling, POOLINGS)
        self.model, self.pooling, self.normalise = model, pooling, normalise
        self.max_length = min(max_length or model.config.context_length, model.config.context_length)

    def forward(self, tokens: Any, lengths: Any = None, types: Any = None) -> Tensor:
        """tokens (B, T), lengths (B,), types (B, T) -> (B, C); ShapeError where T exceeds max_length"""
        if np.ndim(array_of(tokens)) == 2 and np.shape(array_of(tokens))[1] > self.max_length:
            raise ShapeError(f"a text may have {self.max_length} tokens; got {np.shape(array_of(tokens))[1]}: cut it")
        x = text_vectors(self.model, self.pooling, tokens, lengths, types)
        return x / ops.sqrt(ops.sum(x * x, axis=-1, keepdims=True) + 1e-24) if self.normalise else x

    def embed(self, texts: Sequence[Any], *, batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """The vector of each text; see `in_batches`.  N sequences of ids -> array (N, C)"""
        return in_batches(self, texts, self.model, self.model.config.n_embd, batch_tokens)


def in_batches(
    compute: Callable[..., Tensor], texts: Sequence[Any], model: BERT | GPT, width: int, batch_tokens: int
) -> np.ndarray:
    """What compute(tokens, lengths) makes of each text, in their order; records nothing.  N texts -> array (N, width)

    model: what it is computed with. Texts of like length make a batch, of at most batch_tokens tokens unless one text
    is longer. No padding is computed but in attention. Threads share out the batches, which all take about as long.
    """
    require_int("batch_tokens", batch_tokens, 1)
    keep_heap()
    rows = [np.asarray(text) for text in texts]
    found = np.empty((len(rows), width), model.wte.dtype)
    batches = batches_by_length([len(row) for row in rows], batch_tokens, cpu_count())
    remaining = iter(batches)

    def work(_: slice) -> None:
        with no_grad():
            for places in remaining:  # each thread takes the next batch that none has taken
                found[places] = compute(*padded([rows[place] for place in places])).numpy()

    share_out(work, len(batches), sum(map(len, rows)) * model.config.n_embd, model.wte.data)
    return found


def batches_by_length(lengths: Sequence[int], batch_tokens: int, threads: int = 1) -> list[list[int]]:
    """The places of the texts that are computed together, the longest text of each batch first.

    All batches have about equally many tokens, and each thread gets as many batches, unless one batch is enough. But a
    text that is less than half as long as the first is not among them, for attention computes the padding between.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    ends = np.cumsum([lengths[place] for place in order])
    count = math.ceil(sum(lengths) / batch_tokens)
    count = count if count < 2 else threads * math.ceil(count / threads)
    batches: list[list[int]] = []
    filled = -1
    for place, end in zip(order, ends):
        before, filled = filled, (end - 1) * count // ends[-1]  # the batch in which the last token of this text lies
        if filled != before or 2 * lengths[place] + SHORT < lengths[batches[-1][0]]:
            batches.append([])
        batches[-1].append(place)
    return batches


SMALL: Any = {"vocab_size": 5, "context_length": 3, "n_layer": 1, "n_head": 1, "n_embd": 3}


def _classifier_specimens(draw: Any) -> Any:
    for encoder, pooling in (("bert", "pooled"), ("gpt", "last"), ("bert", "mean"), ("gpt", "first"), ("gpt", "mean")):
        sizes = ENCODERS[encoder][1](**SMALL, dropout=0.2)
        model = Classifier(ClassifierConfig.of(sizes, 2, pooling))
        yield model.loss, model.example_batch(draw)


def _encoder_specimens(draw: Any) -> Any:
    bert, gpt = BERT(BERTConfig(**SMALL, masked_word_head=False)), GPT(GPTConfig(**SMALL))
    tokens = draw.integers(0, 5, (2, 3))
    yield SentenceEncoder(bert), (tokens, np.array([3, 2]), draw.integers(0, 2, (2, 3)))
    yield SentenceEncoder(gpt), (tokens, np.array([2, 3]))
    yield SentenceEncoder(bert, pooling="first", normalise=False), (tokens,)


Classifier.specimens, SentenceEncoder.specimens = _classifier_specimens, _encoder_specimens
