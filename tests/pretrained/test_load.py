"""`load_gpt2`: strict about names, shapes and types; no copy; what is there twice, or is not finite, is told."""

from __future__ import annotations

import io
import json
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import read_watched

import nanograd_llm as ng
from nanograd_llm.errors import BadFileError, ConfigError, NanogradError, StorageError
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.pretrained import OpenedGPT2
from nanograd_llm.pretrained.gpt2.source import FILES

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLAIN = FIXTURES / "exact_plain"
IDS = np.array([[1, 2, 3]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of Hugging Face that may be changed."""
    shutil.copytree(PLAIN, tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, changes: dict[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    """Change the tensors of the folder: None takes one out."""
    arrays: dict[str, Any] = read_safetensors(folder / "model.safetensors") | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    write_safetensors(folder / "model.safetensors", arrays, {})
    return arrays


def settings(folder: Path, **changes: Any) -> None:
    table = json.loads((folder / "config.json").read_text("utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(table), encoding="utf-8")


def test_the_weights_are_the_files_own_bytes_read_only_and_in_evaluation_mode() -> None:
    model = ng.load_gpt2(PLAIN, dtype="float64")
    assert not model.training
    arrays = read_safetensors(PLAIN / "model.safetensors")
    assert np.array_equal(model.wte.data, arrays["transformer.wte.weight"])
    for parameter in model.parameters():
        assert not parameter.data.flags.writeable
        base: Any = parameter.data
        while isinstance(base, np.ndarray):
            base = base.base
        assert "mmap" in repr(getattr(base, "obj", base))


@pytest.mark.parametrize("form", ["safetensors_float32", "bin_float32", "tensorflow", "nanogpt", "llmc/gpt2_tiny.bin"])
def test_float32_of_every_form_is_used_where_it_lies(form: str) -> None:
    model = ng.load_gpt2(FIXTURES / form)
    for parameter in model.parameters():
        assert parameter.dtype == np.float32
        assert not parameter.data.flags.writeable and not parameter.data.flags.owndata


def test_training_copies_the_weights_and_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = ng.load_gpt2(folder, dtype="float64")
    loss = model.loss(IDS[:, :-1], IDS[:, 1:]).item()
    trainer = ng.training.Trainer(model, ng.training.TrainConfig(learning_rate=1e-2, steps=5, workers=1))
    for _ in range(5):
        trainer.step(IDS[:, :-1], IDS[:, 1:])
    assert model.eval() and model.loss(IDS[:, :-1], IDS[:, 1:]).item() < loss
    assert (folder / "model.safetensors").read_bytes() == before


def test_float64_is_rounded_to_float32_unless_it_is_asked_for() -> None:
    assert {p.dtype for p in ng.load_gpt2(PLAIN).parameters()} == {np.dtype("float32")}
    assert {p.dtype for p in ng.load_gpt2(PLAIN, dtype=np.float64).parameters()} == {np.dtype("float64")}
    for dtype, said in (("float16", "float16"), ("nonsense", "'nonsense'")):
        with pytest.raises(ConfigError, match=f"dtype must be float32 or float64; got {said}"):
            ng.load_gpt2(PLAIN, dtype=dtype)


def test_everything_that_does_not_fit_is_listed_at_once(folder: Path) -> None:
    arrays = read_safetensors(folder / "model.safetensors")
    rewrite(
        folder,
        {
            "transformer.h.1.ln_1.bias": None,
            "transformer.wpe.weight": None,
            "transformer.h.0.attn.c_attn.weight": arrays["transformer.h.0.attn.c_attn.weight"].T,
            "transformer.ln_f.weight": np.zeros(8, np.int64),
            "transformer.h.0.attn.lora_A": np.zeros((2, 8)),
        },
    )
    with pytest.raises(BadFileError) as caught:
        ng.load_gpt2(folder)
    for told in (
        "missing: h.1.ln_1.bias",
        "missing: wpe.weight",
        "misfit: h.0.attn.c_attn.weight is (24, 8) float64, expected (8, 24) of floats",
        "misfit: ln_f.weight is (8,) int64, expected (8,) of floats",
        "extra: h.0.attn.lora_A, (2, 8) float64",
    ):
        assert told in str(caught.value)
    assert str(caught.value).count("\n") == 5


def test_a_size_in_the_config_that_is_not_the_files_is_told_with_both(folder: Path) -> None:
    settings(folder, n_positions=57)
    with pytest.raises(BadFileError, match=r"misfit: wpe.weight is \(56, 8\) float64, expected \(57, 8\)"):
        ng.load_gpt2(folder)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_masks_and_a_head_that_is_the_token_table_are_known_with_and_without_the_prefix(
    folder: Path, prefix: str
) -> None:
    arrays = read_safetensors(folder / "model.safetensors")
    named = {prefix + name.removeprefix("transformer."): array for name, array in arrays.items()}
    mask = np.tril(np.ones((56, 56), bool))[None, None]
    extras = {f"{prefix}h.0.attn.bias": mask, f"{prefix}h.0.attn.masked_bias": np.array(-1e4)}
    write_safetensors(
        folder / "model.safetensors", named | extras | {"lm_head.weight": named[f"{prefix}wte.weight"]}, {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ng.load_gpt2(folder, dtype="float64")
    assert np.array_equal(model(IDS).data, ng.load_gpt2(PLAIN, dtype="float64")(IDS).data)


def test_a_tied_table_may_be_stored_as_the_head_alone(folder: Path) -> None:
    arrays = read_safetensors(folder / "model.safetensors")
    rewrite(folder, {"transformer.wte.weight": None, "lm_head.weight": arrays["transformer.wte.weight"]})
    assert np.array_equal(ng.load_gpt2(folder)(IDS).data, ng.load_gpt2(PLAIN)(IDS).data)


def test_a_tied_head_that_differs_from_the_table_is_told(folder: Path) -> None:
    rewrite(folder, {"lm_head.weight": np.zeros((40, 8))})
    with pytest.warns(UserWarning, match="lm_head.weight differs from wte.weight"):
        ng.load_gpt2(folder)


def test_a_name_with_and_without_the_prefix_is_refused(folder: Path) -> None:
    rewrite(folder, {"wpe.weight": np.zeros((56, 8))})
    with pytest.raises(BadFileError, match="'wpe.weight' is there twice, with and without a prefix"):
        ng.load_gpt2(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_or_refused(folder: Path, bad: float) -> None:
    arrays = read_safetensors(folder / "model.safetensors")
    broken = arrays["transformer.h.2.mlp.c_fc.weight"].copy()
    broken[3, 4] = bad
    rewrite(folder, {"transformer.h.2.mlp.c_fc.weight": broken})
    with pytest.warns(UserWarning, match="NaN or infinity in h.2.mlp.c_fc.weight$"):
        ng.load_gpt2(folder)
    with pytest.raises(BadFileError, match="NaN or infinity in h.2.mlp.c_fc.weight"):
        ng.load_gpt2(folder, strict=True)


def test_a_float64_beyond_float32_is_told_as_infinite(folder: Path) -> None:
    rewrite(folder, {"transformer.ln_f.bias": np.full(8, 1e300)})
    with pytest.warns(UserWarning, match="NaN or infinity in ln_f.bias"):
        ng.load_gpt2(folder)
    ng.load_gpt2(folder, dtype="float64", strict=True)


def test_large_finite_weights_whose_sum_overflows_are_finite(folder: Path) -> None:
    rewrite(folder, {"transformer.ln_f.bias": np.full(8, 3e38)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ng.load_gpt2(folder, strict=True)


def test_a_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(StorageError, match="config.json: no such file; it holds the sizes of the model"):
        ng.load_gpt2(folder)


def test_the_name_of_an_extra_tensor_cannot_steer_a_terminal(folder: Path) -> None:
    rewrite(folder, {"transformer.x\x1b[2J\n": np.zeros(1, np.float32)})
    with pytest.raises(BadFileError, match=r"extra: 'x\\x1b\[2J\\n', \(1,\) float32"):
        ng.load_gpt2(folder)


def prefixed(folder: Path, prefix: str, heads: dict[str, Any]) -> None:
    """Every name of the folder's file behind a prefix, and other heads beside the transformer."""
    arrays = read_safetensors(folder / "model.safetensors")
    arrays |= {f"transformer.h.{n}.attn.masked_bias": np.float32([-1e4]) for n in range(3)}
    named = {prefix.replace("*", name): array for name, array in arrays.items()}
    write_safetensors(folder / "model.safetensors", named | heads, {"format": "pt"})


@pytest.mark.parametrize(
    "prefix", ["module.*", "_orig_mod.*", "_orig_mod.module.*", "module._orig_mod.*", "model.gpt2.*", "policy.module.*"]
)
def test_a_model_inside_another_loads_whatever_its_prefix(prefix: str, folder: Path) -> None:
    expected = ng.load_gpt2(folder)(IDS).data
    prefixed(folder, prefix, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(ng.load_gpt2(folder)(IDS).data, expected)


def test_a_block_that_is_wrapped_alone_loads(folder: Path) -> None:
    expected = ng.load_gpt2(folder)(IDS).data
    arrays = read_safetensors(folder / "model.safetensors")
    named = {name.replace(".attn.", "._orig_mod.attn._fsdp_wrapped_module."): x for name, x in arrays.items()}
    write_safetensors(folder / "model.safetensors", named, {})
    assert np.array_equal(ng.load_gpt2(folder)(IDS).data, expected)


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("*", "score.weight"),
        ("*", "multiple_choice_head.summary.weight"),
        ("pretrained_model.*", "v_head.summary.weight"),
        ("module.*", "module.qa_outputs.bias"),
        ("*", "x\x1b[2J"),
    ],
)
def test_another_head_is_left_out_and_named(prefix: str, head: str, folder: Path) -> None:
    expected = ng.load_gpt2(folder)(IDS).data
    prefixed(folder, prefix, {head: np.zeros((2, 8), np.float32)})
    with pytest.warns(UserWarning, match=f"left out, as no part of the language model: {re.escape(repr(head))}$"):
        assert np.array_equal(ng.load_gpt2(folder)(IDS).data, expected)


@pytest.mark.parametrize("other", ["policy.transformer.h.0.ln_1.bias", "policy.wte.weight"])
def test_two_models_in_a_file_are_refused(other: str, folder: Path) -> None:
    rewrite(folder, {other: np.zeros(8, np.float32)})
    with pytest.raises(BadFileError, match="is there twice, with and without a prefix"):
        ng.load_gpt2(folder)


def test_an_adapter_beside_the_weights_is_refused_by_name(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(BadFileError, match="adapter_config.json: an adapter beside the weights"):
        ng.load_gpt2(folder)


def hostile_checkpoint(model_args: bytes) -> bytes:
    """A ckpt.pt whose data.pkl is {"model": {}, "model_args": {"bias": what the instructions make}}."""
    program = b"}(X\5\0\0\0model}X\x0a\0\0\0model_args}X\4\0\0\0bias" + model_args + b"su."
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr(zipfile.ZipInfo("x/data.pkl"), program)
    return written.getvalue()


@pytest.mark.parametrize(
    "model_args",
    [b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40)), b")" + b"\x85" * 100_000],
    ids=["lists that share lists", "a very deep nest"],
)
def test_a_setting_that_no_message_could_show_is_refused_at_once(model_args: bytes, tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(hostile_checkpoint(model_args))
    with pytest.raises(BadFileError, match="model_args: 'bias' must each be a number, a string or a bool"):
        ng.load_gpt2(tmp_path)


@pytest.mark.parametrize("depth", [90, 99, 100, 500, *range(900, 1000, 9)])
def test_settings_nested_at_any_depth_are_refused_in_a_line(depth: int, folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ' + "[" * depth + "]" * depth + "}", "utf-8")
    with pytest.raises(BadFileError, match="nested too deeply|model_type is"):
        ng.load_gpt2(folder)


def test_links_to_files_on_another_disk_are_followed(folder: Path, tmp_path: Path) -> None:
    expected = ng.load_gpt2(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert np.array_equal(ng.load_gpt2(folder).wte.data, expected.wte.data)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no weights of GPT-2; looked for model\.safetensors, .*gpt2_124M\.bin"):
        ng.load_gpt2(tmp_path)


def test_two_models_of_llmc_in_a_folder_are_asked_about(tmp_path: Path) -> None:
    for name in ("gpt2_124M.bin", "gpt2_355M.bin"):
        shutil.copy(FIXTURES / "llmc" / "gpt2_tiny.bin", tmp_path / name)
    with pytest.raises(BadFileError, match=r"holds 2 models of llm\.c; give one of them: gpt2_124M\.bin"):
        ng.load_gpt2(tmp_path)


def test_of_llmcs_files_the_model_is_found_among_its_companions(tmp_path: Path) -> None:
    for path in (FIXTURES / "llmc").iterdir():
        shutil.copy(path, tmp_path)
    for name, magic in (("gpt2_tokenizer.bin", 20240328), ("gpt2_tiny_debug_state.bin", 20240327)):
        (tmp_path / name).write_bytes(np.array([magic, 2] + [0] * 254, "<i4").tobytes())
    assert OpenedGPT2(tmp_path).path.name == "gpt2_tiny.bin"


@pytest.mark.parametrize(("done", "newest"), [([], 20), ([10], 10), ([10, 20], 20)])
def test_of_a_run_of_llmc_the_newest_whole_step_is_taken(done: list[int], newest: int, tmp_path: Path) -> None:
    for step in (5, 10, 20):
        shutil.copy(FIXTURES / "llmc" / "gpt2_tiny.bin", tmp_path / f"model_{step:08d}.bin")
        (tmp_path / f"state_{step:08d}_00000.bin").write_bytes(b"x" * 1024)
    for step in done:
        (tmp_path / f"DONE_{step:08d}").touch()
    assert OpenedGPT2(tmp_path).path.name == f"model_{newest:08d}.bin"


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    """What gpt-2-simple leaves in checkpoint/run1: two steps, and a pointer to one of them."""
    for path in (FIXTURES / "tensorflow").iterdir():
        for step in ("9", "10") if path.name.startswith("model.ckpt") else ("",):
            shutil.copy(path, tmp_path / path.name.replace("model.ckpt", f"model-{step}"))
    (tmp_path / "counter").write_text("10", "utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["model-10", "/content/checkpoint/run1/model-10", r"C:\\run1\\model-10"])
def test_tensorflows_pointer_says_which_step_is_meant(name: str, simple: Path) -> None:
    (simple / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "model-9"\n')
    assert OpenedGPT2(simple).path.name == "model-10.index"
    assert np.array_equal(ng.load_gpt2(simple)(IDS).data, ng.load_gpt2(FIXTURES / "tensorflow")(IDS).data)
    assert OpenedGPT2(simple).tokenizer().vocab_size == 264


def test_a_pointer_out_of_the_folder_is_refused_and_two_steps_without_one_are_asked_about(simple: Path) -> None:
    (simple / "checkpoint").write_text('model_checkpoint_path: "../other/model-9"\n')
    with pytest.raises(BadFileError, match="'../other/model-9.index' is no plain file name"):
        ng.load_gpt2(simple)
    (simple / "checkpoint").unlink()
    with pytest.raises(BadFileError, match="holds 'model-10.index', 'model-9.index'; give one of them"):
        ng.load_gpt2(simple)


@pytest.mark.parametrize("name", [*FILES, "gpt2_124M.bin", "shard"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html>", "is a page of HTML"),
        (b"<html><body>404", "is a page of HTML"),
    ],
)
def test_what_a_download_left_in_place_of_weights_is_called_by_its_name(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    if name == "shard":
        shutil.copytree(FIXTURES / "safetensors_sharded", tmp_path, dirs_exist_ok=True)
        name = "model-00001-of-00002.safetensors"
    else:
        shutil.copy(PLAIN / "config.json", tmp_path)
        shutil.copy(FIXTURES / "tensorflow" / "hparams.json", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFileError, match=rf"{re.escape(name)}: {said}, not the file itself"):
        ng.load_gpt2(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_pointer_or_a_page_in_place_of_a_companion_is_called_so_too(name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "safetensors_float32", tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadFileError, match=rf"{re.escape(name)}.*: is a Git LFS pointer"):
        OpenedGPT2(tmp_path).tokenizer()


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("nowhere/at/all", StorageError, "no such file or folder"),
        ("./nowhere", StorageError, "no such file or folder"),
        ("gtp2", StorageError, "no name of a model that is known; did you mean 'gpt2'"),
        ("something", StorageError, "one of gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2"),
    ],
)
def test_what_is_neither_path_nor_name_is_told(name: str, error: type, said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        ng.load_gpt2(name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(BadFileError, match=r"no weights of GPT-2 by its name; known are \.safetensors"):
        ng.load_gpt2(tmp_path / "weights.h5")
    with pytest.raises(BadFileError, match="no checkpoint of nanoGPT, which holds model and model_args"):
        shutil.copy(FIXTURES / "bin_float32" / "pytorch_model.bin", tmp_path / "ckpt.pt")
        ng.load_gpt2(tmp_path)


@pytest.mark.parametrize("name", [*FILES, "gpt2_124M.bin"])
def test_an_empty_file_is_told_as_one_whatever_its_form(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(BadFileError, match=rf"{re.escape(name)}: is empty; fetch it again"):
            ng.load_gpt2(source)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layer": 10**9},
        {"n_embd": 10**9, "n_head": 1},
        {"n_embd": 10**30, "n_head": 1},
        {"n_inner": 10**9},
        {"vocab_size": 10**15},
        {"n_positions": 10**30},
        {"n_layer": "3"},
        {"n_layer": True},
        {"n_layer": None},
        {"n_head": 0},
        {"layer_norm_epsilon": -1},
        {"n_inner": 1.5},
        {"attn_pdrop": "x", "embd_pdrop": "x", "resid_pdrop": "x"},
        {"tie_word_embeddings": 1},
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_one_error_soon_and_in_little_memory(changes: dict[str, Any], folder: Path) -> None:
    settings(folder, **changes)
    assert isinstance(read_watched(lambda path: ng.load_gpt2(path).state_dict(), folder, folder), NanogradError)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"n_layer": 3, "n_layer": 3}', b'{"x": ' + b"[" * 10**5, b"\xff"]
)
def test_a_config_that_is_no_json_object_is_one_error(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert isinstance(read_watched(lambda path: ng.load_gpt2(path).state_dict(), folder, folder), BadFileError)


def test_a_config_cut_at_any_byte_is_one_error(folder: Path) -> None:
    whole = (folder / "config.json").read_bytes().rstrip()
    for size in range(len(whole)):
        (folder / "config.json").write_bytes(whole[:size])
        found = read_watched(lambda path: ng.load_gpt2(path).state_dict(), folder, folder)
        assert isinstance(found, BadFileError), size


def test_nanogpt_without_biases_has_zeros_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanograd_llm.pretrained.gpt2 import load

    checkpoint = load.read_torch_object(FIXTURES / "nanogpt" / "ckpt.pt")
    state = {name: x for name, x in checkpoint["model"].items() if not name.endswith("bias")}
    fewer = {"model": state, "model_args": {**checkpoint["model_args"], "bias": False}}
    monkeypatch.setattr(load, "read_torch_object", lambda path: fewer)
    model = ng.load_gpt2(FIXTURES / "nanogpt")
    assert not any(x.any() for name, x in model.state_dict().items() if name.endswith("bias"))
    assert np.array_equal(model.wte.data, state["_orig_mod.transformer.wte.weight"])
    fewer["model_args"]["bias"] = True
    with pytest.raises(BadFileError, match=r"missing: h\.0\.ln_1\.bias"):
        ng.load_gpt2(FIXTURES / "nanogpt")


def test_a_setting_of_another_nanogpt_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanograd_llm.pretrained.gpt2 import load

    checkpoint = load.read_torch_object(FIXTURES / "nanogpt" / "ckpt.pt")
    changed = {**checkpoint, "model_args": {**checkpoint["model_args"], "use_rmsnorm": True}}
    monkeypatch.setattr(load, "read_torch_object", lambda path: changed)
    with pytest.raises(BadFileError, match="unknown 'use_rmsnorm'"):
        ng.load_gpt2(FIXTURES / "nanogpt")


def test_the_tokenizer_is_the_folders_and_fits_the_model(folder: Path) -> None:
    tokenizer = OpenedGPT2(FIXTURES / "safetensors_float32").tokenizer()
    assert tokenizer.vocab_size == 264
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FIXTURES / "safetensors_float32" / name, folder / name)
    with pytest.raises(BadFileError, match="its tokenizer has 264 tokens, the model 40"):
        OpenedGPT2(folder).tokenizer()


def test_a_model_that_is_padded_has_ids_that_stand_for_nothing(tmp_path: Path) -> None:
    padded = shutil.copytree(FIXTURES / "safetensors_float32", tmp_path / "padded")
    settings = json.loads((padded / "config.json").read_text("utf-8"))
    (padded / "config.json").write_text(json.dumps({**settings, "vocab_size": 300}), "utf-8")
    tokenizer = OpenedGPT2(padded).tokenizer()
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode_bytes([299, 65, 264]) == OpenedGPT2(FIXTURES / "tensorflow").tokenizer().decode_bytes([65])


@pytest.mark.parametrize(
    ("config", "generation", "end"),
    [
        ({"eos_token_id": 65}, None, 65),
        ({"eos_token_id": 65}, {"eos_token_id": 66}, 66),
        ({"eos_token_id": 65}, {"eos_token_id": None}, 65),
        ({"eos_token_id": [66]}, {}, 66),
        ({"eos_token_id": None}, {}, 263),
        ({}, {}, 263),
    ],
)
def test_a_text_ends_with_the_token_that_the_files_beside_say(
    config: dict[str, Any], generation: dict[str, Any] | None, end: int, tmp_path: Path
) -> None:
    shutil.copytree(FIXTURES / "safetensors_float32", tmp_path / "model")
    settings(tmp_path / "model", **config)
    if generation is not None:
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    opened = OpenedGPT2(tmp_path / "model")
    assert opened.tokenizer().end_of_text == end
    ng.save_gpt2(opened.model(), tmp_path / "again", opened.tokenizer())
    assert OpenedGPT2(tmp_path / "again").tokenizer().end_of_text == end


@pytest.mark.parametrize("end", [[263, 5], "263", True, -1, 1.0])
def test_an_end_of_text_that_cannot_be_is_refused(end: Any, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "safetensors_float32", tmp_path / "model")
    settings(tmp_path / "model", eos_token_id=end)
    with pytest.raises(BadFileError, match="eos_token_id is .*; only one token can end a text here"):
        OpenedGPT2(tmp_path / "model").tokenizer()


def test_an_end_of_text_beyond_the_vocabulary_is_told_and_not_used(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "safetensors_float32", tmp_path / "model")
    settings(tmp_path / "model", eos_token_id=50256)  # what transformers writes if nobody says otherwise
    with pytest.warns(UserWarning, match="eos_token_id is 50256, beyond the vocabulary of 264"):
        assert OpenedGPT2(tmp_path / "model").tokenizer().end_of_text == 263


def test_a_model_of_another_vocabulary_without_tokenizer_is_told(folder: Path) -> None:
    with pytest.raises(BadFileError, match="vocabulary of 40 is not GPT-2's of 50257"):
        OpenedGPT2(folder).tokenizer()
