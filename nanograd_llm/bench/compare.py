"""Time one task: our step, its floor in the same run, PyTorch's step if wanted, and the time of each op of ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping

from nanograd_llm.bench import memory, torch_gpt
from nanograd_llm.bench.figures import Figure, OpTime, Report
from nanograd_llm.bench.floor import Floor, flops
from nanograd_llm.bench.profile import profile
from nanograd_llm.bench.race import COMPILING, Maker, contenders, race, warm_up
from nanograd_llm.bench.workloads import GPT2_FORWARD, GPT2_STEP, Workload, forward_pass, training_step

OURS, FLOOR = "nanograd_llm", "matrix products alone (the floor)"


@dataclasses.dataclass(frozen=True)
class Task:
    """What is timed. rivals: makers by name, all of one `kind`; the fastest of them counts."""

    name: str
    workload: Workload
    rivals: Mapping[str, Maker]
    kind: str
    backward: bool = True


def step_task(workload: Workload, name: str = "step", *, compiled: bool = True) -> Task:
    """A training step, against PyTorch eager and, if `compiled`, PyTorch compiled, which takes time to compile."""
    rivals = {"PyTorch": functools.partial(torch_gpt.training_step, workload)}
    if compiled:
        rivals["PyTorch compiled"] = functools.partial(torch_gpt.training_step, workload, compiled=True)
    return Task(name, workload, rivals, "PyTorch")


def forward_task(workload: Workload, name: str) -> Task:
    """A forward pass, against transformers with each of its attention functions."""
    kinds = ("eager", "sdpa")
    rivals = {f"transformers, {a}": functools.partial(torch_gpt.transformers_forward, workload, a) for a in kinds}
    return Task(name, workload, rivals, "transformers", backward=False)


def step(workload: Workload, against: bool, rounds: int | None = None) -> Iterator[Report]:
    yield from compare(step_task(workload), against, rounds)


def gpt2(
    against: bool, rounds: int | None = None, *, forward: Workload = GPT2_FORWARD, step: Workload = GPT2_STEP
) -> Iterator[Report]:
    yield from compare(forward_task(forward, f"forward {_size(forward)}"), against, rounds)
    yield from compare(step_task(step, f"step {_size(step)}", compiled=False), against, rounds)


def _size(workload: Workload) -> str:
    return f"{workload.batch_size} × {workload.length:,}"


def compare(task: Task, against: bool, rounds: int | None = None) -> Iterator[Report]:
    """Race the task's contenders; then measure the time of each op of our step, and its memory."""
    w, name = task.workload, task.name
    ours = functools.partial(training_step if task.backward else forward_pass, w)
    limit = functools.partial(Floor, w, task.backward)
    with contenders({OURS: ours, FLOOR: limit, **(task.rivals if against else {})}) as children:
        yield from warm_up(children, w.name, ["PyTorch compiled"], None if rounds else COMPILING)
        seconds = race(children, rounds, w.burst, most=w.rounds, limit=w.limit)
        took, least = seconds[OURS], seconds[FLOOR]
        yield Figure(w.name, name, took * 1e3, "ms")
        yield Figure(w.name, f"{name}, {FLOOR}", least * 1e3, "ms")
        yield Figure(w.name, f"{name} ÷ floor", took / least, "ratio")
        yield Figure(w.name, f"{name}, the floor's share of it", 100 * least / took, "%")
        yield Figure(w.name, f"{name}, speed", flops(w, backward=task.backward) / took / 1e9, "GFLOP/s")
        yield Figure(w.name, f"{name}, tokens", w.tokens / took, "tokens/s")
        rivals = {rival: seconds[rival] for rival in task.rivals if rival in seconds}
        for rival, theirs in rivals.items():
            yield Figure(w.name, f"{name}, {rival}", theirs * 1e3, "ms")
        if rivals:
            yield Figure(w.name, f"{name} ÷ best of {task.kind}", took / min(rivals.values()), "ratio")
        if memory.can_measure():
            yield Figure(w.name, f"{name}, peak memory", memory.peak_of(children[OURS], w.burst) / 1e6, "MB")
        # steps of a few seconds in all, as timing each op takes longer
        for row in children[OURS].ask(profile, rounds or max(1, min(w.burst * w.rounds // 2, int(4 / took)))):
            yield OpTime(w.name, *row)
