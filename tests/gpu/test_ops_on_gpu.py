"""Every op on a GPU: its gradients pass the gradient check there, and its numbers are as exact as the CPU's."""

from __future__ import annotations

import numpy as np
import pytest

import nanograd_llm.models  # noqa: F401  registers all ops
from nanograd_llm import Tensor, nn, ops
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.backend.arrays import device_of, to_device, to_host, use_device
from nanograd_llm.backend.randomness import drop_at_random
from nanograd_llm.errors import DeviceError, IndexRangeError
from nanograd_llm.gradcheck import check_layer, gradcheck
from nanograd_llm.gradcheck.cases.samples import Case, draw_cases, varied
from nanograd_llm.gradcheck.check.promises import case_problems
from nanograd_llm.gradcheck.every_op import check_case
from nanograd_llm.ops import composed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("layer", [nn.Linear, nn.Embedding, nn.LayerNorm, nn.SelfAttention])
def test_the_gradient_check_of_a_layer_passes_and_notices_a_billionth(layer: type[nn.Module]) -> None:
    with use_device("cuda"):
        found = check_layer(layer, order=1, cases=1)
    assert found.passed and found.mutants > 0, found


def test_a_rule_that_is_wrong_on_a_gpu_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, x = ops.softmax.rule, np.linspace(-1, 1, 6).reshape(2, 3)
    assert rule is not None
    monkeypatch.setattr(ops.softmax, "rule", lambda *given: rule(*given) * (1 + 1e-9 * (device_of(given[0]) == "cuda")))
    assert gradcheck(ops.softmax, x).passed
    report = gradcheck(ops.softmax, to_device(x, "cuda"))
    assert [culprit.op for culprit in report.culprits] == ["softmax"], report


DIFFERENTIABLE = [name for name, op in registry.items() if op.rule is not None]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_check_of_an_op_passes_on_the_gpu(name: str) -> None:
    op, rng = registry[name], np.random.default_rng(1)
    with use_device("cuda"):
        for number, case in enumerate(draw_cases(op, rng, 3)):
            report = check_case(op, case, seed=number, explain=False, seconds=1)
            assert report.passed, f"{case}: {report}"
            assert case_problems(op, varied(op, case, rng), seed=number) == []


def results(op: Op, case: Case, device: str, dtype: str) -> list[np.ndarray]:
    """The output of an op, and the gradient of each input, for a cotangent that is random."""
    case = case.astype(dtype)
    inputs = [
        Tensor(x, requires_grad=i not in op._constant_places and x.dtype.kind == "f", device=device)
        if isinstance(x, np.ndarray)
        else x
        for i, x in enumerate(case.inputs)
    ]
    y = op(*inputs, **case.static)
    found = [y.numpy()]
    if y.requires_grad:
        y.backward(to_device(np.random.default_rng(2).standard_normal(y.shape).astype(y.dtype), device))
        found += [x.grad for x in inputs if isinstance(x, Tensor) and x.grad is not None]
    return [to_host(array) for array in found]


def require_as_exact(found: list[np.ndarray], like: list[np.ndarray], exact: list[np.ndarray], what: str) -> None:
    """Each array is about as near to the exact one as that of the CPU is."""
    assert len(found) == len(like) == len(exact)
    for gpu, cpu, right in zip(found, like, exact):
        assert gpu.shape == cpu.shape and gpu.dtype == cpu.dtype, what
        is_finite = np.isfinite(right)
        np.testing.assert_array_equal(np.isfinite(gpu), np.isfinite(cpu), err_msg=what)
        if gpu.dtype.kind == "f" and is_finite.any():
            size = np.abs(right[is_finite]).max() + 1e-30
            error, usual = (np.abs(x - right)[is_finite].max() / size for x in (gpu, cpu))
            assert error <= 4 * usual + 30 * np.finfo(gpu.dtype).eps, f"{what}: {error:.1e}, the CPU's is {usual:.1e}"
        else:
            np.testing.assert_array_equal(gpu, cpu, err_msg=what)


@pytest.mark.parametrize("name", registry)
def test_an_op_is_as_exact_in_float32_as_on_the_cpu(name: str) -> None:
    op = registry[name]
    for case in draw_cases(op, np.random.default_rng(3), 8):
        exact, cpu = results(op, case, "cpu", "float64"), results(op, case, "cpu", "float32")
        require_as_exact(results(op, case, "cuda", "float32"), cpu, exact, str(case))


LARGE = {
    "attention": ([(2, 3, 600, 16)] * 3, {"causal": True}),
    "attention with dropout": ([(2, 300, 8)] * 3, {"causal": False, "dropout": 0.2, "seed": (1, 2)}),
    "multi_head_attention": ([(2, 520, 96)], {"n_head": 2, "causal": True}),
    "multi_head_attention of one head": ([(3, 40, 24)], {"n_head": 1, "causal": True}),
    "layernorm": ([(3, 50, 768), (768,), (768,)], {}),
    "gelu": ([(300, 77)], {}),
    "softmax": ([(7, 5000)], {}),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_fused_op_is_exact_on_large_inputs(name: str, rng: np.random.Generator) -> None:
    (shapes, static), op = LARGE[name], registry[name.partition(" ")[0]]
    case = Case(tuple(rng.standard_normal(shape) for shape in shapes), static)
    cpu, exact = results(op, case, "cpu", "float32"), results(op, case, "cpu", "float64")
    require_as_exact(results(op, case, "cuda", "float32"), cpu, exact, name)


def test_layernorm_is_exact_beside_an_offset_of_10_000(rng: np.random.Generator) -> None:
    case = Case((rng.standard_normal((50, 768)) + 10_000, rng.standard_normal(768), rng.standard_normal(768)), {})
    case = case.astype("float32")
    cpu, exact = results(ops.layernorm, case, "cpu", "float32"), results(ops.layernorm, case, "cpu", "float64")
    require_as_exact(results(ops.layernorm, case, "cuda", "float32"), cpu, exact, "")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy_is_exact_for_a_large_vocabulary(smoothing: float, rng: np.random.Generator) -> None:
    x, w, targets = rng.standard_normal((40, 24)), rng.standard_normal((50257, 24)), rng.integers(50257, size=40)
    targets[3] = -100
    case = Case((x, w, targets), {"label_smoothing": smoothing})
    cpu, exact = (results(ops.linear_cross_entropy, case, "cpu", dtype) for dtype in ("float32", "float64"))
    require_as_exact(results(ops.linear_cross_entropy, case, "cuda", "float32"), cpu, exact, "")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 8, 100_003])
def test_masks_of_dropout_are_those_of_the_cpu_bit_for_bit(size: int, dtype: str) -> None:
    here, there = np.empty(size, dtype), to_device(np.empty(size, dtype), "cuda")
    for mask in (here, there):
        drop_at_random(mask, (2**64 - 1, 3, 0, 1), 0.1)
    np.testing.assert_array_equal(to_host(there), here)
    like = Tensor(np.zeros((4, size), dtype), device="cuda")
    np.testing.assert_array_equal(
        to_host(composed.dropout_mask((4, size), like, 0.3, (5,))),
        composed.dropout_mask((4, size), np.zeros((), dtype), 0.3, (5,)),
    )


def test_the_gradient_of_an_embedding_has_the_same_bits_every_time(rng: np.random.Generator) -> None:
    table = Tensor(rng.standard_normal((50, 64)).astype("float32"), requires_grad=True, device="cuda")
    ids, cotangent = rng.integers(50, size=(40, 500)), rng.standard_normal((40, 500, 64)).astype("float32")
    found = set()
    for _ in range(5):
        table.grad = None
        ops.embedding(table, ids).backward(to_device(cotangent, "cuda"))
        found.add(to_host(table.grad).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("bad", [-1, 10])
def test_an_id_outside_the_vocabulary_is_refused(bad: int) -> None:
    layer = nn.Embedding(10, 4).to("cuda")
    with pytest.raises(IndexRangeError, match=str(bad)):
        layer(np.array([1, bad]))
    logits = Tensor(np.zeros((2, 10), "float32"), device="cuda")
    with pytest.raises(IndexRangeError, match=str(bad)):
        ops.cross_entropy(logits, np.array([1, bad]))


def test_operands_on_two_devices_are_an_error_that_names_the_op_and_both() -> None:
    here, there = Tensor(np.ones(3)), Tensor(np.ones(3), device="cuda")
    with pytest.raises(DeviceError, match="multiply.*(cpu.*cuda|cuda.*cpu)"):
        here * there


def test_too_little_memory_is_one_clear_line() -> None:
    x = Tensor(np.ones(2**21, "float32"), device="cuda")
    with pytest.raises(DeviceError, match="out of memory") as caught:
        x.reshape((-1, 1)) * x
    assert "\n" not in str(caught.value)
