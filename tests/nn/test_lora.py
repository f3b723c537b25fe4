"""LoRA: adapters learn beside a frozen model, can be switched off without a trace, and merge into its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm import nn
from nanograd_llm.autograd.tape import Node
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import ConfigError
from nanograd_llm.gradcheck.check.function import tape_below
from nanograd_llm.inference import generate
from nanograd_llm.inference.decoder import can_decode
from nanograd_llm.models import BERT, BERTConfig, Classifier, EncoderDecoder, EncoderDecoderConfig
from nanograd_llm.nn import lora
from nanograd_llm.training import TrainConfig, Trainer

SIZES: Any = {"vocab_size": 11, "context_length": 6, "n_layer": 2, "n_head": 2, "n_embd": 8}
IDS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
MODELS = {
    "GPT": lambda: (ng.GPT(ng.GPTConfig(**SIZES)), (IDS,)),
    "BERT": lambda: (BERT(BERTConfig(**SIZES)), (IDS,)),
    "EncoderDecoder": lambda: (EncoderDecoder(EncoderDecoderConfig(**SIZES)), (IDS, IDS)),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=[*MODELS])


def gpt(**changes: Any) -> ng.GPT:
    return ng.GPT(ng.GPTConfig(**{**SIZES, **changes}))


def filled(model: Any, rng: np.random.Generator) -> Any:
    """The model, its adapters as if they had learned something."""
    for linear in lora.adapted(model).values():
        linear.adapter.B.data = rng.standard_normal(linear.adapter.B.shape).astype(linear.adapter.B.dtype)
    return model


def names(model: Any) -> list[str]:
    return [*lora.adapted(model)]


@each_model
def test_new_adapters_change_nothing(make: Any) -> None:
    model, inputs = make()
    before = model(*inputs).data
    assert np.array_equal(lora.add(model)(*inputs).data, before)


@each_model
def test_a_model_whose_adapters_are_off_has_the_bits_of_the_model_before(make: Any, rng: np.random.Generator) -> None:
    model, inputs = make()
    before, state = model(*inputs).data, {name: x.tobytes() for name, x in model.state_dict().items()}
    filled(lora.add(model), rng)
    with lora.off(model):
        assert np.array_equal(model(*inputs).data, before)
        assert {name: x.tobytes() for name, x in model.state_dict().items()} == state
    assert np.abs(model(*inputs).data - before).max() > 0.01


@each_model
def test_a_merged_model_is_the_adapted_one_within_rounding(make: Any, rng: np.random.Generator) -> None:
    model, inputs = make()
    plain = names_and_shapes(model)
    expected = filled(lora.add(model.astype(np.float64)), rng)(*inputs).data
    assert np.allclose(lora.merge(model)(*inputs).data, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    assert names_and_shapes(model) == plain
    assert all(parameter.requires_grad for parameter in model.parameters())


def names_and_shapes(model: Any) -> list[Any]:
    return [(name, parameter.shape) for name, parameter in model.named_parameters()]


@pytest.mark.parametrize("place", range(8))
def test_every_linear_of_a_model_uses_its_adapter(place: int, rng: np.random.Generator) -> None:
    model = gpt()
    before = model(IDS).data
    lora.add(model)
    one = [*lora.adapted(model).values()][place].adapter
    one.B.data = rng.standard_normal(one.B.shape).astype(np.float32)
    assert not np.array_equal(model(IDS).data, before)


def test_only_the_adapters_are_trained_and_all_of_them_move() -> None:
    model = gpt()
    model.wte.data *= 30  # fresh vectors are too short for other logits than about 0
    before = {name: x.copy() for name, x in lora.add(model).state_dict().items()}
    trainer = Trainer(model, TrainConfig(steps=20, learning_rate=2e-2, workers=2))
    losses = [trainer.step(IDS, 10 - IDS) for _ in range(20)]
    moved = {name for name, x in model.state_dict().items() if not np.array_equal(x, before[name])}
    assert moved == {name for name in before if ".adapter." in name}
    assert losses[-1] < losses[0] / 2


def test_no_gradient_of_a_frozen_weight_is_computed() -> None:
    model = lora.add(gpt())
    tape = tape_below(model.loss(IDS, IDS))
    frozen = {id(x.data) for x in model.parameters() if not x.requires_grad}
    leaves = {id(node.data) for node in tape if not isinstance(node, Node)}
    assert leaves and not leaves & frozen


def test_a_begins_uniform_in_one_over_the_root_of_its_inputs_and_b_as_zeros() -> None:
    adapter = lora.Adapter(400, 3, rank=50)
    assert 0.99 / 20 < np.abs(adapter.A.data).max() <= 1 / 20
    assert adapter.A.data.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)
    assert not adapter.B.data.any()


def test_what_is_added_is_scaled_by_alpha_over_rank(rng: np.random.Generator) -> None:
    layer = nn.Linear(3, 4).astype(np.float64)
    x = rng.standard_normal((5, 3))
    filled(lora.add(layer, rank=2, alpha=6), rng)
    A, B = layer.adapter.A.data, layer.adapter.B.data
    assert np.allclose(layer(x).data, x @ (layer.weight.data + 3 * A @ B), rtol=1e-13)


def test_dropout_acts_on_the_adapter_only_and_in_training_only(rng: np.random.Generator) -> None:
    layer = nn.Linear(6, 4)
    x = rng.standard_normal((5, 6), dtype=np.float32)
    plain = layer(x).data
    filled(lora.add(layer, dropout=0.5), rng)
    with noise(0):
        trained = layer(x).data
    evaluated = layer.eval()(x).data
    assert not np.array_equal(trained, evaluated)
    with lora.off(layer.train()):
        assert np.array_equal(layer(x).data, plain)


def test_adapters_take_the_mode_and_the_dtype_of_the_model() -> None:
    model = lora.add(gpt().astype(np.float64).eval(), dropout=0.5)
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]),
        ("qkv, down", ["attention.qkv", "mlp.down"]),
        (["mlp"], ["mlp.up", "mlp.down"]),
    ],
)
def test_targets_are_names_of_layers_or_of_what_holds_them(targets: Any, expected: list[str]) -> None:
    model = lora.add(gpt(), targets=targets)
    assert names(model) == [f"blocks.{layer}.{name}" for layer in (0, 1) for name in expected]


def test_a_target_may_be_one_block() -> None:
    assert {name[:9] for name in names(lora.add(gpt(), targets=["blocks.1"]))} == {"blocks.1."}


def test_the_linears_outside_the_blocks_get_no_adapter_unless_they_are_named() -> None:
    config = BERTConfig(**SIZES, pooler=True)
    assert all(name.startswith("blocks.") for name in names(lora.add(BERT(config))))
    assert names(lora.add(BERT(config), targets="pooler,transform")) == ["pooler", "head.transform"]


def test_the_head_of_a_classifier_is_trained_as_a_whole() -> None:
    model = lora.add(Classifier.on(gpt(), 3), targets=["qkv"])
    assert {name for name, x in model.named_parameters() if x.requires_grad and ".adapter." not in name} == {
        "classes.weight",
        "classes.bias",
    }
    with pytest.raises(ConfigError, match="unknown 'classes'"):
        lora.add(Classifier.on(gpt(), 3), targets=["classes"])


@pytest.mark.parametrize("has_pooler", [False, True])
def test_what_a_classifier_does_not_take_from_a_model_is_trained_as_a_whole(has_pooler: bool) -> None:
    start = BERT(BERTConfig(**SIZES, pooler=has_pooler))
    model = lora.add(Classifier.on(start, 3, pooling="pooled"))
    assert trained_whole(model) == {"classes", *([] if has_pooler else ["model.pooler"])}
    further = Classifier(model.config)
    further.take(lora.merge(model))
    assert trained_whole(lora.add(further)) == set()
    with pytest.raises(ConfigError, match="targets names no|unknown 'pooler'"):
        lora.add(Classifier.on(BERT(BERTConfig(**SIZES)), 3, pooling="pooled"), targets="pooler")


def trained_whole(model: Any) -> set[str]:
    """The layers that are trained, but for adapters."""
    names = [name for name, x in model.named_parameters() if x.requires_grad]
    return {name.rpartition(".")[0] for name in names if ".adapter." not in name}


def test_a_merge_leaves_a_shared_table_as_it_is(rng: np.random.Generator) -> None:
    table = nn.Embedding(4, 4)
    model = nn.Sequential(table, nn.Linear(4, 4, bias=False))
    model[1].weight = table.weight
    before = table.weight.data.copy()
    expected = filled(lora.add(model), rng)([0, 1]).data
    assert np.allclose(lora.merge(model)([0, 1]).data, expected, atol=1e-6)
    assert np.array_equal(table.weight.data, before)


def test_a_linear_that_is_used_twice_has_one_adapter(rng: np.random.Generator) -> None:
    shared = nn.Linear(3, 3, rng=rng)
    model = lora.add(nn.Sequential(shared, shared))
    assert len(model.trainable_parameters()) == 2
    expected = filled(model, rng)(np.ones((1, 3), np.float32)).data
    merged = lora.merge(model)(np.ones((1, 3), np.float32)).data
    assert np.allclose(merged, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_model_with_adapters_writes_the_same_as_the_merged_one_which_is_fast_again(rng: np.random.Generator) -> None:
    model = filled(lora.add(gpt().eval()), rng)
    assert not can_decode(model)
    written = generate(model, [1, 2], max_new_tokens=12)
    assert can_decode(lora.merge(model))
    assert generate(model, [1, 2], max_new_tokens=12) == written


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = lora.add(gpt(recompute_activations=recompute), rng=np.random.default_rng(0))
        model.loss(IDS, IDS).backward()
        gradients.append([parameter.grad for parameter in model.trainable_parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*gradients))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be an integer of at least 1; got 0"),
        ({"alpha": 0}, "alpha is 0, which would switch the adapters off"),
        ({"alpha": -1}, "alpha must be a finite number"),
        ({"dropout": 1.0}, "dropout must be a finite number"),
        ({"targets": "dwn,up"}, "targets: unknown 'dwn', did you mean 'down'?"),
        (
            {"targets": ["c_attn"]},
            "targets: unknown 'c_attn', allowed are blocks, attention, qkv, out, mlp, up, down, blocks.0",
        ),
        ({"targets": []}, "targets names no Linear of this GPT"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_change_nothing(settings: Any, message: str) -> None:
    model = gpt()
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        lora.add(model, **settings)
    assert not names(model) and all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_has_adapters_gets_no_others() -> None:
    model = lora.add(gpt())
    with pytest.raises(ConfigError, match="this GPT has adapters already; merge them first"):
        lora.add(model)
