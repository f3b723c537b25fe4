"""A loss is the same however its batch is cut, ordered or padded, and one that is not is found."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import BERT, GPT, BERTConfig, GPTConfig, nn, ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import GraphError, ShapeError
from nanograd_llm.gradcheck import SplitError, assert_split_invariant
from nanograd_llm.models import Classifier
from nanograd_llm.models.heads import POOLINGS

RNG = np.random.default_rng(0)
TOKENS, TARGETS = RNG.integers(0, 11, (5, 6)), RNG.integers(0, 11, (5, 6))
TARGETS[0, 2:] = TARGETS[3] = -100


def gpt(**sizes):
    return GPT(GPTConfig(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=8, **sizes))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_of_a_gpt_does_not_depend_on_the_layout_of_its_batch(dtype):
    for seed in range(5):
        assert_split_invariant(gpt().astype(dtype).loss, (TOKENS, TARGETS), seed=seed)


LENGTHS = np.array([3, 6, 4, 5, 1])
REAL = np.where(np.arange(6) < LENGTHS[:, None], TARGETS, -100)


def bert(**changes):
    sizes = {"vocab_size": 11, "context_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}
    return BERT(BERTConfig(**sizes, **changes))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_loss_of_a_bert_does_not_depend_on_padding_or_neighbours(norm_first, dtype):
    for seed in range(3):
        loss = bert(norm_first=norm_first).astype(dtype).loss
        assert_split_invariant(loss, (TOKENS, REAL, LENGTHS), seed=seed)


def classifier(encoder, pooling):
    """A Classifier, its first weights changed so much that each token matters."""
    model = Classifier.on(bert() if encoder == "bert" else gpt(), 3, pooling=pooling)
    rng = np.random.default_rng(5)
    for parameter in model.parameters():
        parameter.data = (parameter.data + 0.3 * rng.standard_normal(parameter.shape)).astype(np.float32)
    return model


POOLED = [("bert", pooling) for pooling in POOLINGS] + [("gpt", pooling) for pooling in POOLINGS if pooling != "pooled"]
each_pooling = pytest.mark.parametrize(("encoder", "pooling"), POOLED)


@each_pooling
def test_the_loss_of_a_classifier_does_not_depend_on_padding_or_neighbours(encoder, pooling):
    assert_split_invariant(classifier(encoder, pooling).loss, (TOKENS, np.array([0, 2, -100, 1, 1]), LENGTHS))


@each_pooling
def test_a_classifier_that_was_given_no_lengths_would_be_found(encoder, pooling):
    if pooling in ("mean", "last") or encoder == "bert":
        model = classifier(encoder, pooling)
        with pytest.raises(SplitError, match="depends on how the batch is laid out"):
            assert_split_invariant(
                lambda tokens, targets, lengths: model.loss(tokens, targets), (TOKENS, np.arange(5) % 3, LENGTHS)
            )


def test_a_gpt_sees_no_padding_behind_a_text():
    assert_split_invariant(lambda tokens, targets, lengths: gpt().loss(tokens, targets), (TOKENS, REAL, LENGTHS))


WRONG = {
    "no mask": lambda lengths, T: None,
    "one token too many": lambda lengths, T: np.minimum(lengths + 1, T),
    "the longest length for all": lambda lengths, T: np.full_like(lengths, lengths.max()),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_bert_that_sees_padding_or_neighbours_is_found(mistake):
    model = bert()

    def loss(tokens, targets, lengths):
        return model.loss(tokens, targets, WRONG[mistake](lengths, tokens.shape[1]))

    with pytest.raises(SplitError, match="depends on how the batch is laid out"):
        assert_split_invariant(loss, (TOKENS, REAL, LENGTHS))


def test_a_bert_that_is_given_no_lengths_sees_the_whole_row():
    with pytest.raises(SplitError, match="two columns of padding.* pass columns=False"):
        assert_split_invariant(bert().loss, (TOKENS, TARGETS))
    assert_split_invariant(bert().loss, (TOKENS, TARGETS), columns=False)


def mean_of_rows(model):
    """Every row counts the same, however many of its targets count."""

    def loss(tokens, targets):
        rows = [i for i in range(len(tokens)) if (targets[i] != -100).any()]
        losses = [model.loss(tokens[i : i + 1], targets[i : i + 1]) for i in rows]
        return ops.mean(ops.stack(losses))

    return loss


def ignores_nothing(model):
    return lambda tokens, targets: ops.cross_entropy(model(tokens), np.maximum(targets, 0))


def mixes_rows(model):
    def loss(tokens, targets):
        logits = model(tokens)
        return ops.cross_entropy(logits - ops.mean(logits, axis=0, keepdims=True), targets)

    return loss


def sees_the_future(model):
    def loss(tokens, targets):
        logits = model(tokens)
        return ops.cross_entropy(logits - ops.mean(logits, axis=1, keepdims=True), targets)

    return loss


@pytest.mark.parametrize("broken", [mean_of_rows, ignores_nothing, mixes_rows, sees_the_future])
def test_a_loss_that_does_depend_on_it_is_found(broken):
    with pytest.raises(SplitError, match="depends on how the batch is laid out"):
        assert_split_invariant(broken(gpt()), (TOKENS, TARGETS))


def test_a_batch_as_long_as_the_context_has_room_for_its_padding():
    tokens, targets = RNG.integers(0, 11, (2, 4, 8))
    assert_split_invariant(gpt().loss, (tokens, targets))
    with pytest.raises(SplitError, match="two columns of padding.* pass columns=False"):
        assert_split_invariant(sees_the_future(gpt()), (tokens, targets))


def test_where_padding_finds_no_room_the_failure_names_it_and_columns():
    model = GPT(GPTConfig(vocab_size=11, context_length=2, n_layer=1, n_head=2, n_embd=8))
    words = "does not run on two columns of padding: context_length is 2 but 4 tokens .* pass columns=False"
    with pytest.raises(ShapeError, match=words):
        assert_split_invariant(model.loss, (TOKENS[:, :2], np.abs(TARGETS[:, :2]) % 11))
    assert_split_invariant(model.loss, (TOKENS[:, :2], np.abs(TARGETS[:, :2]) % 11), columns=False)


def test_without_columns_a_model_may_see_the_whole_row():
    assert_split_invariant(sees_the_future(gpt()), (TOKENS, TARGETS), columns=False)


def test_a_gradient_that_depends_on_the_rows_is_found_though_the_loss_does_not(monkeypatch):
    rule = registry["layernorm"].rule

    def wrong(dy, w, xhat, r):
        dx, dw, db = rule(dy, w, xhat, r)
        return dx, dw * (1 + 1e-3 * len(dy)), db

    monkeypatch.setattr(registry["layernorm"], "rule", wrong)
    with pytest.raises(SplitError, match="the gradient of blocks.0.ln_1.weight"):
        assert_split_invariant(gpt().loss, (TOKENS, TARGETS))


class Regression(nn.Module):
    def __init__(self):
        self.map = nn.Linear(3, 1, rng=np.random.default_rng(0))

    def loss(self, x, targets):
        off = self.map(x)[:, 0] - np.where(targets == -100, 0, targets).astype(np.float32)
        counted = targets != -100
        return ops.sum(off * off * counted.astype(np.float32)) / float(counted.sum())


def test_any_loss_with_rows_and_targets_can_be_checked():
    x = RNG.standard_normal((6, 3)).astype(np.float32)
    assert_split_invariant(Regression().loss, (x, RNG.standard_normal(6)))


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        ((TOKENS,), ShapeError, "a batch is a pair"),
        (None, ShapeError, "a batch is a pair"),
        ((TOKENS[:1], TARGETS[:1]), ShapeError, "two at least"),
        ((TOKENS, TARGETS[:3]), ShapeError, "same number of rows"),
        ((TOKENS, TARGETS, LENGTHS[:3]), ShapeError, "same number of rows"),
        ((TOKENS, REAL, LENGTHS + 1), ShapeError, "lengths .* do not fit tokens"),
        ((TOKENS, REAL, LENGTHS / 1.0), ShapeError, "lengths .* do not fit tokens"),
        ((TOKENS, TARGETS, LENGTHS), ShapeError, "a target behind the length of its row counts"),
        ((TOKENS, np.full_like(TARGETS, -100)), ShapeError, "none of the 30 targets counts"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch, error, words):
    with pytest.raises(error, match=words):
        assert_split_invariant(gpt().loss, batch)


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(GraphError, match="one number"):
        assert_split_invariant(lambda tokens, targets: gpt().astype(np.float32)(tokens), (TOKENS, TARGETS))
