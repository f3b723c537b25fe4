"""Marian's models: what transformers wrote is read, with its logits, states, maps and gradients, and written back."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.pretrained import load_marian, save_marian
from nanograd_llm.pretrained.marian.names import LAYOUT
from nanograd_llm.text import WordTokenizer

MARIAN = Path(__file__).parents[1] / "fixtures" / "marian"


def held_to(model: ng.EncoderDecoder, expected: Any, tolerance: float) -> None:
    """Logits, states, maps, the loss and every gradient are those that transformers computed."""
    given = [expected[name] for name in ("source", "target_in", "target")]
    look = model.look(*given[:2])
    loss = model.loss(*given)
    loss.backward()
    found: dict[str, Any] = {"logits": look.logits, "loss": loss.data}
    for name, arrays in (
        ("encoder_hidden_states", look.encoder_states),
        ("decoder_hidden_states", look.decoder_states),
        ("encoder_attentions", look.encoder_maps),
        ("decoder_attentions", look.decoder_maps),
        ("cross_attentions", look.cross_maps),
    ):
        found |= {f"{name}.{layer}": array for layer, array in enumerate(arrays)}
    for name, parameter in model.named_parameters():
        if name != "head_bias":  # a buffer in transformers
            found |= {f"grad.{x}": array for x, array in LAYOUT.stored(name, parameter.grad).items()}  # type: ignore[arg-type]
    wanted = {name: expected[name] for name in expected if name not in ("source", "target_in", "target")}
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        ours = found[name]
        if name == "grad.model.shared.weight":  # torch gives the row of padding no gradient as an embedding
            pad = model.config.pad_id
            ours, array = np.delete(ours, pad, 0), np.delete(array, pad, 0)
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(ours, array, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-5)])
def test_logits_states_maps_and_gradients_are_those_of_transformers(dtype: str, tolerance: float) -> None:
    with np.load(MARIAN / "expected.npz") as expected:
        held_to(load_marian(MARIAN, dtype=dtype), dict(expected), tolerance)


def test_a_model_that_is_read_and_written_has_the_same_files(tmp_path: Path) -> None:
    model = load_marian(MARIAN, dtype="float64")
    save_marian(model, tmp_path / "again")
    first, again = (read_safetensors(folder / "model.safetensors") for folder in (MARIAN, tmp_path / "again"))
    assert first.keys() == again.keys() and all(np.array_equal(first[name], again[name]) for name in first)
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (MARIAN, tmp_path / "again"))
    for silu in (one, other):
        assert silu.pop("activation_function") in ("silu", "swish")
    assert all(one[key] == value for key, value in other.items() if key != "dtype")
    opened = ng.open_model(tmp_path / "again", ng.EncoderDecoder)
    assert opened.config == model.config and opened.form == "safetensors"


def test_a_run_of_marians_kind_is_converted_with_its_tokenizer_and_translates(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.tsv").write_text("a b\tc d\nb a\td c\na\tc\nb\td\n", "utf-8")
    kind = ["--no-norm-first", "--positions", "sinusoidal_halves", "--n-layer", "1", "--n-embd", "8", "--n-head", "2"]
    run, out = str(tmp_path / "run"), str(tmp_path / "hf")
    command = ["train", str(tmp_path / "x.tsv"), "--task", "translation", "--steps", "2", "--workers", "1"]
    assert main([*command, *kind, "--out", run]) == 0
    assert main(["convert", run, "--to", "hf", "--out", out]) == 0
    capsys.readouterr()
    told = []
    for model in (run, out):
        assert main(["translate", model, "a b a"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert main(["info", out]) == 0


def test_a_file_with_the_copies_of_older_versions_is_read(tmp_path: Path) -> None:
    shutil.copy(MARIAN / "config.json", tmp_path)
    arrays = read_safetensors(MARIAN / "model.safetensors")
    table = arrays.pop("model.shared.weight")
    copies = {"lm_head.weight": table, "model.encoder.embed_tokens.weight": table}
    copies |= {"model.decoder.embed_positions.weight": np.zeros((7, 4))}
    write_safetensors(tmp_path / "model.safetensors", {**arrays, **copies}, {})
    assert np.array_equal(load_marian(tmp_path).source_table.data, table.astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder_attention_heads": 4}, "decoder_attention_heads is 4; expected 2, as encoder_attention_heads is"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False, which is not supp"),
        ({"activation_function": "tanh"}, "activation_function is 'tanh', which is not supported"),
        ({"encoder_layers": 2}, "missing: model.encoder.layers.1.self_attn.q_proj.weight"),
        ({"eos_token_id": [0]}, "eos_token_id must be an integer"),
    ],
)
def test_settings_that_this_model_does_not_have_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = shutil.copytree(MARIAN, tmp_path / "marian")
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BadFileError) as caught:
        load_marian(folder)
    assert said in str(caught.value)


def test_a_folder_without_a_tokenizer_that_can_be_read_says_so() -> None:
    with pytest.raises(BadFileError, match=r"has no nanograd_tokenizer.json; .* use ids, with inference.translate"):
        ng.open_model(MARIAN).tokenizer()


def test_a_model_that_marian_does_not_have_is_not_written(tmp_path: Path) -> None:
    sizes: Any = dict(vocab_size=5, context_length=4, n_layer=1, n_head=1, n_embd=4)
    with pytest.raises(ConfigError, match="norm_first is True, not False, positions is sinusoidal, not"):
        save_marian(ng.EncoderDecoder(ng.EncoderDecoderConfig(**sizes)), tmp_path / "x")
    kind = ng.EncoderDecoderConfig(**sizes, norm_first=False, positions="sinusoidal_halves")
    with pytest.raises(ConfigError, match="the tokenizer has 6 tokens, the model 5"):
        save_marian(ng.EncoderDecoder(kind), tmp_path / "x", WordTokenizer.train(["a b c d e"]))
    assert not (tmp_path / "x").exists()


@pytest.mark.parity
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("seed", range(4))
def test_random_models_go_both_ways(tmp_path: Path, seed: int, dtype: str, tolerance: float) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    make, rng = importlib.import_module("make_marian"), np.random.default_rng(seed)
    kinds: dict[str, Any] = dict(encoder_layers=1 + seed % 2, decoder_layers=1 + seed // 2, scale_embedding=seed < 2)
    kinds |= {"activation_function": ["relu", "gelu", "gelu_new", "swish"][seed], "vocab_size": 23, "pad_token_id": 22}
    theirs = make.theirs(seed, **kinds, decoder_start_token_id=22)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_marian(tmp_path / "theirs", dtype=dtype)
    given = dict(zip(("source", "target_in", "target"), make.batch(rng, 23, 22)))
    held_to(ours, given | make.computed(theirs, **given), tolerance)
    for parameter in ours.parameters():
        parameter.data = parameter.data + rng.normal(0, 0.1, parameter.shape).astype(dtype)
    save_marian(ours, tmp_path / "ours")
    again = transformers.MarianMTModel.from_pretrained(tmp_path / "ours", dtype=getattr(torch, dtype)).eval()
    ids = torch.from_numpy(given["source"])
    logits = again(
        input_ids=ids, attention_mask=(ids != 22).long(), decoder_input_ids=torch.from_numpy(given["target_in"])
    ).logits
    # transformers rounds its sinusoids to float32
    np.testing.assert_allclose(
        ours(given["source"], given["target_in"]).data, logits.detach().numpy(), atol=max(tolerance, 1e-6) * 20
    )
