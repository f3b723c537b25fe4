"""llm.c's file has no names: the sizes in its header must match its length exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle import read_watched

import nanograd_llm as ng
from nanograd_llm.errors import BadFileError
from nanograd_llm.pretrained.gpt2.llmc import FIELDS, read_llmc

SOURCE = Path(__file__).parents[1] / "fixtures" / "llmc" / "gpt2_tiny.bin"


def test_the_header_gives_the_sizes_of_the_model():
    fields, arrays = read_llmc(SOURCE)
    assert fields == dict(zip(FIELDS, [7, 264, 2, 2, 6, 384]))
    assert list(arrays)[:5] == ["wte", "wpe", "ln1w", "ln1b", "qkvw"]
    assert arrays["qkvw"].shape == (2, 18, 6)
    assert not arrays["wte"][264:].any() and arrays["wte"][263].all()  # the padding, and the last row before it


@pytest.mark.parametrize(
    ("place", "number", "message"),
    [
        (0, 20240327, "not a model file of llm.c"),
        (1, 1, "version 1 of llm.c's format; versions 3 (float32) and 5 (bfloat16)"),
        (1, 5, "the sizes in its header need"),
        (2, 8, "needs bytes"),
        (2, 6, "the sizes in its header need"),
        (2, 0, "the sizes in its header need"),
        (4, -1, "integers of at least 0"),
        (4, 2**31 - 1, "needs bytes"),
        (6, 2**31 - 2, "needs bytes"),
        (7, 263, "padded_vocab_size is less than vocab_size"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(place, number, message, tmp_path):
    data = bytearray(SOURCE.read_bytes())
    data[4 * place : 4 * place + 4] = np.int32(number).tobytes()
    (tmp_path / "model.bin").write_bytes(data)
    found = read_watched(read_llmc, tmp_path / "model.bin", tmp_path)
    assert isinstance(found, BadFileError) and message in str(found)


@pytest.mark.parametrize(
    ("place", "number", "message"),
    [(5, 4, "channels|n_embd|num_heads"), (5, 0, "num_heads must be"), (3, 0, "vocab_size must be")],
)
def test_sizes_that_fit_the_file_but_no_model_are_refused(place, number, message, tmp_path):
    data = bytearray(SOURCE.read_bytes())
    data[4 * place : 4 * place + 4] = np.int32(number).tobytes()
    (tmp_path / "gpt2_x.bin").write_bytes(data)
    with pytest.raises(BadFileError, match=f"the header: .*({message})"):
        ng.load_gpt2(tmp_path)
