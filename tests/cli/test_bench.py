"""`nanograd-llm bench` prints figures and targets, as tables and as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from nanograd_llm import bench
from nanograd_llm.bench import TARGETS, Figure, Note, OpTime
from nanograd_llm.cli import main

REPORTS = [
    Note("toy", "without PyTorch compiled: no compiler"),
    Figure("toy", "step", 31.25, "ms"),
    Figure("toy", "step ÷ floor", 1.25, "ratio"),
    OpTime("toy", "gelu, backward", 4, 0.002, 0.5),
    OpTime("toy", "add", 8, 0.000001, 0.0001),
    OpTime("toy", "mean", 3, 0.000001, 0.0001),
    Figure("toy", "step, peak memory", 1234.5, "MB"),
]


@pytest.fixture
def asked(monkeypatch):
    """Replace the benchmarks by ones that report at once; the list has the arguments of each call."""
    calls = []

    def benchmark(name):
        def reports(against, rounds):
            calls.append((name, against, rounds))
            yield from REPORTS if name == "toy" else []

        return reports

    monkeypatch.setattr(bench, "BENCHMARKS", {name: benchmark(name) for name in bench.BENCHMARKS})
    return calls


def test_figures_ops_and_targets_are_printed(asked, capsys):
    assert main(["bench", "toy"]) == 0
    out, err = capsys.readouterr()
    assert not err
    lines = [" ".join(line.replace("│", " ").split()) for line in out.splitlines()]
    for line in (
        "toy without PyTorch compiled: no compiler",
        "toy step 31.2 ms",
        "toy step, peak memory 1,234 MB",
        "gelu, backward 4 2.00 50.0%",
        "ops below 0.5% each 11 0.00 0.0%",
        "toy step ÷ floor 1.25 ≤ 1.35 met",
        "toy step ÷ best of PyTorch ≤ 0.80 not measured",
    ):
        assert line in lines
    assert "mid" not in out


def test_json_is_one_object_per_line_with_the_machine_first(asked, capsys):
    assert main(["bench", "toy", "--json"]) == 0
    machine, *records = map(json.loads, capsys.readouterr().out.splitlines())
    assert {"processor", "cores", "workers", "python", "numpy", "blas"} <= set(machine["machine"])
    assert records == [report.record() for report in REPORTS]


def test_without_a_name_all_workloads_are_measured_and_every_target_is_shown(asked, capsys):
    assert main(["bench", "--rounds", "3"]) == 0
    assert asked == [(name, False, 3) for name in bench.BENCHMARKS]
    out = capsys.readouterr().out
    assert out.count("not measured") == sum(not workload.endswith("cuda") for workload, _ in TARGETS) - 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "rounds must be an integer of at least 1; got 0"),
        (["tiny"], "tiny"),
        (["toy", "--against", "jax"], "jax"),
        (["toy", "--against", "torch"], "not installed: torch; pip install torch, or leave out --against"),
    ],
)
def test_wrong_usage_is_one_line_and_measures_nothing(arguments, said, asked, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1
    assert not out and not asked


@pytest.mark.parametrize(("load", "is_busy"), [(0.0, False), (7.5, True)])
def test_a_busy_machine_is_reported(load, is_busy, asked, capsys, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr("nanograd_llm.bench.host.cpu_count", lambda: 2)
    main(["bench", "toy"])
    assert ("busy: measure again" in capsys.readouterr().out) is is_busy


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_ctrl_c_is_one_line_and_leaves_no_process():
    line = "import sys; from nanograd_llm.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", line, "bench", "mid"],
        start_new_session=True,
        stdout=-1,
        stderr=-1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # of the machine: what follows is measured
        for _ in range(4):  # Python itself loses an interrupt now and then, in a callback of an import
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, err = process.communicate(timeout=20)
                break
        else:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("it goes on")
    assert (process.returncode, err) == (130, b"nanograd-llm: stopped\n")
