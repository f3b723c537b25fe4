"""A checkpoint gives back what was saved, or says that it cannot."""

from __future__ import annotations

import errno
import json
import mmap
import os
import pickle
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nanograd_llm.errors import BadFileError, DtypeError, StorageError
from nanograd_llm.files.safetensors import DTYPES
from nanograd_llm.runs.checkpoints import load_checkpoint, save_checkpoint


@pytest.fixture
def saved(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "step.safetensors"
    save_checkpoint(path, {"w": rng.normal(size=(3, 2)).astype(np.float32), "n": np.array(7)}, {"step": "100"})
    return path


def assert_same(loaded: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        assert loaded[name].dtype == array.dtype.newbyteorder("=")
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.astype(array.dtype.newbyteorder("="), order="C").tobytes()


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(string.ascii_letters + "._", min_size=1).filter(lambda name: name != "__metadata__"),
        st.sampled_from(sorted(set(DTYPES.values()))).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
        ),
        max_size=4,
    ),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text(), max_size=4),
)
def test_what_is_loaded_is_what_was_saved(tmp_path_factory, arrays, metadata) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_checkpoint(path, arrays, metadata)
    loaded, loaded_metadata = load_checkpoint(path)
    assert_same(loaded, arrays)
    assert loaded_metadata == metadata


def test_strided_reversed_broadcast_and_big_endian_arrays_keep_their_values(tmp_path: Path) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {
        "transposed": base.T,
        "reversed": base[::-1, ::-1],
        "strided": base[:, ::2],
        "broadcast": np.broadcast_to(np.float32(3), (2, 2)),
        "fortran": np.asfortranarray(base),
        "big_endian": base.astype(">f4"),
    }
    save_checkpoint(tmp_path / "file", arrays, {})
    assert_same(load_checkpoint(tmp_path / "file")[0], arrays)


def test_loaded_arrays_can_be_written_to(saved: Path) -> None:
    arrays, _ = load_checkpoint(saved)
    arrays["w"] += 1
    assert not np.array_equal(load_checkpoint(saved)[0]["w"], arrays["w"])


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    arrays = {name: np.full(3, float(i)) for i, name in enumerate("abcdef")}
    metadata = {name: name for name in "stuvwxyz"}
    save_checkpoint(tmp_path / "one", arrays, metadata)
    save_checkpoint(tmp_path / "two", dict(reversed(arrays.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_any_reader_of_safetensors_opens_it(saved: Path) -> None:
    from safetensors.numpy import load_file

    assert_same(load_file(saved), load_checkpoint(saved)[0])


def test_every_single_flipped_bit_is_found(saved: Path) -> None:
    good = saved.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(bad)
        with pytest.raises(BadFileError):
            load_checkpoint(saved)


def test_a_file_cut_anywhere_is_found(saved: Path) -> None:
    good = saved.read_bytes()
    for length in range(len(good)):
        saved.write_bytes(good[:length])
        with pytest.raises(BadFileError) as caught:
            load_checkpoint(saved)
        assert str(saved) in str(caught.value) and caught.value.exit_code == 3


def test_a_zeroed_or_extended_file_is_found(saved: Path) -> None:
    good = saved.read_bytes()
    for bad in (bytes(len(good)), good + b"\0", good + good, (2**63).to_bytes(8, "little") + good[8:]):
        saved.write_bytes(bad)
        with pytest.raises(BadFileError):
            load_checkpoint(saved)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(2)}, tmp_path / "bare")
    save_file({"w": np.zeros(2)}, tmp_path / "other", {"format": "pt"})
    for name in ("bare", "other"):
        with pytest.raises(BadFileError, match="no checkpoint of nanograd_llm"):
            load_checkpoint(tmp_path / name)


def test_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "file").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadFileError):
        load_checkpoint(tmp_path / "file")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_version_is_refused_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("nanograd_llm.runs.checkpoints.VERSION", 2)
        save_checkpoint(tmp_path / "file", {}, {})
    with pytest.raises(BadFileError, match="version 2; this nanograd_llm reads version 1"):
        load_checkpoint(tmp_path / "file")


def test_a_checkpoint_of_version_1_is_read_and_written_to_the_same_bytes(tmp_path: Path) -> None:
    """The file is one that the safetensors library wrote for the first versions of this package."""
    stored = Path(__file__).parents[1] / "fixtures" / "checkpoint" / "version_1.safetensors"
    arrays, metadata = load_checkpoint(stored)
    assert metadata == {"step": "100", "note": 'é \n "quoted"'}
    assert arrays["wte"].tolist() == [[0, 1, 2], [3, 4, 5]] and arrays["rng é"].tolist() == [1, 2**63]
    save_checkpoint(tmp_path / "again", arrays, metadata)
    assert (tmp_path / "again").read_bytes() == stored.read_bytes()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"__metadata__": None}, "__metadata__ must be an object of strings"),
        ({"__metadata__": {"nanograd_llm": "[1]"}}, "found list"),
        ({"__metadata__": {"nanograd_llm": '{"version": 1}'}}, "no metadata"),
        ({"__metadata__": {"nanograd_llm": '{"version": 1, "metadata": {"a": 1}}'}}, "no metadata"),
        ({"__metadata__": {"nanograd_llm": '{"version": 1, "metadata": {}}'}}, "does not match its SHA-256"),
    ],
)
def test_a_header_that_is_not_what_was_saved_is_refused(header: dict[str, Any], said: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(BadFileError, match=said):
        load_checkpoint(tmp_path / "x")


def test_a_lack_of_memory_while_saving_keeps_the_previous_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object, **__: object) -> int:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(StorageError, match="cannot write: not enough memory"):
            save_checkpoint(saved, {"w": np.zeros(3)}, {"step": "200"})
    assert load_checkpoint(saved)[1] == {"step": "100"}
    assert os.listdir(saved.parent) == [saved.name]


def test_a_dtype_that_the_format_lacks_is_named_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(DtypeError, match="w is complex128"):
        save_checkpoint(tmp_path / "file", {"w": np.zeros(2, np.complex128)}, {})
    with pytest.raises(DtypeError, match="w is object"):
        save_checkpoint(tmp_path / "file", {"w": np.array([None])}, {})
    assert os.listdir(tmp_path) == []


def test_a_missing_file_and_a_folder_are_storage_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(StorageError):
            load_checkpoint(path)


def test_a_full_disk_keeps_the_previous_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="No space left"):
            save_checkpoint(saved, {"w": np.zeros(3)}, {"step": "200"})
    assert load_checkpoint(saved)[1] == {"step": "100"}
    assert os.listdir(saved.parent) == [saved.name]


def test_saving_over_the_mapped_source_keeps_every_byte(saved: Path) -> None:
    size = saved.stat().st_size
    with saved.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        weights = np.frombuffer(mapped, np.float32, count=6, offset=size - 24).reshape(3, 2)
        expected = load_checkpoint(saved)[0]["w"]
        assert np.array_equal(weights, expected)  # the map does show the array
        save_checkpoint(saved, {"w": weights}, {})
        assert np.array_equal(weights, expected)
        del weights
    assert np.array_equal(load_checkpoint(saved)[0]["w"], expected)
