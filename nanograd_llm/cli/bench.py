"""`nanograd-llm bench`: measure speed and memory on this machine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from nanograd_llm.cli.options import Device

if TYPE_CHECKING:
    from rich.table import Table

    from nanograd_llm.bench import Report

SMALL = 0.005  # ops with a smaller share of the time are added up in one line


def bench(
    workload: Literal[
        "all", "toy", "mid", "gpt2", "translation", "decode", "embed", "memory", "lora", "scaling", "start", "detection"
    ] = "all",
    /,
    *,
    against: Literal["none", "torch"] = "none",
    device: Device = "cpu",
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    rounds: int | None = None,
) -> None:
    """Measure speed and memory, and compare them with the machine's limit, with PyTorch, and with targets.

    On cuda, a GPU, there are two workloads, both of GPT-2 124M: gpt2, a training step of 8 x 1,024 tokens, and decode.

    Parameters
    ----------
    workload
        toy: a training step of 4 layers, 4 heads, 128 channels, 64 tokens, batch 12. mid: the same with 6, 6, 384,
        256, 8. gpt2: GPT-2 124M, forward and step. translation: a step of that task. decode: generating text. embed:
        sentences to vectors. memory: peak memory. lora: training adapters of GPT-2 124M. scaling: how cost grows with
        size. start: time to the first step and token. detection: mistakes that the gradient check misses. all: each of
        these, which takes minutes.
    against
        Measure PyTorch (and transformers, and peft) as well, which must be installed.
    device
        Where to measure.
    as_json
        Print one JSON object per line.
    rounds
        How often each program is measured; more gives steadier figures. If not given, as often as fits in a minute for
        each workload.
    """
    from nanograd_llm.bench import BENCHMARKS, ON_GPU, machine, run

    names = list(BENCHMARKS if device == "cpu" else ON_GPU) if workload == "all" else [workload]
    reports = run(names, against=against == "torch", rounds=rounds, device=device)
    if not as_json:
        measured = names if device == "cpu" else [f"{name}, {device}" for name in names]
        return _print_tables(machine(device), reports, measured)
    print(json.dumps({"machine": machine(device)}), flush=True)
    for report in reports:
        print(json.dumps(report.record()), flush=True)


def _print_tables(machine: dict[str, Any], reports: Iterable[Report], names: Collection[str]) -> None:
    """Print figures as they are measured, a table of ops after each workload, and at the end the targets."""
    from rich.console import Console
    from rich.table import Table

    from nanograd_llm.bench import TARGETS, Figure, OpTime

    console = Console(highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), markup=False, soft_wrap=True)
    measured: dict[tuple[str, str], Figure] = {}
    for is_op, together in itertools.groupby(reports, lambda report: isinstance(report, OpTime)):
        if is_op:
            console.print(_op_table(together))
            continue
        for report in together:
            if isinstance(report, Figure):
                measured[report.workload, report.measure] = report
            console.print(f"{report.workload:<8} {report}", markup=False, soft_wrap=True)
    table = Table("workload", "measure", "measured", "target", "", title=None)
    for place, target in TARGETS.items():
        found = measured.get(place)
        if found:
            table.add_row(*place, f"{found.value:.2f}", str(target), "met" if target.is_met(found.value) else "not met")
        elif place[0] in names:
            table.add_row(*place, "", str(target), "not measured")
    console.print(table)


def _op_table(times: Iterable[Any]) -> Table:
    from rich.table import Table

    table = Table("where the time goes", title=None)
    for heading in ("calls", "ms", "share"):
        table.add_column(heading, justify="right")
    rest = f"ops below {SMALL:.1%} each"
    rows: dict[str, list[float]] = {}
    for time in times:
        name = time.op if abs(time.share) >= SMALL else rest
        rows[name] = [a + b for a, b in zip(rows.pop(name, [0, 0, 0]), [time.calls, time.seconds, time.share])]
    for name, (calls, seconds, share) in sorted(rows.items(), key=lambda row: row[0] == rest):
        table.add_row(name, f"{calls:,.0f}", f"{seconds * 1e3:,.2f}", f"{share:.1%}")
    return table
