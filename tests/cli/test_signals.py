"""Signals sent to the command: a burst counts as one, no step is lost, and no moment gives a traceback."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanograd_llm.__main__ import run
from nanograd_llm.cli import main
from nanograd_llm.runs import RunFolder, stopping
from nanograd_llm.runs.prepare import prepare_run  # noqa: F401  before the forks, which are then faster

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

QUICK = ["--n-layer", "1", "--n-head", "1", "--n-embd", "4", "--context-length", "8", "--tokenizer", "bytes"]
QUICK += ["--batch-size", "4", "--steps", "100000", "--checkpoint-every", "100000"]


def trained_in_a_child(folder: Path, workers: int) -> int:
    """Start `train` in a forked process, as the program does it; returns its PID."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            words = ["train", str(folder / "text.txt"), *QUICK, "--workers", str(workers), "--out", str(folder / "run")]
            run(words)
        except SystemExit as error:
            sys.stdout.flush()
            code = int(error.code or 0)
        finally:
            os._exit(code)
    return child


@pytest.fixture
def long_bursts(monkeypatch):
    """Signals count as one burst also where a busy machine delays some of them."""
    monkeypatch.setattr("nanograd_llm.runs.stopping.BURST", 60)
    monkeypatch.setattr(stopping, "_arrived", [-math.inf])  # signals of the tests before are of no burst here


def bursts(folder: Path, seeds: range, record_property) -> None:
    (folder / "text.txt").write_text("the cat sat on the mat. " * 40)
    for seed in seeds:
        draw, path = random.Random(seed), folder / str(seed)
        path.mkdir()
        (path / "text.txt").symlink_to(folder / "text.txt")
        child, metrics = trained_in_a_child(path, 1 + seed % 2), path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.1)
        for _ in range(draw.randint(2, 6)):
            os.kill(child, signal.SIGINT)
            time.sleep(draw.random() * 0.005)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        err, folder_of_run = (path / "err").read_text(), RunFolder.open(path / "run")
        assert code == 0 and err.count("\n") == 2 and "stopping" in err, (seed, code, err)
        assert folder_of_run.last_metrics()[0]["step"] == max(folder_of_run.checkpoints()), seed
        assert "everything up to here is saved" in (path / "out").read_text()
    record_property("kill points", len(seeds))


def test_a_burst_of_ctrl_c_counts_as_one_and_loses_no_step(tmp_path, record_property, long_bursts):
    bursts(tmp_path, range(12), record_property)


def test_a_signal_within_the_handler_of_the_one_before_it_counts_as_one_with_that(monkeypatch):
    handled = []
    monkeypatch.setattr(stopping, "_arrived", [-math.inf])

    def now() -> float:
        if len(calls) < 2:
            calls.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    calls: list[int] = []
    with stopping.handling([signal.SIGINT], lambda *_: handled.append(1)):
        monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=now))
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.undo()
    assert calls and len(handled) == 1


def test_a_signal_between_the_end_of_a_command_and_that_of_the_program_changes_no_exit_code(monkeypatch):
    def main(arguments):
        at_end.append(signal.getsignal(signal.SIGINT))
        return 0

    at_end: list[object] = []
    monkeypatch.setattr("nanograd_llm.cli.main", main)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            run([])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 0 and callable(at_end[0]) and at_end[0](signal.SIGINT, None) is None


def test_info_shows_the_steps_that_a_checkpoint_has(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 40)
    run = prepare_run(tmp_path / "run", options={"file": str(tmp_path / "text.txt"), "steps": 3, "tokenizer": "bytes"})
    list(run.train())
    run.folder.append_metrics({"step": 4, "items": 9, "loss": 1.0, "items_per_second": 1.0})  # then came a kill -9
    for path in (tmp_path, tmp_path / "run"):
        assert main(["info", str(path)]) == 0
        assert "3 steps" in (out := capsys.readouterr().out) and "4 steps" not in out


@pytest.mark.thorough
def test_a_burst_of_ctrl_c_at_many_moments_counts_as_one_and_loses_no_step(tmp_path, record_property, long_bursts):
    bursts(tmp_path, range(400), record_property)


def interrupted_at_any_moment(tmp_path: Path, words: list[str], seeds: range, longest: float) -> None:
    """Run a command and send bursts of Ctrl-C at a random moment, also while it starts and ends."""
    for seed in seeds:
        draw = random.Random(seed)
        program = "import os, signal; from nanograd_llm.__main__ import run; signal.signal(2, signal.SIG_DFL); "
        program += "os.write(2, b'-'); run()"
        out = ["--out", str(tmp_path / f"run-{seed}")] if words[0] == "train" else []
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words, *out],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stderr is not None and process.stderr.read(1) == b"-"  # Python itself has started
        time.sleep(draw.random() * longest)
        for _ in range(draw.randint(1, 4)):
            process.send_signal(signal.SIGINT)
            time.sleep(draw.random() * 0.01)
        err = process.communicate(timeout=60)[1].decode()
        assert process.returncode in (0, 130, -signal.SIGINT), (seed, process.returncode, err)
        assert "Traceback" not in err and "Exception" not in err, (seed, err)


def test_ctrl_c_while_a_class_is_made_is_one_line_in_every_python(monkeypatch, capsys):
    class Field:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    def doctor() -> None:
        type("Config", (), {"size": Field()})

    monkeypatch.setattr("nanograd_llm.cli.doctor.doctor", doctor)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "nanograd-llm: stopped\n"


def test_ctrl_c_while_the_command_starts_or_ends_leaves_no_traceback(tmp_path):
    interrupted_at_any_moment(tmp_path, ["doctor"], range(3), 0.3)


@pytest.mark.thorough
@pytest.mark.parametrize("words", [["train", *QUICK[:-4], "--steps", "3"], ["doctor"], ["tokenize", "the cat"]])
def test_ctrl_c_at_any_moment_leaves_no_traceback(tmp_path, words):
    interrupted_at_any_moment(tmp_path, words, range(60), 1.5 if words[0] == "train" else 0.8)
