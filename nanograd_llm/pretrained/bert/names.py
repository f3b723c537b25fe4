"""The names of BERT's parameters in transformers, whose matrices are (out, in)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.pretrained.layout import WRAPPERS, Layout, warn_left_out

LAYERS = {  # here, and in the file
    "norm": "embeddings.LayerNorm",
    "blocks.{layer}.attention.out": "encoder.layer.{layer}.attention.output.dense",
    "blocks.{layer}.ln_1": "encoder.layer.{layer}.attention.output.LayerNorm",
    "blocks.{layer}.mlp.up": "encoder.layer.{layer}.intermediate.dense",
    "blocks.{layer}.mlp.down": "encoder.layer.{layer}.output.dense",
    "blocks.{layer}.ln_2": "encoder.layer.{layer}.output.LayerNorm",
    "pooler": "pooler.dense",
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
}
HEAD = "cls.predictions."
NAMES: dict[str, str | tuple[str, ...]] = {
    "wte": "embeddings.word_embeddings.weight",
    "wpe": "embeddings.position_embeddings.weight",
    "wtype": "embeddings.token_type_embeddings.weight",
    "head.bias": f"{HEAD}bias",
}
for _kind in ("weight", "bias"):
    NAMES |= {f"{ours}.{_kind}": f"{theirs}.{_kind}" for ours, theirs in LAYERS.items()}
    NAMES[f"blocks.{{layer}}.attention.qkv.{_kind}"] = tuple(
        f"encoder.layer.{{layer}}.attention.self.{part}.{_kind}" for part in ("query", "key", "value")
    )
TURNED = tuple(f"{layer}.weight" for layer in ("qkv", "out", "up", "down", "pooler", "transform"))
LAYOUT = Layout("transformers", NAMES, "out, in", TURNED)

_OWN = re.compile(r"(?:.*\.)?(?:bert\.)?((?:embeddings|encoder|pooler|cls\.predictions)\..+)")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # 0, 1, 2 … and zeros
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # converted from TensorFlow


def plain_arrays(arrays: Mapping[str, NDArray[Any]], where: str) -> dict[str, NDArray[Any]]:
    """A file's arrays by the names of `LAYOUT`: without prefixes, buffers, other heads, and a second word table.

    A warning names what is left out. Raises BadFileError for a name that is there twice.
    """
    plain: dict[str, NDArray[Any]] = {}
    others = []
    for name, array in arrays.items():
        own = _OWN.fullmatch(WRAPPERS.sub("", name))
        if own is None:
            others.append(name)
            continue
        short = own[1]
        for old, new in _OLD.items():
            short = short.removesuffix(old) + new if short.endswith(old) else short
        if short in plain:
            raise BadFileError(f"{where}: duplicate weight {short!r:.200}, under two names")
        if short not in _BUFFERS:
            plain[short] = array
    warn_left_out(others, where)
    for theirs, ours in {"weight": NAMES["wte"], "bias": NAMES["head.bias"]}.items():
        again = plain.pop(f"{HEAD}decoder.{theirs}", None)  # the word table and the bias, which BERT's head shares
        if again is not None and not np.array_equal(plain.setdefault(str(ours), again), again, equal_nan=True):
            warnings.warn(
                f"{where}: {HEAD}decoder.{theirs} differs from {ours}, but BERT ties them; both use {ours}",
                stacklevel=2,
            )
    return plain
