"""Logits, loss, gradients, text, hidden states and attention maps are equal to those of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.inference import Sampling, generate
from nanograd_llm.pretrained.gpt2.names import HUGGING_FACE

FIXTURES = Path(__file__).parents[1] / "fixtures"
KINDS = ("plain", "variant", "scaled", "untied")
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)

FORMS = {  # for each fixture, the name of its logits in `expected.npz`
    "safetensors_float64": "float64",
    "safetensors_float32": "float32",
    "safetensors_float16": "float16",
    "safetensors_bfloat16": "bfloat16",
    "safetensors_sharded": "float32",
    "bin_float32": "float32",
    "bin_bfloat16": "bfloat16",
    "bin_sharded": "float32",
    "tensorflow": "float32",
    "tensorflow/model.ckpt.index": "float32",
    "llmc/gpt2_tiny.bin": "float32",
    "llmc/gpt2_tiny_bf16.bin": "bfloat16",
    "nanogpt": "float32",
    "nanogpt/ckpt.pt": "float32",
    "safetensors_float32/model.safetensors": "float32",
    "safetensors_sharded/model.safetensors.index.json": "float32",
    "bin_float32/pytorch_model.bin": "float32",
    "bin_sharded/pytorch_model.bin.index.json": "float32",
}


def load(kind: str, dtype: str) -> tuple[ng.GPT, dict[str, np.ndarray]]:
    folder = FIXTURES / f"exact_{kind}"
    with np.load(folder / "expected.npz") as expected:
        return ng.load_gpt2(folder, dtype=dtype), dict(expected)


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """Equal within the dtype's tolerance, relative to the largest expected number."""
    assert found.shape == expected.shape
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()


@each_dtype
@pytest.mark.parametrize("source", FORMS)
def test_every_form_gives_the_logits_of_transformers(source: str, dtype: str) -> None:
    path = FIXTURES / source
    model = ng.load_gpt2(path, dtype=dtype)
    if source.startswith("nanogpt"):  # it has the exact GELU; these logits were computed with the tanh form
        assert {block.mlp.activation for block in model.blocks} == {"gelu_exact"}
        for block in model.blocks:
            block.mlp.activation = "gelu"
    with np.load(FIXTURES / "expected.npz") as expected:
        assert_close(model(expected["ids"]).data[..., ::8], expected[f"logits_{FORMS[source]}"], dtype)


@each_dtype
@each_kind
def test_logits_and_loss_are_those_of_transformers(kind: str, dtype: str) -> None:
    model, expected = load(kind, dtype)
    ids = expected["ids"]
    assert_close(model(ids).data, expected["logits"], dtype)
    assert_close(np.asarray(model.loss(ids[:, :-1], ids[:, 1:]).data), expected["loss"], dtype)


@each_dtype
@each_kind
def test_every_gradient_is_that_of_transformers(kind: str, dtype: str) -> None:
    model, expected = load(kind, dtype)
    ids = expected["ids"]
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    gradients = {f"grad.{HUGGING_FACE.name(name)}": p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == {name for name in expected if name.startswith("grad.")}
    largest = max(np.abs(expected[name]).max() for name in gradients)
    for name, gradient in gradients.items():
        assert gradient.shape == expected[name].shape
        difference = np.abs(gradient - expected[name]).max()
        assert difference <= TOLERANCE[dtype] * largest, name


@each_dtype
@each_kind
def test_hidden_states_and_attention_maps_are_those_of_transformers_layer_by_layer(kind: str, dtype: str) -> None:
    model, expected = load(kind, dtype)
    look = model.look(expected["ids"])
    last = model.ln_f(look.hidden_states[-1]).data  # transformers includes the last norm in the last layer
    for layer, hidden in enumerate([*look.hidden_states[:-1], last]):
        assert_close(hidden, expected[f"hidden.{layer}"], dtype)
    for layer, attention in enumerate(look.attention_maps):
        assert_close(attention, expected[f"attention.{layer}"], dtype)
    assert len(look.attention_maps) == sum(name.startswith("attention.") for name in expected) == 3


@each_dtype
@pytest.mark.parametrize("cache", [True, False])
@each_kind
def test_fifty_greedy_tokens_are_those_of_transformers(kind: str, cache: bool, dtype: str) -> None:
    model, expected = load(kind, dtype)
    greedy = Sampling(temperature=0)
    (found,) = generate(model, expected["ids"][0, :4], max_new_tokens=50, sampling=greedy, cache=cache)
    assert found == expected["greedy"].tolist()


@pytest.mark.parametrize("part", ["attention.out.weight", "mlp.up.weight", "mlp.down.weight"])
def test_a_transposed_square_matrix_changes_the_logits(part: str, tmp_path: Path) -> None:
    """A square matrix and its transpose have the same shape, so only the logits show that the layout is right."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "exact_scaled", folder)
    arrays = read_safetensors(folder / "model.safetensors")
    name = f"transformer.{HUGGING_FACE.name(f'blocks.1.{part}')}"
    assert arrays[name].shape == (8, 8)
    write_safetensors(folder / "model.safetensors", {**arrays, name: arrays[name].T}, {})
    with np.load(folder / "expected.npz") as expected:
        logits = ng.load_gpt2(folder, dtype="float64")(expected["ids"]).data
        assert np.abs(logits - expected["logits"]).max() > 0.01 * np.abs(expected["logits"]).max()


def test_each_setting_of_the_fixtures_changes_the_logits(tmp_path: Path) -> None:
    """So the tests above would notice a setting that is ignored."""
    for kind, settings in {
        "variant": [("activation_function", "gelu_new"), ("layer_norm_epsilon", 1e-5)],
        "scaled": [("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)],
    }.items():
        for key, plain in settings:
            folder = tmp_path / f"{kind}-{key}"
            shutil.copytree(FIXTURES / f"exact_{kind}", folder)
            config = json.loads((folder / "config.json").read_text("utf-8"))
            assert config[key] != plain
            (folder / "config.json").write_text(json.dumps({**config, key: plain}), encoding="utf-8")
            with np.load(folder / "expected.npz") as expected:
                logits = ng.load_gpt2(folder, dtype="float64")(expected["ids"]).data
                assert np.abs(logits - expected["logits"]).max() > 1e-4 * np.abs(expected["logits"]).max()
