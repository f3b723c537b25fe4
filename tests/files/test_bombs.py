"""Bombs, files that claim the largest sizes, take less than a second, and at most twice the file plus 64 MB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bombs import BOMBS, plant
from oracle import SPARE, read_watched

import nanograd_llm
from nanograd_llm.files.safetensors import read_safetensors


@pytest.mark.parametrize("bomb", BOMBS)
def test_reading_a_bomb_breaks_no_rule(bomb, tmp_path):
    read, path = plant(bomb, tmp_path)
    read_watched(read, path, tmp_path)  # raises Breach for a rule that is broken; to refuse the file breaks none


@pytest.mark.skipif(sys.platform == "win32", reason="Windows measures memory differently")
def test_no_bomb_takes_more_than_twice_its_size_and_64_mb(tmp_path):
    for number, bomb in enumerate(BOMBS):
        (tmp_path / str(number)).mkdir()
        plant(bomb, tmp_path / str(number))
    command = [sys.executable, str(Path(__file__).with_name("bombs.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(nanograd_llm.__path__[0]).parent)}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    measured = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [bomb["bomb"] for bomb in measured] == list(BOMBS)
    assert [bomb for bomb in measured if bomb["memory"] > 2 * bomb["size"] + SPARE] == []


@pytest.mark.parametrize(("dtype", "width", "most"), [("F32", 4, 2**16), ("BF16", 2, 2**25 + 2**16)])
def test_reading_float32_takes_no_memory_and_bfloat16_takes_that_of_float32(dtype, width, most, tmp_path):
    size = width * 2**23
    text = json.dumps({"x": {"dtype": dtype, "shape": [2**23], "data_offsets": [0, size]}}).encode()
    with (tmp_path / "x").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    tracemalloc.start()
    try:
        found = read_safetensors(tmp_path / "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["x"].nbytes == 2**25 and found["x"].dtype == np.float32 and peak < most
