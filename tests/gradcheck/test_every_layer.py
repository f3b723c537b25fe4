"""Every Module is checked by declaring specimens, and none of the package can do without."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest

from nanograd_llm import GPT, models, nn, ops
from nanograd_llm.autograd.op import keep
from nanograd_llm.autograd.tensor import Parameter, registry
from nanograd_llm.errors import ConfigError, NanogradError
from nanograd_llm.gradcheck import Draw, check_all, check_layer, gradcheck
from nanograd_llm.gradcheck.every_layer import draw_specimens, layers

OURS = [layer for layer in layers() if layer.__module__.startswith(("nanograd_llm.nn.", "nanograd_llm.models."))]
MODELS = [layer for layer in OURS if layer.__module__.startswith("nanograd_llm.models.")]


def undeclared(classes):
    """In words: which declare no specimens, or write a loss of their own, which none of their specimens is."""
    found = []
    for layer in classes:
        declared = vars(layer).get("specimens")
        specimens = list(declared(Draw(np.random.default_rng(0)))) if declared else []
        if not specimens:
            found.append(f"{layer.__name__} declares no specimens")
        elif "loss" in vars(layer) and not any(getattr(f, "__func__", None) is layer.loss for f, _ in specimens):
            found.append(f"{layer.__name__} declares no specimen of its loss: add (model.loss, (its batch))")
    return found


def smallest(layer):
    """The specimen with the fewest numbers in its parameters."""
    drawn = draw_specimens(layer, np.random.default_rng(0), 1)
    return min(drawn, key=lambda specimen: sum(p.size for p in specimen[0].parameters()))


@pytest.fixture
def biased():
    """A layer of one's own."""

    class Biased(nn.Module):
        def __init__(self):
            self.shift = Parameter(np.zeros(3, np.float32))

        def forward(self, x):
            return ops.tanh(x + self.shift)

    return Biased


def test_every_layer_and_model_of_the_package_declares_specimens():
    assert {nn.Linear, nn.Block, nn.CausalAttention, GPT} <= set(OURS)
    assert undeclared(OURS) == []


def not_offered(classes):
    """Those that the `__init__` of their room does not offer."""
    room_of = {layer: importlib.import_module(layer.__module__.rpartition(".")[0]) for layer in classes}
    return [layer.__name__ for layer, room in room_of.items() if layer.__name__ not in {*room.__all__} & {*dir(room)}]


def test_every_layer_and_model_is_offered_by_its_room():
    assert {*not_offered(OURS)} == {"Adapter", "MaskedWordHead"}  # parts that only lora.add and BERT make


def test_one_that_is_not_offered_by_its_room_would_be_found(monkeypatch):
    classes = [nn.Linear, GPT]
    assert not_offered(classes) == []
    monkeypatch.delattr(nn, "Linear")
    monkeypatch.setattr(models, "__all__", [])
    assert not_offered(classes) == ["Linear", "GPT"]


NEW_FILE = """
from nanograd_llm import nn, ops

class Line(nn.Module):
    def __init__(self):
        self.w = nn.Linear(3, 1)

    def forward(self, x):
        return self.w(x)

Line.specimens = lambda draw: [(Line(), (draw(2, 3),))]
"""


@pytest.mark.parametrize("room", ["nn", "models"])
def test_the_command_finds_a_layer_or_model_in_a_new_file_of_its_room(tmp_path, room):
    (tmp_path / "line.py").write_text(NEW_FILE, "utf-8")
    code = f"""
import sys
import nanograd_llm.{room} as room
room.__path__.append(sys.argv[1])
from nanograd_llm.cli import main
sys.exit(main("gradcheck --op Line --order 1 --cases 10".split()))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 of 1 are right" in done.stdout, done


def test_one_that_declares_none_would_be_found_also_where_the_class_above_it_does(biased):
    class Derived(nn.Linear):
        pass

    assert undeclared([biased, Derived]) == ["Biased declares no specimens", "Derived declares no specimens"]


def test_a_loss_that_no_specimen_is_would_be_found(biased):
    biased.specimens = lambda draw: [(biased(), (draw(2, 3),))]
    biased.loss = lambda self, x: ops.sum(self(x))
    assert undeclared([biased]) == ["Biased declares no specimen of its loss: add (model.loss, (its batch))"]
    biased.specimens = lambda draw: [(biased().loss, (draw(2, 3),))]
    assert undeclared([biased]) == []


@pytest.mark.parametrize("layer", OURS, ids=lambda layer: layer.__name__)
def test_the_gradients_of_the_smallest_specimen_of_a_layer_are_right(layer):
    """`nanograd-llm gradcheck`, which `.ci/run` starts, checks all specimens and plants a mistake in each op."""
    f, inputs = smallest(layer)
    assert (report := gradcheck(f, *inputs)).passed, report


@pytest.mark.parametrize(
    "layer",
    [pytest.param(one, marks=() if one is nn.MLP else pytest.mark.thorough) for one in OURS],
    ids=lambda layer: layer.__name__,
)
def test_the_gradients_of_a_layer_are_right_and_a_mistake_in_each_of_its_ops_is_noticed(layer):
    found = check_layer(layer, order=1, cases=1)
    assert found.passed, found.problems
    assert found.name == layer.__name__ and found.mutants > 0


def test_parameters_are_drawn_and_dropout_is_repeatable():
    (f, (x,)), *_ = draw_specimens(nn.Block, np.random.default_rng(0), 1)
    assert f.f.ln_1.bias.data.any() and f.f.training
    np.testing.assert_array_equal(f(x).data, f(x).data)
    assert len(draw_specimens(nn.Block, np.random.default_rng(0), 9)) == 9


def test_a_layer_of_ones_own_is_checked_as_it_is_or_by_name(biased):
    biased.specimens = lambda draw: [(biased(), (draw(2, 3),))]
    assert check_layer(biased, cases=20).passed
    (found,) = check_all(["Biased"], order=1, cases=10).ops
    assert found.passed and found.name == "Biased"


@pytest.mark.parametrize("form", [lambda y, z: (y, z), lambda y, z: {"y": y, "more": [z, "a note"]}])
def test_a_layer_that_returns_several_tensors_is_checked_in_all_of_them(biased, form):
    biased.forward = lambda self, x: form(x * self.shift, ops.tanh(x + self.shift))
    biased.specimens = lambda draw: [(biased(), (draw(2, 3),))]
    found = check_layer(biased, order=1, cases=1)
    assert found.passed and found.mutants == 3  # multiply, add and tanh


@pytest.mark.parametrize("layer", OURS, ids=lambda layer: layer.__name__)
def test_the_specimens_of_the_package_cause_no_warning(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(40):
            for f, inputs in layer.specimens(Draw(np.random.default_rng(seed))):
                f(*inputs)


def test_a_warning_is_shown_once_in_a_check_of_a_layer_and_again_in_the_next(biased):
    def forward(self, x):
        warnings.warn("is that meant?", stacklevel=1)
        return x * self.shift

    biased.forward, biased.specimens = forward, lambda draw: [(biased(), (draw(2, 3),)), (biased(), (draw(1, 3),))]
    for _ in range(2):
        with pytest.warns(UserWarning, match="is that meant") as shown:
            assert check_layer(biased, order=1, cases=1).passed
        assert len(shown) == 1


@pytest.mark.parametrize(
    ("loss", "is_mean"),
    [
        (lambda y: (y * y).mean(), True),
        (lambda y: (y * y).sum(), False),
        (lambda y: (y * y).sum() / 2, False),
        (lambda y: nn.Dropout(0.5).eval()(y).mean(), True),
    ],
)
def test_a_loss_that_is_no_mean_over_its_batch_is_wrong(biased, loss, is_mean):
    biased.loss = lambda self, x: loss(self(x))
    biased.specimens = lambda draw: [(biased().loss, (draw(5, 3),))]
    found = check_layer(biased, cases=1)
    assert found.passed == is_mean
    assert is_mean or "so training depends on the number of workers" in found.problems[0]


def test_dropout_in_evaluation_mode_and_an_array_that_is_not_trained_are_noted(biased):
    class Mine(biased):
        def __init__(self):
            super().__init__()
            self.parts, self.drop = [biased()], nn.Dropout(0.5)
            self.parts[0].scale = np.ones(3)
            self.register_buffer("mean", np.ones(3))

        def forward(self, x):
            return ops.dropout(self.drop(self.parts[0](super().forward(x))), rate=0.5)

    assert check_layer(Mine(), np.ones((2, 3)), cases=1).notes == (
        "it drops in evaluation mode as well; use nn.Dropout, which also draws another mask in each call",
        "Mine.parts.0.scale is an array and no Parameter, so it is neither trained nor saved",
    )


def test_a_loss_that_half_a_batch_is_too_small_for_is_right_and_noted():
    class Contrastive(nn.Module):
        def __init__(self):
            self.w = Parameter(np.ones((3, 3)))

        def loss(self, x, targets):
            if len(x) < 2:
                raise ValueError("two rows are needed")
            return ((x @ self.w) * (x @ self.w)).mean()

    Contrastive.specimens = staticmethod(lambda draw: [(Contrastive().loss, (draw(2, 3), np.array([0, 1])))])
    found = check_layer(Contrastive, order=1, cases=1)
    assert found.passed
    assert found.notes == ("its loss of half a batch raises ValueError: train it with one worker",)


def test_a_wrong_rule_below_a_layer_is_wrong_and_named(biased, monkeypatch):
    biased.specimens = lambda draw: [(biased(), (draw(2, 3),))]
    rule = registry["tanh"].rule
    monkeypatch.setattr(registry["tanh"], "rule", lambda dy, y: 2 * rule(dy, y))
    found = check_layer(biased, order=1, cases=1)
    assert found.verdict == "wrong"
    (problem,) = found.problems
    assert "gradients of Biased: NOT RIGHT" in problem and "the rule of tanh is wrong" in problem
    assert "x (2, 3): wrong" in problem and "shift (3,): wrong" in problem


def test_a_layer_with_an_op_that_keeps_is_right_at_order_1_and_unknown_at_order_2(biased, monkeypatch):
    biased.specimens = lambda draw: [(biased(), (draw(2, 3),))]
    tanh = registry["tanh"]
    monkeypatch.setattr(tanh, "forward", lambda x: keep(np.tanh(x), z=np.tanh(x)))
    for name in ("rule", "_plan", "_open"):
        monkeypatch.setattr(tanh, name, getattr(tanh, name))
    tanh.backward(lambda dy, z: dy * (1 - z * z))
    found = check_layer(biased, cases=10)
    assert not found.passed and found.verdict == "right at order 1, unknown at order 2"
    assert "tanh keeps 'z'" in found.problems[0] and found.mutants and not found.survivors
    assert check_layer(biased, cases=10, order=1).passed


@pytest.mark.parametrize("declared", [None, lambda draw: []])
def test_a_layer_without_specimens_is_refused_with_the_line_to_write(biased, declared):
    biased.specimens = declared
    with pytest.raises(NanogradError, match=r"Biased declares no specimens; write Biased\.specimens = lambda draw"):
        check_layer(biased)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda draw, f: [(f(), draw(2, 3))], "specimens in another form"),
        (lambda draw, f: (f(), (draw(2, 3),)), "specimens in another form"),
        ([1], "specimens that are no function"),
    ],
    ids=["no tuple", "no list", "no function"],
)
def test_specimens_in_another_form_are_refused_with_the_line_to_write(biased, wrong, what):
    biased.specimens = (lambda draw: wrong(draw, biased)) if callable(wrong) else wrong
    with pytest.raises(NanogradError, match=rf"declares {what}; write Biased\.specimens = lambda"):
        check_layer(biased)


def test_a_class_without_specimens_that_is_asked_for_by_name_is_refused_with_the_line_to_write():
    class Undeclared(nn.Linear):  # those of its base are of another class
        pass

    with pytest.raises(NanogradError, match="Undeclared declares no specimens; write"):
        check_all(["Undeclared"])


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="there is no op or layer 'Blok'; did you mean 'Block'"):
        check_all(["Blok"])


SCALES = [0.01, 0.1, 10.0, 100.0]
SMALL = [layer for layer in OURS if layer is GPT or layer not in MODELS]


def require_not_wrong(f, inputs, scale):
    """The gradient is not called wrong with weights so many times as large as specimens have."""
    for parameter in f.parameters():
        parameter.data = parameter.data * scale
    report = gradcheck(f, *inputs, jacobian=0, explain=False)
    assert not report.problems and all(finding.verdict != "wrong" for finding in report.findings), report


@pytest.mark.parametrize(("layer", "scale"), [*zip(SMALL, itertools.cycle(SCALES))])
def test_the_smallest_specimen_is_not_called_wrong_with_weights_of_another_size(layer, scale):
    require_not_wrong(*smallest(layer), scale)


@pytest.mark.thorough
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layer", OURS)
def test_no_specimen_is_called_wrong_with_weights_of_another_size(layer, scale):
    for seed in range(3):
        for f, inputs in draw_specimens(layer, np.random.default_rng(seed), 1):
            require_not_wrong(f, inputs, scale)
