"""`nanograd-llm doctor`: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

from nanograd_llm.cli.terminal import row, written


def doctor() -> None:
    """Show what is on this machine: Python, NumPy, BLAS, CuPy, the GPU, GPT-2's vocabulary, and what to do about each.

    Nothing is downloaded or changed. Without a GPU everything runs on the CPU.
    """
    from nanograd_llm.bench.doctor import examine

    for finding in examine():
        print(written(row(finding.name, finding.found)))
        if finding.advice:
            print(written(row("", f"-> {finding.advice}")))
