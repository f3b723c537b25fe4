"""A Tensor behaves like its array: construction, operators with every operand, comparison, indexing, repr."""

from __future__ import annotations

import copy
import operator
import pickle
import re

import numpy as np
import pytest

import nanograd_llm
from nanograd_llm import Parameter, Tensor, grad, hessian, hvp, jacobian, nn, no_grad, ops, value_and_grad
from nanograd_llm.autograd import tensor
from nanograd_llm.errors import DtypeError, GraphError, IndexRangeError, NanogradError, ShapeError, SignatureError

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]


def leaf(values, dtype=np.float32):
    return Tensor(np.array(values, dtype=dtype), requires_grad=True)


# Construction


@pytest.mark.parametrize("data", [1.5, [1.5, 2.5], [[1.5], [2.5]], (1.5,), []])
def test_python_floats_become_float32(data):
    assert Tensor(data).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_, np.complex128])
def test_arrays_and_numpy_scalars_keep_their_dtype(dtype):
    assert Tensor(np.ones(2, dtype)).dtype == dtype
    assert Tensor(np.ones((), dtype)[()]).dtype == dtype


def test_an_array_is_held_without_a_copy():
    array = np.ones(3, np.float32)
    assert Tensor(array).data is array
    assert Tensor(Tensor(array)).data is array


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # NumPy's warning about np.matrix
def test_an_np_matrix_becomes_a_plain_array():
    data = Tensor(np.matrix([[1.0, 2.0]])).data
    assert type(data) is np.ndarray
    np.testing.assert_array_equal(data * data, [[1, 4]])


@pytest.mark.parametrize(
    "data", ["abc", ["a", "b"], None, object(), [None, 1.0], np.array(["a"]), np.array([object()]), {1, 2}, 10**400]
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_anything_but_numbers_is_refused(data, requires_grad):
    with pytest.raises(DtypeError, match="a Tensor holds numbers; got dtype"):
        Tensor(data, requires_grad=requires_grad)


def test_a_ragged_list_is_refused():
    with pytest.raises(ShapeError, match="a rectangular array"):
        Tensor([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("data", [1, True, [1, 2], np.array([1]), np.array([True]), np.array([1j]), np.int64(3)])
def test_integers_booleans_and_complex_numbers_cannot_require_a_gradient(data):
    with pytest.raises(DtypeError, match="only float data can require a gradient; got"):
        Tensor(data, requires_grad=True)
    with pytest.raises(DtypeError):
        Parameter(data)


def test_requires_grad_set_on_integers_afterwards_is_refused_by_backward():
    x = Tensor([1, 2])
    x.requires_grad = True
    with pytest.raises(DtypeError, match="a leaf of dtype int64 has requires_grad set"):
        (x * np.float64(1.5)).sum().backward()
    assert x.grad is None


def test_a_parameter_is_a_leaf_that_requires_a_gradient():
    p = Parameter([1.0, 2.0])
    assert (p.requires_grad, p.is_leaf, p.dtype, p.grad) == (True, True, np.float32, None)
    assert not (p * 2).is_leaf


def test_shape_ndim_size_and_dtype_are_those_of_the_array():
    x = Tensor(np.zeros((2, 0, 3), np.float64))
    assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 0, 3), 3, 0, np.float64)


# Operators

OPERANDS = {
    "Tensor": Tensor([0.5, 1.5, 2.0]),
    "leaf": leaf([0.5, 1.5, 2.0]),
    "ndarray": np.array([0.5, 1.5, 2.0], np.float32),
    "column": np.array([[0.5], [1.5]], np.float32),
    "list": [0.5, 1.5, 2.0],
    "tuple": (0.5, 1.5, 2.0),
    "list of int": [1, 2, 3],
    "int": 2,
    "float": 1.5,
    "bool": True,
    "float32 scalar": np.float32(1.5),
    "float64 scalar": np.float64(1.5),
    "int64 scalar": np.int64(2),
    "bool scalar": np.bool_(True),
    "0-d array": np.array(1.5, np.float32),
}


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("shape", [(2, 3), ()])
@pytest.mark.parametrize("side", ["left", "right"])
def test_operators_accept_every_kind_of_operand_on_both_sides_and_stay_float32(name, arithmetic, shape, side, rng):
    x = leaf(rng.uniform(0.5, 2.0, shape))
    operand = OPERANDS[name]
    plain = np.asarray(operand.data if isinstance(operand, Tensor) else operand, dtype=np.float32)
    y = arithmetic(operand, x) if side == "left" else arithmetic(x, operand)
    as_tensors = arithmetic(Tensor(plain), x) if side == "left" else arithmetic(x, Tensor(plain))
    expected = arithmetic(plain, x.data) if side == "left" else arithmetic(x.data, plain)

    assert type(y) is Tensor and type(y.data) is np.ndarray
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.data, expected, rtol=2e-7)
    cotangent = rng.standard_normal(y.shape).astype(np.float32)
    gradient = grad(y, x, cotangent)
    assert gradient.dtype == np.float32 and gradient.shape == shape
    np.testing.assert_array_equal(gradient, grad(as_tensors, x, cotangent))


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_both_operands_get_the_gradient_that_differences_give(arithmetic, rng):
    a, b = leaf(rng.uniform(0.5, 2.0, (2, 3)), np.float64), leaf(rng.uniform(0.5, 2.0, 3), np.float64)
    cotangent = rng.standard_normal((2, 3))
    along_a, along_b = rng.standard_normal((2, 3)), rng.standard_normal(3)
    da, db = grad(arithmetic(a, b), [a, b], cotangent)
    h = 1e-6

    def moved(step):
        return np.sum(cotangent * arithmetic(a.data + step * along_a, b.data + step * along_b))

    slope = (moved(h) - moved(-h)) / (2 * h)
    assert np.sum(da * along_a) + np.sum(db * along_b) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize(
    "operand", [np.ones((3, 2), np.float32), [[1.0, 0.0], [2.0, 1.0], [0.5, 3.0]], Tensor(np.ones(3))]
)
def test_matmul_accepts_every_kind_of_operand_on_both_sides(operand, rng):
    x = leaf(rng.standard_normal((2, 3)))
    plain = np.asarray(operand)
    np.testing.assert_allclose((x @ operand).data, x.data @ plain, rtol=1e-6)
    np.testing.assert_allclose(
        (operand @ x.T).data if plain.ndim == 1 else (plain.T @ x.T).data, plain.T @ x.data.T, rtol=1e-6
    )


def test_a_list_beside_a_float64_tensor_keeps_its_digits():
    x = leaf([1.0, 1.0], np.float64)
    np.testing.assert_array_equal((x * [0.1, 0.2]).data, [0.1, 0.2])
    np.testing.assert_array_equal(grad((x * [0.1, 0.2]).sum(), x), [0.1, 0.2])


def test_a_cotangent_given_as_a_list_keeps_the_digits_of_float64():
    x = leaf([1.0, 1.0], np.float64)
    np.testing.assert_array_equal(grad(x * 1.0, x, [0.1, 0.2]), [0.1, 0.2])


@pytest.mark.parametrize("number", [1, 2**70, -3])
def test_a_large_python_integer_can_be_combined_with_floats(number):
    assert (leaf([1.0]) * number).data[0] == np.float32(number)


def test_a_python_number_does_not_widen_integers():
    counts = Tensor(np.array([1, 2], np.int32))
    assert (counts + 1).dtype == np.int32
    np.testing.assert_array_equal((counts * 2).data, [2, 4])
    np.testing.assert_array_equal((counts * 1.5).data, [1.5, 3.0])


def test_a_list_of_tensors_that_require_a_gradient_is_refused_as_operand():
    with pytest.raises(GraphError, match="NumPy would lose this Tensor's tape"):
        leaf([1.0, 2.0]) * [leaf(1.0), leaf(2.0)]
    np.testing.assert_array_equal((leaf([1.0, 2.0]) * [Tensor(3.0), Tensor(4.0)]).data, [3, 8])


@pytest.mark.parametrize("operand", ["a", ["a"], np.array(["a"]), np.array([object()]), object(), {}, None])
@pytest.mark.parametrize("arithmetic", [*ARITHMETIC, operator.matmul])
def test_an_operand_that_is_not_a_number_is_refused(operand, arithmetic):
    error = ShapeError if operand is None and arithmetic is operator.matmul else DtypeError
    with pytest.raises(error):
        arithmetic(leaf([1.0]), operand)
    with pytest.raises(error):
        arithmetic(operand, leaf([1.0]))


def test_shapes_that_do_not_broadcast_are_refused_with_both_shapes_and_the_shape_line():
    with pytest.raises(ShapeError, match=r"add got \(2,\) float32, \(3,\) float32; it takes a \(\*\), b \(\*\) -> y"):
        leaf([1.0, 2.0]) + leaf([1.0, 2.0, 3.0])


def test_negation_and_absolute_value():
    x = leaf([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal((-x).data, [2, 0, -3])
    np.testing.assert_array_equal(abs(x).data, [2, 0, 3])
    np.testing.assert_array_equal(grad((abs(x) - x).sum(), x), [-2, -1, 0])


def test_an_augmented_assignment_to_a_computed_tensor_gives_a_new_tensor():
    x = leaf([1.0])
    y = computed = 2 * x
    y += 1
    assert y is not computed
    assert computed.data[0] == 2 and y.data[0] == 3
    np.testing.assert_array_equal(grad(y.sum(), x), [2])


UPDATES = [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.imatmul]


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.__name__)
@pytest.mark.parametrize("make", [Parameter, leaf], ids=["Parameter", "leaf"])
def test_an_augmented_assignment_updates_a_leaf_inside_no_grad(make, update):
    x = before = make(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    array, other = x.data, np.array([[2.0, 0.5], [1.0, 3.0]])
    expected = update(array.astype(np.float64), other)
    with no_grad():
        x = update(x, other)
    assert x is before and x.data is array and x.requires_grad
    np.testing.assert_allclose(array, expected, rtol=1e-6)


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.__name__)
def test_an_augmented_assignment_to_a_recorded_leaf_says_how_to_update(update):
    for x in (Parameter(np.eye(2)), leaf(np.eye(2))):
        with pytest.raises(GraphError, match=r"inside no_grad\(\) or use an optimizer"):
            update(x, np.eye(2))
        np.testing.assert_array_equal(x.data, np.eye(2))


def test_an_impossible_update_is_refused():
    p = Parameter(np.ones(2, np.float32))
    with no_grad():
        with pytest.raises(ShapeError, match=r"an update of shape \(3, 2\)"):
            p += np.ones((3, 2))
        with pytest.raises(GraphError, match="cannot be updated in place.*assign its .data"):
            p *= np.array(1j)
        p.data.flags.writeable = False
        with pytest.raises(GraphError, match="read-only; assign its .data"):
            p += 1
    np.testing.assert_array_equal(p.data, [1, 1])


def test_an_augmented_assignment_to_a_constant_gives_a_new_tensor():
    x = total = Tensor([1.0])
    total += leaf([2.0])
    with no_grad():
        y = x
        y += 1
    assert total.requires_grad and y is not x and x.data[0] == 1 and y.data[0] == 2


def test_methods_are_the_ops_of_the_same_name(rng):
    x = leaf(rng.standard_normal((2, 3, 4)))
    d = x.data
    for ours, expected in [
        (x.sum(), d.sum()), (x.sum(1), d.sum(1)), (x.sum(axis=(0, 2), keepdims=True), d.sum((0, 2), keepdims=True)),
        (x.mean(axis=-1), d.mean(-1)), (x.max(0), d.max(0)), (x.reshape(6, 4), d.reshape(6, 4)),
        (x.reshape((4, -1)), d.reshape(4, -1)), (x.reshape(-1), d.reshape(-1)), (x.T, d.T), (x.mT, d.swapaxes(1, 2)),
        (x.transpose(), d.T), (x.transpose(1, 0, 2), d.transpose(1, 0, 2)), (x.transpose(None), d.T),
        (x.transpose([2, 0, 1]), d.transpose(2, 0, 1)), (x.swapaxes(0, 2), d.swapaxes(0, 2)),
        (x.astype("float64"), d.astype("float64")),
    ]:  # fmt: skip
        np.testing.assert_allclose(ours.data, expected, rtol=1e-6)
        assert ours.requires_grad


# Comparisons

COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize(
    "other", [Tensor([2.0, 1.0, 3.0]), np.array([2.0, 1.0, 3.0]), [2.0, 1.0, 3.0], 2, 2.0, np.float32(2)]
)
def test_a_comparison_gives_a_plain_boolean_array_on_both_sides(compare, other):
    x = leaf([1.0, 2.0, 3.0])
    plain = np.asarray(other)
    for found, expected in [(compare(x, other), compare(x.data, plain)), (compare(other, x), compare(plain, x.data))]:
        assert isinstance(found, np.ndarray) and found.dtype == bool
        np.testing.assert_array_equal(found, expected)


def test_tensors_are_hashed_by_identity():
    x, y = leaf([1.0]), leaf([1.0])
    assert len({x, y, x}) == 2
    assert {x: 1}[x] == 1


# Python's protocols


def test_item_float_and_int_need_exactly_one_element():
    for x in (leaf(2.5), leaf([[2.5]])):
        assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    assert type(leaf(2.5).item()) is float
    assert not leaf(0.0)
    for x in (leaf([1.0, 2.0]), leaf([])):
        for convert in (Tensor.item, float, int):
            with pytest.raises(ShapeError, match=r"needs a Tensor of one element; this one has shape"):
                convert(x)


def test_length_and_iteration_go_over_the_first_axis():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2
    first, second = x
    np.testing.assert_array_equal(grad((first * second).sum(), x), [[3, 4], [1, 2]])
    assert list(leaf(np.zeros((0, 3)))) == []


def test_a_scalar_has_no_length_and_no_iteration():
    with pytest.raises(ShapeError, match="scalar"):
        len(leaf(1.0))
    with pytest.raises(ShapeError, match="scalar"):
        iter(leaf(1.0))


def test_detach_shares_the_array_and_has_no_gradient():
    x = leaf([2.0])
    y = x * 3
    constant = y.detach()
    assert constant.data is y.data and not constant.requires_grad and constant.is_leaf
    np.testing.assert_array_equal(grad((constant * x).sum(), x), [6])


def test_numpy_converts_a_tensor_only_if_no_tape_is_lost():
    array = np.array([1.0, 2.0], np.float32)
    assert np.asarray(Tensor(array)) is array
    assert np.array(Tensor(array)) is not array
    assert np.asarray(Tensor(array), dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.concatenate([Tensor(array), [3.0]]), [1, 2, 3])
    for call in (np.asarray, np.sum, np.array, lambda x: np.concatenate([x, x])):
        with pytest.raises((GraphError, TypeError)):
            call(leaf([1.0]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: np.true_divide(x, 2), r"use ops.divide\(...\)"),
        (lambda x: np.arctan(x), r"use other ops, or \(not in a rule\) .data if"),
        (lambda x: np.add.outer([1.0], x), r"np.add.outer does not take a Tensor, .* use ops.add\(...\)"),
        (np.add.reduce, r"np.add.reduce does not take a Tensor, .* use ops.sum\(...\)"),
        (np.square, r"use x \* x"),
        (np.abs, r"use ops.absolute\(...\)"),
        (lambda x: np.ones(1) // x, "np.floor_divide does not take a Tensor"),
        (lambda x: operator.iadd(np.ones(1), x), "write `array = array \\+ tensor`"),
    ],
)
def test_a_ufunc_on_a_tensor_names_the_op_to_use(call, words):
    with pytest.raises(DtypeError, match=words):
        call(leaf([1.0]))


def test_item_assignment_is_refused_with_what_to_do_instead():
    with pytest.raises(GraphError, match="use ops.where"):
        leaf([1.0])[0] = 2.0


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (Tensor([1.0, 2.5]), "Tensor([1. , 2.5], shape=(2,), float32)"),
        (leaf(1.0), "Tensor(1., shape=(), float32, requires_grad)"),
        (Parameter([1.0]), "Parameter([1.], shape=(1,), float32, requires_grad)"),
        (leaf([1.0]) * 2, "Tensor([2.], shape=(1,), float32, made by multiply)"),
        (Tensor(np.arange(100)), "Tensor([ 0,  1,  2, ..., 97, 98, 99], shape=(100,), int64)"),
        (Tensor(np.zeros((0, 2))), "Tensor([], shape=(0, 2), float64)"),
    ],
)
def test_repr_shows_numbers_shape_dtype_and_origin(tensor, expected):
    assert repr(tensor) == expected


# Indexing

INDICES = [
    0, -1, np.int64(1), slice(1, 3), slice(None, None, -2), slice(5, 5), ..., None, (), (0, 1), (slice(None), -1),
    (..., 0), (None, 0, slice(1, None), None), [0, 2], [], [3, 3, 3, 0], [[0, 1], [2, 2]], np.array([2, 0, 2]),
    np.array(1), np.array([], np.int64), (np.array([0, 0, 3]), np.array([1, 1, 2])), ([0, 0, 3], [1, 1, 2]),
    (np.array([[0], [1]]), np.array([0, 2, 2])), (slice(None), [0, 0]), (np.array([1, 1]), slice(0, 2)),
    (np.array([1, 1]), None, 2), np.arange(20).reshape(4, 5) % 3 == 0, np.array([True, False, True, True]),
    [True, False, True, True], (np.array([True, False, True, True]), 1), np.zeros((4, 5), bool), Tensor([1, 1, 0]),
    (Tensor([1, 1]), [2, 2]), np.array([0, 3], np.uint8),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_indexing_agrees_with_numpy_and_its_gradient_is_put_back(index, rng):
    x = leaf(rng.standard_normal((4, 5)), np.float64)
    plain = tuple(np.asarray(i) if isinstance(i, Tensor) else i for i in index) if isinstance(index, tuple) else index
    plain = np.asarray(plain) if isinstance(plain, Tensor) else plain
    places = np.arange(20).reshape(4, 5)[plain if not isinstance(plain, list) or plain else np.array([], int)]
    y = x[index]
    np.testing.assert_array_equal(y.data, x.data.reshape(-1)[places])
    cotangent = rng.standard_normal(y.shape)
    expected = np.bincount(places.reshape(-1), weights=cotangent.reshape(-1), minlength=20).reshape(4, 5)
    np.testing.assert_allclose(grad(y, x, cotangent), expected, rtol=1e-15)


@pytest.mark.parametrize("index", [4, -5, (0, 5), [0, 4], np.array([-5]), (0, 0, 0)])
def test_an_index_out_of_range_is_an_index_error_with_the_shape(index):
    with pytest.raises(IndexRangeError, match=r"getitem got \(4, 5\) float32"):
        leaf(np.zeros((4, 5)))[index]


@pytest.mark.parametrize("index", [True, False, 1.0, (0, True), np.float64(1), "a"])
def test_an_invalid_index_is_refused(index):
    with pytest.raises((DtypeError, IndexRangeError)):
        leaf(np.zeros((4, 5)))[index]


def test_indexing_a_scalar_with_an_empty_tuple_gives_the_scalar():
    x = leaf(2.0)
    assert x[()].shape == () and x[None].shape == (1,) and x[...].item() == 2
    with pytest.raises(IndexRangeError):
        x[0]


def test_an_index_array_of_another_mask_shape_is_refused():
    with pytest.raises(IndexRangeError):
        leaf(np.zeros((4, 5)))[np.ones((4, 4), bool)]


def test_ops_on_tensors_without_a_gradient_are_not_recorded():
    x = leaf([1.0])
    assert not (Tensor([1.0]) * 2).requires_grad
    assert not ops.cast(x, dtype=np.int64).requires_grad
    with no_grad():
        assert not (x * 2).requires_grad


# As a number, and as an array of NumPy or PyTorch


def test_a_tensor_of_one_number_is_formatted_rounded_and_converted_as_a_number():
    loss = (leaf([1.0, 2.0]) * 0.7).sum()
    assert f"{loss:.3f} {loss:8.1e}" == "2.100  2.1e+00"
    assert f"{loss}" == str(loss) and f"{leaf([1.0])}" == str(leaf([1.0]))
    assert round(loss, 3) == 2.1 and round(loss) == 2
    for number in (np.float32, np.float64, float):
        assert number(loss) == pytest.approx(2.1)
    assert type(np.float32(loss)) is np.float32
    for call in (lambda x: f"{x:.3f}", round):
        with pytest.raises(ShapeError, match="of one element"):
            call(leaf([1.0, 2.0]))


def test_tensors_have_the_usual_methods_of_numpy_and_pytorch(rng):
    x = leaf(rng.uniform(0.5, 2, (2, 1, 4)), np.float64)
    d = x.data
    assert x.numpy() is d and x.tolist() == d.tolist() and (+x) is x
    for name in ("exp", "log", "sqrt", "sin", "cos", "tanh", "abs"):
        np.testing.assert_array_equal(getattr(x, name)().data, getattr(np, name)(d))
    for name in ("sum", "mean", "max", "min", "var", "std"):
        np.testing.assert_allclose(getattr(x, name)(-1, True).data, getattr(np, name)(d, -1, keepdims=True), rtol=1e-14)
        np.testing.assert_allclose(getattr(x, name)().data, getattr(np, name)(d), rtol=1e-14)
    np.testing.assert_allclose(x.var(-1, ddof=1).data, d.var(-1, ddof=1), rtol=1e-14)
    for ours, expected in [
        (x.flatten(), d.ravel()), (x.squeeze(), d[:, 0]), (x.squeeze(1), d[:, 0]), (x.clip(0.8, 1.2), d.clip(0.8, 1.2)),
        (x.cumsum(-1), d.cumsum(-1)), (x.relu(), d), (x.softmax(-1).sum(-1), np.ones((2, 1))),
    ]:  # fmt: skip
        np.testing.assert_allclose(ours.data, expected, rtol=1e-14)
    np.testing.assert_array_equal(x.argmax(-1), d.argmax(-1))
    np.testing.assert_array_equal(x.argmin(), d.argmin())
    with pytest.raises(SignatureError, match="too many"):
        x.sum(0, False, 1)


@pytest.mark.parametrize("value", [Tensor([[1.0, 2.0]]), np.array([[1.0, 2.0]])])
def test_a_wrong_call_of_an_op_says_what_to_write(value):
    for axis in (0, "a"):
        with pytest.raises(SignatureError, match=f"too many positional arguments; write axis={axis!r}$"):
            ops.sum(value, axis)
    with pytest.raises(ShapeError, match=r"\(1, 2\) .*, \(3, 4\) .*: b \(3, 4\): k is 3 here and 2 in a$"):
        ops.matmul(value, np.ones((3, 4)))
    with pytest.raises(SignatureError, match=r"y \(\*\); missing"):
        ops.add(value)
    with pytest.raises(ShapeError, match="all axes in their new order; swapaxes swaps two"):
        Tensor(np.ones((2, 3, 4))).transpose(0, 1)
    with pytest.raises(DtypeError, match="write 1.0 for 1"):
        Parameter([1, 2, 3])


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (Tensor([1.0]), "view", r"x.reshape"),
        (Tensor([1.0]), "permute", "x.transpose"),
        (Parameter([1.0]), "unsqueeze", r"x\[None\]"),
        (nanograd_llm, "cat", "ng.ops.concatenate"),
        (nanograd_llm, "tanh", "ng.ops.tanh"),
        (nanograd_llm, "Linear", "ng.nn.Linear"),
        (nanograd_llm, "Trainer", "ng.training.Trainer"),
        (nanograd_llm, "generate", "ng.inference.generate"),
        (nanograd_llm, "zeros", "ng.Tensor of an array"),
        (nn, "Parameter", "ng.Parameter"),
        (nn, "ReLU", "ng.ops.relu"),
        (nn.Module(), "generate", "ng.inference.generate"),
    ],
)
def test_a_name_of_pytorchs_is_refused_with_the_one_to_use(owner, name, words):
    assert not hasattr(owner, name)
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; use {words}"):
        getattr(owner, name)


def test_an_unknown_name_is_an_attribute_error_and_modules_and_tensors_can_be_copied():
    for owner in (Tensor([1.0]), nn, nn.Linear(2, 2), nanograd_llm):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'$"):
            owner.nothing  # noqa: B018
    for held in (Tensor([1.0]), Parameter([1.0]), nn.Linear(2, 2)):
        assert type(copy.deepcopy(held)) is type(pickle.loads(pickle.dumps(held))) is type(held)


@pytest.mark.parametrize("data", [3.0, [1.0, 2.0], None])
def test_data_that_is_no_array_is_named_when_the_tensor_is_used(data):
    x = Tensor([1.0, 2.0], requires_grad=True)
    x.data = data
    with pytest.raises(DtypeError, match=f"was set to a {type(data).__name__}; set it to an array"):
        _ = x.shape


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__)
def test_a_computed_tensor_is_not_copied_with_its_tape(copied):
    y = 2 * leaf([1.0, 2.0])
    with pytest.raises(GraphError, match=r"use its \.detach\(\)"):
        copied(y)
    copied(y.detach())


def test_a_copy_of_a_leaf_is_an_independent_leaf():
    p = Parameter([1.0, 2.0])
    (p * p).sum().backward()
    p.register_hook(lambda g: None)
    for q in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert type(q) is Parameter and q.requires_grad and q.is_leaf
        np.testing.assert_array_equal(q.grad, p.grad)
        q.data += 1
        (q * q).sum().backward()
        np.testing.assert_array_equal(p.data, [1, 2])
        np.testing.assert_array_equal(q.grad, [6, 10])


def test_numpys_comparisons_and_shapes_take_tensors():
    p = Parameter([[1.0, 2.0]])
    assert np.array_equal(p, p) and np.array_equal([[1.0, 2.0]], p) and not np.array_equal(p, p.data + 1)
    assert np.array_equiv(p, p) and np.allclose(p, p.data) and np.isclose(p, p).all()
    assert np.shape(p) == (1, 2) and np.ndim(p) == 2 and np.size(p) == 2
    assert np.zeros_like(p).tolist() == [[0, 0]] and np.argmax(p) == 1


SAME_IN_NUMPY = sorted(name for name in vars(ops) if callable(getattr(np, name, None)) and name != "tril")


def test_an_op_is_named_before_what_was_to_be_written_without_it(monkeypatch):
    with pytest.raises(DtypeError, match="use indexing"):
        np.diagonal(leaf([[0.5]]))
    monkeypatch.setitem(tensor.registry, "diagonal", None)
    with pytest.raises(DtypeError, match=r"use ops.diagonal\("):
        np.diagonal(leaf([[0.5]]))


@pytest.mark.parametrize("name", SAME_IN_NUMPY)
def test_a_numpy_function_with_an_op_of_the_same_name_names_that_op(name):
    x = leaf([[0.5]])
    more = {"where": (x > 0, x, x), "clip": (x, 0, 1), "einsum": ("ij->i", x), "split": (x, 1), "pad": (x, 1)}
    more |= {"reshape": (x, (1,)), "broadcast_to": (x, (1, 1)), "expand_dims": (x, 0), "swapaxes": (x, 0, 1)}
    more |= {"take": (x, [0]), "take_along_axis": (x, [[0]], 0), "repeat": (x, 2), "roll": (x, 1)}
    more |= dict.fromkeys(("concatenate", "stack"), ([x],))
    binary = isinstance(getattr(np, name), np.ufunc) and getattr(np, name).nin == 2
    with pytest.raises(
        DtypeError, match=rf"np.{name} does not take a Tensor, whose tape it would lose; use ops.{name}\("
    ):
        getattr(np, name)(*more.get(name, (x, x) if binary else (x,)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (np.amax, r"use ops.max\("),
        (lambda x: np.dot(x, x), r"use ops.matmul\("),
        (lambda x: np.vstack([x, x]), r"use ops.concatenate\("),
        (np.linalg.norm, r"np.linalg.norm does not take a Tensor, .* use ops.sqrt\("),
        (lambda x: np.clip([0.5], 0, a_max=x), r"use ops.clip\("),
        (lambda x: np.where([True], [1.0], x), r"use ops.where\("),
        (np.tril, r"use ops.tril\("),
        (np.median, r"use other ops, or \(not in a rule\) .data if no gradient is needed"),
        (np.sign, r"use ops.where\(x > 0, y, -y\) for np.sign\(x\) \* y"),
    ],
)
def test_a_numpy_function_on_a_tensor_says_what_to_use_instead(call, words):
    with pytest.raises(DtypeError, match=words):
        call(leaf([1.0, 2.0]))


def test_numpy_functions_compute_with_tensors_that_need_no_gradient():
    x = Tensor([1.0, 3.0])
    assert np.sum(x) == 4 and np.amax(x) == 3 and np.clip(x, 0, a_max=Tensor(2.0)).tolist() == [1, 2]
    assert np.concatenate([x, x]).tolist() == [1, 3, 1, 3] and np.linalg.norm(x) == pytest.approx(10**0.5)
    assert np.any(Parameter([0.0, 1.0])) and not np.all(Parameter([0.0, 1.0]))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (0,)])
def test_the_truth_value_of_a_tensor_of_several_elements_or_none_is_refused(shape):
    with pytest.raises(ShapeError, match=rf"shape {re.escape(str(shape))} is ambiguous; use t.data.any\(\)"):
        bool(Tensor(np.ones(shape)))
    assert Tensor([[2.0]]) and not Tensor(0.0)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_frozen_parameter_and_a_constant_are_pickled_as_they_are(protocol):
    frozen = Parameter([1.0])
    frozen.requires_grad = False
    for x in (frozen, Tensor([1, 2]), Tensor(2.0, requires_grad=True)):
        y = pickle.loads(pickle.dumps(x, protocol))
        assert (type(y), y.requires_grad, y.dtype, y.tolist()) == (type(x), x.requires_grad, x.dtype, x.tolist())


def test_a_list_of_float64_arrays_stays_float64():
    arrays = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    assert Tensor(arrays).dtype == np.float64 and Tensor([[1.0, 2.0]]).dtype == np.float32
    value, gradients = value_and_grad(lambda pair: (pair[0] * pair[1]).sum())(arrays)
    assert value.item() == 11 and value.dtype == np.float64
    assert [g.tolist() for g in gradients] == [[3, 4], [1, 2]]


# Derivatives of a function


def test_value_and_grad_has_argnum_and_has_aux():
    def f(w, ids, scale):
        return (w[ids] * scale).sum(), {"seen": len(ids)}

    w, ids, scale = np.array([1.0, 2.0, 3.0]), [0, 2], np.array([5.0, 7.0])
    (value, aux), gradient = value_and_grad(f, argnum=0, has_aux=True)(w, ids, scale)
    assert value.item() == 26 and aux == {"seen": 2} and gradient.tolist() == [5, 0, 7]
    _, (to_w, to_scale) = value_and_grad(f, argnum=(0, 2), has_aux=True)(w, ids, scale)
    assert to_w.tolist() == [5, 0, 7] and to_scale.tolist() == [1, 3]


def test_jacobian_and_hessian_by_hand():
    x = np.array([2.0, 3.0])
    assert jacobian(lambda x: x * x[0], x).tolist() == [[4, 0], [3, 2]]
    assert jacobian(lambda x: (x * x).sum(), x).tolist() == [4, 6]
    assert jacobian(lambda x: Tensor(np.ones((3, 1))), x).tolist() == [[[0, 0]]] * 3
    assert hessian(lambda x: x[0] * x[0] * x[1], x).tolist() == [[6, 4], [4, 0]]
    assert hessian(lambda x: x.sum(), x).tolist() == [[0, 0], [0, 0]]


def _cubes(x):
    return (x * x * x).sum()


@pytest.mark.parametrize(
    ("call", "said"),
    {
        "hvp without lists": (lambda x: hvp(_cubes, x, x), "hvp takes lists of inputs and vectors; got ndarray"),
        "no Tensor": (lambda x: jacobian(lambda x: x.data, x), "jacobian needs a function that returns a Tensor"),
        "a tuple": (lambda x: jacobian(lambda x: (x, x), x), "jacobian needs a .* a Tensor; it returned tuple"),
        "data": (lambda x: hessian(lambda x: x.data.sum(), x), "hessian needs a .* a Tensor; it returned float64"),
        "JAX's grad": (lambda x: grad(_cubes)(x), r"write ng.grad\(f\(x\), x\), or ng.value_and_grad\(f\)\(x\)"),
        "an array": (
            lambda x: grad((x * x).sum(), x),
            r"x must be a Tensor .*: x = ng.Tensor\(x, requires_grad=True\)",
        ),
        "argnums": (lambda x: value_and_grad(_cubes, argnums=0)(x), "no argument argnums; it takes argnum="),
        "argnum": (lambda x: value_and_grad(_cubes, argnum=1)(x), "argnum is 1, and the call has arguments 0 to 0"),
    }.values(),
)
def test_a_derivative_of_what_has_none_is_refused_with_the_right_call(call, said):
    with pytest.raises(NanogradError, match=said):
        call(np.array([1.0, 2.0]))


def test_adding_at_places_names_the_op_that_does_it():
    with pytest.raises(DtypeError, match=r"np.add.at does not take a Tensor, .*; use ops.scatter\(values, index=ids"):
        np.add.at(np.zeros(3), np.array([0, 0]), Tensor([1.0, 2.0], requires_grad=True))


@pytest.mark.parametrize("data", [np.ones(3, np.float32), np.ones(2, int), 3.0, np.float32(1)])
def test_the_data_of_a_parameter_keeps_its_shape_and_stays_float(data):
    x = Parameter([1.0, 2.0])
    with pytest.raises((DtypeError, ShapeError), match=r"is an array of floats of shape \(2,\); got (float|int|a )"):
        x.data = data
    x.data = np.ones(2, complex)  # as a gradient check by complex steps does
    x.data = np.ones(2)
    assert x.dtype == np.float64
    x.requires_grad = False
    x.data = np.ones(3, int)


def test_integers_set_as_the_data_of_a_leaf_are_named_when_an_op_gets_them():
    x = Tensor([1.0, 2.0], requires_grad=True)
    x.data = np.array([1, 2], np.int64)
    with pytest.raises(DtypeError, match="multiply got a Tensor .* whose .data was set to int64"):
        x * x
    assert x.detach().dtype == np.int64
