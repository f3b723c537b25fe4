"""Adapters that PEFT writes for two of the tiny models in `fixtures/`, and the logits that it computes with them.

    pip install torch transformers peft && python tests/pretrained/make_peft.py

Each folder `fixtures/peft_*/` is what `save_pretrained` writes, and `expected.npz` beside it holds `ids` (1, T) and
`logits` (1, T, 16), the first 16 of the vocabulary.

    peft_gpt2/    on safetensors_float32    peft_bert/    on bert_head: one layer by patterns, rank-stabilised
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

FIXTURES = Path(__file__).parents[1] / "fixtures"
KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "gpt2": (
        "safetensors_float32",
        transformers.GPT2LMHeadModel,
        dict(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM"),
    ),
    "bert": (
        "bert_head",
        transformers.BertForMaskedLM,
        dict(
            target_modules=["query", "value", "attention.output.dense"],
            rank_pattern={"value": 1},
            alpha_pattern={"layer.1.attention.self.value": 7},
            use_rslora=True,
        ),
    ),
}


def with_adapters(model: Any, seed: int, **settings: Any) -> Any:
    """A model of transformers with adapters that are far from their initial values."""
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(**settings)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5 * torch.randn_like(parameter)
    return model


if __name__ == "__main__":
    for kind, (base, make, settings) in KINDS.items():
        folder = FIXTURES / f"peft_{kind}"
        shutil.rmtree(folder, ignore_errors=True)
        model = with_adapters(make.from_pretrained(FIXTURES / base), 0, r=2, lora_alpha=3, **settings)
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        (folder / "adapter_model.safetensors").chmod(0o644)
        ids = np.random.default_rng(0).integers(1, 19, (1, 7))
        logits = model(torch.from_numpy(ids)).logits[..., :16].detach().numpy()
        np.savez_compressed(folder / "expected.npz", ids=ids, logits=logits)
