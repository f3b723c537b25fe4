"""The machine that the figures were measured on; they cannot be compared without it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

from nanograd_llm.backend.arrays import library
from nanograd_llm.backend.processes import CAN_FORK
from nanograd_llm.backend.threads import cpu_count, pinned_blas


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, workers, versions, and the load; with device cuda also the GPU."""
    from threadpoolctl import threadpool_info

    blas = {f"{pool['internal_api']} {pool['version']}" for pool in threadpool_info() if pool["user_api"] == "blas"}
    rivals = [name for name in ("torch", "transformers") if importlib.util.find_spec(name)]
    kind = "forked processes" if CAN_FORK else "threads"
    return {
        "processor": _processor(),
        "cores": cpu_count(),
        "workers": f"{cpu_count()} {kind}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": ", ".join(sorted(blas)) or "unknown",
        **({"blas threads": f"pinned by {pinned_blas()}"} if pinned_blas() else {}),
        **_load(),
        **(gpu_facts() if device == "cuda" else {}),
        **{name: importlib.metadata.version(name) for name in rivals},
    }


def gpu_facts() -> dict[str, str]:
    """The GPU that device cuda is, its memory, and the version of CuPy. Raises DeviceError if none can be used."""
    arrays = library("cuda")
    free, whole = arrays.cuda.runtime.memGetInfo()
    return {
        "gpu": arrays.cuda.runtime.getDeviceProperties(arrays.cuda.Device().id)["name"].decode(),
        "gpu memory": f"{free / 1e9:.1f} GB free of {whole / 1e9:.1f}",
        "CuPy": arrays.__version__,
    }


def _load() -> dict[str, str]:
    """The load. Taking turns does not correct for it: a program that waits for all its threads loses most."""
    if not hasattr(os, "getloadavg"):  # Windows
        return {}
    load = os.getloadavg()[0]
    return {"load": f"{load:.1f}" + (" (busy: measure again when it is quiet)" if load > cpu_count() / 4 else "")}


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
