"""The learning rate over a run: a linear warm-up, then half a cosine down (Loshchilov and Hutter 2017)."""

from __future__ import annotations

import math


def warmup_cosine(progress: float, *, peak: float, warmup: float, final: float) -> float:
    """The learning rate when `progress` (0 to 1) of the run is done.

    It rises linearly to `peak` over the first `warmup`, a share of the run, then falls to `final` times the peak.

    >>> [round(warmup_cosine(p, peak=1.0, warmup=0.2, final=0.1), 2) for p in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.55, 0.1]
    """
    if progress < warmup:
        return peak * progress / warmup
    fallen = min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fallen)))
