"""The time from Enter to the first output: the first step of `train`, and the first token of a GPT-2 on disk."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nanograd_llm.bench.figures import Figure, Report
from nanograd_llm.errors import NanogradError
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.pretrained import save_gpt2
from nanograd_llm.text import BPETokenizer, GPT2Tokenizer

PROMPT = "The"


def bench(
    against: bool, rounds: int | None = None, *, train: Sequence[str] = (), gpt2: GPTConfig | None = None
) -> Iterator[Report]:
    """Seconds from the start of the command to its first step or token. train: more arguments for `train`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def first_step(n: int) -> float:
            command = ["train", "--out", str(folder / f"run-{n}"), *train]
            return seconds_until(command, lambda said: b"\nstep " in said)

        took = statistics.median(first_step(n) for n in range(rounds or 5))
        yield Figure("start", "train: Enter to first step", took, "s")
        yield from _first_token(folder / "gpt2", rounds or 5, gpt2 or GPTConfig.preset("gpt2"))


def _first_token(folder: Path, rounds: int, config: GPTConfig) -> Iterator[Report]:
    save_gpt2(GPT(config), folder, made_up_tokenizer(config.vocab_size))
    command = ["generate", str(folder), PROMPT, "--max-new-tokens", "1"]
    took = [seconds_until(command, lambda said: len(said) > len(PROMPT)) for _ in range(rounds + 1)]
    yield Figure("start", "generate, gpt2 on disk: Enter to first token", statistics.median(took[1:]), "s")


def made_up_tokenizer(vocab_size: int) -> GPT2Tokenizer:
    """A tokenizer in GPT-2's form: bytes, pairs of bytes and pairs of pairs."""
    count = vocab_size - 257  # merges; the other tokens are the bytes and the end of text
    single = [bytes([byte]) for byte in range(256)]
    pairs = list(itertools.islice(itertools.product(single, single), (count + 1) // 2))
    doubled = [left + right for left, right in pairs]
    return GPT2Tokenizer.of(BPETokenizer([*pairs, *itertools.islice(itertools.product(doubled, doubled), count // 2)]))


def seconds_until(arguments: Sequence[str], seen: Callable[[bytes], bool]) -> float:
    """Seconds from the start of `nanograd-llm` until `seen(its output)`. Raises NanogradError if it ends before."""
    began, said = time.perf_counter(), b""
    with subprocess.Popen(
        [sys.executable, "-m", "nanograd_llm", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            while not seen(said):
                chunk = process.stdout.read1(65536)  # type: ignore[attr-defined]
                if not chunk:
                    last = process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise NanogradError(f"nanograd-llm {arguments[0]} ended too early: {' '.join(last)}")
                said += chunk
            return time.perf_counter() - began
        finally:
            process.kill()
