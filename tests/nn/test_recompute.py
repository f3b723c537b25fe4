"""recompute gives the bits, gradients and noise of the module itself, and saves less on the tape."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, Parameter, Tensor, checked, grad, higher_order, no_grad, ops
from nanograd_llm.autograd.modes import watched
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import DtypeError, GraphError, NonFiniteError
from nanograd_llm.models import Classifier, ClassifierConfig, PreferenceGPT
from nanograd_llm.nn import MLP, Dropout, Module, recompute
from nanograd_llm.training import TrainConfig, Trainer

SIZES: dict[str, Any] = dict(vocab_size=13, context_length=8, n_layer=3, n_head=2, n_embd=16)


def gpt(**changes: Any) -> GPT:
    return GPT(GPTConfig(**{**SIZES, **changes}))


def batch(rows: int = 4) -> np.ndarray:
    return np.random.default_rng(5).integers(13, size=(2, rows, 8))


def mlp(dropout: float = 0.0) -> MLP:
    return MLP(6, dropout=dropout, rng=np.random.default_rng(0))


@pytest.fixture
def x() -> Tensor:
    return Tensor(np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32), requires_grad=True)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3}, {"tie_word_embeddings": False}])
def test_a_gpt_that_recomputes_has_the_loss_and_gradients_of_the_gpt_to_the_bit(changes: dict[str, Any]) -> None:
    results = []
    for recomputing in (False, True):
        model = gpt(recompute_activations=recomputing, **changes)
        with noise(3, 1):
            loss = model.loss(*batch())
        results.append([loss.data, *grad(loss, model.parameters())])
    for kept, again in zip(*results):
        assert np.array_equal(kept, again)


@pytest.mark.parametrize("options", [{}, {"processes": True}, {"accumulate": 2}])
def test_a_run_that_recomputes_has_the_same_bits(options: dict[str, Any]) -> None:
    finals = []
    for recomputing in (False, True):
        trainer = Trainer(
            gpt(dropout=0.1, recompute_activations=recomputing),
            TrainConfig(steps=3, workers=2, learning_rate=0.01, **options),
        )
        losses = [trainer.step(*batch()) for _ in range(3)]
        finals.append((losses, trainer.optimizer.flat.data.copy()))
    assert finals[0][0] == finals[1][0]
    assert np.array_equal(finals[0][1], finals[1][1])


def nodes_below(y: Tensor) -> list[Any]:
    found, stack = {}, [y._node]
    while stack:
        node = stack.pop()
        if node is not None and hasattr(node, "sources") and id(node) not in found:
            found[id(node)] = node
            stack.extend(node.sources)
    return list(found.values())


def test_the_tape_of_a_recomputed_module_has_only_its_input_and_result(x: Tensor) -> None:
    y = recompute(mlp(), x)
    (node,) = nodes_below(y)
    assert [saved.shape for saved in node.saved] == [(3, 6), (3, 6)]
    assert node.saved[0] is x.data
    assert node.saved[1] is y.data


def with_padding(kind: type[Module], recomputing: bool) -> tuple[Module, Tensor]:
    """A model of this class, and its loss of a batch with tokens that are not computed."""
    config, (tokens, targets) = GPTConfig(**SIZES, dropout=0.3, recompute_activations=recomputing), batch()
    targets[1:, 5:] = -100
    if kind is Classifier:
        classifier = Classifier(ClassifierConfig.of(config, 2, "last"))
        return classifier, classifier.loss(tokens, np.array([0, 1, 0, 1]), np.array([8, 3, 5, 8]))
    if kind is PreferenceGPT:
        pairs = tokens.reshape(2, 2, 8), targets.reshape(2, 2, 8), np.zeros((2, 2), np.float32)
        return (model := PreferenceGPT(config)), model.loss(*pairs)
    return (plain := GPT(config)), plain.loss(tokens, targets)


@pytest.mark.parametrize("kind", [Classifier, PreferenceGPT, GPT])
def test_blocks_are_recomputed_to_the_bit_also_where_padding_is_not_computed(kind: type[Module]) -> None:
    results = []
    for recomputing in (False, True):
        with noise(3, 1):
            model, loss = with_padding(kind, recomputing)
        assert [node.op.name for node in nodes_below(loss)].count("recomputation of Block") == 3 * recomputing
        results.append([loss.data, *grad(loss, model.parameters())])
    assert all(np.array_equal(kept, again) for kept, again in zip(*results))


def test_random_noise_is_the_same_in_backward(x: Tensor) -> None:
    y = recompute(mlp(dropout=0.5), x)  # outside any block of noise
    y.backward(np.ones_like(y.data))
    assert x.grad is not None


def test_noise_drawn_after_a_recomputed_module_is_what_it_would_be_without(x: Tensor) -> None:
    drawn = []
    for call in (lambda m: m(x), lambda m: recompute(m, x)):
        with noise(7):
            drawn.append(ops.add(call(mlp(dropout=0.5)), mlp(dropout=0.5)(x)).data)
    assert np.array_equal(*drawn)


def test_a_tape_that_is_retained_can_be_walked_again(x: Tensor) -> None:
    y = recompute(mlp(dropout=0.5), x).sum()
    first, second = (grad(y, x, retain_graph=True) for _ in range(2))
    assert np.array_equal(first, second)
    grad(y, x)
    with pytest.raises(GraphError, match="graph freed"):
        grad(y, x)


@pytest.mark.parametrize("what", ["parameter", "mode"])
def test_a_change_between_forward_and_backward_is_reported(what: str, x: Tensor) -> None:
    module = mlp(dropout=0.5)
    y = recompute(module, x).sum()
    if what == "mode":
        module.eval()
    else:
        module.up.weight.data *= 2
    with pytest.raises(GraphError, match="recomputation of MLP gave another result in backward than in forward"):
        y.backward()
    assert x.grad is None


def test_a_hook_on_a_parameter_runs_once_with_its_whole_gradient(x: Tensor) -> None:
    module, seen = mlp(), []
    module.up.bias.register_hook(lambda g: seen.append(g.copy()))
    y = recompute(module, x).sum() + ops.sum(module.up.bias * 2.0)
    y.backward()
    (whole,) = seen
    assert np.array_equal(whole, module.up.bias.grad)


def test_frozen_parameters_get_no_gradient(x: Tensor) -> None:
    module = mlp()
    module.up.weight.requires_grad = False
    fixed = Tensor(x.data)
    recompute(module, fixed).sum().backward()
    assert fixed.grad is None
    assert module.up.weight.grad is None
    assert module.up.bias.grad is not None
    for p in module.parameters():
        p.requires_grad = False
    assert recompute(module, fixed).is_leaf


def test_nothing_is_recorded_inside_no_grad(x: Tensor) -> None:
    with no_grad():
        assert recompute(mlp(), x).is_leaf


def test_under_higher_order_nothing_is_recomputed(x: Tensor) -> None:
    def second(call: Any) -> np.ndarray:
        module = mlp()
        with higher_order():
            first = grad(call(module, x).sum(), x)
            return grad((first * first).sum(), x).data

    assert np.array_equal(second(recompute), second(lambda module, x: module(x)))


def test_checked_and_watched_see_every_op_of_a_recomputed_module(x: Tensor) -> None:
    seen: list[str] = []
    with watched(lambda node, y, arrays, static, place: seen.append(node.op.name)):
        recompute(mlp(), x)
    assert seen == ["linear", "gelu", "linear"]
    model = gpt(recompute_activations=True)
    model.blocks[1].mlp.up.bias.data[3] = np.inf
    with checked(), pytest.raises(NonFiniteError, match=r"in module blocks\.1\.mlp\.up"):
        model.loss(*batch())


class Fork(Module):
    """Uses its input and its parameter twice each."""

    def __init__(self) -> None:
        self.a = Parameter(np.arange(1, 7, dtype=np.float32))

    def forward(self, x: Any) -> Tensor:
        return ops.tanh(x * self.a) + x * self.a * self.a


def test_an_input_or_parameter_used_twice_gets_the_sum_of_both_gradients(x: Tensor) -> None:
    module = Fork()
    kept = grad(module(x).sum(), [x, module.a])
    again = grad(recompute(module, x).sum(), [x, module.a])
    assert all(np.array_equal(k, a) for k, a in zip(kept, again))


class Scaled(Module):
    def __init__(self) -> None:
        self.scales = [Tensor(3.0, requires_grad=True)]

    def forward(self, x: Any) -> Tensor:
        return x * self.scales[0]


def test_a_tensor_with_a_gradient_that_is_no_parameter_is_refused(x: Tensor) -> None:
    y = recompute(Scaled(), x).sum()
    with pytest.raises(GraphError, match="recomputation of Scaled uses a Tensor that needs a gradient and is neither"):
        y.backward()


class Detached(Module):
    def forward(self, x: Any) -> Tensor:
        return x.detach()


@pytest.mark.parametrize("module", [Dropout(0.0), Dropout(0.5).eval()])
def test_a_module_that_returns_its_input_passes_the_gradient_on(module: Module, x: Tensor) -> None:
    assert grad(recompute(module, x).sum(), x).tolist() == np.ones((3, 6)).tolist()


def test_a_module_without_gradient_gives_none(x: Tensor) -> None:
    assert not grad((recompute(Detached(), x) + x * 0.0).sum(), x).any()


class Pair(Module):
    def forward(self, x: Any) -> Any:
        return x, x


@pytest.mark.parametrize(
    ("module", "x", "said"),
    [
        (lambda x: x, Tensor(np.ones(2), requires_grad=True), "module must be a Module"),
        (Dropout(0.0), np.ones(2), "x must be a Tensor"),
        (Pair(), Tensor(np.ones(2), requires_grad=True), "the result of Pair must be a Tensor"),
    ],
)
def test_recompute_refuses_anything_but_a_module_from_tensor_to_tensor(module: Any, x: Any, said: str) -> None:
    with pytest.raises(DtypeError, match=said):
        recompute(module, x)


def test_several_threads_recompute_at_once() -> None:
    model, results = gpt(dropout=0.2, recompute_activations=True), {}

    def work(n: int) -> None:
        with noise(n):
            loss = model.loss(*batch())
            results[n] = grad(loss, model.wte)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(results)
    for n in (1, 2):
        work(n)
        assert np.array_equal(together[n], results[n])
