"""`nanograd-llm bench`: how fast is it here?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table

    from nanograd_llm.bench import Report

SMALL = 0.005  # shares below this make one line together


def bench(
    workload: Literal["all", "toy", "mid", "gpt2", "decode", "memory", "scaling", "start", "detection"] = "all",
    /,
    *,
    against: Literal["none", "torch"] = "none",
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    rounds: int | None = None,
) -> None:
    """Measure speed and memory beside the machine's limit, beside PyTorch, and beside what they should be.

    Parameters
    ----------
    workload
        toy: a training step of 4 layers, 4 heads, 128 channels, 64 tokens, batch 12. mid: 6, 6, 384, 256, 8. gpt2: its
        124M, forward and step. decode: writing text. memory: peaks. scaling: growth of cost. start: from Enter to the
        first step and token. detection: mistakes that the gradient check misses. All takes minutes.
    against
        Race PyTorch (and transformers) too, if installed.
    as_json
        One JSON object a line.
    rounds
        Turns of each contender; more is steadier. By workload if not given.
    """
    from nanograd_llm.bench import BENCHMARKS, machine, run

    names = list(BENCHMARKS) if workload == "all" else [workload]
    reports = run(names, against=against == "torch", rounds=rounds)
    if not as_json:
        return _print_tables(machine(), reports, names)
    print(json.dumps({"machine": machine()}), flush=True)
    for report in reports:
        print(json.dumps(report.record()), flush=True)


def _print_tables(machine: dict[str, Any], reports: Iterable[Report], names: Collection[str]) -> None:
    """Figures as they come, a table of ops after each task, and at the end the targets beside what was measured."""
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
    rest = f"what is below {SMALL:.1%} each"
    rows: dict[str, list[float]] = {}
    for time in times:
        name = time.op if abs(time.share) >= SMALL else rest
        rows[name] = [a + b for a, b in zip(rows.pop(name, [0, 0, 0]), [time.calls, time.seconds, time.share])]
    for name, (calls, seconds, share) in sorted(rows.items(), key=lambda row: row[0] == rest):
        table.add_row(name, f"{calls:,.0f}", f"{seconds * 1e3:,.2f}", f"{share:.1%}")
    return table
