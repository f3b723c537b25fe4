"""Muon moves each matrix by an orthogonal one, and all other parameters as AdamW does."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm import GPT, BERTConfig, GPTConfig, nn
from nanograd_llm.autograd.tensor import Parameter
from nanograd_llm.errors import NanogradError, SignatureError
from nanograd_llm.models import BERT
from nanograd_llm.training import AdamW, Muon, TrainConfig, Trainer
from nanograd_llm.training.muon import orthogonal

CONFIG = GPTConfig(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=8)


def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, targets = np.random.default_rng(step).integers(11, size=(2, 4, 8))
    return tokens, targets


def trained(steps: int, **settings: object) -> Trainer:
    trainer = Trainer(GPT(CONFIG, seed=0), TrainConfig(steps=9, optimizer="muon", **settings))  # type: ignore[arg-type]
    for step in range(steps):
        trainer.step(*batches(step))
    return trainer


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (32, 8), (1, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_singular_values_of_a_direction_are_about_one(shape, dtype):
    matrix = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    found = orthogonal(matrix)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    values = np.linalg.svd(found, compute_uv=False)
    assert found.dtype == dtype and 0.68 < values.min() and values.max() < 1.14
    inside = left.T @ found @ right.T  # the same directions, each by itself
    assert abs(inside - np.diag(np.diag(inside))).max() < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_the_short_form_equals_newton_and_schulz_iteration(dtype, tolerance):
    a, b, c = 3.4445, -4.7750, 2.0315
    matrix = np.random.default_rng(1).standard_normal((6, 10))
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    np.testing.assert_allclose(orthogonal(matrix.astype(dtype)), x, rtol=0, atol=tolerance)


def test_a_gradient_of_zeros_moves_nothing_but_the_decay():
    p = Parameter(np.ones((3, 4)))
    Muon([p], matrices=[p], weight_decay=0.5).step([np.zeros((3, 4))], 0.1)
    np.testing.assert_allclose(p.data, 0.95)


def test_a_matrix_whose_gradient_stays_zero_comes_to_rest():
    rng = np.random.default_rng(3)
    p = Parameter(rng.standard_normal((6, 8)).astype(np.float32))
    muon = Muon([p], matrices=[p], weight_decay=0)
    for _ in range(3):
        muon.step([rng.standard_normal((6, 8)).astype(np.float32)], 0.1)
    for step in range(1100):
        if step == 800:
            before = p.data.copy()
        muon.step([np.zeros((6, 8), np.float32)], 0.1)
    np.testing.assert_array_equal(p.data, before)


@pytest.mark.parametrize("size", [1e-4, 1e-10, 1e-23, 1e-30, 1e-42])
def test_a_direction_of_a_tiny_gradient_is_never_longer_than_that_of_a_large_one(size):
    found = orthogonal(np.random.default_rng(4).standard_normal((4, 6)).astype(np.float32) * np.float32(size))
    assert np.linalg.norm(found, 2) < 1.2


def test_other_parameters_move_as_with_adamw():
    rng = np.random.default_rng(2)
    values, gradients = [rng.standard_normal(s) for s in ((4,), (5, 4), (4, 3))], [rng.standard_normal(4)]
    gradients += [rng.standard_normal((5, 4)), rng.standard_normal((4, 3))]
    by_adamw, by_muon = [[Parameter(v.copy()) for v in values] for _ in range(2)]
    one, other = AdamW(by_adamw), Muon(by_muon, matrices=by_muon[2:])
    for _ in range(3):
        one.step(gradients, 0.1)
        other.step(gradients, 0.1)
    for a, b in zip(by_adamw[:2], by_muon[:2]):
        np.testing.assert_array_equal(a.data, b.data)
    assert abs(by_adamw[2].data - by_muon[2].data).max() > 1e-3


def test_the_matrices_are_the_weights_of_linear_layers_that_are_trained():
    trainer = trained(0)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert {names[id(p)].split(".", 2)[-1] for p in trainer.optimizer.matrices} == {
        "attention.qkv.weight",
        "attention.out.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    }
    adapted = Trainer(nn.lora.add(GPT(CONFIG), 2), TrainConfig(optimizer="muon"))
    assert adapted.optimizer.matrices == []
    adapted.step(*batches(0))


@pytest.mark.parametrize("settings", [{"workers": 2, "processes": False}, {"workers": 2}, {"workers": 1}])
def test_a_resumed_run_has_the_same_bits(settings):
    whole, half = trained(4, **settings), trained(2, **settings)
    resumed = trained(0, **settings)
    resumed.load_state_dict(half.state_dict())
    for step in (2, 3):
        resumed.step(*batches(step))
    assert {name: a.tobytes() for name, a in whole.state_dict().items()} == {
        name: a.tobytes() for name, a in resumed.state_dict().items()
    }


def test_a_matrix_has_no_average_of_squares():
    optimizer = trained(1).optimizer
    assert optimizer.v.size == optimizer.m.size - sum(p.size for p in optimizer.matrices)
    assert sum(view.size for kind, _, view in optimizer.moments() if kind == "adamw.v.") == optimizer.v.size


def test_the_first_averages_of_other_parameters_are_those_of_adamw():
    adamw = Trainer(GPT(CONFIG, seed=0), TrainConfig(steps=9))
    adamw.step(*batches(0))
    expected = adamw.state_dict()
    for name, average in trained(1).state_dict().items():
        if name.startswith("adamw."):
            np.testing.assert_array_equal(average, expected[name])


def test_threads_and_processes_give_the_same_bits():
    states = [trained(3, workers=2, processes=kind).state_dict() for kind in (False, None)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


def test_the_state_of_another_optimizer_is_refused_by_its_names():
    other = Trainer(GPT(CONFIG), TrainConfig())
    with pytest.raises(NanogradError, match=r"(?s)extra: muon\.u\.blocks\.0.*missing: adamw\.m\.blocks\.0"):
        other.load_state_dict(trained(1).state_dict())


def test_an_encoder_learns_with_it():
    model = BERT(BERTConfig(vocab_size=11, context_length=8, n_layer=1, n_head=2, n_embd=8))
    trainer = Trainer(model, TrainConfig(optimizer="muon", learning_rate=0.02, schedule="constant", workers=1))
    tokens = batches(0)[0]
    losses = [trainer.step(tokens, tokens) for _ in range(12)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("given", [{}, {"matrices": nn.Linear(2, 3)}, {"matrices": nn.Linear(2, 3).weight}])
def test_without_a_list_of_matrices_the_error_says_what_to_write(given) -> None:
    with pytest.raises(SignatureError, match=r"name them: Muon\(model.parameters\(\), matrices=\[m.weight for _, m in"):
        Muon(nn.Linear(2, 3), **given)
