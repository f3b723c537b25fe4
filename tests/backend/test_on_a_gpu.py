"""Everything runs on the arrays of a GPU, with the CPU's numbers: shown with a strict stand-in for CuPy's arrays."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import strict_cupy

import nanograd_llm.models  # noqa: F401  all classes of Modules
from nanograd_llm import (
    BERT,
    GPT,
    BERTConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    GPTConfig,
    Tensor,
    checked,
    hessian,
    higher_order,
    hvp,
    jacobian,
    nn,
    no_grad,
    ops,
    use_device,
    value_and_grad,
)
from nanograd_llm.autograd.op import Kept, Op
from nanograd_llm.autograd.tensor import grad, registry
from nanograd_llm.backend import kernels
from nanograd_llm.backend.arrays import SCALARS_WIDEN, to_device, xp
from nanograd_llm.errors import DeviceError, GraphError, NanogradError, NonFiniteError
from nanograd_llm.gradcheck import assert_split_invariant, check_layer, check_model, gradcheck
from nanograd_llm.gradcheck.cases.samples import Case, Draw, draw_cases, varied
from nanograd_llm.gradcheck.check.function import owner_of
from nanograd_llm.gradcheck.check.promises import case_problems
from nanograd_llm.gradcheck.every_layer import draw_specimens, layers
from nanograd_llm.gradcheck.every_op import check_case
from nanograd_llm.inference import BeamSearch, Sampling, generate, translate
from nanograd_llm.inference.decoder import Decoder
from nanograd_llm.inference.fill import hidden_logits
from nanograd_llm.models.heads import Classifier, SentenceEncoder
from nanograd_llm.models.preference import PreferenceGPT
from nanograd_llm.see.look import look
from nanograd_llm.training import SGD, AdamW, TrainConfig, Trainer, clip_by_global_norm

pytestmark = pytest.mark.skipif(SCALARS_WIDEN, reason="CuPy needs NumPy 2")

OPS = [op for key, op in sorted(registry.items()) if isinstance(op, Op) and op.__module__.startswith("nanograd_llm")]
LAYERS = [layer for layer in layers() if "specimens" in vars(layer) and layer.__module__.startswith("nanograd_llm")]
GPT_SIZES: dict[str, Any] = dict(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=8)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield strict_cupy.installed(monkeypatch)


def close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    assert isinstance(found, strict_cupy.ndarray), f"{type(found)} is not on the GPU"
    assert (found.shape, found.dtype) == (np.shape(expected), np.asarray(expected).dtype)
    np.testing.assert_allclose(found.get(), expected, rtol=tolerance, atol=tolerance * 10)


# Every op


def gradients(op: Op, case: Case, device: str, order: int, seed: int = 0) -> list[Any]:
    """The result of a case, the gradients of its inputs, and at order 2 the gradients of these, summed with weights."""
    function, arrays = case.on(op)
    rng, leaves = np.random.default_rng(seed), [Tensor(x, requires_grad=True, device=device) for x in arrays]
    if order == 1:
        y = function(*leaves)
        cotangent = to_device(rng.standard_normal(y.shape).astype(y.dtype), device)
        return [y.data, *(grad(y, leaves, cotangent) if y.requires_grad else [])]
    with higher_order():
        y = function(*leaves)
        if not y.requires_grad:
            return [y.data]
        first = grad(y, leaves, to_device(rng.standard_normal(y.shape).astype(y.dtype), device))
        total = ops.sum(first[0] * to_device(rng.standard_normal(first[0].shape), device))
        for gradient in first[1:]:
            total = total + ops.sum(gradient * to_device(rng.standard_normal(gradient.shape), device))
    return [y.data, *map(data, first), *(grad(total, leaves) if total.requires_grad else [])]


def data(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_an_op_has_the_numbers_of_the_cpu_forward_backward_and_at_second_order(op: Op) -> None:
    cases = list(draw_cases(op, np.random.default_rng(0), 8))
    for case in cases:
        for order in (1, 2) if case.size <= 64 else (1,):
            for given in (case, on_gpu(op, case)):
                for found, expected in zip(
                    gradients(op, given, "cuda", order), gradients(op, case, "cpu", order), strict=True
                ):
                    close(found, expected)


def on_gpu(op: Op, case: Case) -> Case:
    """The case with all its arrays on the GPU, constants such as ids, too."""
    inputs = [to_device(x, "cuda") if isinstance(x, np.ndarray) and x.dtype.kind != "f" else x for x in case.inputs]
    return Case(tuple(inputs), case.static)


def test_an_op_of_plain_arrays_computes_on_the_gpu() -> None:
    x = np.linspace(-2, 2, 6).reshape(2, 3)
    for f in (ops.gelu, ops.erf, ops.softmax, lambda x: ops.where(x > 0, x, 0.0), lambda x: ops.add([1, 2, 3], x)):
        close(f(to_device(x, "cuda")), f(x))


def test_float16_is_computed_in_float32_on_a_gpu_too() -> None:
    rows = (200 * np.random.default_rng(0).standard_normal((3, 64))).astype(np.float16)
    arrays = rows, np.ones(64, np.float16), np.zeros(64, np.float16)
    expected = ops.layernorm(*arrays)
    close(ops.layernorm(*(to_device(a, "cuda") for a in arrays)), expected, 1e-3)
    close(ops.layernorm(*(Tensor(a, device="cuda") for a in arrays)).data, expected, 1e-3)


def test_functions_made_of_ops_have_the_numbers_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    x, ids, other = rng.standard_normal((3, 4)), rng.integers(0, 4, (3, 2)), rng.random((3, 4))
    functions: list[Callable[[Any, Any], Any]] = [
        lambda x, other: ops.einsum("ij,kj->ik", x, x),
        lambda x, other: ops.softplus(x),
        lambda x, other: ops.std(x, axis=0),
        lambda x, other: ops.prod(x, axis=1),
        lambda x, other: ops.take_along_axis(x, ids, axis=1),
        lambda x, other: ops.sort(x),
        lambda x, other: ops.topk(x, 2)[0],
        lambda x, other: ops.pad(x, 1, value=2.0),
        lambda x, other: ops.roll(x, 1),
        lambda x, other: ops.take(x, [2, 0, 2], axis=1),
        lambda x, other: ops.repeat(x, 2),
        lambda x, other: ops.flip(x, 0),
        lambda x, other: ops.split(x, 2, axis=1)[1],
        lambda x, other: ops.mse(x, other),
        lambda x, other: ops.binary_cross_entropy(x, other),
        lambda x, other: ops.masked_fill(x, ids[:, :1] > 1, 0.0),
    ]
    for f in functions:
        results = []
        for device in ("cpu", "cuda"):
            leaf = Tensor(x, requires_grad=True, device=device)
            y = f(leaf, to_device(other, device))
            results.append([y.data, grad(y, leaf, np.ones_like(y.data))])
        for expected, found in zip(*results, strict=True):
            close(found, expected)


def test_the_gradient_of_an_embedding_does_not_depend_on_the_order_of_a_scatter() -> None:
    rng = np.random.default_rng(0)
    ids, cotangent = rng.integers(0, 5, 1000), rng.standard_normal((1000, 3)).astype(np.float32)
    found = []
    for _ in range(2):
        w = Tensor(np.zeros((5, 3), np.float32), requires_grad=True, device="cuda")
        ops.embedding(w, ids).backward(to_device(cotangent, "cuda"))
        assert w.grad is not None
        found.append(w.grad.get())
    assert found[0].tobytes() == found[1].tobytes()
    exact = np.stack([cotangent[ids == i].astype(np.float64).sum(axis=0) for i in range(5)])
    np.testing.assert_allclose(found[0], exact, atol=2e-5)


# The engine


def test_derivatives_of_functions_have_the_numbers_of_the_cpu() -> None:
    def f(x: Tensor) -> Tensor:
        return (x * x * x).sum() + x[0] * x[1]

    results = []
    for device in ("cpu", "cuda"):
        with use_device(device):
            x = np.array([1.0, 2.0, 3.0])
            value, gradient = value_and_grad(f)(x)
            rows = jacobian(lambda x: x * x, x)
            results.append([value.data, gradient, rows, hessian(f, x), *hvp(f, [x], [to_device(np.ones(3), device)])])
    for expected, found in zip(*results, strict=True):
        close(found, expected)


def test_a_tensor_on_a_gpu_is_used_as_one_on_the_cpu() -> None:
    x = Tensor([[1.0, 5.0], [3.0, 2.0]], requires_grad=True, device="cuda")
    assert (x[0, 1].item(), float(x[0, 0]), x.tolist()) == (5.0, 1.0, [[1.0, 5.0], [3.0, 2.0]])
    assert (x.argmax(1).tolist(), (x > 2).tolist()) == ([1, 0], [[False, True], [True, False]])
    y = x * 2
    y.retain_grad()
    y.register_hook(lambda cotangent: cotangent * 3)
    y.sum().backward()
    x.sum().backward()
    assert x.grad is not None and y.grad is not None
    assert (x.grad.tolist(), y.grad.tolist()) == ([[7.0, 7.0], [7.0, 7.0]], [[3.0, 3.0], [3.0, 3.0]])
    used = x * x
    with no_grad():
        x -= 1.0
    with pytest.raises(GraphError, match="updated in place after multiply had used it"):
        used.sum().backward()
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert (other.device, other.tolist()) == ("cuda", [[0.0, 4.0], [2.0, 1.0]])


def test_checked_finds_on_a_gpu_what_it_finds_on_the_cpu() -> None:
    model = GPT(GPTConfig(**GPT_SIZES), seed=0).to("cuda")
    with checked():
        model.loss(*batches(0)).backward()
        with pytest.raises(NonFiniteError, match="the result of log.* holds 1 non-finite of 2 values"):
            ops.log(Tensor([1.0, -1.0], device="cuda"))
        x = Tensor([1.0, 2.0], requires_grad=True, device="cuda")
        y = (x * x).sum()
        x.data[...] = 5
        with pytest.raises(GraphError, match="was changed after the forward"):
            y.backward()
    trained = trainer("cuda")
    trained.model.wte.data[...] = np.nan
    with pytest.raises(NonFiniteError, match="parameter wte"):
        trained.step(*batches(0))


# The gradient check


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_gradient_check_of_an_op_passes(op: Op) -> None:
    with use_device("cuda"):
        rng = np.random.default_rng(0)
        case = next(iter(draw_cases(op, rng, 1)))
        report = check_case(op, case, order=2 if op is ops.tanh else 1, explain=False, seconds=0.2)
        assert report.passed, report
        assert case_problems(op, varied(op, case, rng)) == []


@pytest.mark.parametrize("layer", [nn.Linear, nn.Embedding, nn.LayerNorm])
def test_the_gradient_check_of_a_layer_passes_and_notices_a_billionth(layer: type[nn.Module]) -> None:
    with use_device("cuda"):
        found = check_layer(layer, order=1, cases=1)
    assert found.passed and found.mutants > 0, found


def test_the_loss_of_a_model_on_a_gpu_is_checked_there_and_keeps_its_weights() -> None:
    model = GPT(GPTConfig(**{**GPT_SIZES, "n_layer": 1, "n_embd": 2}), seed=0).freeze().to("cuda")
    for part in (model.ln_f, model.blocks[0].attention.qkv):
        part.unfreeze()
    before, waits = model.wte.data, strict_cupy.state.waits
    assert check_model(model).passed
    assert model.wte.data is before and strict_cupy.state.waits > waits


def test_a_rule_that_is_wrong_on_a_gpu_alone_is_found_there_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ops.tanh.rule
    assert rule is not None
    monkeypatch.setattr(ops.tanh, "rule", lambda dy, y: rule(dy, y) * (1 + 1e-9 * (xp(dy) is not np)))
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    assert gradcheck(ops.tanh, x).passed
    for given in (Tensor(x, requires_grad=True, device="cuda"), to_device(x, "cuda")):
        report = gradcheck(lambda x: ops.tanh(x * x), given)
        assert not report.passed and [culprit.op for culprit in report.culprits] == ["tanh"]


def test_a_rule_that_writes_into_its_cotangent_on_a_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def writing(dy: Any) -> Any:
        dy[...] = -dy
        return dy

    monkeypatch.setattr(ops.negative, "rule", writing)
    report = gradcheck(ops.negative, to_device(np.ones(3), "cuda"))
    assert "the rule of negative writes into its cotangent" in str(report)


def test_a_loss_that_does_not_depend_on_how_a_batch_is_laid_out_is_right_on_a_gpu_too() -> None:
    model = GPT(GPTConfig(**{**GPT_SIZES, "n_layer": 1}), seed=0).astype(np.float64).to("cuda")
    tokens, targets = batches(0)
    assert_split_invariant(model.loss, (tokens[:2, :4], targets[:2, :4]))


# Tracing


def test_a_trace_of_a_model_on_a_gpu_holds_numpy_arrays_with_the_numbers_of_the_cpu() -> None:
    model = GPT(GPTConfig(**GPT_SIZES), seed=0).astype(np.float64)
    expected = nanograd_llm.trace(model.loss, *batches(0))
    with use_device("cuda"):
        found = nanograd_llm.trace(model.to("cuda").loss, *batches(0))
        for one, other in zip(found, expected, strict=True):
            assert (one.name, one.source) == (other.name, other.source)
            pairs = [(one.output.array, other.output.array), (one.cotangent, other.cotangent)]
            pairs += [(a.array, b.array) for a, b in zip(one.inputs, other.inputs) if a is not None and b is not None]
            pairs += [(a, b) for a, b in zip(one.sent, other.sent) if a is not None]
            for a, b in pairs:
                assert type(a) is np.ndarray
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        for name, gradient in found.grads.items():
            np.testing.assert_allclose(gradient, expected.grads[name], rtol=1e-9, atol=1e-12)
            total = functools.reduce(np.add, [use.gradient for use in found[name].uses])
            np.testing.assert_array_equal(total, gradient)
        fused = next(call.number for call in found if call.op is ops.layernorm)
        assert found.nudge("wte", (1, 2)).agrees and found.terms(fused, "x", (0, 0, 0)).agrees
        assert len(found.open(fused)) > 3 and found.shadow().rows
        with pytest.raises(DeviceError, match="record it on the CPU: --device cpu, or model.cpu()"):
            found.script("pass.py")


def test_a_look_at_a_model_on_a_gpu_sees_what_it_sees_on_the_cpu() -> None:
    model = GPT(GPTConfig(**GPT_SIZES), seed=0).astype(np.float64)
    batch = np.array([[1, 2, 3]]), np.array([[2, 3, 4]])
    expected, found = (look(nanograd_llm.trace(model.to(device).loss, *batch)) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(found.bits, expected.bits, rtol=1e-9)
    assert [name for name, _, _ in found.flow] == [name for name, _, _ in expected.flow]
    for (_, size, _), (_, other, _) in zip(found.flow, expected.flow):
        assert size == pytest.approx(other)


# Every layer, model and loss


def run(f: Callable[..., Any], inputs: tuple[Any, ...], rng: np.random.Generator) -> list[Any]:
    """The result of a specimen and the gradients of the inputs and parameters, for a random cotangent."""
    leaves = [Tensor(x, requires_grad=True) if getattr(x, "dtype", np.dtype(int)).kind == "f" else x for x in inputs]
    parameters = [p for p in owner_of(f).parameters() if p.requires_grad]
    y = f(*leaves)
    wanted = [x for x in leaves if isinstance(x, Tensor)] + parameters
    cotangent = rng.standard_normal(y.shape).astype(y.dtype)
    return [y.data, *grad(y, wanted, to_device(cotangent, y.device))]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_a_layer_has_the_numbers_of_the_cpu(layer: type[nn.Module]) -> None:
    for f, inputs in draw_specimens(layer, np.random.default_rng(0), 1):
        expected = run(f, inputs, np.random.default_rng(1))
        owner_of(f.f).to("cuda")
        for kinds in ("f", "fiub"):  # ids and masks as NumPy arrays, then on the GPU
            given = [to_device(x, "cuda") if isinstance(x, np.ndarray) and x.dtype.kind in kinds else x for x in inputs]
            for one, other in zip(run(f, tuple(given), np.random.default_rng(1)), expected, strict=True):
                close(one, other)
        owner_of(f.f).cpu()
        again = run(f, inputs, np.random.default_rng(1))
        assert [x.tobytes() for x in again] == [x.tobytes() for x in expected], "moving there and back changes nothing"


def test_rewards_are_those_of_the_cpu_for_a_reference_that_is_a_numpy_array() -> None:
    model = PreferenceGPT(GPTConfig(**GPT_SIZES), seed=0).astype(np.float64)
    tokens, targets, reference = model.example_batch(Draw(np.random.default_rng(0)))
    expected = model.rewards(tokens, targets, reference).data
    close(model.to("cuda").rewards(tokens, targets, reference).data, expected)


# Training


def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 11, (4, 9))
    return tokens[:, :-1], tokens[:, 1:]


def trainer(device: str, **changes: Any) -> Trainer:
    model = GPT(GPTConfig(**GPT_SIZES, dropout=0.1), seed=0).astype(np.float64).to(device)
    return Trainer(model, TrainConfig(**{**dict(steps=20, learning_rate=1e-2, workers=1), **changes}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_ten_training_steps_have_the_numbers_of_the_cpu_and_wait_for_the_loss_and_the_norm_only(optimizer: str) -> None:
    cpu, cuda = [trainer(device, accumulate=2, optimizer=optimizer) for device in ("cpu", "cuda")]
    for step in range(10):
        expected = cpu.step(*batches(step))
        before = strict_cupy.state.waits
        assert cuda.step(*batches(step)) == pytest.approx(expected, rel=1e-10)
        assert strict_cupy.state.waits - before <= 3  # the losses of two pieces, and the norm
    for name, array in cuda.state_dict().items():
        np.testing.assert_allclose(array, cpu.state_dict()[name], rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_begun_on_one_device_goes_on_on_the_other(first: str, second: str, optimizer: str) -> None:
    begun, whole = [trainer(first, optimizer=optimizer) for _ in range(2)]
    for step in range(3):
        begun.step(*batches(step))
        whole.step(*batches(step))
    state = begun.state_dict()
    assert all(type(array) is np.ndarray for array in state.values())
    resumed = trainer(second, optimizer=optimizer)
    resumed.load_state_dict(state)
    for step in range(3, 6):
        assert resumed.step(*batches(step)) == pytest.approx(whole.step(*batches(step)), rel=1e-9)


def test_a_trainer_on_a_gpu_has_one_worker_and_moves_the_numbers_of_a_batch() -> None:
    with pytest.raises(DeviceError, match="workers is 2, but a model on a GPU has one worker"):
        trainer("cuda", workers=2)
    with pytest.raises(DeviceError, match="processes is True, but .* has one worker; set processes to False"):
        trainer("cuda", workers=1, processes=True)
    assert str(trainer("cuda", workers=0).workers) == "1 thread"
    model = Line().to("cuda")
    assert Trainer(model, TrainConfig(steps=1)).step(np.ones((12, 1), np.float32), np.ones((12, 1), np.float32)) == 1


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_off_unless_the_config_allows_it(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPY_TF32", "1")
    trainer("cuda", allow_tf32=allowed)
    trainer("cuda", allow_tf32=allowed)
    assert os.environ["CUPY_TF32"] == str(int(allowed))
    with pytest.raises(DeviceError, match=f"allow_tf32 is {not allowed}, but .* first trainer .* start a new process"):
        trainer("cuda", allow_tf32=not allowed)
    assert os.environ["CUPY_TF32"] == str(int(allowed))


class Line(nn.Module):
    def __init__(self) -> None:
        self.inner = nn.Linear(1, 1, std=0.0)

    def loss(self, x: Any, y: Any) -> Tensor:
        return ops.mse(self.inner(x), y)


def test_the_optimizers_and_clipping_have_the_numbers_of_the_cpu() -> None:
    for make in (lambda p: nanograd_llm.training.AdamW(p), lambda p: SGD(p, momentum=0.9, weight_decay=0.1)):
        results = []
        for device in ("cpu", "cuda"):
            parameters = [nanograd_llm.Parameter(np.full(shape, 2.0), device=device) for shape in ((2, 3), (3,))]
            optimizer = make(parameters)
            for step in range(3):
                gradients = [to_device(np.full(p.shape, step + 0.5), device) for p in parameters]
                norm = clip_by_global_norm(gradients, 1.0)
                optimizer.step(gradients, 0.1)
            results.append([norm, *(p.numpy() for p in parameters)])
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_recomputed_activations_and_adapters_train_on_a_gpu() -> None:
    losses = []
    for device in ("cpu", "cuda"):
        model = GPT(GPTConfig(**GPT_SIZES, recompute_activations=True, dropout=0.1), seed=0).to(device)
        nn.lora.add(model, rank=2, rng=np.random.default_rng(0))
        trained = Trainer(model, TrainConfig(steps=9, workers=1))
        losses.append([trained.step(*batches(step)) for step in range(2)])
        nn.lora.merge(model)
        assert {p.device for p in model.parameters()} == {device}
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Use


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(seed=3, top_k=5, top_p=0.9)], ids=["greedy", "drawn"]
)
def test_a_model_on_a_gpu_writes_the_same_text(cache: bool, sampling: Sampling) -> None:
    model = GPT(GPTConfig(**GPT_SIZES), seed=0).astype(np.float64)
    arguments: dict[str, Any] = {"max_new_tokens": 12, "sampling": sampling, "cache": cache}
    expected = generate(model, [[1, 2, 3], [4]], **arguments)
    assert generate(model.to("cuda"), [[1, 2, 3], [4]], **arguments) == expected


@pytest.mark.parametrize("cache", [True, False])
def test_a_translation_on_a_gpu_is_the_same(cache: bool) -> None:
    sizes = {**GPT_SIZES, "n_layer": 1}
    model = EncoderDecoder(EncoderDecoderConfig(**sizes, start_id=1, end_id=2), seed=3).astype(np.float64)
    sources = [[3, 4, 5], [6, 7]]
    expected = translate(model, sources, search=BeamSearch(beam=3), cache=cache)
    assert translate(model.to("cuda"), sources, search=BeamSearch(beam=3), cache=cache) == expected


def test_encoders_give_numpy_arrays_of_the_same_numbers() -> None:
    texts = [[1, 2, 3], [4, 5], [6]]
    bert = BERT(BERTConfig(**GPT_SIZES), seed=0).astype(np.float64)
    classifier = Classifier.on(GPT(GPTConfig(**GPT_SIZES), seed=0), 3).astype(np.float64).eval()
    for model, use in ((SentenceEncoder(bert), "embed"), (classifier, "probabilities")):
        expected = getattr(model, use)(texts)
        np.testing.assert_allclose(getattr(model.to("cuda"), use)(texts), expected, rtol=1e-9)
    hidden = np.array([[True, False, True]])
    expected = hidden_logits(bert.cpu(), np.array([[1, 2, 3]]), hidden)
    np.testing.assert_allclose(hidden_logits(bert.to("cuda"), np.array([[1, 2, 3]]), hidden), expected, rtol=1e-9)
    looked = bert.cpu().look(np.array([[1, 2]]))
    for one, other in zip(bert.to("cuda").look(np.array([[1, 2]])).hidden_states, looked.hidden_states, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_weights_are_loaded_onto_the_gpu_and_saved_from_it() -> None:
    model = GPT(GPTConfig(**GPT_SIZES), seed=5)
    arrays = model.state_dict()
    for assign in (False, True):
        with use_device("cuda"):
            other = GPT(GPTConfig(**GPT_SIZES), seed=None if assign else 1)
        assert {p.device for p in other.parameters()} == {"cuda"}
        assert not assign or other.wte.data.strides == (0, 0), "before it is loaded, a table uses no memory"
        other.load_state_dict(arrays, assign=assign)
        assert {p.device for p in other.parameters()} == {"cuda"}
        saved = other.state_dict()
        assert {name: array.tobytes() for name, array in saved.items()} == {
            name: array.tobytes() for name, array in arrays.items()
        }


def test_pretrained_models_and_adapters_are_loaded_and_saved_on_a_gpu(tmp_path: Path) -> None:
    config = GPTConfig(**{**GPT_SIZES, "vocab_size": 50257})
    model = nn.lora.add(GPT(config, seed=5), rank=2, rng=np.random.default_rng(0))
    for adapter in nn.lora.adapted(model).values():
        adapter.adapter.B.data[...] = 0.5
    logits = model(np.array([[1, 2, 3]])).data
    model.to("cuda")
    nanograd_llm.save_lora(model, tmp_path / "adapter")
    with nn.lora.off(model):
        base = GPT(config, seed=5).to("cuda")
        nanograd_llm.save_gpt2(base, tmp_path / "gpt2")
    with use_device("cuda"):
        loaded = nanograd_llm.load_gpt2(tmp_path / "gpt2")
        nanograd_llm.load_lora(loaded, tmp_path / "adapter")
    assert {p.device for p in loaded.parameters()} == {"cuda"}
    close(loaded(np.array([[1, 2, 3]])).data, logits, 1e-5)


# A slip is found


def planted(function: Callable[..., Any], *, gradients: bool = False) -> Callable[..., Any]:
    """The function with a bare array of NumPy in its result, or in each gradient that it returns."""

    def slip(y: Any) -> Any:
        return None if y is None else y + np.empty((1,) * max(1, y.ndim)) * 0

    @functools.wraps(function)
    def changed(*args: Any, **options: Any) -> Any:
        y = function(*args, **options)
        if gradients:
            return tuple(map(slip, y if isinstance(y, (tuple, list)) else (y,)))
        return Kept((slip(y[0]), y[1])) if type(y) is Kept else slip(y)

    return changed


@pytest.mark.parametrize("part", ["forward", "rule"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_bare_array_of_numpy_in_an_op_is_found(op: Op, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, part, planted(getattr(op, part), gradients=part == "rule"))
    with pytest.raises((NanogradError, TypeError), match="Unsupported type|on cuda|on cpu"):
        test_an_op_has_the_numbers_of_the_cpu_forward_backward_and_at_second_order(op)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_a_bare_array_of_numpy_in_a_layer_is_found(layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    for part in {"forward", "loss"} & {*vars(layer)}:
        monkeypatch.setattr(layer, part, planted(getattr(layer, part)))
    with pytest.raises((NanogradError, TypeError), match="Unsupported type|on cuda|on cpu"):
        test_a_layer_has_the_numbers_of_the_cpu(layer)


# The kernels


class Kernel:
    """In place of a kernel of CuPy: it computes nothing, but is strict about how many arguments it is called with."""

    def __init__(self, declared: int, used: list[str], name: str):
        self.declared, self.used, self.name = declared, used, name

    def __call__(self, *arguments: Any) -> None:
        if len(arguments) == 3 and isinstance(arguments[2], tuple):  # blocks, threads, arguments of a raw kernel
            arguments = arguments[2]
        assert len(arguments) == self.declared, f"{self.name} declares {self.declared} arguments, not {len(arguments)}"
        self.used.append(self.name)


@pytest.fixture
def used(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were called."""
    found: list[str] = []

    class RawModule:
        def __init__(self, code: str):
            self.code = code

        def get_function(self, name: str) -> Kernel:
            (declared,) = re.findall(rf"__global__ void {name}\((.*?)\)", self.code, re.S)
            return Kernel(declared.count(",") + 1, found, name)

    def elementwise(inputs: str, outputs: str, code: str, name: str) -> Kernel:
        return Kernel(len(inputs.split(",")) + len(outputs.split(",")), found, name)

    monkeypatch.setattr(kernels, "_product", lambda a, b, scale=1.0, add_to=None: a @ b if add_to is None else add_to)
    monkeypatch.setattr(gpu, "RawModule", RawModule, raising=False)
    monkeypatch.setattr(gpu, "ElementwiseKernel", elementwise, raising=False)
    return found


def test_every_kernel_is_called_with_the_arguments_that_it_declares(used: list[str]) -> None:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return Tensor(to_device(rng.standard_normal(shape).astype(np.float32), "cuda"), requires_grad=True)

    x, qkv, targets = array(2, 6, 8), array(2, 6, 24), to_device(np.zeros((2, 6), int), "cuda")
    for y in (
        ops.gelu(x),
        ops.layernorm(x, array(8), array(8)),
        ops.dropout(x, rate=0.5, seed=0),
        ops.cross_entropy(x, targets),
        ops.linear_cross_entropy(x, array(11, 8), targets),
        ops.multi_head_attention(qkv, n_head=2, causal=True),
    ):
        y.sum().backward()
    model = GPT(GPTConfig(**GPT_SIZES), seed=0).to("cuda")
    optimizer = AdamW(model.parameters())
    optimizer.step([p.data for p in model.parameters()], 1e-3)
    caches = model.eval().new_caches(1)
    model.next_logits(np.array([[1, 2]]), caches)
    Decoder(model, caches)(np.array([3]))
    names = {name for name in re.findall(r"__global__ void (\w+)\(", kernels.SOURCE)} | {"gelu_and_slope", "adamw"}
    assert names - set(used) == set()
