"""A model has the same bits in every form, read-only in the mapped file; a file cut at any byte is refused."""

from __future__ import annotations

import functools
import mmap
from pathlib import Path

import numpy as np
import pytest
from oracle import arrays_of, read_watched

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.safetensors import read_safetensors
from nanograd_llm.files.shards import read_shards
from nanograd_llm.files.tensorflow import read_tensorflow
from nanograd_llm.files.torch import read_torch, read_torch_object
from nanograd_llm.pretrained.gpt2.llmc import read_llmc

FIXTURES = Path(__file__).parents[1] / "fixtures"
LLMC = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "ln1w": "ln_1.weight",
    "ln1b": "ln_1.bias",
    "qkvw": "attn.c_attn.weight",
    "qkvb": "attn.c_attn.bias",
    "attprojw": "attn.c_proj.weight",
    "attprojb": "attn.c_proj.bias",
    "ln2w": "ln_2.weight",
    "ln2b": "ln_2.bias",
    "fcw": "mlp.c_fc.weight",
    "fcb": "mlp.c_fc.bias",
    "fcprojw": "mlp.c_proj.weight",
    "fcprojb": "mlp.c_proj.bias",
    "lnfw": "ln_f.weight",
    "lnfb": "ln_f.bias",
}
LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def with_prefix(tensors):
    kept = {name: x for name, x in tensors.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    return {name if name.startswith("transformer.") else f"transformer.{name}": x for name, x in kept.items()}


def from_nanogpt(found):
    tensors = {name.removeprefix("_orig_mod."): x for name, x in found["model"].items()}
    assert np.array_equal(tensors.pop("lm_head.weight"), tensors["transformer.wte.weight"])
    return {name: x.T if name.endswith(LINEAR) else x for name, x in tensors.items()}


def from_llmc(found):
    fields, arrays = found
    tensors = {}
    for short, name in LLMC.items():
        if name.startswith("w"):
            tensors[f"transformer.{name}"] = arrays[short][: fields["vocab_size"]]
        elif name.startswith("ln_f"):
            tensors[f"transformer.{name}"] = arrays[short]
        else:
            for layer in range(fields["num_layers"]):
                x = arrays[short][layer]
                tensors[f"transformer.h.{layer}.{name}"] = x.T if name.endswith(LINEAR) else x
    return tensors


def from_tensorflow(found):
    tensors = {}
    for name, x in found.items():
        *scope, last = name.removeprefix("model/").replace("h0/", "h/0/").replace("h1/", "h/1/").split("/")
        if last in ("wte", "wpe"):
            tensors[f"transformer.{last}.weight"] = x
        else:
            last = "bias" if last == "b" else "weight"
            tensors[".".join(["transformer", *scope, last])] = x[0] if x.ndim == 3 else x
    return tensors


# the reader, the file, the dtype that the weights were rounded to, and the function to GPT-2's names and (in, out)
FORMS = {
    "safetensors": (read_safetensors, "safetensors_float32/model.safetensors", "float32", with_prefix),
    "safetensors_float64": (read_safetensors, "safetensors_float64/model.safetensors", "float64", with_prefix),
    "safetensors_float16": (read_safetensors, "safetensors_float16/model.safetensors", "float16", with_prefix),
    "safetensors_bfloat16": (read_safetensors, "safetensors_bfloat16/model.safetensors", "bfloat16", with_prefix),
    "sharded_safetensors": (
        functools.partial(read_shards, read=read_safetensors),
        "safetensors_sharded/model.safetensors.index.json",
        "float32",
        with_prefix,
    ),
    "torch": (read_torch, "bin_float32/pytorch_model.bin", "float32", with_prefix),
    "torch_bfloat16": (read_torch, "bin_bfloat16/pytorch_model.bin", "bfloat16", with_prefix),
    "sharded_torch": (
        functools.partial(read_shards, read=read_torch),
        "bin_sharded/pytorch_model.bin.index.json",
        "float32",
        with_prefix,
    ),
    "nanogpt": (read_torch_object, "nanogpt/ckpt.pt", "float32", from_nanogpt),
    "llmc": (read_llmc, "llmc/gpt2_tiny.bin", "float32", from_llmc),
    "llmc_bfloat16": (read_llmc, "llmc/gpt2_tiny_bf16.bin", "bfloat16", from_llmc),
    "tensorflow": (read_tensorflow, "tensorflow/model.ckpt.index", "float32", from_tensorflow),
}


def rounded_to_bfloat16(x):
    """Rounded to nearest, ties to even, as float32."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.fixture(scope="module")
def exact():
    return read_safetensors(FIXTURES / "safetensors_float64" / "model.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_weights_bit_for_bit(form, exact):
    read, path, dtype, translate = FORMS[form]
    tensors = translate(read(FIXTURES / path))
    tensors.pop("transformer.lm_head.weight", None)
    tensors.pop("lm_head.weight", None)
    assert tensors.keys() == exact.keys()
    for name, x in tensors.items():
        if dtype == "bfloat16":
            expected = rounded_to_bfloat16(exact[name])
        else:
            expected = (exact[name] if dtype == "float64" else exact[name].astype(np.float32)).astype(dtype)
        assert x.dtype == expected.dtype
        assert np.array_equal(x, expected), name


def maps_a_file(array):
    """Is the memory of the array a mapped file?"""
    while isinstance(array, np.ndarray):
        array = array.base
    owner = array.obj if isinstance(array, memoryview) else array
    return isinstance(owner, mmap.mmap)


@pytest.mark.parametrize("form", FORMS)
def test_arrays_are_read_only_views_of_the_file(form):
    read, path, dtype, _ = FORMS[form]
    arrays = list(arrays_of(read(FIXTURES / path)))
    assert arrays and not any(x.flags.writeable for x in arrays)
    if dtype != "bfloat16":  # NumPy has no such type: it is widened
        assert all(maps_a_file(x) for x in arrays)


FILES = {
    "safetensors": (read_safetensors, "few.safetensors", {"few.safetensors"}),
    "torch": (read_torch, "few.bin", {"few.bin"}),
    "tensorflow": (read_tensorflow, "few.index", {"few.index", "few.data-00000-of-00002", "few.data-00001-of-00002"}),
    "llmc": (read_llmc, "small.bin", {"small.bin"}),
}


@pytest.fixture(params=FILES)
def small(request, tmp_path):
    """A reader, what to give it, and the folder with the files of a small fixture."""
    read, entry, names = FILES[request.param]
    for name in names:
        source = FIXTURES / "small" / name
        (tmp_path / name).write_bytes(source.read_bytes() if source.exists() else smallest_llmc())
    return read, tmp_path / entry, tmp_path


def smallest_llmc():
    """A model of one layer, one head, one channel and one token."""
    header = np.zeros(256, np.int32)
    header[:8] = [20240326, 3, 1, 1, 1, 1, 1, 1]
    return header.tobytes() + np.arange(29, dtype=np.float32).tobytes()


def test_a_file_cut_at_any_byte_is_refused(small):
    read, entry, folder = small
    read_watched(read, entry, folder)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            assert isinstance(read_watched(read, entry, folder), BadFileError), (path.name, size)
        path.write_bytes(whole)
    assert not isinstance(read_watched(read, entry, folder), Exception)


def test_a_file_with_bytes_after_its_end_is_refused(small):
    read, entry, folder = small
    for path in sorted(folder.glob("*[!0-9]")):  # TensorFlow's data files hold what the index says, and may hold more
        whole = path.read_bytes()
        path.write_bytes(whole + b"\0")
        assert isinstance(read_watched(read, entry, folder), BadFileError), path.name
        path.write_bytes(whole)


def test_a_missing_file_is_a_storage_error(small):
    read, entry, folder = small
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        assert isinstance(read_watched(read, entry, folder), StorageError), path.name
        path.write_bytes(whole)
