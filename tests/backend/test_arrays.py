"""Arrays move between devices, operands on two are refused, and where no GPU can be used one line says what to do."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import strict_cupy

import nanograd_llm as ng
from nanograd_llm import GPT, GPTConfig, Parameter, Tensor, nn, ops, use_device
from nanograd_llm.backend import arrays
from nanograd_llm.backend.arrays import SCALARS_WIDEN, beside, device_of, library, to_device, to_host, xp
from nanograd_llm.errors import DeviceError, DtypeError, GraphError, IndexRangeError

SMALL: Any = dict(vocab_size=11, context_length=8, n_layer=1, n_head=2, n_embd=4)
needs_numpy_2 = pytest.mark.skipif(SCALARS_WIDEN, reason="CuPy needs NumPy 2")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if SCALARS_WIDEN:
        pytest.skip("CuPy needs NumPy 2")
    return strict_cupy.installed(monkeypatch)


@pytest.fixture
def x(gpu: ModuleType) -> Tensor:
    return Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True, device="cuda")


# Moving


def test_an_array_goes_to_the_gpu_and_back(gpu: ModuleType) -> None:
    x = np.arange(3.0)
    on_gpu = to_device(x, "cuda")
    assert (device_of(x), device_of(on_gpu), xp(on_gpu)) == ("cpu", "cuda", gpu)
    assert to_device(on_gpu, "cuda") is on_gpu and to_host(x) is x
    np.testing.assert_array_equal(to_host(on_gpu), x)
    assert device_of(beside([1, 2], on_gpu)) == "cuda"
    with pytest.raises(DeviceError, match="is on cuda, and the one .* on cpu"):
        beside(on_gpu, x)


def test_a_tensor_goes_to_the_gpu_and_back(x: Tensor) -> None:
    assert (x.device, x.dtype, x.requires_grad, x.to("cuda")) == ("cuda", np.float32, True, x)
    y = x.cpu()
    assert (y.device, y.requires_grad, type(y.data)) == ("cpu", True, np.ndarray)
    np.testing.assert_array_equal(x.numpy(), [[1, 2], [3, 4]])
    assert type(Parameter([1.0]).to("cuda")) is Parameter
    assert repr(x.detach()) == "Tensor([[1., 2.],\n        [3., 4.]], shape=(2, 2), float32, on a GPU)"
    with pytest.raises(GraphError, match=r"move the leaf, or use \.detach\(\)\.to\(device\)"):
        (x * 2).cpu()


def test_numpy_refuses_a_tensor_that_is_on_a_gpu(x: Tensor) -> None:
    with pytest.raises(DeviceError, match=r"tensor\.numpy\(\)"):
        np.asarray(x.detach())
    assert np.shape(x) == (2, 2)


def test_new_tensors_and_models_are_on_the_chosen_device(gpu: ModuleType) -> None:
    with use_device("cuda"):
        assert Tensor([1.0]).device == Tensor(np.ones(2)).device == "cuda"
        assert Tensor([1.0], device="cpu").device == "cpu"
        model = GPT(GPTConfig(**SMALL))
        assert {p.device for p in model.parameters()} == {"cuda"}
    assert Tensor([1.0]).device == "cpu"
    use_device("cuda")
    assert ng.Tensor(3.0).device == "cuda"


def test_a_module_moves_with_its_gradients_buffers_and_shared_parameters(gpu: ModuleType) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            self.one = Parameter([1.0])
            self.two = self.one
            self.register_buffer("mean", np.ones(3))

    model = Tied()
    model.one.grad = np.ones(1, np.float32)
    assert model.to("cuda") is model and model.one is model.two
    assert model.one.device == device_of(model.one.grad) == device_of(model.mean) == "cuda"
    assert [type(array) for array in model.state_dict().values()] == [np.ndarray] * 2
    model.load_state_dict({"one": np.array([2.0], np.float32), "mean": np.array([1.0, 2.0, 3.0])})
    assert (model.one.tolist(), model.mean.tolist(), device_of(model.mean)) == ([2.0], [1.0, 2.0, 3.0], "cuda")
    assert device_of(model.cpu().one.data) == "cpu"


def test_a_gpu_has_no_long_doubles(gpu: ModuleType) -> None:
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(DtypeError, match="a GPU has no "):
            to_device(np.ones(2, np.longdouble), "cuda")


# Operands


def test_operands_on_two_devices_are_an_error_that_names_the_op_and_both(x: Tensor) -> None:
    for other in (Tensor([1.0, 2.0]), np.ones(2, np.float32)):
        with pytest.raises(DeviceError, match=r"multiply got a \(2, 2\) on cuda, b \(2,\) on cpu; move one"):
            x * other
    with pytest.raises(DeviceError, match=r"concatenate got xs \(2, 2\) on cuda, xs \(2, 2\) on cpu"):
        ops.concatenate(x, np.ones((2, 2), np.float32))
    with pytest.raises(DeviceError, match="the cotangent is on cpu, this Tensor on cuda"):
        (x * 1).backward(np.ones((2, 2), np.float32))
    with pytest.raises(DeviceError, match="embedding got w .* on cpu, ids .* on cuda"):
        ops.embedding(Tensor([[1.0]]), to_device(np.array([0]), "cuda"))


def test_numbers_lists_and_arrays_without_axes_take_the_device_of_the_other_operand(x: Tensor) -> None:
    for other in (2, 2.0, np.float64(2), np.array(2.0, np.float32), [2.0, 2.0]):
        y = x * other
        assert (y.device, y.dtype) == ("cuda", np.float32)
        np.testing.assert_array_equal(y.numpy(), [[2, 4], [6, 8]])
    (x * 1).backward([[1.0, 2.0], [3.0, 4.0]])
    assert device_of(x.grad) == "cuda"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ids_that_are_out_of_range_are_refused_on_a_gpu_too(device: str, gpu: ModuleType) -> None:
    w = Tensor(np.ones((5, 2)), requires_grad=True, device="cuda")
    for ids in ([5], [-1]):
        with pytest.raises(IndexRangeError, match="token ids must be from 0 to 4"):
            ops.embedding(w, to_device(np.array(ids), device))
        with pytest.raises(IndexRangeError, match="target ids must be from 0 to 1"):
            ops.cross_entropy(w[:1], to_device(np.array(ids), device))
    with pytest.raises(IndexRangeError, match="index 5 is out of bounds"):
        w[to_device(np.array([5]), device)]
    with pytest.raises(IndexRangeError, match="boolean index did not match"):
        w[to_device(np.ones(4, bool), device)]
    for one in (np.array(7), np.array(-6)):
        with pytest.raises(IndexRangeError, match="out of bounds"):
            w[to_device(one, device)]
        with pytest.raises(IndexRangeError, match="out of bounds"):
            w[:, to_device(one, device)]
    np.testing.assert_array_equal(w[to_device(np.array([-1, 0]), device)].numpy(), np.ones((2, 2)))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("one", [1, -1, True, False])
def test_an_index_without_axes_selects_on_a_gpu_what_it_selects_on_the_cpu(
    one: int, device: str, gpu: ModuleType
) -> None:
    """one: integers and booleans as arrays without axes."""
    index = np.array(one)
    uses: list[Any] = [lambda w, i: w[i], lambda w, i: w[:, i], lambda w, i: w[Tensor(i)]]
    for use in uses if type(one) is bool else [*uses, lambda w, i: ops.take(w, i, 1)]:
        w, here = (Tensor(np.arange(8.0).reshape(4, 2), requires_grad=True, device=d) for d in ("cuda", "cpu"))
        y, expected = use(w, to_device(index, device)), use(here, index)
        np.testing.assert_array_equal(y.numpy(), expected.numpy())
        for result in (y, expected):
            result.sum().backward()
        np.testing.assert_array_equal(to_host(w.grad), here.grad)


def test_ids_given_as_numpy_arrays_are_checked_without_waiting_for_the_gpu(gpu: ModuleType) -> None:
    model = GPT(GPTConfig(**SMALL)).to("cuda")
    tokens, targets = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[2, -100, 4], [5, -100, -100]])
    before = strict_cupy.state.waits
    model.loss(tokens, targets).backward()
    assert strict_cupy.state.waits == before


# Where no GPU can be used


def break_cupy(monkeypatch: pytest.MonkeyPatch, error: Exception | None, driver: int | None, built: int = 13) -> None:
    """error: raised by the first computation; None for no CuPy. driver, built: versions of CUDA."""
    if error is None:
        monkeypatch.setitem(sys.modules, "cupy", None)
    else:
        made = strict_cupy.module()

        def arange(*_: Any) -> None:
            raise error

        made.arange, made.cuda.runtime.runtimeGetVersion = arange, lambda: built * 1000  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setattr(arrays, "_checked", None)
    monkeypatch.setattr(arrays, "driver_cuda", lambda: driver)


NO_DRIVER = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")


@pytest.mark.parametrize(
    ("error", "driver", "built", "expected"),
    [
        (None, None, 13, "CuPy cannot be imported .*; no NVIDIA driver was found: install one"),
        (None, 12, 13, r'the driver supports CUDA 12: pip install "cupy-cuda12x\[ctk\]".*pip install "\.\[cuda12\]"'),
        (None, 13, 13, r'the driver supports CUDA 13: pip install "cupy-cuda13x\[ctk\]".*pip install "\.\[cuda13\]"'),
        (None, 11, 13, "the NVIDIA driver supports CUDA 11: update it"),
        (NO_DRIVER, None, 13, "cudaErrorInsufficientDriver.*; no NVIDIA driver was found"),
        (
            NO_DRIVER,
            12,
            13,
            r"built for CUDA 13, .* supports CUDA 12: pip uninstall cupy-cuda13x, then pip install \"cupy-cuda12x",
        ),
        (RuntimeError("cudaErrorNoDevice"), 13, 12, "NoDevice; .*; else check nvidia-smi and CUDA_VISIBLE_DEVICES"),
        (ImportError("no\nlibnvrtc.so"), 13, 12, r'no libnvrtc\.so; .*pip install "cupy-cuda12x\[ctk\]"'),
    ],
)
def test_without_a_gpu_one_line_says_what_to_do(
    error: Exception | None, driver: int | None, built: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_cupy(monkeypatch, error, driver, built)
    model = GPT(GPTConfig(**SMALL))
    for use in (library, use_device, model.to, nn.Sequential(ops.relu).to, lambda device: Tensor([1.0], device=device)):
        with pytest.raises(DeviceError, match=expected) as raised:
            use("cuda")
        assert "\n" not in str(raised.value)
    assert {p.device for p in model.parameters()} == {"cpu"} and Tensor([1.0]).device == "cpu"


def test_another_device_is_refused() -> None:
    with pytest.raises(DeviceError, match="device is 'gpu'; choose cpu or cuda"):
        use_device("gpu")


def test_a_gpu_without_memory_is_one_line_that_names_the_op(x: Tensor) -> None:
    wide = Tensor(np.ones((2, 20), np.float32), device="cuda")
    strict_cupy.state.limit = 100
    with pytest.raises(DeviceError, match=r"matmul got .*: the GPU is out of memory: .*; a smaller batch") as raised:
        x @ wide
    assert "\n" not in str(raised.value)
    with pytest.raises(DeviceError, match="moving .* MiB to the GPU: the GPU is out of memory"):
        Tensor(np.ones(1000), device="cuda")


def test_importing_the_package_does_not_import_cupy() -> None:
    code = """
import sys

class Watch:
    @staticmethod
    def find_spec(name, *_):
        if name == "cupy":
            sys.exit("cupy was imported")

sys.meta_path.insert(0, Watch)
import nanograd_llm as ng

ng.Tensor([1.0]).sum()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
