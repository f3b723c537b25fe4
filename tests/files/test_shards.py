"""An index says which file holds each tensor; errors name the tensors and files that do not fit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle import read_watched
from safetensors.numpy import save_file

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.safetensors import read_safetensors
from nanograd_llm.files.shards import read_shards

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def folder(tmp_path):
    """Two shards with a tensor each, and no index yet."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.ones(3, np.float32)}, folder / "two.safetensors")
    return folder


RIGHT = {"a": "one.safetensors", "b": "two.safetensors"}


def read(folder, weight_map, **settings):
    index = folder / "model.safetensors.index.json"
    text = weight_map if isinstance(weight_map, bytes) else json.dumps({"weight_map": weight_map}).encode()
    index.write_bytes(text)
    return read_watched(lambda path: read_shards(path, read_safetensors), index, folder)


def test_the_shards_of_a_model_are_one_table(folder):
    found = read(folder, RIGHT)
    assert {name: x.tolist() for name, x in found.items()} == {"a": [0, 0], "b": [1, 1, 1]}


def test_a_missing_shard_is_named(folder):
    (folder / "two.safetensors").unlink()
    found = read(folder, RIGHT)
    assert isinstance(found, StorageError) and "two.safetensors" in str(found)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "two.safetensors", "b": "one.safetensors"}, "missing: 'a'; extra: 'b'"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "missing: 'b'"),
        (RIGHT | {"c": "two.safetensors"}, "missing: 'c'"),
        ({}, "weight_map must be"),
        (["a"], "weight_map must be"),
        ({"a": 1}, "the entry of 'a' must be a file name"),
        ({"a": None}, "the entry of 'a' must be a file name"),
        ({"a": "../model/one.safetensors"}, "plain file name"),
        ({"a": "/etc/passwd"}, "plain file name"),
        ({"a": "x\\one.safetensors"}, "plain file name"),
        ({"a": "one.safetensors\0"}, "plain file name"),
        ({"a": ""}, "plain file name"),
        ({"a": ".."}, "plain file name"),
        ({"a": "one\n.safetensors"}, "plain file name"),
        (RIGHT | {"c": "model.safetensors.index.json"}, "needs bytes"),
        ({str(n): str(n) for n in range(1001)}, "names 1,001 files; at most 1,000 are read"),
        (b"[]", "expected a JSON object"),
        (b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "duplicate key"),
        (b"{}" + b" " * 2**22, "has more than 4,194,304 bytes"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(weight_map, message, folder):
    found = read(folder, weight_map)
    assert isinstance(found, BadFileError) and message in str(found)


def test_a_tensor_in_two_shards_is_named(folder):
    save_file({"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}, folder / "two.safetensors")
    found = read(folder, RIGHT)
    assert isinstance(found, BadFileError) and "two.safetensors" in str(found) and "extra: 'a'" in str(found)


@pytest.mark.skipif(sys.platform == "win32", reason="links need extra rights on Windows")
def test_a_shard_may_be_a_link_to_another_disk(folder):
    elsewhere = folder.parent / "blobs"
    elsewhere.mkdir()
    shutil.move(folder / "two.safetensors", elsewhere / "0123")
    (folder / "two.safetensors").symlink_to("../blobs/0123")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": RIGHT}), "utf-8")
    assert read_shards(folder / "model.safetensors.index.json", read_safetensors).keys() == {"a", "b"}


def test_a_name_too_long_for_the_system_is_reported_as_a_missing_file(folder):
    assert isinstance(read(folder, RIGHT | {"c": "c" * 5000}), StorageError)


@pytest.mark.skipif(sys.platform == "win32", reason="links need extra rights on Windows")
def test_a_link_that_leads_to_itself_is_an_error(folder):
    (folder / "two.safetensors").unlink()
    (folder / "two.safetensors").symlink_to("two.safetensors")
    assert isinstance(read(folder, RIGHT), StorageError)


def test_an_index_cut_at_any_byte_is_refused(folder):
    text = json.dumps({"metadata": {}, "weight_map": RIGHT}).encode()
    assert all(isinstance(read(folder, text[:size]), BadFileError) for size in range(len(text)))
