"""What transformers computes with a tiny Marian, in float64, kept to be compared with.

    pip install torch transformers && python tests/pretrained/make_marian.py

The folder `fixtures/marian/` is what `save_pretrained` writes, and `expected.npz` holds, for `source` (B, S), where
pad_id fills up, `target_in` and `target` (B, T): logits, the states and attention maps of every layer, `loss` and its
gradient by every parameter (`grad.NAME`). The sinusoids are computed in float64, as nanograd_llm computes them;
transformers rounds them to float32.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from nanograd_llm.models.encoder_decoder import sinusoids

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES: dict[str, Any] = dict(vocab_size=11, d_model=4, encoder_layers=1, decoder_layers=1, max_position_embeddings=7)
SIZES |= dict(encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=6, decoder_ffn_dim=6)
SIZES |= dict(pad_token_id=10, decoder_start_token_id=10, eos_token_id=0, forced_eos_token_id=0)
SIZES |= dict(scale_embedding=True, activation_function="swish", attn_implementation="eager")


def theirs(seed: int, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A model of transformers whose weights are far from their initial values, its bias included."""
    torch.manual_seed(seed)
    model = transformers.MarianMTModel(transformers.MarianConfig(**{**SIZES, **changes})).double().eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    c = model.config
    for side in (model.model.encoder, model.model.decoder):
        table = sinusoids(np.arange(c.max_position_embeddings), c.d_model, halves=True)
        side.embed_positions.weight.data[:] = torch.from_numpy(table)
    return model.to(dtype)


def computed(model: Any, source: np.ndarray, target_in: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """What it computes, by the names in the docstring above."""
    ids = torch.from_numpy(source)
    out = model(
        input_ids=ids,
        attention_mask=(ids != model.config.pad_token_id).long(),
        decoder_input_ids=torch.from_numpy(target_in),
        output_hidden_states=True,
        output_attentions=True,
    )
    loss = F.cross_entropy(out.logits.flatten(0, 1), torch.from_numpy(target).flatten())
    loss.backward()
    found = {"logits": out.logits, "loss": loss}
    for name in ("encoder_hidden_states", "decoder_hidden_states", "encoder_attentions", "decoder_attentions"):
        found |= {f"{name}.{layer}": array for layer, array in enumerate(getattr(out, name))}
    found |= {f"cross_attentions.{layer}": array for layer, array in enumerate(out.cross_attentions)}
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: array.detach().numpy() for name, array in found.items()}


def batch(rng: np.random.Generator, vocab_size: int, pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    source, target_in, target = rng.integers(1, vocab_size - 1, (3, 2, 5))
    source[0, 3:], target_in[:, 0], target[1, 4:] = pad_id, pad_id, -100
    return source, target_in, target


if __name__ == "__main__":
    folder = FIXTURES / "marian"
    shutil.rmtree(folder, ignore_errors=True)
    model = theirs(0)
    model.save_pretrained(folder)
    given = dict(zip(("source", "target_in", "target"), batch(np.random.default_rng(0), 11, 10)))
    np.savez_compressed(folder / "expected.npz", **given, **computed(model, **given))
