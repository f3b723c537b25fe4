"""The trainer learns, repeats itself bit for bit, resumes as if unbroken, and stops before a bad number does harm."""

from __future__ import annotations

import gc
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, NanogradError, Parameter, Tensor, nn, ops
from nanograd_llm.errors import ConfigError, GraphError, IndexRangeError, NonFiniteError, ShapeError
from nanograd_llm.text import random_windows
from nanograd_llm.training import TrainConfig, Trainer, trainer, warmup_cosine

TEXT = np.arange(600) * 7 % 11  # each id follows from the one before


def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
    return random_windows(TEXT, context_length=8, batch_size=5, seed=0, step=step)


def gpt(seed: int = 0, **changes: Any) -> GPT:
    sizes = dict(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=16)
    return GPT(GPTConfig(**{**sizes, **changes}), seed=seed)


def make(model: nn.Module | None = None, **changes: Any) -> Trainer:
    return Trainer(model or gpt(), TrainConfig(**{**dict(learning_rate=1e-2, steps=60, threads=2), **changes}))


def bits(trained: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trained.state_dict().items()}


class Line(nn.Module):
    """y = a x + b, by least squares."""

    def __init__(self) -> None:
        self.a, self.b = Parameter(np.float32(0)), Parameter(np.zeros(1, np.float32))

    def loss(self, x: Any, y: Any) -> Tensor:
        error = self.a * x + self.b - y
        return (error * error).mean()


# Learning


def test_the_loss_falls_on_a_text_that_can_be_learned() -> None:
    losses = [record.loss for record in make().run(batches)]
    assert losses[0] == pytest.approx(np.log(11), rel=0.05)
    assert losses[-1] < 0.2


def test_one_batch_of_noise_is_learned_by_heart() -> None:
    tokens = np.random.default_rng(0).integers(11, size=(3, 8))
    targets = np.random.default_rng(1).integers(11, size=(3, 8))
    trained = make(steps=150)
    losses = [trained.step(tokens, targets) for _ in range(150)]
    assert losses[-1] < 0.02


def test_any_module_with_a_loss_is_trained() -> None:
    model = Line()
    x = np.linspace(-1, 1, 24, dtype=np.float32)
    trained = make(model, learning_rate=0.1, steps=300, threads=3, weight_decay=0.0, batch_size=24)
    for _ in range(300):
        trained.step(x, 3 * x - 2)
    assert model.a.item() == pytest.approx(3, abs=0.01)
    assert model.b.item() == pytest.approx(-2, abs=0.01)


def test_step_returns_the_loss_before_it() -> None:
    model = gpt()
    tokens, targets = batches(0)
    expected = model.loss(tokens, targets).item()
    trained = make(model)
    assert trained.step(tokens, targets) == pytest.approx(expected, rel=1e-6)
    assert model.loss(tokens, targets).item() < expected


def test_a_step_trains_with_dropout_whatever_mode_the_model_was_left_in() -> None:
    model = gpt(dropout=0.5)
    trained = make(model)
    model.eval()
    trained.step(*batches(0))
    assert all(module.training for _, module in model.named_modules())


# Bits


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_two_trainers_with_the_same_settings_have_the_same_bits(threads: int) -> None:
    first, second = (make(gpt(dropout=0.2), threads=threads, steps=5) for _ in range(2))
    losses = [[record.loss for record in trained.run(batches)] for trained in (first, second)]
    assert losses[0] == losses[1]
    assert bits(first) == bits(second)


def test_another_seed_has_other_dropout() -> None:
    runs = [[record.loss for record in make(gpt(dropout=0.2), seed=seed, steps=3).run(batches)] for seed in (0, 1)]
    assert runs[0] != runs[1]


def test_each_step_has_dropout_of_its_own() -> None:
    trained = make(gpt(dropout=0.2), learning_rate=0.0)
    assert len({trained.step(*batches(0)) for _ in range(3)}) == 3


def test_a_resumed_run_has_the_bits_of_an_unbroken_one() -> None:
    unbroken = make(gpt(dropout=0.2), steps=7)
    records = list(unbroken.run(batches))
    broken = make(gpt(dropout=0.2), steps=7)
    run = broken.run(batches)
    first = [next(run) for _ in range(3)]
    saved = {name: array.copy() for name, array in broken.state_dict().items()}
    resumed = make(gpt(dropout=0.2, seed=5), steps=7)
    resumed.load_state_dict(saved)
    rest = list(resumed.run(batches))
    told = [(r.step, r.tokens, r.loss, r.learning_rate, r.gradient_norm) for r in [*first, *rest]]
    assert told == [(r.step, r.tokens, r.loss, r.learning_rate, r.gradient_norm) for r in records]
    assert bits(resumed) == bits(unbroken)


def test_a_parameter_without_axes_is_part_of_the_state() -> None:
    trained = make(Line())
    trained.step(np.ones(4, np.float32), np.ones(4, np.float32))
    saved = {name: array.copy() for name, array in trained.state_dict().items()}
    other = make(Line())
    other.load_state_dict(saved)
    assert bits(other) == bits(trained)
    assert other.model.a.item() != 0


def test_a_state_of_another_model_is_refused_with_every_mismatch_and_nothing_changes() -> None:
    trained = make()
    trained.step(*batches(0))
    before = bits(trained)
    saved = make(gpt(n_layer=1, n_embd=8)).state_dict()
    saved["steps_done"] = np.asarray(3.0)
    del saved["tokens_seen"]
    with pytest.raises(ShapeError) as caught:
        trained.load_state_dict(saved)
    first, *problems = [line.strip() for line in str(caught.value).splitlines()]
    assert "this trainer" in first
    assert {
        "missing: tokens_seen ()",
        "missing: adamw.m.blocks.1.ln_1.bias (16,)",
        "misfit: wte is (11, 8) float32, expected (11, 16) float32",
        "misfit: adamw.v.wte is (11, 8) float32, expected (11, 16) float32",
        "misfit: steps_done is () float64, expected () int64",
    } <= set(problems)
    assert len(problems) == 12 * 3 + 16 * 3 + 2
    assert bits(trained) == before


# The run


def test_the_learning_rate_warms_up_peaks_and_ends() -> None:
    trained = make(steps=10, learning_rate=0.1, warmup=0.2, final=0.25)
    rates = [record.learning_rate for record in trained.run(batches)]
    assert rates[:2] == pytest.approx([0.05, 0.1])
    assert rates == pytest.approx([warmup_cosine(s / 10, peak=0.1, warmup=0.2, final=0.25) for s in range(1, 11)])
    assert rates[-1] == pytest.approx(0.025)


def test_a_run_of_steps_records_each() -> None:
    trained = make(steps=4)
    records = list(trained.run(batches))
    assert [r.step for r in records] == [1, 2, 3, 4]
    assert [r.tokens for r in records] == [40, 80, 120, 160]
    assert [r.progress for r in records] == [0.25, 0.5, 0.75, 1]
    assert all(r.gradient_norm > 0 and r.tokens_per_second > 0 for r in records)
    assert list(trained.run(batches)) == []


def test_only_targets_that_count_are_counted() -> None:
    trained = make()
    tokens, targets = batches(0)
    targets[1:] = -100
    trained.step(tokens, targets)
    assert trained.tokens_seen == 8


@pytest.mark.parametrize(("spent", "steps"), [(0.0, 12), (3.0, 6), (6.0, 0)])
def test_a_run_of_minutes_ends_when_they_are_over(spent: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(ticks) * 0.5 / 5))
    # five looks at the clock a step: half a second a step, of 6 seconds
    records = list(make(minutes=0.1, steps=1, warmup=0.0, final=0.0).run(batches, spent=spent))
    assert len(records) == pytest.approx(steps, abs=1)
    rates = [r.learning_rate for r in records]
    assert rates == sorted(rates, reverse=True)
    assert all(0 <= r.progress <= 1 for r in records)


# Faults


def poisoned(name: str) -> Trainer:
    trained = make(steps=20)
    for step in range(2):
        trained.step(*batches(step))
    dict(trained.model.named_parameters())[name].data.reshape(-1)[3] = np.nan
    return trained


@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_weight_stops_the_step_with_its_number_the_op_and_the_module(threads: int) -> None:
    trained = poisoned("blocks.1.mlp.down.weight")
    with pytest.raises(NonFiniteError) as caught:
        trained.step(*batches(2))
    message = str(caught.value)
    assert message.startswith("step 3: the loss is nan and the gradient's norm nan; nothing was updated. ")
    assert re.search(r"linear\(.*\) in module blocks\.1\.mlp\.down, called at .*layers\.py:\d+ holds", message)


def test_a_bad_step_changes_nothing() -> None:
    trained = poisoned("blocks.0.ln_2.weight")
    before = bits(trained)
    with pytest.raises(NonFiniteError):
        trained.step(*batches(2))
    assert bits(trained) == before
    assert trained.steps_done == trained.optimizer.steps == 2


@pytest.mark.parametrize("name", ["wte", "ln_f.weight"])
def test_the_last_good_state_can_be_restored_while_the_error_is_handled(name: str) -> None:
    """The replay's tape, which makes arrays read-only, is gone with the replay."""
    trained = make()
    good = {name: array.copy() for name, array in trained.state_dict().items()}
    dict(trained.model.named_parameters())[name].data[:] = np.inf
    gc.disable()
    try:
        trained.step(*batches(0))
    except NonFiniteError:
        trained.load_state_dict(good)
    finally:
        gc.enable()
    assert trained.step(*batches(0)) == pytest.approx(np.log(11), rel=0.05)


def test_the_path_is_whole_for_a_loss_that_calls_its_layers_itself() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Linear(3, 3), nn.Linear(3, 3)]

        def loss(self, x: Any, y: Any) -> Tensor:
            return self.layers[1](self.layers[0](x)).mean()

    model = Stack()
    model.layers[1].bias.data[:] = np.nan
    with pytest.raises(NonFiniteError, match=r"in module layers\.1, called at"):
        make(model).step(np.ones((4, 3), np.float32), np.ones(4))


class Formula(nn.Module):
    def __init__(self, loss: Any, start: float) -> None:
        self.w, self.formula = Parameter(np.full((4,), start, np.float32)), loss

    def loss(self, x: Any, y: Any) -> Tensor:
        return self.formula(self.w)


@pytest.mark.parametrize(
    ("formula", "start", "message"),
    [
        (lambda w: ops.sqrt(w).mean(), 0.0, r"the loss is 0\.0 .*cotangent of input 0 of sqrt\(\(4,\)\), called at"),
        (lambda w: (w * 1e30).sum(), 1.0, "the loss is .* No single op overflows .* the sum of squares does"),
        (lambda w: ops.log(w).sum(), -1.0, r"the loss is nan .*the result of log\(\(4,\)\), called at"),
    ],
)
def test_a_bad_number_is_traced_to_where_it_arose(formula: Any, start: float, message: str) -> None:
    with pytest.raises(NonFiniteError, match=f"step 1: {message}"):
        make(Formula(formula, start)).step(np.zeros(4), np.zeros(4))


def test_a_bad_batch_changes_nothing_and_the_next_step_is_as_if_it_had_not_been() -> None:
    trained, other = make(), make()
    tokens, targets = batches(0)
    for bad in (np.where(tokens == 3, 11, tokens), np.where(tokens == 3, -1, tokens)):
        with pytest.raises(IndexRangeError, match="token ids go from 0 to 10"):
            trained.step(bad, targets)
    trained.step(tokens, targets)
    other.step(tokens, targets)
    assert bits(trained) == bits(other)


@pytest.mark.parametrize("leave", [lambda model: model.astype(np.float64), lambda model: make(model)])
def test_a_model_that_has_left_its_trainer_is_not_trained_in_vain(leave: Any) -> None:
    trained = make()
    leave(trained.model)
    with pytest.raises(GraphError, match="make a new trainer"):
        trained.step(*batches(0))


def test_a_model_without_a_loss_is_told_so() -> None:
    with pytest.raises(NanogradError, match=r"Linear has no loss; write loss\(tokens, targets\)"):
        make(nn.Linear(2, 2)).step(*batches(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, bad) for field in ("batch_size", "accumulate", "steps") for bad in (0, -1, True, 1.5, "1", None)),
        *((field, bad) for field in ("threads", "seed") for bad in (-1, True, 0.5)),
        *((field, bad) for field in ("learning_rate", "weight_decay") for bad in (-1e-9, np.nan, np.inf, True, "1e-3")),
        *((field, bad) for field in ("warmup", "beta1", "beta2") for bad in (1, -0.1, np.nan, 1.5)),
        *(("final", bad) for bad in (-0.1, 1.1, np.nan)),
        *(("eps", bad) for bad in (0, -1e-8, np.nan)),
        *(("max_norm", bad) for bad in (0, -1.0, np.inf)),
        *(("minutes", bad) for bad in (0, -1.0, np.nan, np.inf, True)),
        *(("processes", bad) for bad in ("no", 1, None)),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        TrainConfig(**{field: value})
