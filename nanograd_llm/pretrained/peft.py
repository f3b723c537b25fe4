"""Adapters in the form of PEFT: adapter_config.json, and adapter_model.safetensors with two matrices for each layer.

base_model.model.transformer.h.0.attn.c_attn.lora_A.weight    (r, n_in), the transpose of A here
base_model.model.transformer.h.0.attn.c_attn.lora_B.weight    (n_out, r), of B

Where the file has queries, keys and values apart that lie side by side here, each has matrices of its own.

The format: github.com/huggingface/peft, docs/source/developer_guides/checkpoint.md.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.autograd.tensor import Parameter
from nanograd_llm.backend.arrays import to_device
from nanograd_llm.errors import BadFileError, ConfigError, NanogradError, StorageError
from nanograd_llm.files.atomic import storage_errors, write_atomically
from nanograd_llm.files.safetensors import read_safetensors, write_safetensors
from nanograd_llm.models import BERT, GPT, Classifier, EncoderDecoder
from nanograd_llm.nn import lora
from nanograd_llm.nn.layers import Linear
from nanograd_llm.nn.module import Module
from nanograd_llm.pretrained.bert import names as bert_names
from nanograd_llm.pretrained.bert.config import to_hugging_face as to_bert
from nanograd_llm.pretrained.config_json import refuse_unsupported
from nanograd_llm.pretrained.gpt2 import names as gpt2_names
from nanograd_llm.pretrained.layout import Layout
from nanograd_llm.pretrained.marian import names as marian_names
from nanograd_llm.pretrained.opened import require_finite
from nanograd_llm.pretrained.weights import ADAPTER, read_settings
from nanograd_llm.settings import listed, require_type, shown

WEIGHTS, CONFIG = "adapter_model.safetensors", ADAPTER
PREFIX = "base_model.model."
HEADS = ("classifier", "score")  # what PEFT saves of a classifier, as far as it is there
# What may be trained as a whole of a classifier on a BERT: its name in modules_to_save, the name here, and in the file.
WHOLE = {"classifier": ("classes", "classifier"), "pooler": ("model.pooler", "bert.pooler.dense")}
# The settings that are read here, or that say what the names and shapes of the arrays say as well. Any other one that
# is not null, false or empty may change the result, and is refused.
READ = {"r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"}
READ |= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "task_type"}
READ |= {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "megatron_core"}
READ |= {"qalora_group_size"}
ONLY: dict[str, tuple[Any, ...]] = {  # with the values that are supported
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian"),  # others change the weights of the model
}


class Names(NamedTuple):
    """How transformers names the layers of a model. inner: what they are in, with the start of its names here."""

    inner: Module
    start: str
    layout: Layout
    prefix: str
    task: str | None

    @classmethod
    def of(cls, model: Module) -> Names:
        """Raises ConfigError for a model that transformers does not have."""
        inner = model.model if isinstance(model, Classifier) else model
        start, task = ("model.", "SEQ_CLS") if isinstance(model, Classifier) else ("", None)
        if isinstance(inner, GPT) and not start:
            return cls(inner, start, gpt2_names.HUGGING_FACE, "transformer.", "CAUSAL_LM")
        if isinstance(inner, BERT) and not (isinstance(model, Classifier) and model.config.pooling != "pooled"):
            to_bert(inner.config)
            prefix = "bert." if start or inner.head is not None else ""
            return cls(inner, start, bert_names.LAYOUT, prefix, task)
        if isinstance(inner, EncoderDecoder):
            marian_names.to_hugging_face(inner.config)
            return cls(inner, start, marian_names.LAYOUT, "", "SEQ_2_SEQ_LM")
        what = type(model).__name__
        if isinstance(model, Classifier):
            what += f" on a {type(inner).__name__} with the pooling {model.config.pooling}"
        raise ConfigError(
            "PEFT's form has adapters of a GPT, a BERT, an EncoderDecoder, or a Classifier on a BERT with the pooling "
            f"pooled; got a {what}"
        )

    def linears(self) -> Iterator[tuple[str, Linear, list[str]]]:
        """Each Linear, with its name here and the names of its parts in the file."""
        for name, linear in self.inner.named_modules():
            if isinstance(linear, Linear):
                parts = [part.removesuffix(".weight") for part in self.layout.parts(f"{name}.weight")]
                bare = not self.prefix or parts[0].startswith(bert_names.HEAD)
                yield f"{self.start}{name}", linear, parts if bare else [f"{self.prefix}{part}" for part in parts]


def save_lora(
    model: Module, folder: str | os.PathLike[str], *, base: str | None = None, replace: bool = False
) -> list[Path]:
    """Write the adapters of a model, as PEFT does, into `folder`, which is created if it does not exist.

    `PeftModel.from_pretrained` loads them onto the same model in transformers, and `load_lora` onto the model here. Of
    a classifier on a BERT the head is written as well, and a pooler that is trained as a whole. base: the name of the
    model in transformers, if it is known. replace: write over an adapter that is there.

    Returns the paths. Raises ConfigError for a model without adapters, that transformers does not have, or with other
    layers that are trained as a whole; StorageError if the folder holds an adapter, or writing fails.
    """
    require_type("model", model, Module, "a Module")
    folder, (names, adapted, whole) = Path(folder), _writable(model)
    arrays: dict[str, NDArray[Any]] = {}
    found: dict[str, tuple[int, float, float]] = {}  # rank, alpha and dropout
    ends: dict[bool, set[str]] = {True: set(), False: set()}  # the last parts of names, with an adapter and without
    for name, linear, parts in names.linears():
        ends[name in adapted].update(part.rpartition(".")[2] for part in parts)
        if name in adapted:
            adapter = linear.adapter
            for part, B in zip(parts, np.split(adapter.B.numpy(), len(parts), axis=1)):
                arrays[f"{PREFIX}{part}.lora_A.weight"] = adapter.A.numpy().T
                arrays[f"{PREFIX}{part}.lora_B.weight"] = B.T
                found[part] = len(adapter.B), adapter.alpha, adapter.dropout.rate
    rank, alpha, dropout = next(iter(found.values()))
    settings = {
        "peft_type": "LORA",
        "task_type": names.task,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "rank_pattern": {name: one for name, (one, _, _) in found.items() if one != rank},
        "alpha_pattern": {name: one for name, (_, one, _) in found.items() if one != alpha},
        "target_modules": sorted(found if ends[True] & ends[False] else ends[True]),
        "fan_in_fan_out": names.layout.matrices == "in, out",
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": [*dict.fromkeys((*HEADS, *whole))] if whole else None,
    }
    arrays |= {f"{PREFIX}{name}": parameter.numpy().T for name, parameter in _parameters_of(model, whole).items()}
    paths = [folder / CONFIG, folder / WEIGHTS]
    with storage_errors(f"{folder}: cannot write an adapter there", "choose another folder"):
        if not replace and (held := [path for path in paths if path.exists()]):
            raise StorageError(f"{folder}: already holds {held[0].name}; choose another folder, or remove it first")
        folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(paths[1], arrays, {"format": "pt"})
    write_atomically(paths[0], json.dumps(settings, indent=2).encode() + b"\n")
    return paths


def refusal(model: Module) -> str:
    """Why `save_lora` cannot write the adapters of this model; "" if it can."""
    try:
        _writable(model)
    except ConfigError as error:
        return str(error)
    return ""


def _writable(model: Module) -> tuple[Names, dict[str, Linear], list[str]]:
    """The names of a model, its Linears with adapters, and what is written as a whole. Raises as `save_lora` says."""
    names, adapted = Names.of(model), lora.adapted(model)
    if not adapted:
        raise ConfigError(f"this {type(model).__name__} has no adapters; nn.lora.add(model) makes them")
    return names, adapted, _trained_whole(model)


def load_lora(model: Module, folder: str | os.PathLike[str]) -> Module:
    """Give a model the adapters that PEFT, or `save_lora`, wrote into `folder`; returns the model.

    All else of the model is frozen, as after `nn.lora.add`, and a classifier's head is that of the file. Raises
    ConfigError if the model has adapters already; BadFileError for a setting that is not supported, and for an adapter
    of another model: what is missing, extra, or has another shape.
    """
    require_type("model", model, Module, "a Module")
    names, config, path = Names.of(model), Path(folder) / CONFIG, Path(folder) / WEIGHTS
    if not config.exists():
        raise StorageError(f"{config}: no such file; give the folder of an adapter in PEFT's form")
    settings = read_settings(config)
    _refuse(settings, str(config), has_head=isinstance(model, Classifier))
    arrays = {name.removeprefix(PREFIX).removeprefix(names.prefix): x for name, x in read_safetensors(path).items()}
    require_finite(arrays, str(path), "save it again", strict=True)
    problems: list[str] = []

    def take(name: str, *shape: int) -> NDArray[Any]:
        """The array of this name and shape, transposed; if it is not there, a problem, and an empty array."""
        x = arrays.pop(name, None)
        if x is not None and x.shape == shape and x.dtype.kind == "f":
            return x.T
        problems.append(f"{name} is {'missing' if x is None else x.shape}, expected {shape}")
        return np.empty(0)

    adapters: dict[str, lora.Adapter] = {}
    for name, linear, parts in names.linears():
        pairs = {}
        n_in, n_out = linear.weight.shape[0], linear.weight.shape[1] // len(parts)
        for place, part in enumerate(parts):
            its_A, its_B = (f"{part.removeprefix(names.prefix)}.lora_{matrix}.weight" for matrix in "AB")
            if its_A in arrays or its_B in arrays:
                c = _settings_of(part, settings, str(config))
                A, B = take(its_A, c.rank, n_in), take(its_B, n_out, c.rank)
                pairs[place] = A, B, c.alpha * (math.sqrt(c.rank) if settings.get("use_rslora") else 1)
        if pairs and not problems:
            adapters[name] = _joined(pairs, len(parts), c.dropout)
    saved = {
        parameter: take(name.removeprefix(names.prefix), *parameter.shape[::-1])
        for name, parameter in _parameters_of(model, settings.get("modules_to_save") or ()).items()
    }
    problems += [f"{name} {x.shape} is extra" for name, x in sorted(arrays.items())]
    if problems or not adapters:
        found = listed(problems) or "it has no adapters"
        fault = f"{path}: does not fit this {type(model).__name__}: {found}"
        raise BadFileError(f"{fault}; give it to the model that it was trained on")
    lora.attach(model, adapters)
    for parameter, x in saved.items():
        parameter.data = to_device(x.astype(parameter.dtype), parameter.device)
    return model


def _trained_whole(model: Module) -> list[str]:
    """Which parts in WHOLE an adapter of this model must hold: a classifier's head, and any other that is trained.

    Raises ConfigError where another layer is trained as a whole.
    """
    places = {ours: part for part, (ours, _) in WHOLE.items()} if isinstance(model, Classifier) else {}
    names = [name for name, x in model.named_parameters() if x.requires_grad and ".adapter." not in name]
    trained = dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in names)
    if others := [name for name in trained if name not in places]:
        raise ConfigError(
            f"PEFT's form holds no layers that are trained as a whole but a classifier's head and pooler; here also "
            f"{listed(others)}"
        )
    return [part for ours, part in places.items() if part in HEADS or ours in trained]


def _parameters_of(model: Module, parts: Collection[str]) -> dict[str, Parameter]:
    """The parameters of these parts in WHOLE, by their names in the file."""
    places = dict(WHOLE[part] for part in parts if part in WHOLE)
    return {
        f"{places[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] in places
    }


def _joined(pairs: Mapping[int, tuple[NDArray[Any], NDArray[Any], float]], parts: int, dropout: float) -> lora.Adapter:
    """One adapter of a Linear of so many parts, from A, B and alpha of some of them, by place.

    Adapters with the same A share it. Others stand in a block each: their ranks add up.
    """
    (first, B, alpha), *_ = pairs.values()
    shared = len(pairs) == parts and all(np.array_equal(A, first) for A, _, _ in pairs.values())
    rank = first.shape[1] if shared else sum(A.shape[1] for A, _, _ in pairs.values())
    scale, width, at = alpha / first.shape[1], B.shape[1], 0
    joined = lora.Adapter(len(first), parts * width, rank=rank, alpha=alpha * rank / first.shape[1], dropout=dropout)
    joined.to("cpu")  # `attach` moves it beside its Linear
    for place, (A, B, alpha) in pairs.items():
        here = slice(at, at + A.shape[1])
        joined.A.data[:, here] = A
        joined.B.data[here, place * width : (place + 1) * width] = B * (alpha / A.shape[1] / scale)
        at += 0 if shared else A.shape[1]
    return joined


def _settings_of(name: str, settings: Mapping[str, Any], where: str) -> lora.LoRAConfig:
    """The rank, alpha and dropout of a layer: those of all, or of a pattern that its name ends with."""
    fields: dict[str, Any] = {"dropout": settings.get("lora_dropout") or 0.0}
    for field, key, pattern in (("rank", "r", "rank_pattern"), ("alpha", "lora_alpha", "alpha_pattern")):
        own = [value for end, value in (settings.get(pattern) or {}).items() if f".{name}".endswith(f".{end}")]
        fields[field] = (own or [settings.get(key)])[0]
    try:
        return lora.LoRAConfig(**fields)
    except NanogradError as error:
        raise BadFileError(f"{where}: {error}") from None


def _refuse(settings: Mapping[str, Any], where: str, *, has_head: bool) -> None:
    """Raise BadFileError for a setting that changes the result in a way that is not supported."""
    refuse_unsupported({**dict.fromkeys(ONLY), **settings}, ONLY, where)
    remedy = "merge it into the weights with merge_and_unload() of peft"
    for key, value in settings.items():
        if value and key not in {*READ, *ONLY}:
            raise BadFileError(f"{where}: {key} is {shown(value)}, which is not supported; {remedy}")
    whole = settings.get("modules_to_save") or []
    if whole and not (has_head and isinstance(whole, list) and {*map(str, whole)} <= {*HEADS, *WHOLE}):
        raise BadFileError(f"{where}: modules_to_save is {shown(whole)}: layers that were trained whole; {remedy}")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(key) or {}
        if not isinstance(pattern, dict) or not all(re.fullmatch(r"[\w.]+", end) for end in pattern):
            raise BadFileError(f"{where}: {key} is {shown(pattern)}; only names and their ends are supported")
