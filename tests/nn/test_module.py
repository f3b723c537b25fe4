"""A Module is the tree of its attributes: names, counts, states, modes, and module paths in errors."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, NanogradError, Parameter, Tensor, checked, nn, no_grad, ops
from nanograd_llm.errors import DtypeError, GraphError, NonFiniteError, ShapeError, SignatureError

TOKENS = np.array([[1, 2, 3, 4], [4, 3, 2, 1]])


def tiny_gpt(**changes: Any) -> GPT:
    return GPT(GPTConfig(**{**dict(vocab_size=11, context_length=8, n_layer=3, n_head=2, n_embd=16), **changes}))


class Tied(nn.Module):
    """A table and a layer that are each in two places of the tree."""

    def __init__(self) -> None:
        self.table = Parameter(np.ones((5, 3), np.float32))
        self.head = nn.Linear(3, 5)
        self.head.weight = self.table
        self.again = [nn.LayerNorm(3)]
        self.norm = self.again[0]


@pytest.mark.parametrize("value", [np.zeros((3, 5), np.float32), [1.0], 0.0, Tensor(np.ones((3, 5)))])
def test_a_parameter_cannot_be_replaced_by_an_array_number_or_plain_tensor(value: Any) -> None:
    layer = nn.Linear(3, 5)
    weight = layer.weight
    with pytest.raises(DtypeError, match=r"Linear.weight is a Parameter, .* weight.data\[...\] = ..., or assign a Par"):
        layer.weight = value
    assert layer.weight is weight
    layer.weight = Parameter(np.ones((3, 5)))
    layer.bias = None
    assert list(layer.state_dict()) == ["weight"]


def test_parameters_are_updated_by_augmented_assignment_inside_no_grad() -> None:
    layer = nn.Linear(3, 5)
    held = dict(layer.named_parameters())
    layer(np.ones((2, 3), np.float32)).sum().backward()
    expected = {name: p.data - np.float32(0.1) * p.grad for name, p in held.items()}
    with no_grad():
        for p in layer.parameters():
            p -= 0.1 * p.grad
        layer.freeze()
        layer.weight += 1
    expected["weight"] = expected["weight"] + 1
    for name, p in layer.named_parameters():
        assert p is held[name]
        np.testing.assert_allclose(p.data, expected[name], rtol=1e-6)
    with pytest.raises(GraphError, match="no_grad"):
        layer.weight -= 0.1
    with no_grad(), pytest.raises(DtypeError, match="assigning this Tensor would remove"):
        layer.weight = layer.weight - 0.1
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_names_follow_the_attributes() -> None:
    names = [name for name, _ in tiny_gpt().named_parameters()]
    assert names[:2] == ["wte", "wpe"]
    assert "blocks.2.attention.qkv.weight" in names
    assert names[-2:] == ["ln_f.weight", "ln_f.bias"]
    assert len(names) == len(set(names)) == 2 + 3 * 12 + 2


@pytest.mark.parametrize(
    ("held", "names"),
    [
        ([nn.LayerNorm(2), nn.RMSNorm(3)], ["held.0.weight", "held.0.bias", "held.1.weight"]),
        ((Parameter([1.0]), nn.RMSNorm(3)), ["held.0", "held.1.weight"]),
        ([[nn.RMSNorm(1)], [nn.RMSNorm(1), nn.RMSNorm(1)]], ["held.0.0.weight", "held.1.0.weight", "held.1.1.weight"]),
        ({"q": Parameter([1.0]), "k": (nn.RMSNorm(1),)}, ["held.q", "held.k.0.weight"]),
        ([Tensor([1.0]), Tensor([1.0], requires_grad=True), np.ones(3), "text", None], []),
    ],
)
def test_lists_tuples_and_dicts_are_part_of_the_tree(held: Any, names: list[str]) -> None:
    module = nn.Module()
    module.held = held
    assert [name for name, _ in module.named_parameters()] == names


def test_named_modules_gives_the_tree_from_the_root() -> None:
    names = [name for name, _ in tiny_gpt(n_layer=1).named_modules()]
    below = ["ln_1", "attention", "attention.qkv", "attention.out", "attention.dropout", "ln_2"]
    mlp = ["mlp", "mlp.up", "mlp.down", "mlp.dropout"]
    assert names == ["", "dropout", "blocks.0", *(f"blocks.0.{name}" for name in below + mlp), "ln_f"]


def test_a_tied_parameter_appears_once_under_its_first_name() -> None:
    names = [name for name, _ in Tied().named_parameters()]
    assert sorted(names) == ["again.0.bias", "again.0.weight", "head.bias", "table"]
    assert list(Tied().state_dict()) == names


def test_tied_parameters_are_counted_once_or_under_each_name() -> None:
    assert Tied().parameter_count() == 15 + 5 + 6
    assert Tied().parameter_count(unique=False) == 15 + (15 + 5) + 6 + 6


def test_the_gradient_of_a_tied_parameter_is_the_sum_of_both() -> None:
    module = Tied()
    x = module.table[np.array([1, 1])]
    (x @ module.table.T).sum().backward()
    # y = Σᵢ 2 w₁·wᵢ: row 1 gets 2 Σ wᵢ + 2 w₁, the others 2 w₁
    assert np.array_equal(module.table.grad, [[2] * 3, [12] * 3, [2] * 3, [2] * 3, [2] * 3])


def test_state_dict_holds_the_arrays_themselves() -> None:
    model = tiny_gpt()
    state = model.state_dict()
    assert all(state[name] is parameter.data for name, parameter in model.named_parameters())


def test_a_loaded_state_is_copied_into_the_same_arrays() -> None:
    model = tiny_gpt()
    before = model.wte.data
    given = {name: np.full_like(array, 0.5) for name, array in model.state_dict().items()}
    model.load_state_dict(given)
    given["wte"][:] = 9
    assert model.wte.data is before
    assert all((array == 0.5).all() for array in model.state_dict().values())


def test_loading_lists_every_name_that_does_not_fit_and_changes_nothing() -> None:
    model = tiny_gpt()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    given = {name: np.zeros_like(array) for name, array in before.items()}
    del given["wpe"], given["blocks.1.ln_2.bias"]
    given["lm_head"] = np.zeros((11, 16), np.float32)
    given["blocks.0.attention.qkv.weight"] = np.zeros((48, 16), np.float32)
    given["ln_f.weight"] = np.ones(16)
    with pytest.raises(ShapeError) as caught:
        model.load_state_dict(given)
    first, *problems = str(caught.value).splitlines()
    assert "this GPT" in first
    assert [line.strip() for line in problems] == [
        "extra: lm_head (11, 16)",
        "misfit: blocks.0.attention.qkv.weight is (48, 16) float32, expected (16, 48) float32",
        "misfit: ln_f.weight is (16,) float64, expected (16,) float32",
        "missing: blocks.1.ln_2.bias (16,)",
        "missing: wpe (8, 16)",
    ]
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


def test_train_and_eval_reach_every_module_and_return_the_root() -> None:
    model = tiny_gpt()
    assert model.eval() is model
    assert not any(module.training for _, module in model.named_modules())
    assert model.train() is model
    assert all(module.training for _, module in model.named_modules())


def test_zero_grad_sets_every_grad_to_none() -> None:
    model = tiny_gpt()
    model.loss(TOKENS, TOKENS).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_astype_converts_every_parameter_and_what_is_computed_with_them() -> None:
    model = tiny_gpt()
    model.loss(TOKENS, TOKENS).backward()
    assert model.astype(np.float64) is model
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    assert model.wte.grad is None
    assert model(TOKENS).dtype == np.float64


def test_repr_names_the_parameters_with_their_shapes() -> None:
    assert repr(nn.Linear(3, 5)) == "Linear: 20 parameters\n  weight (3, 5) float32\n  bias (5,) float32"


def test_a_module_without_forward_or_loss_says_what_to_write() -> None:
    with pytest.raises(NanogradError, match="Module has no forward; write one"):
        nn.Module()(1)
    with pytest.raises(NanogradError, match=r"LayerNorm has no loss; write loss\(tokens, targets\)"):
        nn.LayerNorm(3).loss(1, 2)


# Module paths in errors


def failure_of(call: Any) -> str:
    with checked(), pytest.raises(NonFiniteError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("call", ["forward", "__call__", "hidden", "loss"])
def test_checked_mode_names_the_module_and_line_of_a_bad_weight_for_every_method(call: str) -> None:
    model = tiny_gpt()
    model.blocks[2].attention.qkv.weight.data[3, 5] = np.nan
    arguments = (TOKENS, TOKENS) if call == "loss" else (TOKENS,)
    message = failure_of(lambda: getattr(model, call)(*arguments))
    assert re.search(r"linear\(.*\) in module blocks\.2\.attention\.qkv, called at .*layers\.py:\d+ ", message)


def test_checked_mode_names_the_module_of_a_bad_cotangent() -> None:
    class Root(nn.Module):
        def forward(self, x: Any) -> Tensor:
            return ops.sqrt(x)

    outer = nn.Module()
    outer.inner = [Root()]
    with np.errstate(divide="ignore"):
        outer.forward = lambda x: outer.inner[0](x)
        message = failure_of(lambda: outer(Tensor([0.0, 1.0], requires_grad=True)).sum().backward())
    assert re.search(
        r"gradient of input 0 of sqrt\(\(2,\)\) in module inner\.0, called at .*test_module\.py:\d+", message
    )


def test_the_module_path_is_reset_when_the_call_ends() -> None:
    model = tiny_gpt()
    with checked():
        model(TOKENS)
    with np.errstate(divide="ignore"):
        assert "in module" not in failure_of(lambda: ops.log(Tensor([0.0])))


def test_a_users_method_can_enter_its_module() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.LayerNorm(2), nn.LayerNorm(2)]

        def score(self, x: Any) -> Tensor:
            with self.entered():
                return self.layers[1](self.layers[0](x))

    pair = Pair()
    pair.layers[1].bias.data[1] = np.nan
    assert " in module layers.1, " in failure_of(lambda: pair.score(np.ones((1, 2), np.float32)))


def test_the_module_path_starts_at_the_outermost_module_that_runs() -> None:
    model = tiny_gpt()
    model.blocks[1].mlp.down.bias.data[0] = np.inf
    x = Tensor(np.ones((1, 2, 16), np.float32))
    assert " in module mlp.down, " in failure_of(lambda: model.blocks[1](x))


def test_each_thread_has_its_own_module_path() -> None:
    model = tiny_gpt()
    bad = tiny_gpt()
    bad.blocks[0].ln_1.weight.data[0] = np.nan
    messages: list[str] = []

    class Outer(nn.Module):
        def forward(self, x: Any) -> Any:
            thread = threading.Thread(target=lambda: messages.append(failure_of(lambda: bad.loss(TOKENS, TOKENS))))
            thread.start()
            thread.join()
            return x

    model.outer = Outer()
    with checked():
        model.outer(TOKENS)
    assert " in module blocks.0.ln_1, " in messages[0]


# Frozen parameters, and what a loss counts


def test_a_frozen_part_has_no_gradient_and_the_rest_is_unchanged() -> None:
    model, whole = tiny_gpt(), tiny_gpt()
    assert model.blocks[1].freeze() is model.blocks[1]
    for each in (model, whole):
        each.loss(TOKENS, TOKENS).backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.1."):
            assert parameter.grad is None, name
        else:
            assert np.array_equal(parameter.grad, gradients[name]), name


def test_freezing_a_tree_and_unfreezing_a_part_leaves_that_part_to_train() -> None:
    model = tiny_gpt()
    assert model.trainable_parameters() == model.parameters()
    assert model.freeze().trainable_parameters() == []
    model.blocks[2].unfreeze()
    assert list(map(id, model.trainable_parameters())) == list(map(id, model.blocks[2].parameters()))
    assert "blocks.1.ln_1.bias (16,) float32 frozen\n" in repr(model)
    assert "blocks.2.ln_1.bias (16,) float32\n" in repr(model)


def test_freezing_clears_grad_and_freezes_a_tied_parameter_in_both_places() -> None:
    model = Tied()
    model.table.grad = np.ones((5, 3), np.float32)
    model.head.freeze()
    assert model.table.grad is None
    assert model.trainable_parameters() == model.norm.parameters()


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ([TOKENS, np.array([[1, -100, 3, -100], [4, 3, 2, 1]])], 6),
        ([TOKENS, np.array([2, 1]), np.array([0, -100], np.int8)], 1),
        ([TOKENS, np.ones((2, 7))], 2),
        ([np.ones((3, 4), np.float32)], 3),
        ([TOKENS, np.array([True, False])], 2),
    ],
)
def test_loss_count_is_the_number_of_targets_or_else_of_rows(batch: Any, count: int) -> None:
    assert nn.Module().loss_count(*batch) == count


# modules, apply, buffers and Sequential


class Counted(nn.Module):
    def __init__(self) -> None:
        self.inner = nn.Sequential(nn.Linear(3, 4), ops.relu, nn.Linear(4, 2))
        self.register_buffer("mean", np.zeros(3, np.float32))
        self.register_buffer("seen", np.array(0))

    def forward(self, x: Any) -> Any:
        self.mean = 0.5 * self.mean + x.mean(0)
        self.seen = self.seen + 1
        return self.inner(x - self.mean)


def test_buffers_are_saved_loaded_and_cast_but_not_trained() -> None:
    model, other = nn.Sequential(Counted()), nn.Sequential(Counted())
    x = np.ones((2, 3), np.float32)
    model(x), model(x)
    state = model.state_dict()
    assert list(state)[-2:] == ["layers.0.mean", "layers.0.seen"] and len(model.parameters()) == 4
    assert state["layers.0.mean"].tolist() == [1.5] * 3 and state["layers.0.seen"] == 2
    for assign in (False, True):
        other = nn.Sequential(Counted())
        other.load_state_dict(state, assign=assign)
        assert other[0].seen == 2
        assert [array.tolist() for array in other.state_dict().values()] == [a.tolist() for a in state.values()]
    with pytest.raises(ShapeError, match=r"missing: layers.0.seen \(\)"):
        other.load_state_dict({name: array for name, array in state.items() if name != "layers.0.seen"})
    model.astype(np.float64)
    assert model[0].mean.dtype == np.float64 and model[0].seen.dtype == np.int64
    model[0].register_buffer("seen", np.array(7))
    assert [name for name, _ in model.named_buffers()] == ["layers.0.mean", "layers.0.seen"]


def test_modules_and_apply_reach_the_whole_tree_children_first() -> None:
    model = Counted()
    inner = model.inner
    assert model.modules() == [model, inner, inner[0], inner[2]]
    seen: list[nn.Module] = []
    assert model.apply(seen.append) is model
    assert seen == [inner[2], inner[0], inner, model]


def test_a_sequential_calls_its_layers_in_order() -> None:
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(first, ops.relu, last)
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(x).data, last(ops.relu(first(x))).data)
    assert len(model) == 3 and model[0] is first and model[-1] is last
    assert list(model.state_dict()) == ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]
    with pytest.raises(DtypeError, match="each layer must be a Module or a function"):
        nn.Sequential([first, last])  # type: ignore[arg-type]


def test_an_embedding_of_no_ids_has_no_rows() -> None:
    table = nn.Embedding(3, 2)
    assert table([]).shape == (0, 2) and table([[], []]).shape == (2, 0, 2)


def test_a_leaf_that_is_not_a_parameter_is_refused_since_it_would_not_be_trained() -> None:
    module: Any = nn.Module()
    with pytest.raises(DtypeError, match=r"Module\.w would not be trained.*write self\.w = ng\.Parameter"):
        module.w = Tensor([1.0], requires_grad=True)
    module.w = Parameter([1.0])
    module.w = Tensor([1.0], requires_grad=True)  # in place of a parameter, to differentiate by it


def test_targets_given_to_a_model_lead_to_its_loss() -> None:
    with pytest.raises(
        SignatureError, match=r"GPT.forward takes \(tokens\); too many .*, call model.loss\(tokens, targets\)$"
    ):
        tiny_gpt()(TOKENS, TOKENS)
    with pytest.raises(SignatureError, match=r"Linear.forward takes .*missing a required argument: 'x'$"):
        nn.Linear(3, 5)()
