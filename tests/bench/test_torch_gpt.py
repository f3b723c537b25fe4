"""The model in PyTorch computes the same as ours, so the comparison is fair."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm.bench import torch_gpt
from nanograd_llm.models.gpt import GPT, GPTConfig

pytestmark = pytest.mark.parity
CONFIG = GPTConfig(vocab_size=13, context_length=8, n_layer=2, n_head=2, n_embd=8)
NAMES = {"attention.qkv": "qkv", "attention.out": "out", "mlp.up": "up", "mlp.down": "down"}


def test_with_the_same_weights_it_has_the_same_loss():
    torch = pytest.importorskip("torch")
    ours, theirs = GPT(CONFIG, seed=1), torch_gpt._model(CONFIG)
    state = {}
    for name, array in ours.state_dict().items():
        for part, other in NAMES.items():
            name = name.replace(part, other)
        is_linear = array.ndim == 2 and name not in ("wte", "wpe")
        name = f"{name}.weight" if name in ("wte", "wpe") else name
        state[name] = torch.from_numpy(np.ascontiguousarray(array.T if is_linear else array))
    theirs.load_state_dict(state)
    tokens, targets = np.random.default_rng(0).integers(13, size=(2, 3, 8))
    loss = theirs(torch.from_numpy(tokens), torch.from_numpy(targets)).item()
    assert loss == pytest.approx(ours.loss(tokens, targets).item(), rel=1e-5)


def test_it_generates_the_same_tokens_with_its_cache_as_without():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    written = torch_gpt.decoding(CONFIG, 7, threads=1)()
    torch.manual_seed(0)
    model, ids = torch_gpt._model(CONFIG).eval(), [0]
    with torch.no_grad():
        for _ in range(7):
            x = model.wte(torch.tensor([ids])) + model.wpe.weight[: len(ids)]
            for block in model.blocks:
                x = block(x)
            ids.append(int((model.ln_f(x[0, -1]) @ model.wte.weight.T).argmax()))
    assert written == ids[1:]
