"""Peak memory of a training step of each size, in its own process: with its workers; shared pages count once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from nanograd_llm.backend.processes import Child, spawn
from nanograd_llm.bench import torch_gpt
from nanograd_llm.bench.figures import Figure, Note, Report
from nanograd_llm.bench.race import Maker, burst, contenders, race, warm_up
from nanograd_llm.bench.workloads import GPT2_STEP, MID, TOY, Workload, training_step

PROC = Path("/proc")
PAUSE = 0.003  # seconds between two measurements


def bench(
    against: bool, rounds: int | None = None, *, workloads: Sequence[Workload] = (TOY, MID, GPT2_STEP)
) -> Iterator[Report]:
    """Peak memory of a step of each workload, with its ratio to PyTorch's, and with activations recomputed."""
    if not can_measure():
        yield Note("memory", "not measured: it needs Linux's /proc, which this machine does not have")
        return
    for workload in workloads:
        name, steps = workload.name, rounds or 3
        ours = peak(functools.partial(training_step, workload), steps)
        yield Figure("memory", f"{name} step, peak", ours / 1e6, "MB")
        if against:
            theirs = peak(functools.partial(torch_gpt.training_step, workload), steps)
            yield Figure("memory", f"{name} step, peak of PyTorch", theirs / 1e6, "MB")
            yield Figure("memory", f"{name} ÷ PyTorch", ours / theirs, "ratio")
        yield from _recomputing(workload, steps, ours)


def _recomputing(workload: Workload, steps: int, without: float) -> Iterator[Report]:
    """The memory that recomputing activations in the backward pass saves, and the time that it costs."""
    name, config = workload.name, dataclasses.replace(workload.config, recompute_activations=True)
    kinds = {"kept": workload, "recomputed": dataclasses.replace(workload, config=config)}
    with contenders({kind: functools.partial(training_step, w) for kind, w in kinds.items()}) as children:
        saving = peak_of(children["recomputed"], steps)
        yield Figure("memory", f"{name} step, peak, activations recomputed", saving / 1e6, "MB")
        yield Figure("memory", f"{name}, recomputed ÷ kept: memory", saving / without, "ratio")
        yield from warm_up(children, "memory")
        seconds = race(children, None, min(steps, 2), most=2, limit=8)
        yield Figure("memory", f"{name}, recomputed ÷ kept: time", seconds["recomputed"] / seconds["kept"], "ratio")


def can_measure() -> bool:
    """Does /proc have what `family_bytes` needs? It has from Linux 5.4 on."""
    return "Pss_Anon" in _sizes(PROC / "self" / "smaps_rollup") and (PROC / "self" / "task").is_dir()


def peak(make: Maker, steps: int) -> float:
    """The peak bytes of a contender and its workers while they are created and do `steps` steps."""
    with spawn(make) as contender:
        return peak_of(contender, steps)


def peak_of(contender: Child, steps: int) -> float:
    """As `peak`, for a contender that already exists."""
    leader, done, highest = contender.process.pid, threading.Event(), [0.0]
    assert leader is not None

    def measure() -> None:
        while not done.wait(PAUSE):
            highest[0] = max(highest[0], family_bytes(leader))

    measuring = threading.Thread(target=measure)
    measuring.start()
    try:
        contender.ask(burst, steps)
        # the kernel keeps the peak of the leader alone, also between two measurements
        last = max(family_bytes(leader), _sizes(PROC / str(leader) / "status").get("VmHWM", 0.0))
    finally:
        done.set()
        measuring.join()
    return max(highest[0], last)


def family_bytes(leader: int) -> float:
    """The bytes of a process and its children. Pss counts a page that n processes share as 1/n in each of them. For
    files the leader's Rss is used, because other Python processes on the machine would lower the Pss."""
    sizes = [_sizes(PROC / str(pid) / "smaps_rollup") for pid in [leader, *_children(leader)]]
    if not sizes[0]:
        return 0.0
    status = _sizes(PROC / str(leader) / "status")
    return sum(s.get("Pss_Anon", 0) + s.get("Pss_Shmem", 0) for s in sizes) + status.get("RssFile", 0)


def _children(pid: int) -> list[int]:
    found = []
    for listed in (PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += [int(child) for child in listed.read_text().split()]
    return found


def _sizes(path: Path) -> dict[str, float]:
    """The lines `name: n kB` of a file of /proc, in bytes; empty if the process has ended."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    return {name: 1024.0 * int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
