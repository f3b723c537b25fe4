"""What transformers computes with a few tiny BERTs, in float64, kept to be compared with.

    pip install torch transformers && python tests/pretrained/make_bert.py

Each folder `fixtures/bert_*/` is what `save_pretrained` writes, and `expected.npz` beside it holds, for `ids` and
`types` (B, T) and the `lengths` (B,) of the texts: logits if there is a head, else the pooled vectors; the hidden
states and attention maps of every layer; `loss` and its gradient by every parameter (`grad.NAME`). The loss is the mean
cross-entropy of `targets` (B, T), or the mean of the pooled vectors times `weights`.

    bert_head/      BertForMaskedLM                         bert_pooler/    BertModel, with other settings
    bert_old/       the weights of bert_head as torch wrote them before 1.6, in float32, under the names of then
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = dict(vocab_size=19, max_position_embeddings=9, hidden_size=6, num_hidden_layers=2, num_attention_heads=2)
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "head": (transformers.BertForMaskedLM, {"intermediate_size": 10}),
    "pooler": (
        transformers.BertModel,
        {"intermediate_size": 6, "hidden_act": "gelu_new", "layer_norm_eps": 0.01, "type_vocab_size": 3},
    ),
}


def write(kind: str) -> Any:
    folder, (make, changes) = FIXTURES / f"bert_{kind}", KINDS[kind]
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SIZES, **changes}, attn_implementation="eager")
    model = make(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from how an initialisation leaves them
            parameter += 0.4 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "generation_config.json").unlink(missing_ok=True)
    rng, lengths = np.random.default_rng(0), np.array([8, 3, 6])
    real = np.arange(8) < lengths[:, None]
    # id 0 is padding: torch gives its row of the table no gradient from where it is looked up
    ids, types = np.where(real, rng.integers(1, 19, (3, 8)), 0), rng.integers(0, config.type_vocab_size, (3, 8))
    inputs = dict(input_ids=ids, token_type_ids=types, attention_mask=real.astype(int))
    found = model(
        **{name: torch.from_numpy(x) for name, x in inputs.items()}, output_hidden_states=True, output_attentions=True
    )
    expected: dict[str, Any] = {"ids": ids, "types": types, "lengths": lengths}
    if kind == "head":
        targets = np.where(real & (rng.random((3, 8)) < 0.5), rng.integers(0, 19, (3, 8)), -100)
        loss = F.cross_entropy(found.logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        expected |= {"targets": targets, "logits": found.logits}
    else:
        weights = rng.standard_normal((3, 6))
        loss = (found.pooler_output * torch.from_numpy(weights)).mean()
        expected |= {"weights": weights, "pooled": found.pooler_output}
    loss.backward()
    expected["loss"] = loss
    expected |= {f"hidden.{layer}": x for layer, x in enumerate(found.hidden_states)}
    expected |= {f"attention.{layer}": x for layer, x in enumerate(found.attentions)}
    expected |= {f"grad.{name.removeprefix('bert.')}": p.grad for name, p in model.named_parameters()}
    arrays = {name: x.detach().numpy() if isinstance(x, torch.Tensor) else x for name, x in expected.items()}
    np.savez_compressed(folder / "expected.npz", **arrays)
    return model


def write_old(model: Any) -> None:
    """Names, extra tensors and config.json as in files of 2019."""
    folder = FIXTURES / "bert_old"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    state = {}
    for name, tensor in model.float().state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        if name != "cls.predictions.decoder.bias":  # the head's bias had one name only
            state[name] = tensor
    state["bert.embeddings.position_ids"] = torch.arange(9)[None]
    state |= {"cls.seq_relationship.weight": torch.ones(2, 6), "cls.seq_relationship.bias": torch.ones(2)}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    settings = {key: getattr(model.config, key) for key in (*SIZES, "intermediate_size", "type_vocab_size")}
    settings |= {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write("pooler")
    write_old(write("head"))
