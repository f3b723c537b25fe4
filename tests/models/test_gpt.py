"""GPT agrees with GPT-2's definition in plain NumPy, its published sizes, and true derivatives."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig, Tensor, checked, grad, higher_order, hvp, no_grad, ops
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import ConfigError, DtypeError, IndexRangeError, NonFiniteError, ShapeError
from nanograd_llm.models.gpt import PRESETS
from nanograd_llm.training import TrainConfig, Trainer

SIZES = dict(vocab_size=13, context_length=8, n_layer=2, n_head=2, n_embd=16)


def tiny(seed: int = 0, **changes: Any) -> GPT:
    return GPT(GPTConfig(**{**SIZES, **changes}), seed=seed)


def shaken(dtype: Any = np.float64, **changes: Any) -> GPT:
    """A model whose parameters, including biases and norms, are all different from their initial values."""
    model, rng = tiny(**changes).astype(dtype), np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * rng.standard_normal(parameter.shape)
    return model


@pytest.fixture
def tokens(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(13, size=(3, 7))


@pytest.fixture
def targets(rng: np.random.Generator) -> np.ndarray:
    return np.random.default_rng(9).integers(13, size=(3, 7))


# The architecture


def gpt2_forward(w: dict[str, np.ndarray], tokens: np.ndarray, c: GPTConfig) -> np.ndarray:
    """GPT-2 as its paper and the papers it cites define it, one sequence and one head at a time."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean = x.mean(axis=-1, keepdims=True)
        return (x - mean) / np.sqrt(x.var(axis=-1, keepdims=True) + c.layer_norm_epsilon) * w[f"{name}.weight"] + w[
            f"{name}.bias"
        ]

    def affine(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    logits = []
    for row in tokens:
        T = len(row)
        x = w["wte"][row] + w["wpe"][:T]
        for i in range(c.n_layer):
            block = f"blocks.{i}"
            q, k, v = np.split(affine(norm(x, f"{block}.ln_1"), f"{block}.attention.qkv"), 3, axis=-1)
            heads = []
            for qh, kh, vh in zip(*(np.split(part, c.n_head, axis=-1) for part in (q, k, v))):
                head = np.zeros_like(vh)
                for t in range(T):
                    scores = kh[: t + 1] @ qh[t]
                    if c.scale_attn_weights:
                        scores /= math.sqrt(qh.shape[-1])
                    if c.scale_attn_by_inverse_layer_idx:
                        scores /= i + 1
                    weights = np.exp(scores) / np.exp(scores).sum()
                    head[t] = weights @ vh[: t + 1]
                heads.append(head)
            x = x + affine(np.concatenate(heads, axis=-1), f"{block}.attention.out")
            h = affine(norm(x, f"{block}.ln_2"), f"{block}.mlp.up")
            if c.activation == "gelu_exact":
                h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
            else:
                h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            x = x + affine(h, f"{block}.mlp.down")
        logits.append(norm(x, "ln_f") @ w["wte" if c.tie_word_embeddings else "head"].T)
    return np.array(logits)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_inner": 5},
    {"layer_norm_epsilon": 0.1},
    {"activation": "gelu_exact"},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False},
]
each_variant = pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: ",".join(changes) or "plain")


@each_variant
def test_the_logits_agree_with_gpt2s_definition(tokens: np.ndarray, changes: dict[str, Any]) -> None:
    model = shaken(**changes)
    expected = gpt2_forward(model.state_dict(), tokens, model.config)
    assert np.allclose(model(tokens).data, expected, rtol=1e-12, atol=1e-12)
    assert np.allclose(model.look(tokens).logits, expected, rtol=1e-12, atol=1e-12)


@each_variant
def test_forward_look_hidden_and_next_logits_agree(
    tokens: np.ndarray, targets: np.ndarray, changes: dict[str, Any]
) -> None:
    model = shaken(**changes)
    logits, caches = model(tokens), model.new_caches(3)
    for start, end in [(0, 3), (3, 4), (4, 7)]:
        found = model.next_logits(tokens[:, start:end], caches)
    assert np.allclose(found, logits.data[:, -1], rtol=1e-12, atol=1e-12)
    assert model.loss(tokens, targets).item() == pytest.approx(ops.cross_entropy(logits, targets).item(), rel=1e-12)
    maps, block = model.look(tokens).attention_maps[1], model.blocks[1]
    x = block.ln_1(model.look(tokens).hidden_states[1])
    values = np.split(block.attention.qkv(x).data, 3, axis=-1)[2]
    heads = [map_ @ v for map_, v in zip(maps.swapaxes(0, 1), np.split(values, 2, axis=-1))]
    expected = block.attention.out(np.concatenate(heads, axis=-1)).data
    assert np.allclose(block.attention(x).data, expected, rtol=1e-12)


def test_an_untied_head_is_a_separate_parameter(tokens: np.ndarray, targets: np.ndarray) -> None:
    model = tiny(tie_word_embeddings=False)
    assert model.parameter_count() == tiny().parameter_count() + 13 * 16
    model.loss(tokens, targets).backward()
    unseen = np.setdiff1d(np.arange(13), tokens)
    assert len(unseen) and not model.wte.grad[unseen].any() and model.head.grad.all(axis=0).any()


# Loaded weights


def test_a_model_without_a_seed_uses_read_only_arrays_without_a_copy(tokens: np.ndarray, targets: np.ndarray) -> None:
    source = shaken(np.float32)
    arrays = {name: array.copy() for name, array in source.state_dict().items()}
    for array in arrays.values():
        array.flags.writeable = False
    model = GPT(source.config, seed=None)
    model.load_state_dict(arrays, assign=True)
    assert all(model.state_dict()[name] is array for name, array in arrays.items())
    assert np.array_equal(model(tokens).data, source(tokens).data)
    trainer = Trainer(model, TrainConfig(steps=2, workers=1))
    trainer.step(tokens, targets)
    assert not np.array_equal(model.wte.data, arrays["wte"])
    assert np.array_equal(arrays["wte"], source.wte.data)


def test_a_model_without_a_seed_uses_no_memory() -> None:
    model = GPT(GPTConfig.preset("gpt2"), seed=None)
    matrices = [p.data for p in model.parameters() if p.ndim == 2]
    assert all(array.strides == (0, 0) and not array.flags.writeable for array in matrices)


def test_assigned_arrays_must_fit_and_have_one_float_dtype(tokens: np.ndarray) -> None:
    model, arrays = tiny(), shaken().state_dict()
    model.load_state_dict(arrays, assign=True)
    assert model(tokens).dtype == np.float64
    before = model.state_dict()
    mixed = arrays | {"wpe": arrays["wpe"].astype(np.float32)}
    for wrong, said in [
        (mixed, r"misfit: wpe is \(8, 16\) float32, expected \(8, 16\) float64"),
        ({name: array.astype(int) for name, array in arrays.items()}, "wte is .* int64, expected .* float64"),
        ({name: array for name, array in arrays.items() if name != "wpe"}, "missing: wpe"),
        (arrays | {"head": arrays["wte"]}, "extra: head"),
    ]:
        with pytest.raises(ShapeError, match=said):
            model.load_state_dict(wrong, assign=True)
        assert all(model.state_dict()[name] is array for name, array in before.items())


def test_the_loss_is_the_mean_over_the_targets_that_count(tokens: np.ndarray, targets: np.ndarray) -> None:
    model = shaken()
    targets[0, 2:] = -100
    targets[2] = -100
    logits = model(tokens).data
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.mean([logp[b, t, targets[b, t]] for b, t in np.argwhere(targets != -100)])
    assert model.loss(tokens, targets).item() == pytest.approx(expected, rel=1e-13)
    assert ops.cross_entropy(model(tokens), targets).item() == pytest.approx(expected, rel=1e-13)


def test_what_follows_the_last_target_that_counts_changes_neither_loss_nor_gradient(tokens: np.ndarray) -> None:
    model, targets = shaken(), np.full(tokens.shape, -100)
    targets[0, [1, 3]], targets[1, 0] = 2, 1
    loss, expected = model.loss(tokens, targets), ops.cross_entropy(model(tokens), targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-13)
    for found, gradient in zip(grad(loss, model.parameters()), grad(expected, model.parameters())):
        np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-13)


def test_a_float32_model_computes_in_float32(tokens: np.ndarray, targets: np.ndarray) -> None:
    model = tiny()
    loss = model.loss(tokens, targets)
    loss.backward()
    assert model(tokens).dtype == loss.dtype == np.float32
    assert {p.grad.dtype for p in model.parameters()} == {np.dtype(np.float32)}


def test_a_later_token_never_changes_earlier_logits(tokens: np.ndarray) -> None:
    model = shaken(np.float32)
    changed = tokens.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 13
    before, after = model(tokens).data, model(changed).data
    assert np.array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


# Sizes

PUBLISHED = {
    "distilgpt2": 81_912_576,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def parameter_count(c: GPTConfig) -> int:
    """Embeddings; for each block two norms, qkv, out, up and down with their biases; the last norm."""
    C = c.n_embd
    block = 2 * 2 * C + (C + 1) * 3 * C + (C + 1) * C + (C + 1) * 4 * C + (4 * C + 1) * C
    return (c.vocab_size + c.context_length) * C + c.n_layer * block + 2 * C


@pytest.mark.parametrize("changes", [{}, {"n_layer": 3}, {"n_embd": 8, "vocab_size": 5, "context_length": 3}])
def test_a_model_has_as_many_parameters_as_its_sizes_say(changes: dict[str, int]) -> None:
    model = tiny(**changes)
    assert model.parameter_count() == model.parameter_count(unique=False) == parameter_count(model.config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_parameter_count(name: str) -> None:
    assert parameter_count(GPTConfig.preset(name)) == PUBLISHED[name]


def test_presets_can_be_changed_field_by_field() -> None:
    config = GPTConfig.preset("nano", vocab_size=65, dropout=0.1)
    assert config == GPTConfig(**{**PRESETS["nano"], "vocab_size": 65, "dropout": 0.1})


# Initial values


def test_the_loss_of_an_untrained_model_is_that_of_a_uniform_one(tokens: np.ndarray, targets: np.ndarray) -> None:
    assert tiny().loss(tokens, targets).item() == pytest.approx(math.log(13), rel=0.02)


def test_weights_are_initialised_like_gpt2s() -> None:
    model = tiny(n_layer=8, n_embd=64, vocab_size=500, context_length=100)
    smaller = 0.02 / math.sqrt(2 * 8)
    for name, p in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            assert p.data.std() == pytest.approx(smaller, rel=0.05), name
        elif p.ndim == 2:
            assert p.data.std() == pytest.approx(0.02, rel=0.05), name
        else:
            assert (p.data == (1 if name.endswith("weight") else 0)).all(), name


def test_the_seed_determines_every_parameter() -> None:
    first, same, other = (b"".join(a.tobytes() for a in tiny(seed).state_dict().values()) for seed in (0, 0, 1))
    assert first == same
    assert first != other


# Dropout


@pytest.mark.parametrize(
    "place", [["dropout"], ["blocks.0.attention.dropout"], ["blocks.1.mlp.dropout"]], ids=lambda names: names[0]
)
def test_dropout_is_applied_in_the_same_places_as_in_gpt2(place: list[str], tokens: np.ndarray) -> None:
    model = tiny()
    plain = model(tokens).data
    dict(model.named_modules())[place[0]].rate = 0.5
    with noise(0):
        assert not np.allclose(model(tokens).data, plain)
    assert np.array_equal(model.eval()(tokens).data, plain)


def test_dropout_has_two_uses_in_an_attention_layer(tokens: np.ndarray) -> None:
    """On the weights, and on what goes into the residual stream."""
    model = tiny(n_layer=1)
    layer = model.blocks[0].attention
    layer.dropout.rate = 0.5
    x = Tensor(np.ones((1, 6, 16), np.float32))
    layer.out.weight.data[:] = 0
    layer.out.bias.data[:] = 1  # hides the weights: what is left is the dropout of the output
    with noise(0):
        assert set(np.unique(layer(x).data)) == {0, 2}
    layer.out.weight.data[:] = np.eye(16)
    layer.out.bias.data[:] = 0
    layer.qkv.weight.data[:] = 0
    layer.qkv.bias.data[:] = 1  # equal weights on equal values: each query's weights sum to one unless some are dropped
    with noise(0):
        assert len(np.unique(layer(x).data)) > 2


def test_dropout_is_determined_by_the_noise_key(tokens: np.ndarray, targets: np.ndarray) -> None:
    model = tiny(dropout=0.3)

    def loss(*key: int) -> float:
        with noise(*key):
            return model.loss(tokens, targets).item()

    assert loss(1, 2) == loss(1, 2)
    assert loss(1, 2) != loss(1, 3)
    assert model.eval() and loss(1, 2) == loss(1, 3)


# Looking inside


def test_a_look_is_shown_as_shapes(tokens: np.ndarray) -> None:
    look = shaken().look(tokens)
    states, maps = look.hidden_states, look.attention_maps
    shown = f"hidden_states: {len(states)} x {states[0].shape}, attention_maps: {len(maps)} x {maps[0].shape}"
    assert repr(look) == f"Look(logits: {look.logits.shape}, {shown})"


def test_look_shows_what_forward_computes(tokens: np.ndarray) -> None:
    model = shaken()
    look = model.look(tokens)
    assert np.array_equal(look.logits, model(tokens).data)
    assert len(look.hidden_states) == 3
    assert len(look.attention_maps) == 2
    assert np.array_equal(look.hidden_states[0], model.wte.data[tokens] + model.wpe.data[:7])
    assert np.array_equal(look.hidden_states[2], model.blocks[1](look.hidden_states[1]).data)
    assert np.allclose(look.logits, model.ln_f(look.hidden_states[2]).data @ model.wte.data.T, rtol=1e-12)


def test_attention_maps_are_causal_rows_that_sum_to_one(tokens: np.ndarray) -> None:
    for weights in shaken().look(tokens).attention_maps:
        assert weights.shape == (3, 2, 7, 7)
        assert np.allclose(weights.sum(axis=-1), 1, rtol=1e-12)
        assert (weights >= 0).all()
        assert not np.triu(weights, 1).any()


def test_look_is_consistent_under_dropout(tokens: np.ndarray) -> None:
    model = tiny(dropout=0.5)
    look = model.look(tokens)
    assert np.allclose(look.logits, model.ln_f(look.hidden_states[-1]).data @ model.wte.data.T, rtol=1e-4, atol=1e-6)


def test_look_names_the_module_of_a_bad_weight_in_checked_mode(tokens: np.ndarray) -> None:
    model = tiny()
    model.blocks[0].ln_1.bias.data[2] = np.nan
    with checked(), pytest.raises(NonFiniteError, match=r"in module blocks\.0\.ln_1, called at"):
        model.look(tokens)


def test_next_logits_are_the_last_logits_of_forward(tokens: np.ndarray) -> None:
    model = shaken(np.float32)
    expected = model(tokens).data[:, -1]
    assert np.allclose(model.next_logits(tokens), expected, rtol=1e-5, atol=1e-5)
    caches = model.new_caches(3)
    for start, end in [(0, 3), (3, 4), (4, 7)]:
        found = model.next_logits(tokens[:, start:end], caches)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert caches[0].length == 7


# Derivatives of the whole model, in float64

NAMES = [name for name, _ in tiny().named_parameters()]


def test_the_gradient_is_the_complex_step_derivative_for_every_parameter(
    tokens: np.ndarray, targets: np.ndarray
) -> None:
    model, rng = shaken(), np.random.default_rng(2)
    targets[1, 3:] = -100
    gradients = grad(model.loss(tokens, targets), model.parameters())
    for name, parameter, gradient in zip(NAMES, model.astype(np.complex128).parameters(), gradients):
        direction = rng.standard_normal(parameter.shape)
        parameter.data += 1e-30j * direction
        exact = model.loss(tokens, targets).data.imag / 1e-30
        parameter.data -= 1e-30j * direction
        bound = 64 * np.finfo(float).eps * np.abs(gradient * direction).sum()
        assert abs(np.sum(gradient * direction) - exact) < bound, name


def gradient_along(model: GPT, tokens: np.ndarray, targets: np.ndarray, directions: list[np.ndarray]) -> list[Any]:
    """The product of the loss's Hessian and the directions."""
    with higher_order():
        gradients = grad(model.loss(tokens, targets), model.parameters())
        total = sum((g * d).sum() for g, d in zip(gradients, directions))
    return grad(total, model.parameters())


def test_the_second_derivative_is_right_for_every_parameter(tokens: np.ndarray, targets: np.ndarray) -> None:
    model, rng = shaken(), np.random.default_rng(3)
    parameters = model.parameters()
    directions = [rng.standard_normal(p.shape) for p in parameters]
    values = [p.data.copy() for p in parameters]

    def gradients_at(h: float) -> list[np.ndarray]:
        for p, value, direction in zip(parameters, values, directions):
            p.data = value + h * direction
        return grad(model.loss(tokens, targets), parameters)

    h = 2e-4  # fourth order: the error falls as h⁴, the rounding grows as ε/h
    stencil = [(1 / 12, -2), (-2 / 3, -1), (2 / 3, 1), (-1 / 12, 2)]
    parts = [[c / h * g for g in gradients_at(k * h)] for c, k in stencil]
    expected = [np.sum(part, axis=0) for part in zip(*parts)]
    gradients_at(0)
    found = gradient_along(model, tokens, targets, directions)
    for name, a, b in zip(NAMES, found, expected):
        assert np.allclose(a, b, rtol=1e-6, atol=1e-7 * np.abs(b).max()), name


def test_hvp_agrees_for_a_function_of_one_weight(tokens: np.ndarray, targets: np.ndarray) -> None:
    model, table = shaken(), shaken().wte
    direction = np.random.default_rng(5).standard_normal(table.shape)

    def loss(wte: Tensor) -> Tensor:
        model.wte = wte
        return model.loss(tokens, targets)

    (found,) = hvp(loss, [table], [direction])
    directions = [direction, *(np.zeros(p.shape) for p in shaken().parameters()[1:])]
    assert np.allclose(found, gradient_along(shaken(), tokens, targets, directions)[0], rtol=1e-12)


# Invalid input


@pytest.mark.parametrize("call", ["forward", "next_logits", "look"])
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((1, 9), int), ShapeError, "context_length is 8 but 9 tokens"),
        (np.zeros(5, int), ShapeError, r"tokens must be \(B, T\); got shape \(5,\); use tokens\[None\]"),
        (3, ShapeError, r"tokens must be \(B, T\); got shape \(\)$"),
        (np.zeros((1, 2, 4), int), ShapeError, r"tokens must be \(B, T\); got shape \(1, 2, 4\)$"),
        ("The ", DtypeError, r"tokens are integer ids \(B, T\), as tokenizer.encode gives them; got 'The '"),
        (None, DtypeError, "tokens are integer ids .* got None"),
        (np.array([[0, 13]]), IndexRangeError, "token ids must be from 0 to 12; got 0 to 13"),
        (np.array([[0, -1]]), IndexRangeError, "token ids must be from 0 to 12; got -1 to 0"),
        (np.zeros((1, 3)), DtypeError, "token ids must be integers; got float64"),
        (np.ones((1, 3), bool), DtypeError, "token ids must be integers; got bool"),
    ],
)
def test_invalid_tokens_are_refused(call: str, bad: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(tiny(), call)(bad)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.array([[0, 13]]), IndexRangeError, "target ids must be from 0 to 12; got 0 to 13"),
        (np.array([[-1, 0]]), IndexRangeError, "target ids must be from 0 to 12; got -1 to 0"),
        (np.array([[1, 2, 3]]), ShapeError, r"targets \(1, 3\) do not fit logits \(1, 2, 13\)"),
        (np.array([[-100, -100]]), ShapeError, "none of 2 targets counts"),
    ],
)
def test_invalid_targets_are_refused(bad: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        tiny().loss(np.array([[0, 1]]), bad)


def test_one_token_more_than_the_context_is_refused() -> None:
    model = tiny()
    caches = model.new_caches(1)
    model.next_logits(np.zeros((1, 8), int), caches)
    with pytest.raises(ShapeError, match="context_length is 8 but 9 tokens"):
        model.next_logits(np.zeros((1, 1), int), caches)


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "4", None, float("nan")])
def test_an_invalid_size_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be an integer of at least 1; got"):
        GPTConfig(**{**SIZES, field: value})


@pytest.mark.parametrize("dropout", [float("nan"), 1.0, -0.1, float("inf"), True, "0.1"])
def test_an_invalid_dropout_is_refused(dropout: Any) -> None:
    with pytest.raises(ConfigError, match="dropout must be a finite number with 0 ≤ dropout < 1; got"):
        GPTConfig(**SIZES, dropout=dropout)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n_inner", 0, "n_inner must be an integer of at least 1"),
        ("n_inner", 4.0, "n_inner must be an integer of at least 1"),
        ("layer_norm_epsilon", -1.0, "layer_norm_epsilon must be a finite number"),
        ("layer_norm_epsilon", math.nan, "layer_norm_epsilon must be a finite number"),
        (
            "activation",
            "gelu_exakt",
            "activation must be one of gelu, gelu_exact, relu, silu; .*did you mean 'gelu_exact'",
        ),
        ("scale_attn_weights", 1, "scale_attn_weights must be True or False; got 1"),
        ("scale_attn_by_inverse_layer_idx", None, "scale_attn_by_inverse_layer_idx must be True or False"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings must be True or False; got 'yes'"),
    ],
)
def test_an_invalid_option_is_refused_by_name(field: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GPTConfig(**{**SIZES, field: value})


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_embd must be a multiple of n_head; got n_embd=16, n_head=3"):
        GPTConfig(**{**SIZES, "n_head": 3})


@pytest.mark.parametrize(("name", "near"), [("gpt2-lage", "gpt2-large"), ("nanno", "nano"), ("gpt-2", "gpt2")])
def test_an_unknown_preset_is_refused_with_the_nearest_one(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"preset must be one of nano, .*; got '{name}'; did you mean '{near}'"):
        GPTConfig.preset(name)


def test_a_config_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().config.n_layer = 3  # type: ignore[misc]


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_an_invalid_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed"):
        tiny(seed)


def test_generation_records_nothing(tokens: np.ndarray) -> None:
    model = tiny()
    assert type(model.next_logits(tokens)) is np.ndarray
    with no_grad():
        assert not model(tokens).requires_grad


def test_look_runs_in_checked_mode(tokens: np.ndarray) -> None:
    with checked():
        tiny().look(tokens)


class WeightedGPT(GPT):
    """Its loss takes a third array: how much each row counts."""

    def loss(self, tokens: Any, targets: Any, weights: Any) -> Tensor:  # type: ignore[override]
        return super().loss(tokens, targets) * float(np.mean(weights))


class CopyingGPT(GPT):
    """Its loss takes one array, the targets of itself."""

    def loss(self, tokens: Any) -> Tensor:  # type: ignore[override]
        return super().loss(tokens, tokens)


@pytest.mark.parametrize("kind", [WeightedGPT, CopyingGPT])
def test_a_trainer_takes_a_gpt_whose_loss_has_other_arrays(kind: type[GPT], tokens: Any, targets: Any) -> None:
    arrays = (tokens,) if kind is CopyingGPT else (tokens, targets, np.ones(3))
    trainer = Trainer(kind(GPTConfig(**SIZES)), TrainConfig(steps=1, workers=2))
    assert trainer.step(*arrays) == pytest.approx(GPT(GPTConfig(**SIZES)).loss(*(arrays * 2)[:2]).item(), rel=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ignored", [0, 3], ids=["all", "those that count"])
def test_targets_that_are_not_shifted_give_a_warning(ignored: int) -> None:
    model = GPT(GPTConfig(vocab_size=11, context_length=8, n_layer=1, n_head=2, n_embd=8), seed=0)
    ids = np.array([[1, 2, 3, 4, 5, 6], [4, 4, 4, 4, 4, 4]])
    targets = np.where(np.arange(6) < ignored, -100, ids)
    with pytest.warns(UserWarning, match="the targets are the tokens themselves"):
        model.loss(ids, targets)
    model.loss(ids[:, :-1], ids[:, 1:])
    model.loss(ids[1:], ids[1:])  # one token again and again: also the next ones


@pytest.mark.filterwarnings("error")
def test_tokens_and_targets_in_each_others_place_give_a_warning() -> None:
    model = GPT(GPTConfig(vocab_size=11, context_length=8, n_layer=1, n_head=2, n_embd=8), seed=0)
    ids = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    with pytest.warns(UserWarning, match="the targets are the tokens one place before, as if the two were swapped"):
        model.loss(ids[:, 1:], ids[:, :-1])
    model.loss(ids[:, :1], ids[:, 1:2])  # of one place nothing can be said
    model.loss(np.array([[1, 2, 1]]), np.array([[2, 1, 2]]))  # also the next ones
