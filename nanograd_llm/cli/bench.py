"""`nanograd-llm bench`: how fast is a training step here?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal


def bench(
    workload: Literal["toy", "mid"] = "toy",
    /,
    *,
    against: Literal["none", "torch", "torch-compiled"] = "none",
    rounds: int = 30,
) -> None:
    """Time a training step beside its own matrix products, and beside the same step in PyTorch.

    Parameters
    ----------
    workload
        toy: 4 layers, 4 heads, 128 channels, 64 tokens, batch 12. mid: 6, 6, 384, 256, 8. Vocabulary 65.
    against
        Race PyTorch too, if it is installed.
    rounds
        Timed steps of each, in turn; the median counts.
    """
    from nanograd_llm.bench import WORKLOADS, floor, interleaved, our_step
    from nanograd_llm.settings import require_int

    require_int("rounds", rounds, 1)
    chosen = WORKLOADS[workload]
    steps: dict[str, Callable[[], object]] = {"nanograd_llm": our_step(chosen), "matrix products": floor(chosen)}
    if against != "none":
        from nanograd_llm.bench_torch import torch_step

        steps[against] = torch_step(chosen, compiled=against == "torch-compiled")
    seconds = interleaved(steps, rounds)
    ours = seconds["nanograd_llm"]
    for name, median in seconds.items():
        ratio = "" if name == "nanograd_llm" else f"   nanograd_llm takes {ours / median:.2f} times this"
        print(f"{workload} step, {name:<16} {median * 1e3:8.1f} ms{ratio}")
