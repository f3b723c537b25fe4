"""Peak memory of a training step of each size, in a process made for it: workers count too, shared pages once."""

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
PAUSE = 0.003  # seconds between two looks at the memory


def bench(
    against: bool, rounds: int | None = None, *, workloads: Sequence[Workload] = (TOY, MID, GPT2_STEP)
) -> Iterator[Report]:
    """Peak memory of a step of each workload, with its ratio to PyTorch's, and with activations recomputed."""
    if not can_measure():
        yield Note("memory", "not measured: it is read from Linux's /proc, which is not here")
        return
    for workload in workloads:
        name, steps = workload.name, rounds or max(3, 60 // workload.batch_size // workload.config.n_layer)
        ours = peak(functools.partial(training_step, workload), steps)
        yield Figure("memory", f"{name} step, peak", ours / 1e6, "MB")
        if against:
            theirs = peak(functools.partial(torch_gpt.training_step, workload), steps)
            yield Figure("memory", f"{name} step, peak of PyTorch", theirs / 1e6, "MB")
            yield Figure("memory", f"{name} ÷ PyTorch", ours / theirs, "ratio")
        yield from _recomputing(workload, steps, ours)


def _recomputing(workload: Workload, steps: int, without: float) -> Iterator[Report]:
    """What recomputing activations in the backward saves in memory and costs in time."""
    name, config = workload.name, dataclasses.replace(workload.config, recompute_activations=True)
    kinds = {"kept": workload, "recomputed": dataclasses.replace(workload, config=config)}
    with contenders({kind: functools.partial(training_step, w) for kind, w in kinds.items()}) as field:
        saving = peak_of(field["recomputed"], steps)
        yield Figure("memory", f"{name} step, peak, activations recomputed", saving / 1e6, "MB")
        yield Figure("memory", f"{name}, recomputed ÷ kept: memory", saving / without, "ratio")
        yield from warm_up(field, "memory")
        seconds = race(field, 2, steps)
        yield Figure("memory", f"{name}, recomputed ÷ kept: time", seconds["recomputed"] / seconds["kept"], "ratio")


def can_measure() -> bool:
    """Does /proc tell what `family_bytes` asks for? Linux from 5.4 on does."""
    return "Pss_Anon" in _sizes(PROC / "self" / "smaps_rollup") and (PROC / "self" / "task").is_dir()


def peak(make: Maker, steps: int) -> float:
    """The most bytes that a contender and its workers held while they were made and took `steps` steps."""
    with spawn(make) as contender:
        return peak_of(contender, steps)


def peak_of(contender: Child, steps: int) -> float:
    """As `peak`, for a contender that is there already."""
    leader, done, highest = contender.process.pid, threading.Event(), [0.0]
    assert leader is not None

    def look() -> None:
        while not done.wait(PAUSE):
            highest[0] = max(highest[0], family_bytes(leader))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        contender.ask(burst, steps)
        # between two looks the kernel kept count of the most that the leader alone has held
        last = max(family_bytes(leader), _sizes(PROC / str(leader) / "status").get("VmHWM", 0.0))
    finally:
        done.set()
        looking.join()
    return max(highest[0], last)


def family_bytes(leader: int) -> float:
    """What a process and those forked from it hold. Pss counts a page that n processes share as 1/n in each of them; of
    files the leader's Rss is enough, which other Pythons on the machine do not lower."""
    sizes = [_sizes(PROC / str(pid) / "smaps_rollup") for pid in [leader, *_children(leader)]]
    if not sizes[0]:
        return 0.0
    status = _sizes(PROC / str(leader) / "status")
    return sum(s.get("Pss_Anon", 0) + s.get("Pss_Shmem", 0) for s in sizes) + status.get("RssFile", 0)


def _children(pid: int) -> list[int]:
    found = []
    for listed in (PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that is gone
            found += [int(child) for child in listed.read_text().split()]
    return found


def _sizes(path: Path) -> dict[str, float]:
    """The lines `name: n kB` of a file of /proc, in bytes; nothing for a process that is gone."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    return {name: 1024.0 * int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
