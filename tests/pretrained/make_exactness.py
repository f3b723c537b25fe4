"""Write fixtures: tiny GPT-2 models of every kind, and what transformers computes with them in float64.

    pip install torch transformers && python tests/pretrained/make_exactness.py

Each folder `fixtures/exact_*/` is what `save_pretrained` writes, and `expected.npz` beside it holds, for `ids` (B, T):
logits, the loss for the ids shifted by one position, its gradient for every parameter (`grad.NAME`), the hidden states
and attention maps of every layer, and `greedy`, the 50 tokens that follow the first four.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = {"vocab_size": 40, "n_positions": 56, "n_embd": 8, "n_layer": 3, "n_head": 2, "bos_token_id": 0}
KINDS = {
    "plain": {},
    "variant": {"activation_function": "gelu", "n_inner": 11, "layer_norm_epsilon": 0.01},
    "scaled": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_inner": 8},
    "untied": {"tie_word_embeddings": False},
}


def write(kind: str) -> None:
    folder = FIXTURES / f"exact_{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    config = transformers.GPT2Config(**SIZES, **KINDS[kind], eos_token_id=0, attn_implementation="eager")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from their initial values
            parameter += 0.4 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "generation_config.json").unlink()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 12)))
    found = model(ids, output_hidden_states=True, output_attentions=True)
    loss = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())  # its own loss is float32
    loss.backward()
    row = ids[:1, :4]
    for _ in range(50):
        row = torch.cat([row, model(row).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    expected = {"ids": ids, "logits": found.logits, "loss": loss, "greedy": row[0, 4:]}
    expected |= {f"hidden.{layer}": x for layer, x in enumerate(found.hidden_states)}
    expected |= {f"attention.{layer}": x for layer, x in enumerate(found.attentions)}
    expected |= {f"grad.{name.removeprefix('transformer.')}": p.grad for name, p in model.named_parameters()}
    arrays = {name: x.detach().numpy() for name, x in expected.items()}
    np.savez_compressed(folder / "expected.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    for each in KINDS:
        write(each)
