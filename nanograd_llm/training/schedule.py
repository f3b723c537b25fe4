"""The learning rate over a run: a linear warm-up, then one of the usual ways down, or up to find a good rate."""

from __future__ import annotations

import math

# cosine: half a cosine down (Loshchilov and Hutter 2017). warmup-stable-decay: constant, down in the last fifth (Hu et
# al. 2024, MiniCPM). range: no warm-up, but up from a 10⁵th of the peak by a constant factor (Smith 2017), to find it.
SCHEDULES = ("cosine", "linear", "constant", "warmup-stable-decay", "range")
DECAY, LOWEST = 0.2, 1e-5


def scheduled(schedule: str, progress: float, *, peak: float, warmup: float, final: float) -> float:
    """The learning rate when `progress` (0 to 1) of the run is done.

    It rises linearly to `peak` over the first `warmup`, a share of the run, then falls to `final` times the peak.
    With constant it stays at the peak. With range it rises over the whole run, from a 100,000th of the peak.

    >>> [round(scheduled("linear", p, peak=1.0, warmup=0.2, final=0.1), 2) for p in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.55, 0.1]
    """
    if schedule == "range":
        return peak * LOWEST ** (1 - min(1.0, progress))
    if progress < warmup:
        return peak * progress / warmup
    done = min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "constant": 1.0,
        "warmup-stable-decay": min(1.0, (1 - min(1.0, progress)) / DECAY),
    }[schedule]
    return peak * (final + (1 - final) * left)
