"""What transformers computes with the real models of `test_witnesses.py`, in float64, kept to be compared with.

pip install torch transformers && python tests/pretrained/make_witnesses.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from test_witnesses import EXPECTED, SENTENCES, masked_reaction, unpacked


def sentences(folder: Path) -> dict[str, np.ndarray]:
    """Mean over the real tokens, of length 1, as sentence-transformers does it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float64).eval()
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][..., None]
    found = (model(**inputs).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    return {"sentences": torch.nn.functional.normalize(found).numpy()}


def reactions(folder: Path) -> dict[str, np.ndarray]:
    config = transformers.BertConfig.from_pretrained(folder)
    model = transformers.BertForMaskedLM.from_pretrained(folder, config=config, dtype=torch.float64).eval()
    rows, places, _ = masked_reaction(folder)
    logits = model(torch.from_numpy(rows)).logits[torch.arange(len(places)), torch.from_numpy(places)]
    return {"reactions": logits.numpy()[:, ::16], "reactions_filled": logits.argmax(dim=-1).numpy()}


def microbes(folder: Path) -> dict[str, np.ndarray]:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, 12))
    return {"microbes_ids": ids, "microbes": model(torch.from_numpy(ids)).logits.numpy()[..., ::97]}


if __name__ == "__main__":
    arrays: dict[str, Any] = {}
    with torch.no_grad():
        for make in (sentences, reactions, microbes):
            with tempfile.TemporaryDirectory() as place:
                arrays |= make(unpacked(make.__name__, Path(place)))
    np.savez_compressed(EXPECTED, **arrays)
