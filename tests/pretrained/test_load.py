"""`load_gpt2`: strict about names, shapes and dtypes; no copies; duplicates and NaN are named."""

from __future__ import annotations

import io
import json
import pickle
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
    """A copy of a folder of Hugging Face, which a test may change."""
    shutil.copytree(PLAIN, tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, changes: dict[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    """Change the tensors of the folder; None removes one."""
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
def test_float32_of_every_form_is_mapped_and_not_copied(form: str) -> None:
    model = ng.load_gpt2(FIXTURES / form)
    for parameter in model.parameters():
        assert parameter.dtype == np.float32
        assert not parameter.data.flags.writeable and not parameter.data.flags.owndata


def test_training_copies_the_weights_and_does_not_change_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = ng.load_gpt2(folder, dtype="float64")
    loss = model.loss(IDS[:, :-1], IDS[:, 1:]).item()
    trainer = ng.training.Trainer(model, ng.training.TrainConfig(learning_rate=1e-2, steps=5, workers=1))
    for _ in range(5):
        trainer.step(IDS[:, :-1], IDS[:, 1:])
    assert model.eval() and model.loss(IDS[:, :-1], IDS[:, 1:]).item() < loss
    assert (folder / "model.safetensors").read_bytes() == before


def test_float64_is_rounded_to_float32_unless_dtype_is_float64() -> None:
    assert {p.dtype for p in ng.load_gpt2(PLAIN).parameters()} == {np.dtype("float32")}
    assert {p.dtype for p in ng.load_gpt2(PLAIN, dtype=np.float64).parameters()} == {np.dtype("float64")}
    for dtype, found in (("float16", "float16"), ("nonsense", "'nonsense'")):
        with pytest.raises(ConfigError, match=f"dtype must be float32 or float64; got {found}"):
            ng.load_gpt2(PLAIN, dtype=dtype)


def test_one_error_lists_everything_that_does_not_fit(folder: Path) -> None:
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
    for line in (
        "missing: h.1.ln_1.bias",
        "missing: wpe.weight",
        "misfit: h.0.attn.c_attn.weight is (24, 8) float64, expected (8, 24) of floats",
        "misfit: ln_f.weight is (8,) int64, expected (8,) of floats",
        "extra: h.0.attn.lora_A, (2, 8) float64",
    ):
        assert line in str(caught.value)
    assert str(caught.value).count("\n") == 5


def test_a_size_that_differs_between_config_and_weights_is_reported_with_both(folder: Path) -> None:
    settings(folder, n_positions=57)
    with pytest.raises(BadFileError, match=r"misfit: wpe.weight is \(56, 8\) float64, expected \(57, 8\)"):
        ng.load_gpt2(folder)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_masks_and_a_tied_head_are_accepted_with_and_without_the_prefix(folder: Path, prefix: str) -> None:
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


def test_a_tied_table_may_be_stored_only_as_the_head(folder: Path) -> None:
    arrays = read_safetensors(folder / "model.safetensors")
    rewrite(folder, {"transformer.wte.weight": None, "lm_head.weight": arrays["transformer.wte.weight"]})
    assert np.array_equal(ng.load_gpt2(folder)(IDS).data, ng.load_gpt2(PLAIN)(IDS).data)


def test_a_tied_head_that_differs_from_the_table_gives_a_warning(folder: Path) -> None:
    rewrite(folder, {"lm_head.weight": np.zeros((40, 8))})
    with pytest.warns(UserWarning, match="lm_head.weight differs from wte.weight"):
        ng.load_gpt2(folder)


def test_a_name_with_and_without_the_prefix_is_refused(folder: Path) -> None:
    rewrite(folder, {"wpe.weight": np.zeros((56, 8))})
    with pytest.raises(BadFileError, match="duplicate weight 'wpe.weight', under two prefixes"):
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


def test_a_float64_too_large_for_float32_is_reported_as_infinite(folder: Path) -> None:
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


def test_the_name_of_an_extra_tensor_reaches_no_terminal_unescaped(folder: Path) -> None:
    rewrite(folder, {"transformer.x\x1b[2J\n": np.zeros(1, np.float32)})
    with pytest.raises(BadFileError, match=r"extra: 'x\\x1b\[2J\\n', \(1,\) float32"):
        ng.load_gpt2(folder)


def prefixed(folder: Path, prefix: str, heads: dict[str, Any]) -> None:
    """Add a prefix to every name in the folder's file, and other heads beside the transformer."""
    arrays = read_safetensors(folder / "model.safetensors")
    arrays |= {f"transformer.h.{n}.attn.masked_bias": np.float32([-1e4]) for n in range(3)}
    named = {prefix.replace("*", name): array for name, array in arrays.items()}
    write_safetensors(folder / "model.safetensors", named | heads, {"format": "pt"})


@pytest.mark.parametrize(
    "prefix", ["module.*", "_orig_mod.*", "_orig_mod.module.*", "module._orig_mod.*", "model.gpt2.*", "policy.module.*"]
)
def test_a_model_inside_another_loads_with_any_prefix(prefix: str, folder: Path) -> None:
    expected = ng.load_gpt2(folder)(IDS).data
    prefixed(folder, prefix, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(ng.load_gpt2(folder)(IDS).data, expected)


def test_a_model_whose_blocks_are_wrapped_loads(folder: Path) -> None:
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
    with pytest.warns(UserWarning, match=f"left out, not part of the language model: {re.escape(repr(head))}$"):
        assert np.array_equal(ng.load_gpt2(folder)(IDS).data, expected)


@pytest.mark.parametrize("other", ["policy.transformer.h.0.ln_1.bias", "policy.wte.weight"])
def test_two_models_in_a_file_are_refused(other: str, folder: Path) -> None:
    rewrite(folder, {other: np.zeros(8, np.float32)})
    with pytest.raises(BadFileError, match="duplicate weight '.*', under two prefixes"):
        ng.load_gpt2(folder)


def in_checkpoint(key: str, path: Path, *, prefix: str = "", others: bytes = b"") -> None:
    """Write the state_dict of the fixture bin_float32 under `key` of a checkpoint. others: more keys, pickled."""
    with zipfile.ZipFile(FIXTURES / "bin_float32" / "pytorch_model.bin") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                named = rb"X(....)((?:h\.\d|w.e|ln_f)\.[\w.]*?(?:weight|bias))"
                program = re.sub(named, lambda found: pickled(prefix + found[2].decode()), content[2:-1], flags=re.S)
                content = b"\x80\x02}(" + others + pickled(key) + program + b"u."
            new.writestr(zipfile.ZipInfo(name), content)


def pickled(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt", "weights.pth"])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_state_dict_inside_a_checkpoint_loads(key: str, name: str, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "bin_float32" / "config.json", tmp_path)
    in_checkpoint(key, tmp_path / name, prefix="model.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ng.load_gpt2(tmp_path / name)
    assert np.array_equal(model(IDS).data, ng.load_gpt2(FIXTURES / "bin_float32")(IDS).data)


def test_a_warning_lists_the_other_keys_of_a_checkpoint(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "bin_float32" / "config.json", tmp_path)
    others = pickled("epoch") + b"K\x03" + pickled("optimizer_states") + b"]"
    in_checkpoint("state_dict", tmp_path / "last.ckpt", prefix="model.transformer.", others=others)
    with pytest.warns(UserWarning, match="left out, not part of 'state_dict': 'epoch', 'optimizer_states'$"):
        model = ng.load_gpt2(tmp_path / "last.ckpt")
    assert np.array_equal(model(IDS).data, ng.load_gpt2(FIXTURES / "bin_float32")(IDS).data)


def test_the_meta_pkl_beside_a_nanogpt_checkpoint_must_fit_the_model(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "nanogpt" / "ckpt.pt", tmp_path)
    for size in (264, 65):
        itos = {i: chr(300 + i) for i in range(size)}
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": itos, "stoi": {x: i for i, x in itos.items()}}))
        if size == 264:
            assert OpenedGPT2(tmp_path).tokenizer().decode([0, 263]) == chr(300) + chr(563)
    with pytest.raises(BadFileError, match="its tokenizer has 65 tokens, the model 264"):
        OpenedGPT2(tmp_path).tokenizer()


def test_an_adapter_beside_the_weights_is_refused_by_name(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(BadFileError, match="adapter_config.json: there is an adapter beside the weights"):
        ng.load_gpt2(folder)


def hostile_checkpoint(model_args: bytes) -> bytes:
    """A ckpt.pt whose data.pkl is {"model": {}, "model_args": {"bias": the result of these instructions}}."""
    program = b"}(X\5\0\0\0model}X\x0a\0\0\0model_args}X\4\0\0\0bias" + model_args + b"su."
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr(zipfile.ZipInfo("x/data.pkl"), program)
    return written.getvalue()


@pytest.mark.parametrize(
    "model_args",
    [b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40)), b")" + b"\x85" * 100_000],
    ids=["lists that share lists", "very deep nesting"],
)
def test_a_setting_too_large_for_any_message_is_refused_quickly(model_args: bytes, tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(hostile_checkpoint(model_args))
    with pytest.raises(BadFileError, match="model_args: 'bias' must each be a number, a string or a bool"):
        ng.load_gpt2(tmp_path)


@pytest.mark.parametrize("depth", [90, 99, 100, 500, *range(900, 1000, 9)])
def test_settings_nested_at_any_depth_are_refused_in_one_line(depth: int, folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ' + "[" * depth + "]" * depth + "}", "utf-8")
    with pytest.raises(BadFileError, match="nested too deeply|model_type is"):
        ng.load_gpt2(folder)


def test_links_to_files_on_another_disk_are_followed(folder: Path, tmp_path: Path) -> None:
    expected = ng.load_gpt2(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert np.array_equal(ng.load_gpt2(folder).wte.data, expected.wte.data)


def test_the_error_for_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no weights of GPT-2; looked for model\.safetensors, .*gpt2_124M\.bin"):
        ng.load_gpt2(tmp_path)


def test_the_error_for_two_models_of_llmc_asks_for_one(tmp_path: Path) -> None:
    for name in ("gpt2_124M.bin", "gpt2_355M.bin"):
        shutil.copy(FIXTURES / "llmc" / "gpt2_tiny.bin", tmp_path / name)
    with pytest.raises(BadFileError, match=r"holds 2 models of llm\.c; give one of them: gpt2_124M\.bin"):
        ng.load_gpt2(tmp_path)


def test_the_model_is_found_among_the_other_files_of_llmc(tmp_path: Path) -> None:
    for path in (FIXTURES / "llmc").iterdir():
        shutil.copy(path, tmp_path)
    for name, magic in (("gpt2_tokenizer.bin", 20240328), ("gpt2_tiny_debug_state.bin", 20240327)):
        (tmp_path / name).write_bytes(np.array([magic, 2] + [0] * 254, "<i4").tobytes())
    assert OpenedGPT2(tmp_path).path.name == "gpt2_tiny.bin"


@pytest.mark.parametrize(("done", "newest"), [([], 20), ([10], 10), ([10, 20], 20)])
def test_the_newest_complete_step_of_a_run_of_llmc_is_used(done: list[int], newest: int, tmp_path: Path) -> None:
    for step in (5, 10, 20):
        shutil.copy(FIXTURES / "llmc" / "gpt2_tiny.bin", tmp_path / f"model_{step:08d}.bin")
        (tmp_path / f"state_{step:08d}_00000.bin").write_bytes(b"x" * 1024)
    for step in done:
        (tmp_path / f"DONE_{step:08d}").touch()
    assert OpenedGPT2(tmp_path).path.name == f"model_{newest:08d}.bin"


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    """A folder as gpt-2-simple writes it in checkpoint/run1: two steps."""
    for path in (FIXTURES / "tensorflow").iterdir():
        for step in ("9", "10") if path.name.startswith("model.ckpt") else ("",):
            shutil.copy(path, tmp_path / path.name.replace("model.ckpt", f"model-{step}"))
    (tmp_path / "counter").write_text("10", "utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["model-10", "/content/checkpoint/run1/model-10", r"C:\\run1\\model-10"])
def test_the_file_checkpoint_of_tensorflow_says_which_step_is_used(name: str, simple: Path) -> None:
    (simple / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "model-9"\n')
    assert OpenedGPT2(simple).path.name == "model-10.index"
    assert np.array_equal(ng.load_gpt2(simple)(IDS).data, ng.load_gpt2(FIXTURES / "tensorflow")(IDS).data)
    assert OpenedGPT2(simple).tokenizer().vocab_size == 264


def test_a_pointer_to_another_folder_is_refused_and_two_steps_need_a_choice(simple: Path) -> None:
    (simple / "checkpoint").write_text('model_checkpoint_path: "../other/model-9"\n')
    with pytest.raises(BadFileError, match="'../other/model-9.index' is not a plain file name"):
        ng.load_gpt2(simple)
    (simple / "checkpoint").unlink()
    with pytest.raises(BadFileError, match="holds 'model-10.index', 'model-9.index'; give one of them"):
        ng.load_gpt2(simple)


@pytest.mark.parametrize("name", [*FILES, "gpt2_124M.bin", "shard"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html>", "is an HTML page"),
        (b"<html><body>404", "is an HTML page"),
    ],
)
def test_a_wrong_download_in_place_of_weights_is_recognised(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    if name == "shard":
        shutil.copytree(FIXTURES / "safetensors_sharded", tmp_path, dirs_exist_ok=True)
        name = "model-00001-of-00002.safetensors"
    else:
        shutil.copy(PLAIN / "config.json", tmp_path)
        shutil.copy(FIXTURES / "tensorflow" / "hparams.json", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFileError, match=rf"{re.escape(name)}: {message}, not the file itself"):
        ng.load_gpt2(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_git_lfs_pointer_in_place_of_another_file_is_recognised(name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "safetensors_float32", tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadFileError, match=rf"{re.escape(name)}.*: is a Git LFS pointer"):
        OpenedGPT2(tmp_path).tokenizer()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere/at/all", StorageError, "no such file or folder"),
        ("./nowhere", StorageError, "no such file or folder"),
        ("gtp2", StorageError, "nor a known name; did you mean 'gpt2'"),
        (
            "something",
            StorageError,
            "gpt2-xl, distilgpt2; give a run by its folder, such as runs/nano-1, or another model as",
        ),
    ],
)
def test_a_source_that_is_neither_path_nor_name_is_refused(name: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ng.load_gpt2(name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(
        BadFileError, match=r"weights.h5: is no model; expected a folder, such as a run's, or a file of weights"
    ):
        ng.load_gpt2(tmp_path / "weights.h5")
    with pytest.raises(BadFileError, match="not a checkpoint of nanoGPT, which holds model and model_args"):
        shutil.copy(FIXTURES / "bin_float32" / "pytorch_model.bin", tmp_path / "ckpt.pt")
        ng.load_gpt2(tmp_path)


@pytest.mark.parametrize("name", [*FILES, "gpt2_124M.bin"])
def test_an_empty_file_of_any_form_is_recognised(name: str, tmp_path: Path) -> None:
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
def test_an_impossible_config_is_one_error_in_little_time_and_memory(changes: dict[str, Any], folder: Path) -> None:
    settings(folder, **changes)
    assert isinstance(read_watched(lambda path: ng.load_gpt2(path).state_dict(), folder, folder), NanogradError)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"n_layer": 3, "n_layer": 3}', b'{"x": ' + b"[" * 10**5, b"\xff"]
)
def test_a_config_that_is_not_a_json_object_is_one_error(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert isinstance(read_watched(lambda path: ng.load_gpt2(path).state_dict(), folder, folder), BadFileError)


def test_a_config_cut_at_any_byte_is_one_error(folder: Path) -> None:
    whole = (folder / "config.json").read_bytes().rstrip()
    for size in range(len(whole)):
        (folder / "config.json").write_bytes(whole[:size])
        found = read_watched(lambda path: ng.load_gpt2(path).state_dict(), folder, folder)
        assert isinstance(found, BadFileError), size


def test_a_nanogpt_model_without_biases_gets_zeros_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_unknown_setting_of_nanogpt_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanograd_llm.pretrained.gpt2 import load

    checkpoint = load.read_torch_object(FIXTURES / "nanogpt" / "ckpt.pt")
    changed = {**checkpoint, "model_args": {**checkpoint["model_args"], "use_rmsnorm": True}}
    monkeypatch.setattr(load, "read_torch_object", lambda path: changed)
    with pytest.raises(BadFileError, match="unknown 'use_rmsnorm'"):
        ng.load_gpt2(FIXTURES / "nanogpt")


def test_the_tokenizer_comes_from_the_folder_and_must_fit_the_model(folder: Path) -> None:
    tokenizer = OpenedGPT2(FIXTURES / "safetensors_float32").tokenizer()
    assert tokenizer.vocab_size == 264
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FIXTURES / "safetensors_float32" / name, folder / name)
    with pytest.raises(BadFileError, match="its tokenizer has 264 tokens, the model 40"):
        OpenedGPT2(folder).tokenizer()


def test_the_ids_of_a_padded_vocabulary_decode_to_nothing(tmp_path: Path) -> None:
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
def test_the_end_of_text_token_comes_from_the_files_beside_the_model(
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
def test_an_invalid_end_of_text_token_is_refused(end: Any, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "safetensors_float32", tmp_path / "model")
    settings(tmp_path / "model", eos_token_id=end)
    with pytest.raises(BadFileError, match="eos_token_id is .*; only one token can end a text here"):
        OpenedGPT2(tmp_path / "model").tokenizer()


def test_an_end_of_text_token_beyond_the_vocabulary_gives_a_warning_and_is_not_used(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "safetensors_float32", tmp_path / "model")
    settings(tmp_path / "model", eos_token_id=50256)  # the default of transformers
    with pytest.warns(UserWarning, match="eos_token_id 50256 is not used: the vocabulary has 264 tokens"):
        assert OpenedGPT2(tmp_path / "model").tokenizer().end_of_text == 263


def test_a_model_with_its_own_vocabulary_needs_its_tokenizer(folder: Path) -> None:
    with pytest.raises(BadFileError, match="vocabulary of 40 is not GPT-2's of 50257"):
        OpenedGPT2(folder).tokenizer()
