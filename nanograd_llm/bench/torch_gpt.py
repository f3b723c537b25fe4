"""The same GPT in PyTorch, as fast as possible: fused attention and AdamW, inference mode, a preallocated cache.

Only the makers import torch, in the process of a contender.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from nanograd_llm.backend.threads import cpu_count
from nanograd_llm.bench.race import Step
from nanograd_llm.bench.workloads import Workload
from nanograd_llm.errors import ConfigError
from nanograd_llm.models.gpt import GPTConfig


def require_installed(*packages: str) -> None:
    """Raise ConfigError with the names of those packages that are not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        names = ", ".join(missing)
        raise ConfigError(f"not installed: {names}; pip install {' '.join(missing)}, or leave out --against")


def torch_of(threads: int = 0) -> Any:
    """PyTorch, with one thread a core or so many."""
    import torch

    torch.set_num_threads(threads or cpu_count())
    return torch


def _model(c: GPTConfig) -> Any:
    """A GPT; its `blocks` can also be called one by one with a cache."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    C, H, D = c.n_embd, c.n_head, c.n_embd // c.n_head

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x: Any, cache: Any = None, position: int = 0) -> Any:
            """cache: (keys, values), each (B, H, context, D), filled up to `position`; then x is one new token."""
            B, T, _ = x.shape
            q, k, v = self.qkv(self.ln_1(x)).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
            if cache is not None:
                for stored, new in zip(cache, (k, v)):
                    stored[:, :, position : position + 1] = new
                k, v = (stored[:, :, : position + 1] for stored in cache)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
            return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(c.vocab_size, C), nn.Embedding(c.context_length, C)
            self.blocks = nn.ModuleList(Block() for _ in range(c.n_layer))
            self.ln_f = nn.LayerNorm(C)

        def forward(self, tokens: Any, targets: Any) -> Any:
            x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy((self.ln_f(x) @ self.wte.weight.T).flatten(0, 1), targets.flatten())

    model = Model()
    with torch.no_grad():  # PyTorch's own embeddings are so large that it would compute with subnormal numbers
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
    return model


def training_step(workload: Workload, compiled: bool = False, device: str = "cpu") -> Step:
    """A step of forward, backward, clip and AdamW; it returns the loss. On a GPU in float32, not TF32."""
    torch = torch_of()
    torch.backends.cuda.matmul.allow_tf32 = False
    model = _model(workload.config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    loss_of = torch.compile(model) if compiled else model
    tokens, targets = (torch.from_numpy(array).to(device) for array in workload.batch())

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss.item())

    return step


def decoding(c: GPTConfig, count: int, threads: int) -> Step:
    """A step that generates `count` tokens after a first one, always the most probable; it returns their ids."""
    torch = torch_of(threads)
    model = _model(c).eval()
    caches = torch.zeros(c.n_layer, 2, 1, c.n_head, c.context_length, c.n_embd // c.n_head)

    @torch.inference_mode()
    def step() -> list[int]:
        token, written = torch.zeros(1, 1, dtype=torch.long), []
        for position in range(count):
            x = model.wte(token) + model.wpe.weight[position]
            for block, cache in zip(model.blocks, caches):
                x = block(x, cache, position)
            token = (model.ln_f(x) @ model.wte.weight.T).argmax(-1)
            written.append(int(token))
        return written

    return step


def transformers_gpt2(c: GPTConfig, attention: str) -> tuple[Any, Any]:
    """PyTorch, and a GPT-2 of transformers in evaluation mode. attention: eager or sdpa."""
    torch = torch_of()
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    sizes = dict(vocab_size=c.vocab_size, n_positions=c.context_length, n_layer=c.n_layer, n_head=c.n_head)
    ids = dict(bos_token_id=c.vocab_size - 1, eos_token_id=c.vocab_size - 1)
    config = GPT2Config(**sizes, **ids, n_embd=c.n_embd, attn_implementation=attention)
    return torch, GPT2LMHeadModel(config).eval()


def transformers_forward(workload: Workload, attention: str) -> Step:
    """A step of transformers that computes the logits of every token. attention: eager or sdpa."""
    torch, model = transformers_gpt2(workload.config, attention)
    tokens = torch.from_numpy(workload.batch()[0])

    def step() -> Any:
        with torch.no_grad():
            return model(tokens, use_cache=False).logits

    return step


def transformers_decoding(c: GPTConfig, count: int, device: str = "cpu") -> Step:
    """As `decoding`, with the `generate` of transformers and its cache. On a GPU in float32, not TF32."""
    torch, model = transformers_gpt2(c, "sdpa")
    torch.backends.cuda.matmul.allow_tf32 = False
    model = model.to(device)
    prompt = torch.zeros(1, 1, dtype=torch.long, device=device)
    mask, length = torch.ones_like(prompt), dict(min_new_tokens=count, max_new_tokens=count)

    def step() -> list[int]:
        return model.generate(prompt, attention_mask=mask, do_sample=False, use_cache=True, **length)[0].tolist()

    return step
