"""Files of torch.save are read completely; for older files, programs and other objects the error says what to do."""

from __future__ import annotations

import io
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from oracle import read_watched

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.torch import MAX_PICKLE, read_torch, read_torch_object

FIXTURES = Path(__file__).parents[1] / "fixtures"


def written(folder, records):
    """A zip file of these records; content that is not bytes is pickled."""
    path = folder / "model.bin"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")
        for name, content in records:
            file.writestr(name, content if isinstance(content, bytes) else pickle.dumps(content, 2))
    return path


def test_a_state_dict_has_its_dtypes_and_strides():
    found = read_torch(FIXTURES / "small" / "few.bin")
    assert {name: (x.dtype.name, x.tolist()) for name, x in found.items()} == {
        "weight": ("float32", [[0, 1, 2], [3, 4, 5]]),
        "half": ("float32", [0, 1, 2, 3]),
        "mask": ("bool", [[True, False]]),
        "step": ("int64", 3),
        "turned": ("float32", [[0, 3], [1, 4], [2, 5]]),
    }
    assert np.shares_memory(found["weight"], found["turned"])


def test_a_training_checkpoint_is_read_with_all_that_is_in_it():
    found = read_torch_object(FIXTURES / "nanogpt" / "ckpt.pt")
    assert found.keys() == {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config"}
    assert found["model_args"]["n_embd"] == 6 and found["model_args"]["bias"] is True
    assert found["best_val_loss"] == 5.5
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.95)
    assert all(state["step"] == 1 for state in found["optimizer"]["state"].values())


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([("data.pkl", {})], "holds 0 data.pkl"),
        ([("a/data.pkl", {}), ("b/data.pkl", {})], "holds 2 data.pkl"),
        ([("a/b/data.pkl", {})], "holds 0 data.pkl"),
        ([("a/data.pkl", {}), ("a/byteorder", b"big")], "numbers are big-endian"),
        ([("a/data.pkl", {}), ("a/constants.pkl", ())], "TorchScript"),
        ([("a/data.pkl", b"N" * (MAX_PICKLE + 1))], "at most 4,194,304"),
        ([("a/data.pkl", [1])], "holds a list; expected a state_dict"),
        ([("a/data.pkl", {"epoch": 1, 2: None})], "these are not tensors: 'epoch', 2; expected a state_dict"),
    ],
)
def test_a_zip_file_that_is_not_a_state_dict_is_refused(records, message, tmp_path):
    found = read_watched(read_torch, written(tmp_path, records), tmp_path)
    assert isinstance(found, BadFileError) and message in str(found)


LEGACY = (FIXTURES / "small" / "legacy.bin").read_bytes()


def test_the_form_before_1_6_is_read_as_the_one_after_it():
    found, later = (read_torch(FIXTURES / "small" / name) for name in ("legacy.bin", "few.bin"))
    assert found.keys() == later.keys() - {"turned"}
    for name, array in found.items():
        assert array.dtype == later[name].dtype and array.tobytes() == later[name].tobytes()
        assert array.flags.aligned and not array.flags.writeable


def test_a_file_from_before_1_6_that_is_cut_at_any_byte_is_refused(tmp_path):
    for size in range(1, len(LEGACY)):
        (tmp_path / "model.bin").write_bytes(LEGACY[:size])
        assert isinstance(read_watched(read_torch, tmp_path / "model.bin", tmp_path), BadFileError), size


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\x8a\nl\xfc", b"\x8a\nl\xfd", "a bare pickle, which torch.save did not write"),
        (b"M\xe9\x03.", b"M\xea\x03.", "not of version 1001"),
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89", "its numbers are big-endian"),
        (b"FloatStorage", b"XloatStorage", "'torch.XloatStorage' outside itself, which is not a storage"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n", "'os.system', which no file of tensors needs"),
        (b"\x80\x02]q\x00(", b"\x80\x02}q\x00(", "it appends to a dict"),
        (b"\x06\0\0\0\0\0\0\0", b"\x07\0\0\0\0\0\0\0", "has 7 elements, but 6 by the structure"),
        (b"\x06\0\0\0\0\0\0\0", b"\xff" * 8, "has -1 elements, but 6 by the structure"),
        (b"K\x06Nt", b"J\xff\xff\xff\x7fNt", "its storages are larger than the file"),
        (b"K\x06Nt", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fNt", "larger than any array"),
        (b"K\x06Nt", b"K\x06K\x00t", "not a storage of tensors"),
    ],
)
def test_a_damaged_file_from_before_1_6_is_refused_by_what_is_wrong(old, new, message, tmp_path):
    assert old in LEGACY
    (tmp_path / "model.bin").write_bytes(LEGACY.replace(old, new, 1))
    found = read_watched(read_torch, tmp_path / "model.bin", tmp_path)
    assert isinstance(found, BadFileError) and message in str(found)


def test_what_follows_the_last_storage_is_told(tmp_path):
    (tmp_path / "model.bin").write_bytes(LEGACY + b"\0\0")
    with pytest.raises(BadFileError, match="2 bytes left over"):
        read_torch(tmp_path / "model.bin")


def test_keys_that_are_not_those_of_the_structure_are_refused(tmp_path):
    at = LEGACY.index((6).to_bytes(8, "little")) - 5  # the last digit of the last key
    (tmp_path / "model.bin").write_bytes(LEGACY[:at] + b"x" + LEGACY[at + 1 :])
    with pytest.raises(BadFileError, match="the keys of its storages are not those of its structure"):
        read_torch(tmp_path / "model.bin")


def tar():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"w": 1}, 2), "a bare pickle, which torch.save did not write"),
        (tar(), "a tar file, which the first versions of torch wrote; load it once"),
        (b"", "not written by torch.save"),
        (b"\x89HDF\r\n\x1a\n", "not written by torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer, not the file itself"),
    ],
)
def test_older_and_other_files_are_refused_and_the_error_says_what_to_do(content, message, tmp_path):
    (tmp_path / "model.bin").write_bytes(content)
    for read in (read_torch, read_torch_object):
        found = read_watched(read, tmp_path / "model.bin", tmp_path)
        assert isinstance(found, BadFileError) and message in str(found)
