"""The loss of preferences: its definition, where it begins, and that it is a mean over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nanograd_llm import GPTConfig
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.gradcheck import SplitError, assert_split_invariant
from nanograd_llm.inference import Sampling, generate
from nanograd_llm.inference.decoder import can_decode
from nanograd_llm.models import GPT, PreferenceGPT

RNG = np.random.default_rng(0)
CONFIG = GPTConfig(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=8)
TOKENS, TARGETS = RNG.integers(0, 11, (5, 2, 6)), RNG.integers(0, 11, (5, 2, 6))
TARGETS[:, :, :2] = TARGETS[0, 1, 4:] = TARGETS[3] = -100


def model(dtype: type = np.float64, **settings: float) -> PreferenceGPT:
    made = PreferenceGPT(CONFIG, **settings)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    for parameter in made.parameters():
        parameter.data = (parameter.data + 0.3 * rng.standard_normal(parameter.shape)).astype(dtype)
    return made


def log_probabilities(logits: np.ndarray, targets: np.ndarray) -> float:
    """Of one row: (T, V), (T) -> the sum over the targets that count."""
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(sum(logp[t, target] for t, target in enumerate(targets) if target != -100))


@pytest.mark.parametrize("supervised", [0.0, 0.7])
def test_the_loss_is_that_of_the_definition(supervised: float) -> None:
    made, reference = model(beta=0.3, supervised=supervised), RNG.standard_normal((5, 2))
    losses = []
    for tokens, targets, (chosen_before, rejected_before) in zip(TOKENS, TARGETS, reference):
        chosen, rejected = (log_probabilities(made(ids[None]).data[0], t) for ids, t in zip(tokens, targets))
        difference = 0.3 * ((chosen - chosen_before) - (rejected - rejected_before))
        also = supervised * chosen / max((targets[0] != -100).sum(), 1)
        losses.append(math.log(1 + math.exp(-difference)) - also)
    del losses[3]  # which has no answers
    assert made.loss(TOKENS, TARGETS, reference).item() == pytest.approx(np.mean(losses), rel=1e-12)
    assert made.loss_count(TOKENS, TARGETS, reference) == 4


def test_the_loss_begins_at_log_2_and_falls_as_the_chosen_answer_gains() -> None:
    made = model()
    reference = made.log_probabilities(TOKENS, TARGETS).data
    assert made.loss(TOKENS, TARGETS, reference).item() == math.log(2)
    assert (
        made.loss(TOKENS, TARGETS, reference - [1, 0]).item()
        < math.log(2)
        < made.loss(TOKENS, TARGETS, reference - [0, 1]).item()
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("supervised", [0.0, 0.7])
def test_the_loss_does_not_depend_on_the_layout_of_its_batch(supervised: float, dtype: type) -> None:
    reference = RNG.standard_normal((5, 2)).astype(dtype)
    for seed in range(3):
        made = model(dtype, supervised=supervised)
        assert_split_invariant(made.loss, (TOKENS, TARGETS, reference), seed=seed, count=made.loss_count)


def test_a_loss_that_divided_by_the_length_of_the_batch_would_be_found() -> None:
    made, reference = model(), RNG.standard_normal((5, 2))

    def wrong(tokens: np.ndarray, targets: np.ndarray, reference: np.ndarray) -> object:
        return made.loss(tokens, targets, reference) * made.loss_count(tokens, targets) / len(tokens)

    with pytest.raises(SplitError, match="depends on how the batch is laid out"):
        assert_split_invariant(wrong, (TOKENS, TARGETS, reference), count=made.loss_count)  # type: ignore[arg-type]


def test_the_log_probability_of_an_answer_depends_neither_on_the_other_nor_on_the_padding() -> None:
    made = model()
    whole = made.log_probabilities(TOKENS, TARGETS).data
    tokens, targets = (
        np.pad(x, ((0, 0), (0, 0), (0, 2)), constant_values=fill) for x, fill in ((TOKENS, 7), (TARGETS, -100))
    )
    assert made.log_probabilities(tokens, targets).data == pytest.approx(whole, rel=1e-12)
    swapped = made.log_probabilities(TOKENS[:, ::-1], TARGETS[:, ::-1]).data
    assert swapped[:, ::-1] == pytest.approx(whole, rel=1e-12)


def test_it_writes_as_the_gpt_of_its_weights_does_and_as_fast() -> None:
    made, plain = model(np.float32), GPT(CONFIG)
    plain.load_state_dict(made.state_dict())
    for one in (made, plain):
        one.eval()
    assert can_decode(made)
    greedy = Sampling(temperature=0)
    assert generate(made, [1, 2], max_new_tokens=5, sampling=greedy) == generate(
        plain, [1, 2], max_new_tokens=5, sampling=greedy
    )


def test_without_a_reference_the_loss_is_that_of_a_gpt() -> None:
    own = model()
    assert own.loss(TOKENS[:, 0], TARGETS[:, 0]).item() == GPT.loss(own, TOKENS[:, 0], TARGETS[:, 0]).item()


def test_what_is_no_batch_of_pairs_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"pairs are \(B, 2, T\); got \(5, 6\) and \(5, 6\)"):
        model().log_probabilities(TOKENS[:, 0], TARGETS[:, 0])
    with pytest.raises(ConfigError, match="beta must be a finite number with 1e-06 ≤ beta"):
        model(beta=0.0)
