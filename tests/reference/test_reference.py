"""Every op, every layer, a whole GPT and its training give the numbers that PyTorch gives, to 1e-12 of their size.

`make_reference.py` wrote the numbers. Only the tests marked `parity` need PyTorch.

The size of an array of results is its largest entry. An entry is a sum of terms; with small random inputs such as
these, the terms are about as large as the largest entry of the array. Sometimes a whole gradient is zero in mathematics
(a bias on the keys does not change attention), and only rounding is left. So the size that counts for the gradient of a
layer's bias includes the gradient of the same layer's weight.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm import nn, ops
from nanograd_llm.autograd.modes import higher_order
from nanograd_llm.autograd.tensor import Tensor, array_of, grad, registry
from nanograd_llm.backend.randomness import noise

FOLDER = Path(__file__).parent
TOLERANCE = 1e-12


@functools.cache
def stored(name):
    """The content of a file: nested dicts and tuples, floats and arrays."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        numbers, contents = file["numbers"], json.loads(file["contents"].item())

    def decoded(x):
        if isinstance(x, list):
            return tuple(decoded(value) for value in x)
        if not isinstance(x, dict):
            return x
        if "start" in x:
            return numbers[x["start"] :][: int(np.prod(x["shape"]))].reshape(x["shape"])
        if "values" in x:
            return np.array(x["values"], dtype=x["dtype"])
        if "slice" in x:
            return slice(*x["slice"])
        return ... if "ellipsis" in x else {key: decoded(value) for key, value in x.items()}

    return decoded(contents)


def differences(found, reference, path=""):
    """A sentence for each place where two trees of results differ by more than the tolerance."""
    if isinstance(reference, dict):
        assert found.keys() == reference.keys(), path
        sizes = {}  # by layer: the larger of its weight and its bias
        for name, array in reference.items():
            if not isinstance(array, (dict, tuple)):
                layer = name.removesuffix(".bias").removesuffix(".weight")
                sizes[layer] = max(sizes.get(layer, 0), largest(array))
        for name, value in reference.items():
            if isinstance(value, (dict, tuple)):
                yield from differences(found[name], value, f"{path}/{name}")
            else:
                size = sizes[name.removesuffix(".bias").removesuffix(".weight")]
                yield from apart(found[name], value, size, f"{path}/{name}")
    elif isinstance(reference, tuple):
        assert len(found) == len(reference), path
        for i, value in enumerate(reference):
            yield from differences(found[i], value, f"{path}/{i}")
    else:
        yield from apart(found, reference, largest(reference), path)


def apart(found, reference, size, path):
    found, reference = np.asarray(found), np.asarray(reference)
    assert found.shape == reference.shape, path
    difference = np.zeros(found.shape)
    np.subtract(found, reference, out=difference, where=found != reference)  # equal infinities differ by 0
    distance = np.abs(difference).max(initial=0.0)
    if not distance <= TOLERANCE * size:
        yield f"{path} differs by {distance:.1e}; its size is {size:.1e}"


def largest(array):
    return np.abs(array, where=np.isfinite(array), out=np.zeros(np.shape(array))).max(initial=0.0)


# Ops

OPS = sorted(name for name, op in registry.items() if op.__module__.startswith(ops.__name__))


def run_op(name, case):
    """The results of our op for a case, to compare with PyTorch's."""
    inputs = [Tensor(x, requires_grad=True) if is_float(x) else x for x in case["inputs"]]
    y = registry[name](*inputs, **case["static"])
    places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
    gradients = grad(y, [inputs[i] for i in places], case["cotangent"].astype(y.dtype))
    return {"output": y.data.astype(np.float64), "gradients": {str(i): array_of(g) for i, g in zip(places, gradients)}}


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def results(case):
    """The results in a case, without its inputs."""
    return {"output": case["output"], "gradients": case["gradients"]}


def op_differences(name):
    cases = stored("ops").get(name)
    assert cases, f"write {name} in PyTorch in OPS of tests/reference/make_reference.py, and run that"
    return [
        f"case {number}, static {case['static']}: {difference}"
        for number, case in enumerate(cases)
        for difference in differences(run_op(name, case), results(case))
    ]


def test_every_op_of_the_package_has_a_reference_for_each_of_its_gradients_and_static_arguments():
    assert sorted(stored("ops")) == OPS
    for name, cases in stored("ops").items():
        op = registry[name]
        differentiable = [str(i) for i, x in enumerate(op.inputs) if x in op.differentiable]
        assert set(differentiable) <= {i for case in cases for i in case["gradients"]}, name
        unvaried = set(op.static_defaults) - {argument for case in cases for argument in case["static"]}
        assert not unvaried, f"{name}: give these in a case, in calls of tests/reference/make_reference.py"


@pytest.mark.parametrize("name", OPS)
def test_an_op_gives_the_numbers_of_pytorch_forward_and_backward(name):
    assert op_differences(name) == []


@pytest.mark.parametrize("name", [name for name in OPS if registry[name].equals is not None])
def test_the_composition_of_a_fused_op_gives_the_numbers_of_pytorch(name):
    with higher_order():
        assert op_differences(name) == []


@pytest.mark.parametrize("name", OPS)
def test_a_relative_error_of_1e_11_in_a_rule_is_noticed(name, monkeypatch):
    rule = registry[name].rule

    def nearly(*saved):
        gradients = rule(*saved)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return tuple(None if g is None else g * (1 + 1e-11) for g in gradients)

    monkeypatch.setattr(registry[name], "rule", nearly)
    found = op_differences(name)
    assert found or name == "cast"  # its gradient passes through float32
    assert all("gradients" in difference for difference in found)


# Layers

LAYERS = stored("layers")
CLASSES = {name: kind for name in nn.__all__ if isinstance(kind := getattr(nn, name), type)}
PUBLIC = {name for name, kind in CLASSES.items() if issubclass(kind, nn.Module) and kind is not nn.Module}


def run_layer(case):
    layer = getattr(nn, case["layer"])(**case["arguments"]).astype(np.float64)
    layer.load_state_dict(case["parameters"])
    inputs = [Tensor(x, requires_grad=True) if is_float(x) else x for x in case["inputs"]]
    if case["noise"] is None:
        y = layer.eval()(*inputs)
    else:
        with noise(*case["noise"]):
            y = layer(*inputs)
    leaves = dict(layer.named_parameters())
    leaves |= {f"input {number}": x for number, x in enumerate(inputs) if isinstance(x, Tensor)}
    gradients = grad(y, list(leaves.values()), case["cotangent"])
    return {"output": y.data, "gradients": dict(zip(leaves, gradients))}


def test_every_public_layer_has_a_reference():
    missing = PUBLIC - {"Sequential", *(case["layer"] for case in LAYERS)}  # Sequential only calls other layers
    assert not missing, "write these in PyTorch in layer_calls of tests/reference/make_reference.py, and run that"


@pytest.mark.parametrize("number", range(len(LAYERS)), ids=lambda number: f"{LAYERS[number]['layer']}-{number}")
def test_a_layer_gives_the_numbers_of_pytorch_forward_and_backward(number):
    case = LAYERS[number]
    assert list(differences(run_layer(case), results(case))) == []


# A whole GPT


def stored_gpt():
    """The stored numbers, and our GPT with the initial parameters of PyTorch's."""
    reference = stored("gpt")
    model = ng.GPT(ng.GPTConfig(**reference["config"])).astype(np.float64)
    model.load_state_dict(reference["initial"])
    return reference, model


def test_a_gpt_gives_pytorchs_logits_and_loss_and_every_gradient():
    reference, model = stored_gpt()
    tokens, targets = reference["tokens"][0], reference["targets"][0]
    loss = model.loss(tokens, targets)
    found = {
        "loss": loss.item(),
        "logits": model(tokens).data,
        "gradients": dict(zip(dict(model.named_parameters()), grad(loss, model.parameters()))),
    }
    assert list(differences(found, reference["once"])) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_ten_steps_of_training_give_pytorchs_losses_and_parameters(threads):
    reference, model = stored_gpt()
    trainer = ng.training.Trainer(model, ng.training.TrainConfig(workers=threads, **reference["training"]))
    batches = list(zip(reference["tokens"], reference["targets"]))
    records = list(trainer.run(batches.__getitem__))
    found = {
        "losses": np.array([record.loss for record in records]),
        "norms": np.array([record.gradient_norm for record in records]),
        "learning_rates": np.array([record.learning_rate for record in records]),
        "final": model.state_dict(),
    }
    assert list(differences(found, reference["steps"])) == []


def test_some_of_the_ten_steps_are_clipped_and_some_are_not():
    reference = stored("gpt")
    clipped = reference["steps"]["norms"] > reference["training"]["max_norm"]
    assert 2 <= np.count_nonzero(clipped) <= 8


@pytest.mark.parametrize(
    "change", [{"beta2": 0.951}, {"eps": 1.001e-5}, {"weight_decay": 0.1001}, {"max_norm": 0.5001}]
)
def test_a_small_change_of_a_training_setting_is_noticed(change):
    reference, model = stored_gpt()
    settings = {**reference["training"], "workers": 1, **change}
    trainer = ng.training.Trainer(model, ng.training.TrainConfig(**settings))
    for tokens, targets in zip(reference["tokens"], reference["targets"]):
        trainer.step(tokens, targets)
    assert list(differences(model.state_dict(), reference["steps"]["final"])) != []


# The numbers themselves


@pytest.fixture(scope="module")
def script():
    """`make_reference.py`, as a module."""
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("make_reference", FOLDER / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
def test_an_op_of_two_arrays_that_the_script_calls_with_one_is_told_where_its_inputs_go(script, monkeypatch):
    monkeypatch.setitem(script.OPS, "atan2", script.torch.atan2)
    draw = script.Draw("atan2")
    with pytest.raises(TypeError, match=r"atan2: .* add its inputs in `calls`"):
        [script.op_case("atan2", inputs, static, draw) for inputs, static in script.calls("atan2", draw)]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["ops", "layers", "gpt"])
def test_pytorch_gives_the_stored_numbers_again(name, script):
    again = {"ops": script.op_references, "layers": script.layer_references, "gpt": script.gpt_references}[name]()
    assert list(differences(comparable(again), comparable(stored(name)))) == []


def comparable(tree):
    """The floats and arrays of floats in a tree of dicts and tuples; everything else is dropped."""
    if isinstance(tree, dict):
        return {key: comparable(value) for key, value in tree.items() if is_number(value)}
    if isinstance(tree, (list, tuple)):
        return tuple(comparable(value) for value in tree if is_number(value))
    return tree


def is_number(x):
    return isinstance(x, (dict, list, tuple, float)) or is_float(x)
