"""What is timed: models of a few sizes, a batch for each, and our own step and forward pass."""

from __future__ import annotations

import dataclasses

import numpy as np

from nanograd_llm.autograd.modes import no_grad
from nanograd_llm.backend.arrays import library, use_device
from nanograd_llm.backend.threads import keep_heap
from nanograd_llm.bench.race import SECONDS, Step
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.training.config import TrainConfig
from nanograd_llm.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and the size of its batch. rounds, burst: the number of turns in a race at most, and of timed
    steps in a turn. limit: seconds of a race.
    """

    name: str
    config: GPTConfig
    batch_size: int
    length: int
    rounds: int = 5
    burst: int = 4
    limit: float = SECONDS

    @property
    def tokens(self) -> int:
        return self.batch_size * self.length

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Random (tokens, targets), each (B, T)."""
        shape = (2, self.batch_size, self.length)
        tokens, targets = np.random.default_rng(0).integers(self.config.vocab_size, size=shape)
        return tokens, targets


def _characters(context_length: int, n_layer: int, n_head: int, n_embd: int) -> GPTConfig:
    return GPTConfig(vocab_size=65, context_length=context_length, n_layer=n_layer, n_head=n_head, n_embd=n_embd)


TOY = Workload("toy", _characters(64, 4, 4, 128), 12, 64, rounds=20)
MID = Workload("mid", _characters(256, 6, 6, 384), 8, 256, rounds=6, burst=3)
GPT2_FORWARD = Workload("gpt2", GPTConfig.preset("gpt2"), 1, 1024, rounds=3, burst=1, limit=8)
GPT2_STEP = Workload("gpt2", GPTConfig.preset("gpt2"), 1, 512, rounds=3, burst=1, limit=15)
GPU_STEP = Workload("gpt2, cuda", GPTConfig.preset("gpt2"), 8, 1024, rounds=5, burst=4)


def training_step(workload: Workload, device: str = "cpu") -> Step:
    """A step of forward, backward, clip and AdamW; on the CPU with one worker for each core."""
    workers = 0 if device == "cpu" else 1
    with use_device(device):
        model = GPT(workload.config)
    trainer = Trainer(model, TrainConfig(batch_size=workload.batch_size, workers=workers))
    batch = workload.batch()

    def step() -> float:
        loss = trainer.step(*batch)
        wait_for(device)
        return loss

    return step


def wait_for(device: str) -> None:
    """Wait until the device has computed all that it was given."""
    if device == "cuda":
        library(device).cuda.Device().synchronize()


def forward_pass(workload: Workload) -> Step:
    """A step that computes the logits of every token, and records nothing."""
    keep_heap()
    model, (tokens, _) = GPT(workload.config), workload.batch()
    model.eval()

    def step() -> np.ndarray:
        with no_grad():
            return model(tokens).data

    return step
