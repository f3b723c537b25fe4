"""A training step of the task translation, at its own settings, against the same model in PyTorch.

The batches are those of the task: sentences of different lengths, filled up to the longest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from nanograd_llm.bench.figures import Figure, Report
from nanograd_llm.bench.race import Step, contenders, race, warm_up
from nanograd_llm.bench.torch_gpt import torch_of
from nanograd_llm.models.encoder_decoder import EncoderDecoderConfig, sinusoids
from nanograd_llm.tasks.task import Request, Tables
from nanograd_llm.tasks.translation import Translation
from nanograd_llm.training.trainer import Trainer

NAME, OURS, THEIRS = "translation", "nanograd_llm", "PyTorch"
ROUNDS, BURST = 10, 8
BATCHES = 64


def _task() -> Translation:
    nothing: Tables = {table: {} for table in (*Translation.tables, "train")}
    return Translation.made(Request(nothing, nothing, nothing))


def training_step() -> Step:
    """Ours: forward, backward, clip and AdamW, by one worker a core."""
    task = _task()
    trainer, batches = Trainer(task.model, task.training), itertools.cycle(map(task.batch, range(BATCHES)))
    return lambda: trainer.step(*next(batches))


def torch_step() -> Step:
    """PyTorch's: the same, with its fused attention and AdamW."""
    task, torch = _task(), torch_of()
    model, c = _torch_model(task.model.config, torch), task.training
    settings: dict[str, Any] = dict(lr=c.learning_rate, betas=(c.beta1, c.beta2), weight_decay=c.weight_decay)
    optimizer = torch.optim.AdamW(model.parameters(), **settings, fused=True)
    made = [[torch.from_numpy(x.astype(np.int64)) for x in task.batch(step)] for step in range(BATCHES)]
    batches = itertools.cycle(made)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(*next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.max_norm)
        optimizer.step()
        return float(loss.item())

    return step


def _torch_model(c: EncoderDecoderConfig, torch: Any) -> Any:
    """A pre-norm encoder-decoder with sinusoids and one table, which returns its loss."""
    import torch.nn.functional as F
    from torch import nn

    C, H = c.n_embd, c.n_head

    def heads(x: Any, count: int) -> Any:
        return x.view(*x.shape[:2], count, H, C // H).permute(2, 0, 3, 1, 4)  # (B, T, nC) -> n × (B, H, T, D)

    class Block(nn.Module):
        def __init__(self, cross: bool) -> None:
            super().__init__()
            self.ln_1, self.ln_2, self.qkv, self.out = (
                nn.LayerNorm(C),
                nn.LayerNorm(C),
                nn.Linear(C, 3 * C),
                nn.Linear(C, C),
            )
            self.up, self.down, self.cross = nn.Linear(C, 4 * C), nn.Linear(4 * C, C), cross
            if cross:
                self.ln_cross, self.q, self.kv = nn.LayerNorm(C), nn.Linear(C, C), nn.Linear(C, 2 * C)
                self.out_cross = nn.Linear(C, C)

        def forward(self, x: Any, memory: Any, mask: Any) -> Any:
            attend, own = F.scaled_dot_product_attention, None if self.cross else mask
            q, k, v = heads(self.qkv(self.ln_1(x)), 3)
            y = attend(q, k, v, attn_mask=own, is_causal=self.cross)
            x = x + self.out(y.transpose(1, 2).reshape(x.shape))
            if self.cross:
                (q,), (k, v) = heads(self.q(self.ln_cross(x)), 1), heads(self.kv(memory), 2)
                x = x + self.out_cross(attend(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape))
            return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(c.vocab_size, C)
            nn.init.normal_(self.table.weight, std=0.02)
            self.encoder = nn.ModuleList(Block(False) for _ in range(c.n_layer))
            self.decoder = nn.ModuleList(Block(True) for _ in range(c.n_layer))
            self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(2))
            places = sinusoids(np.arange(c.context_length), C).astype(np.float32)
            self.register_buffer("places", torch.from_numpy(places))

        def forward(self, source: Any, target_in: Any, target: Any) -> Any:
            mask = (source != c.pad_id)[:, None, None]
            x, y = (self.table(ids) * C**0.5 + self.places[: ids.shape[1]] for ids in (source, target_in))
            for block in self.encoder:
                x = block(x, None, mask)
            x = self.norms[0](x)
            for block in self.decoder:
                y = block(y, x, mask)
            return F.cross_entropy((self.norms[1](y) @ self.table.weight.T).flatten(0, 1), target.flatten())

    return Model()


def bench(against: bool, rounds: int | None = None) -> Iterator[Report]:
    """Race a step of ours and, where asked for, of PyTorch; not compiled, since each batch has another shape."""
    makers = {OURS: training_step} | ({THEIRS: torch_step} if against else {})
    with contenders(makers) as field:
        yield from warm_up(field, NAME)
        seconds = race(field, rounds, BURST, most=ROUNDS)
    yield Figure(NAME, "step", seconds[OURS] * 1e3, "ms")
    if against:
        yield Figure(NAME, "step, PyTorch", seconds[THEIRS] * 1e3, "ms")
        yield Figure(NAME, "step ÷ PyTorch", seconds[OURS] / seconds[THEIRS], "ratio")
