"""The trainer lowers the loss, gives the same bits again, resumes exactly, and stops at numbers that are not finite."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, NanogradError, Parameter, Tensor, checked, nn, no_grad, ops
from nanograd_llm.backend.processes import CAN_FORK
from nanograd_llm.errors import (
    BadFileError,
    ConfigError,
    DtypeError,
    GraphError,
    IndexRangeError,
    NonFiniteError,
    ShapeError,
    SignatureError,
    WorkerError,
)
from nanograd_llm.text import random_windows
from nanograd_llm.training import TrainConfig, Trainer, scheduled, trainer

needs_fork = pytest.mark.skipif(not CAN_FORK, reason="processes are forked on Linux only")
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12, beside threads

TEXT = np.arange(600) * 7 % 11  # each id follows from the one before


def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
    return random_windows(TEXT, context_length=8, batch_size=5, seed=0, step=step)


def gpt(seed: int = 0, **changes: Any) -> GPT:
    sizes = dict(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=16)
    return GPT(GPTConfig(**{**sizes, **changes}), seed=seed)


def make(model: nn.Module | None = None, **changes: Any) -> Trainer:
    length = {} if "minutes" in changes else {"steps": 60}
    return Trainer(model or gpt(), TrainConfig(**{**dict(learning_rate=1e-2, workers=2), **length, **changes}))


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


def test_one_batch_of_random_tokens_is_overfitted() -> None:
    tokens = np.random.default_rng(0).integers(11, size=(3, 8))
    targets = np.random.default_rng(1).integers(11, size=(3, 8))
    trained = make(steps=150)
    losses = [trained.step(tokens, targets) for _ in range(150)]
    assert losses[-1] < 0.02


def test_any_module_with_a_loss_is_trained() -> None:
    model = Line()
    x = np.linspace(-1, 1, 24, dtype=np.float32)
    trained = make(model, learning_rate=0.1, steps=300, workers=3, weight_decay=0.0, batch_size=24)
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


def test_a_step_trains_with_dropout_also_after_eval() -> None:
    model = gpt(dropout=0.5)
    trained = make(model)
    model.eval()
    trained.step(*batches(0))
    assert all(module.training for _, module in model.named_modules())


# Bits


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_two_trainers_with_the_same_settings_have_the_same_bits(workers: int) -> None:
    first, second = (make(gpt(dropout=0.2), workers=workers, steps=5) for _ in range(2))
    losses = [[record.loss for record in trained.run(batches)] for trained in (first, second)]
    assert losses[0] == losses[1]
    assert bits(first) == bits(second)


def test_another_seed_has_other_dropout() -> None:
    runs = [[record.loss for record in make(gpt(dropout=0.2), seed=seed, steps=3).run(batches)] for seed in (0, 1)]
    assert runs[0] != runs[1]


def test_each_step_has_another_dropout_mask() -> None:
    trained = make(gpt(dropout=0.2), learning_rate=0.0)
    assert len({trained.step(*batches(0)) for _ in range(3)}) == 3


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one() -> None:
    whole = make(gpt(dropout=0.2), steps=7)
    records = list(whole.run(batches))
    interrupted = make(gpt(dropout=0.2), steps=7)
    run = interrupted.run(batches)
    first = [next(run) for _ in range(3)]
    saved = {name: array.copy() for name, array in interrupted.state_dict().items()}
    resumed = make(gpt(dropout=0.2, seed=5), steps=7)
    resumed.load_state_dict(saved)
    rest = list(resumed.run(batches))
    found = [(r.step, r.items, r.loss, r.learning_rate, r.gradient_norm) for r in [*first, *rest]]
    assert found == [(r.step, r.items, r.loss, r.learning_rate, r.gradient_norm) for r in records]
    assert bits(resumed) == bits(whole)


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
    del saved["items_seen"]
    with pytest.raises(ShapeError) as caught:
        trained.load_state_dict(saved)
    first, *problems = [line.strip() for line in str(caught.value).splitlines()]
    assert "this trainer" in first
    assert {
        "missing: items_seen ()",
        "missing: adamw.m.blocks.1.ln_1.bias (16,)",
        "misfit: wte is (11, 8) float32, expected (11, 16) float32",
        "misfit: adamw.v.wte is (11, 8) float32, expected (11, 16) float32",
        "misfit: steps_done is () float64, expected () int64",
    } <= set(problems)
    assert len(problems) == 12 * 3 + 16 * 3 + 2
    assert bits(trained) == before


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        *((name, -1, "negative numbers") for name in ("steps_done", "items_seen", "adamw.v.wte")),
        *(("adamw.m.wte", number, "NaN or infinity") for number in (np.nan, -np.inf)),
        ("adamw.v.wte", np.inf, "NaN or infinity"),
    ],
)
def test_a_state_with_numbers_that_training_never_gives_is_refused_and_nothing_changes(name, number, said) -> None:
    trained = make()
    trained.step(*batches(0))
    before = bits(trained)
    saved = {key: array.copy() for key, array in trained.state_dict().items()}
    saved[name].reshape(-1)[0] = number
    with pytest.raises(BadFileError, match=f"{said} in {name}"):
        trained.load_state_dict(saved)
    assert bits(trained) == before


# The run


def test_the_learning_rate_warms_up_peaks_and_ends() -> None:
    trained = make(steps=10, learning_rate=0.1, warmup=0.2, final=0.25)
    rates = [record.learning_rate for record in trained.run(batches)]
    assert rates[:2] == pytest.approx([0.05, 0.1])
    expected = [scheduled("cosine", s / 10, peak=0.1, warmup=0.2, final=0.25) for s in range(1, 11)]
    assert rates == pytest.approx(expected)
    assert rates[-1] == pytest.approx(0.025)


def test_a_run_of_steps_records_each() -> None:
    trained = make(steps=4)
    records = list(trained.run(batches))
    assert [r.step for r in records] == [1, 2, 3, 4]
    assert [r.items for r in records] == [40, 80, 120, 160]
    assert [r.progress for r in records] == [0.25, 0.5, 0.75, 1]
    assert all(r.gradient_norm > 0 and r.items_per_second > 0 for r in records)
    with pytest.raises(NanogradError, match="all 4 steps of this trainer are done; to go on, make a trainer with more"):
        next(trained.run(batches))


def test_only_targets_that_count_are_counted() -> None:
    trained = make()
    tokens, targets = batches(0)
    targets[1:] = -100
    trained.step(tokens, targets)
    assert trained.items_seen == 8


@pytest.mark.parametrize(("spent", "steps"), [(0.0, 12), (3.0, 6), (6.0, 0)])
def test_a_run_of_minutes_ends_when_they_are_over(spent: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(ticks) * 0.5 / 5))
    # five looks at the clock a step: half a second a step, of 6 seconds
    records = list(make(minutes=0.1, warmup=0.0, final=0.0).run(batches, spent=spent))
    assert len(records) == pytest.approx(steps, abs=1)
    rates = [r.learning_rate for r in records]
    assert rates == sorted(rates, reverse=True)
    assert all(0 <= r.progress <= 1 for r in records)


# Faults


def with_nan(name: str, **changes: Any) -> Trainer:
    trained = make(steps=20, **changes)
    for step in range(2):
        trained.step(*batches(step))
    dict(trained.model.named_parameters())[name].data.reshape(-1)[3] = np.nan
    return trained


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=needs_fork)])
def test_a_bad_weight_stops_the_step_and_the_error_names_step_op_and_module(processes: bool) -> None:
    trained = with_nan("blocks.1.mlp.down.weight", processes=processes)
    with pytest.raises(NonFiniteError) as caught:
        trained.step(*batches(2))
    message = str(caught.value)
    assert message.startswith("step 3: the loss is nan and the gradient's norm nan; nothing was updated. ")
    assert re.search(r"linear\(.*\) in module blocks\.1\.mlp\.down, called at .*layers\.py:\d+ holds", message)
    assert "parameter blocks.1.mlp.down.weight holds 1 non-finite of" in message and "learning rate" not in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_number_in_the_batch_is_reported_as_such_and_not_blamed_on_the_learning_rate(value: float) -> None:
    trained = Trainer(Line(), TrainConfig(steps=2, batch_size=2, processes=False))
    x, y = np.ones((2, 2, 1), np.float32)
    y[1, 0] = value
    with pytest.raises(NonFiniteError) as caught:
        trained.step(x, y)
    message = str(caught.value)
    assert f"array 1 of the batch holds 1 non-finite of 2 values; the first is {value} at (1, 0)" in message
    assert "learning rate" not in message


def test_a_bad_step_changes_nothing() -> None:
    trained = with_nan("blocks.0.ln_2.weight")
    before = bits(trained)
    with pytest.raises(NonFiniteError):
        trained.step(*batches(2))
    assert bits(trained) == before
    assert trained.steps_done == trained.optimizer.steps == 2


@pytest.mark.parametrize("name", ["wte", "ln_f.weight"])
def test_the_last_good_state_can_be_restored_while_the_error_is_handled(name: str) -> None:
    """The tape of the second run of the step, which makes arrays read-only, is gone by then."""
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


def test_an_error_has_the_full_module_path_where_the_loss_calls_its_layers_itself() -> None:
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
        (lambda w: ops.sqrt(w).mean(), 0.0, r"the loss is 0 .*gradient of input 0 of sqrt\(\(4,\)\), called at"),
        (
            lambda w: (w * 1e30).sum(),
            1.0,
            "the loss is .* The sum of the gradient's squares overflows. Lower learning_rate",
        ),
        (lambda w: ops.log(w).sum(), -1.0, r"the loss is nan .*the result of log\(\(4,\)\), called at"),
    ],
)
def test_a_bad_number_is_traced_to_the_op_that_gave_it(formula: Any, start: float, message: str) -> None:
    with pytest.raises(NonFiniteError, match=f"step 1: {message}"):
        make(Formula(formula, start)).step(np.zeros(4), np.zeros(4))


def test_a_bad_batch_changes_nothing_and_the_next_step_has_the_same_bits() -> None:
    trained, other = make(), make()
    tokens, targets = batches(0)
    for bad in (np.where(tokens == 3, 11, tokens), np.where(tokens == 3, -1, tokens)):
        with pytest.raises(IndexRangeError, match="token ids must be from 0 to 10"):
            trained.step(bad, targets)
    trained.step(tokens, targets)
    other.step(tokens, targets)
    assert bits(trained) == bits(other)


@pytest.mark.parametrize("leave", [lambda model: model.astype(np.float64), lambda model: make(model)])
def test_a_step_is_refused_where_the_parameters_have_left_the_trainer(leave: Any) -> None:
    trained = make()
    leave(trained.model)
    with pytest.raises(GraphError, match="make a new trainer"):
        trained.step(*batches(0))


def test_a_model_without_a_loss_is_refused() -> None:
    with pytest.raises(NanogradError, match=r"Linear has no loss; write loss\(tokens, targets\)"):
        make(nn.Linear(2, 2)).step(*batches(0))


# Any loss

B, T, V = 7, 5, 11  # rows for two or three workers: shares of different size


class Tokens(nn.Module):
    """Classes of padded texts: the mean vector of a text's tokens, but for its padding, against a label."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.table = Parameter(rng.standard_normal((V, 4)))
        self.head = nn.Linear(4, 3, rng=rng).astype(np.float64)

    def loss(self, tokens: Any, lengths: Any, labels: Any) -> Tensor:
        real = (np.arange(tokens.shape[1]) < lengths[:, None])[..., None] / lengths[:, None, None]
        return ops.cross_entropy(self.head((ops.embedding(self.table, tokens) * real).sum(axis=1)), labels)


class Pairs(nn.Module):
    """Preferences: of two texts one is better, by their rows; only the rows whose weight is not zero count."""

    def __init__(self) -> None:
        self.score = Parameter(np.random.default_rng(1).standard_normal(V))

    def loss(self, better: Any, worse: Any, weights: Any) -> Tensor:
        margin = ops.embedding(self.score[:, None], better).sum(axis=(1, 2))
        margin = margin - ops.embedding(self.score[:, None], worse).sum(axis=(1, 2))
        return (ops.log(1 + ops.exp(-margin)) * weights).sum() / weights.sum()

    def loss_count(self, better: Any, worse: Any, weights: Any) -> int:
        return int(weights.sum())


class Alone(nn.Module):
    """A batch that is one array, of floats: the mean distance from a centre."""

    def __init__(self) -> None:
        self.centre = Parameter(np.zeros(3))

    def loss(self, x: Any) -> Tensor:
        return ((x - self.centre) ** 2).sum(axis=1).mean()


class Translation(nn.Module):
    """Three arrays of integers; the targets of the last, of which some do not count, are what is counted."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.source, self.target = Parameter(rng.standard_normal((V, 4))), Parameter(rng.standard_normal((V, 4)))

    def loss(self, source: Any, target_in: Any, target: Any) -> Tensor:
        x = ops.embedding(self.target, target_in) + ops.embedding(self.source, source).mean(axis=1)[:, None]
        return ops.linear_cross_entropy(x, self.target, target)


def any_batch(kind: type) -> tuple[nn.Module, tuple[Any, ...]]:
    rng = np.random.default_rng(3)
    tokens, others, targets = rng.integers(V, size=(3, B, T))
    targets[:3] = -100  # all that one of three workers has
    targets[rng.random(targets.shape) < 0.3] = -100
    if kind is GPT:
        return gpt(context_length=T).astype(np.float64), (tokens, targets)
    if kind is Tokens:
        return Tokens(), (tokens, rng.integers(1, T, size=B), rng.integers(3, size=B))
    if kind is Pairs:
        return Pairs(), (tokens, others, np.array([0.0, 0, 0, 1, 2, 1, 3]))
    if kind is Alone:
        return Alone(), (rng.standard_normal((B, 3)),)
    if kind is Translation:
        return Translation(), (others[:, :3], tokens, targets)
    return Line().astype(np.float64), (rng.standard_normal(B), rng.standard_normal(B))


@pytest.mark.parametrize("options", [{}, {"workers": 3, "processes": False}, {"accumulate": 2}])
@pytest.mark.parametrize("kind", [GPT, Tokens, Pairs, Alone, Translation, Line])
def test_any_loss_has_the_gradient_of_the_whole_batch_however_it_is_split(kind: type, options: dict[str, Any]) -> None:
    model, arrays = any_batch(kind)
    loss = model.loss(*arrays)
    loss.backward()
    length = np.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
    (record,) = make(model, steps=1, **options).run(lambda step: arrays)
    assert record.items == model.loss_count(*arrays)
    tolerance = 1e-12 if loss.dtype == np.float64 else 1e-6
    assert record.loss == pytest.approx(loss.item(), rel=tolerance)
    assert record.gradient_norm == pytest.approx(length, rel=tolerance)


@pytest.mark.parametrize("kind", [GPT, Tokens, Pairs, Alone, Translation])
def test_any_loss_falls(kind: type) -> None:
    model, arrays = any_batch(kind)
    losses = [record.loss for record in make(model, learning_rate=0.05).run(lambda step: arrays)]
    assert losses[-1] < 0.9 * losses[0]


def test_lists_give_what_arrays_give() -> None:
    model, arrays = any_batch(Tokens)
    other, _ = any_batch(Tokens)
    assert make(model).step(*[array.tolist() for array in arrays]) == make(other).step(*arrays)


def test_a_batch_in_which_nothing_counts_is_refused_and_changes_nothing() -> None:
    model, (better, worse, weights) = any_batch(Pairs)
    trained = make(model)
    before = bits(trained)
    with pytest.raises(ShapeError, match="none of the items of this batch counts"):
        trained.step(better, worse, 0 * weights)
    with pytest.raises(ShapeError, match="none of the items of this batch counts"):
        trained.step(better[:0], worse[:0], weights[:0])
    assert bits(trained) == before


# Frozen parameters


def test_frozen_parameters_are_neither_moved_nor_stored_twice_and_the_rest_learns() -> None:
    model = gpt()
    model.freeze()
    model.blocks[1].unfreeze()
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    trained = make(model, steps=5)
    losses = [trained.step(*batches(0)) for _ in range(5)]
    assert losses[-1] < losses[0]
    for name, p in model.named_parameters():
        assert np.array_equal(p.data, before[name]) != name.startswith("blocks.1."), name
        assert (p.data.base is trained.optimizer.flat.data) == name.startswith("blocks.1."), name
    assert trained.optimizer.flat.size == trained.optimizer.m.size == model.blocks[1].parameter_count()
    names = trained.state_dict().keys()
    assert before.keys() <= names
    assert {name for name in names if name.startswith("adamw.m.")} == {
        f"adamw.m.{name}" for name in before if name.startswith("blocks.1.")
    }


def test_training_a_part_moves_it_as_training_the_whole_does() -> None:
    """Without clipping, and with a large eps: the first step depends on the gradient's size, not only on its sign."""
    whole, part = gpt(), gpt()
    part.freeze()
    part.ln_f.unfreeze()
    for model in (whole, part):
        make(model, max_norm=1e9, eps=1.0).step(*batches(0))
    assert np.array_equal(whole.ln_f.weight.data, part.ln_f.weight.data)


def test_a_parameter_set_by_hand_to_need_no_gradient_is_frozen() -> None:
    model = gpt()
    model.wpe.requires_grad = False
    before = model.wpe.data.copy()
    make(model).step(*batches(0))
    assert np.array_equal(model.wpe.data, before)


def test_a_run_with_frozen_parameters_resumes_with_the_same_bits() -> None:
    def part(seed: int) -> GPT:
        model = gpt(seed)
        model.freeze()
        model.blocks[0].unfreeze()
        return model

    whole, first, resumed = make(part(0)), make(part(0)), make(part(1))
    for trained in (whole, first):
        trained.step(*batches(0))
    resumed.load_state_dict({name: array.copy() for name, array in first.state_dict().items()})
    for trained in (whole, resumed):
        trained.step(*batches(1))
    assert bits(resumed) == bits(whole)


@pytest.mark.parametrize("change", [lambda m: m.ln_f.freeze(), lambda m: m.blocks[0].unfreeze()])
def test_freezing_or_unfreezing_after_the_trainer_was_made_is_refused(change: Any) -> None:
    model = gpt()
    model.blocks[0].freeze()
    trained = make(model)
    change(model)
    with pytest.raises(GraphError, match="frozen or unfrozen after its trainer was made; make a new trainer"):
        trained.step(*batches(0))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (gpt().freeze(), r"all its 28 parameters are frozen; unfreeze\(\) the parts"),
        (nn.Module(), r"it has no parameters; assign Parameter\(array\)"),
    ],
)
def test_a_model_with_nothing_to_train_is_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(GraphError, match=f"has nothing to train: {said}"):
        make(model)


# Worker processes


def six(step: int, rows: int = 6) -> np.ndarray:
    return np.random.default_rng(step).integers(11, size=(2, rows, 8))


@pytest.mark.parametrize(
    "options", [{}, {"workers": 2, "processes": False}, pytest.param({"workers": 2}, marks=needs_fork)]
)
def test_a_parameter_that_the_loss_makes_is_refused_since_it_would_not_be_trained(options: dict[str, Any]) -> None:
    class Late(Line):
        def loss(self, *batch: Any) -> Any:
            self.late = self.__dict__.get("late") or nn.Linear(1, 1)
            return super().loss(*batch)

    trainer = Trainer(Late(), TrainConfig(steps=1, **options))
    with pytest.raises(GraphError, match="the parameter late.weight, late.bias was made after the trainer"):
        trainer.step(np.ones((4, 1)), np.ones((4, 1)))


def test_a_batch_that_is_one_array_is_refused_with_the_form() -> None:
    with pytest.raises(DtypeError, match=r"a batch must be a tuple of arrays, .* or \(x,\) for one; got ndarray"):
        next(Trainer(Line(), TrainConfig(steps=1)).run(lambda step: np.ones((3, 1))))


@needs_fork
@pytest.mark.parametrize("workers", [2, 3, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_train_to_the_same_bits_as_threads(workers: int, accumulate: int) -> None:
    found = []
    for processes in (False, True):
        trained = make(gpt(dropout=0.1), workers=workers, accumulate=accumulate, processes=processes)
        found.append(([trained.step(*six(step)) for step in range(4)], bits(trained)))
    assert found[0] == found[1]


def test_a_trainer_says_which_workers_it_has() -> None:
    trained = make(workers=2, processes=False)
    trained.step(*six(0))
    assert repr(trained) == "Trainer(GPT, step 1 of 60, 2 threads)"


@needs_fork
def test_train_and_eval_of_a_part_and_written_parameters_reach_the_processes() -> None:
    def run(processes: bool) -> dict[str, bytes]:
        trained = make(gpt(dropout=0.3), processes=processes)
        trained.step(*six(0))
        trained.model.blocks[1].eval()
        trained.model.wte.data[...] *= 2
        trained.step(*six(1))
        return bits(trained)

    assert run(False) == run(True)


@needs_fork
def test_an_error_in_a_worker_process_is_raised_in_the_caller() -> None:
    trained = make(processes=True)
    tokens = six(0)
    tokens[0, 5] = 99
    with pytest.raises(IndexRangeError, match="token ids must be from 0 to 10; got 0 to 99"):
        trained.step(*tokens)
    trained.step(*six(0))


@needs_fork
@pytest.mark.parametrize("processes", [False, True])
def test_a_trainer_in_a_fork_of_its_process_is_refused_and_a_new_one_trains(processes: bool) -> None:
    trained = make(processes=processes)
    trained.step(*six(0))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(20)
            with pytest.raises(NanogradError, match=f"workers belong to process {os.getppid()}"):
                trained.step(*six(0))
            make(processes=processes).step(*six(0))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    trained.step(*six(0))


@needs_fork
def test_checked_mode_works_in_processes() -> None:
    trained = make(processes=True)
    trained.model.blocks[1].mlp.up.bias.data[3] = np.inf
    with checked(), pytest.raises(NonFiniteError, match=r"^the result of .* in module blocks\.1\.mlp\.up, called at"):
        trained.step(*six(0))


@needs_fork
def test_processes_that_start_within_no_grad_record_gradients() -> None:
    with no_grad():
        trained = make(processes=True)
    trained.step(*six(0))


class Failing(nn.Module):
    """Its loss fails in the worker process as the first token says."""

    def __init__(self) -> None:
        self.home, self.w = os.getpid(), Parameter(np.ones(3, np.float32))

    def loss(self, failure: Any) -> Tensor:
        if failure[0] and os.getpid() != self.home:
            if failure[0] == 1:
                raise MemoryError("80 GiB")
            os.kill(os.getpid(), int(failure[0]))
        return self.w.mean()


@needs_fork
@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (1, MemoryError, "^80 GiB$"),
        (int(signal.SIGKILL), WorkerError, "ended without an answer"),
        (int(signal.SIGSTOP), WorkerError, "is stopped"),
    ],
)
def test_a_worker_that_fails_ends_the_step_with_one_error_and_the_next_step_works(
    failure: int, kind: type[Exception], message: str
) -> None:
    trained = make(Failing(), processes=True)
    before = bits(trained)
    with pytest.raises(kind, match=message):
        trained.step(np.full(4, failure))
    assert bits(trained) == before
    assert trained.step(np.zeros(4, int)) == 1


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=needs_fork)])
def test_ctrl_c_during_an_update_acts_after_it(processes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, whole = make(processes=processes), make(processes=processes)
    whole.step(*six(0))
    update = trained.optimizer.update

    def interrupted(*arguments: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        update(*arguments)

    monkeypatch.setattr(trained.optimizer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.step(*six(0))
    assert bits(trained) == bits(whole)


@needs_fork
def test_parameters_that_are_half_updated_are_neither_saved_nor_trained_on() -> None:
    trained = make(processes=True)
    trained.step(*six(0))
    saved = {name: array.copy() for name, array in trained.state_dict().items()}
    with pytest.raises(WorkerError, match="ended without an answer"):
        os.kill(trained.workers.team.children[0].process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        trained.workers.update(0.1, 1.0)
    assert not trained.is_whole
    for use in (trained.state_dict, lambda: trained.step(*six(1))):
        with pytest.raises(NanogradError, match="an update failed after step 1, so the parameters are half updated"):
            use()
    trained.load_state_dict(saved)
    assert trained.is_whole
    trained.step(*six(1))


# Threads of the caller


def test_two_trainers_stepped_by_two_threads_have_the_bits_that_each_has_alone() -> None:
    def train(seed: int) -> dict[str, bytes]:
        trained = make(gpt(seed, dropout=0.2), seed=seed, processes=False)
        for step in range(20):
            trained.step(*six(step))
        return bits(trained)

    alone, together = {seed: train(seed) for seed in range(2)}, {}
    threads = [threading.Thread(target=lambda s=seed: together.update({s: train(s)})) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_step_while_another_thread_is_in_one_is_refused_and_does_not_change_its_result() -> None:
    begun, refused = threading.Event(), threading.Event()

    class Slow(Line):
        def loss(self, x: Any, y: Any) -> Tensor:
            begun.set()
            refused.wait(10)
            return super().loss(x, y)

    trained, other, rows = make(Slow(), workers=1), make(Line(), workers=1), np.ones((2, 4), np.float32)
    thread = threading.Thread(target=trained.step, args=tuple(rows))
    thread.start()
    begun.wait(10)
    with pytest.raises(GraphError, match="another thread is in a step of this trainer"):
        trained.step(*rows)
    refused.set()
    thread.join()
    other.step(*rows)
    assert bits(trained) == bits(other)


# Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, bad) for field in ("batch_size", "accumulate", "steps") for bad in (0, -1, True, 1.5, "1", None)),
        *((field, 13) for field in ("workers", "accumulate")),  # of a batch of 12 rows
        *((field, bad) for field in ("workers", "seed") for bad in (-1, True, 0.5)),
        *((field, bad) for field in ("learning_rate", "weight_decay") for bad in (-1e-9, np.nan, np.inf, True, "1e-3")),
        *((field, bad) for field in ("warmup", "beta1", "beta2") for bad in (1, -0.1, np.nan, 1.5)),
        *(("final", bad) for bad in (-0.1, 1.1, np.nan)),
        *(("eps", bad) for bad in (0, -1e-8, np.nan)),
        *(("max_norm", bad) for bad in (0, -1.0, np.inf)),
        *(("minutes", bad) for bad in (0, -1.0, np.nan, np.inf, True)),
        *(("processes", bad) for bad in ("no", 1, 0.0)),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field} (must be|is 13, but batch_size is 12)"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(("schedule", "count"), [("cosine", 1), ("constant", 0)])
def test_the_first_step_after_the_schedule_warns(schedule: str, count: int) -> None:
    trained = make(steps=3, schedule=schedule, learning_rate=0.1, final=0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(6):
            trained.step(*batches(step))
    words = "step 4 of 3: the schedule is over, and the learning rate stays at 0.01; give TrainConfig more steps"
    assert [str(warning.message) for warning in told] == [words] * count


@pytest.mark.parametrize("name", ["fit", "train"])
def test_a_name_of_another_library_is_refused_with_what_to_use(name: str) -> None:
    trainer = Trainer(nn.Linear(2, 3))
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}'; use step\(tokens, targets\)"):
        getattr(trainer, name)
    assert not hasattr(trainer, "anything")


@pytest.mark.parametrize("given", ["a loss", "a number beside an array", "nothing"])
def test_a_step_on_a_loss_or_on_nothing_says_what_a_step_takes_and_does(given: str) -> None:
    made = make()
    batch: Any = {"a loss": (made.model.loss(*batches(0)),), "nothing": ()}.get(given, (np.zeros((4, 6)), 1.5))
    with pytest.raises(
        ShapeError, match=r"as in step\(tokens, targets\), and does forward, backward and update itself"
    ):
        made.step(*batch)


@pytest.mark.parametrize("name", ["learning_rate", "lr", "max_norm"])
def test_a_setting_that_is_set_on_a_trainer_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(AttributeError, match=r"use Trainer\(model, TrainConfig\((learning_rate|max_norm)=...\)\)"):
        setattr(make(), name, 1)


class Untaped(nn.Module):
    def __init__(self) -> None:
        self.w = Parameter(np.ones(2, np.float32))

    def loss(self, x: Any) -> Any:
        return (self.w.data * x).mean()


def test_a_loss_without_a_tape_is_refused_without_a_word_of_shapes() -> None:
    with pytest.raises(DtypeError, match=r"such as a mean; it returned \S*1.0\)?$"):
        make(Untaped(), processes=False).step(np.ones((4, 2), np.float32))


@pytest.mark.parametrize("name", ["learning_rate", "lr"])
def test_a_setting_given_to_a_trainer_is_refused_with_the_config_that_has_it(name: str) -> None:
    with pytest.raises(SignatureError, match=rf"no argument {name}=; write .*, TrainConfig\(learning_rate=0.1\)\)"):
        Trainer(gpt(), **{name: 0.1})
