"""The same GPT and the same training step in PyTorch, for a fair race. Imported only when PyTorch is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nanograd_llm.backend import cpu_count
from nanograd_llm.bench import Workload
from nanograd_llm.errors import ConfigError


def torch_step(workload: Workload, compiled: bool = False) -> Callable[[], float]:
    """A training step of PyTorch on the workload, with its fused attention and fused AdamW; returns the loss.

    Raises ConfigError where PyTorch is not installed.
    """
    try:
        import torch
        import torch.nn.functional as F
        from torch import nn
    except ImportError:
        raise ConfigError("PyTorch is not installed; pip install torch, or leave out --against") from None

    c = workload.config
    C, H = c.n_embd, c.n_head

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            q, k, v = (z.view(B, T, H, C // H).transpose(1, 2) for z in self.qkv(self.ln_1(x)).split(C, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
            return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(c.vocab_size, C), nn.Embedding(c.context_length, C)
            self.blocks = nn.ModuleList(Block() for _ in range(c.n_layer))
            self.ln_f = nn.LayerNorm(C)

        def forward(self, tokens: Any, targets: Any) -> Any:
            x = self.wte(tokens) + self.wpe.weight
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy((self.ln_f(x) @ self.wte.weight.T).flatten(0, 1), targets.flatten())

    torch.set_num_threads(cpu_count())
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    loss_of = torch.compile(model) if compiled else model
    tokens, targets = map(torch.from_numpy, workload.batch())

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.item())

    return step
