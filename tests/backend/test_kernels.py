"""What of the kernels can be tested without a GPU: how matrices are passed to cuBLAS, and that each kernel is used.

The kernels themselves are compared with NumPy in tests/gpu.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nanograd_llm
from nanograd_llm.backend import kernels

X = np.arange(2 * 3 * 8 * 5.0).reshape(2, 3, 8, 5)
MATRICES = {
    "contiguous": X,
    "transposed": X.swapaxes(-1, -2),
    "some rows": X[..., 2:6, :],
    "some columns, transposed": X[..., 1:4].swapaxes(-1, -2),
    "heads of (B, T, H, D)": X.reshape(2, 8, 3, 5).transpose(0, 2, 1, 3),
    "one head": np.arange(2 * 8 * 5.0).reshape(2, 8, 1, 5).transpose(0, 2, 1, 3),
    "one row": X[..., 3:4, :],
    "one row, transposed": X[..., 3:4, :].swapaxes(-1, -2),
    "one column": X[..., 2:3],
    "one number": X[:1, :1, 3:4, 2:3],
    "broadcast": np.broadcast_to(X[0, 0], (2, 3, 8, 5)),
    "every other column": X[..., ::2],
    "backwards": X[..., ::-1, :],
    "two axes": X[0, 0].T,
}


@pytest.mark.parametrize("name", MATRICES)
def test_cublas_reads_the_matrices_that_it_is_given(name: str) -> None:
    wanted = MATRICES[name]
    x, is_turned, across, step = kernels.as_cublas(wanted)
    rows, columns = wanted.shape[-2:]
    assert across >= (rows if is_turned else columns)
    first = x.__array_interface__["data"][0]
    memory = {first + x.itemsize * i: value for i, value in _elements(x)}
    count = wanted.size // (rows * columns)
    for number, matrix in enumerate(wanted.reshape(count, rows, columns)):
        for i in range(rows):
            for j in range(columns):
                place = number * step + (j * across + i if is_turned else i * across + j)
                assert memory[first + x.itemsize * place] == matrix[i, j]


def _elements(x: np.ndarray) -> list[tuple[int, float]]:
    """Each element, by its distance in memory from the first."""
    steps = [step // x.itemsize for step in x.strides]
    return [(int(np.dot(index, steps)), value) for index, value in np.ndenumerate(x)]


def test_every_kernel_has_a_function_that_it_computes() -> None:
    package = Path(nanograd_llm.__path__[0])
    text = "".join(path.read_text("utf-8") for path in package.rglob("*.py"))
    assert [name for name in kernels.KERNELS if f"@on_gpu\ndef {name}(" not in text] == []
    assert text.count("@on_gpu\ndef ") == len(kernels.KERNELS)


def test_a_function_without_a_kernel_cannot_be_marked() -> None:
    def nonsense(x: np.ndarray) -> np.ndarray:
        return x

    with pytest.raises(KeyError, match="nonsense"):
        kernels.on_gpu(nonsense)
