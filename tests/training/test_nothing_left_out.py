"""Fast training leaves nothing out: at each step its loss is the same as by the definitions.

The definitions: one thread, the whole batch, every op as the composition it equals, gradients in a list, and AdamW as
its paper writes it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, grad, ops
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.backend.randomness import noise
from nanograd_llm.nn import layers
from nanograd_llm.training import TrainConfig, Trainer
from nanograd_llm.training.schedule import scheduled

STEPS, ROWS = 100, 5  # five rows for two workers: shares of three and two
CONFIG = GPTConfig(vocab_size=29, context_length=40, n_layer=2, n_head=2, n_embd=16)  # 40: two blocks of attention


def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    steps = [rng.integers(29, size=(2, ROWS, 40)) for _ in range(4)] * (STEPS // 4)
    for step in steps:
        step[1][rng.random((ROWS, 40)) < 0.1] = -100
    return steps


def fast(dtype: str, **options: Any) -> list[float]:
    config = GPTConfig(**{**vars(CONFIG), "recompute_activations": options.pop("recompute_activations", False)})
    trainer = Trainer(GPT(config).astype(dtype), TrainConfig(steps=STEPS, learning_rate=1e-2, **options))
    return [trainer.step(*batch) for batch in batches()]


@functools.cache
def composed(dtype: str) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        for name, op in registry.items():
            if op.equals is not None:
                patch.setattr(ops, name, op.equals)
        patch.setattr(layers, "ACTIVATIONS", {"gelu": registry["gelu"].equals})
        return steps_by_definition(dtype)


def steps_by_definition(dtype: str) -> list[float]:
    model, c = GPT(CONFIG).astype(dtype), TrainConfig(steps=STEPS, learning_rate=1e-2)
    parameters = model.parameters()
    m, v = ([np.zeros_like(p.data) for p in parameters] for _ in range(2))
    losses = []
    for step, (tokens, targets) in enumerate(batches(), start=1):
        with noise(0, step):
            loss = model.loss(tokens, targets)
        gradients = grad(loss, parameters)
        length = float(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients)))
        rate = scheduled("cosine", step / STEPS, peak=c.learning_rate, warmup=c.warmup, final=c.final)
        for i, (p, g) in enumerate(zip(parameters, gradients)):
            g = g * min(1.0, c.max_norm / length)
            m[i] = c.beta1 * m[i] + (1 - c.beta1) * g
            v[i] = c.beta2 * v[i] + (1 - c.beta2) * g * g
            m_hat, v_hat = m[i] / (1 - c.beta1**step), v[i] / (1 - c.beta2**step)
            decay = c.weight_decay if p.ndim >= 2 else 0
            p.data = (p.data - rate * (m_hat / (np.sqrt(v_hat) + c.eps) + decay * p.data)).astype(dtype)
        losses.append(loss.item())
    return losses


OPTIONS: list[dict[str, Any]] = [
    {"workers": 1},
    {"workers": 2},
    {"workers": 2, "processes": True},
    {"workers": 2, "accumulate": 2, "recompute_activations": True},
]


@pytest.mark.parametrize(
    ("dtype", "tolerance", "options"),
    [*(("float64", 1e-11, options) for options in OPTIONS), *(("float32", 1e-4, OPTIONS[i]) for i in (0, -1))],
)
def test_a_hundred_fast_steps_have_the_losses_of_the_definitions(
    dtype: str, tolerance: float, options: dict[str, Any]
) -> None:
    losses = fast(dtype, **options)
    expected = composed(dtype)
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
