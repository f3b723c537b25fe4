"""LoRA: a frozen Linear learns by a product of two small matrices beside it, y = x W + b + α/r·(x A) B.

    nn.lora.add(model, rank=8)     # freeze the model, and give every Linear of its blocks an adapter
    with nn.lora.off(model): ...   # the model as it was before, bit for bit
    nn.lora.merge(model)           # one matrix each again: as fast as before

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021). B begins as zeros, so nothing changes at first.

r rank
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Parameter, Tensor
from nanograd_llm.backend.arrays import to_device
from nanograd_llm.errors import ConfigError
from nanograd_llm.nn.block import Block
from nanograd_llm.nn.layers import Dropout, Linear
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import Settings, check_keys, require_type, setting


class LoRAConfig(Settings):
    """The settings of adapters. Raises ConfigError that names the field."""

    rank: int = setting("Train only adapters of this rank (LoRA); all weights if not given.", default=8, low=1)
    alpha: float = setting("What an adapter adds is multiplied by alpha / rank.", default=16.0)
    targets: str | None = setting(
        "Names of the layers that get an adapter, such as qkv,mlp or blocks.0.attention.out; every Linear of the "
        "blocks if not given.",
        default=None,
    )
    dropout: float = setting("Dropout on the input of the adapters.", default=0.0, high=1, below=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha == 0:
            raise ConfigError("alpha is 0, which would switch the adapters off; give a larger one, such as 2 * rank")

    @property
    def target_names(self) -> list[str] | None:
        """The names in `targets`."""
        return None if self.targets is None else self.targets.split(",")


class Adapter(Module):
    """What is added to the result of a Linear: α/r·(x A) B.  x (..., n_in) -> (..., n_out)

    A (n_in, r) begins uniform between -1/√n_in and 1/√n_in, which is Kaiming's with a = √5, and B (r, n_out) as zeros.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ):
        rng = rng or np.random.default_rng()
        self.A = Parameter(((2 * rng.random((n_in, rank)) - 1) / np.sqrt(n_in)).astype(np.float32))
        self.B = Parameter(np.zeros((rank, n_out), np.float32))
        self.alpha, self.scale = alpha, alpha / rank
        self.dropout = Dropout(dropout)

    def forward(self, x: Any) -> Tensor:
        small = ops.linear(self.dropout(x), self.A) * self.scale  # (..., n_in) -> (..., r)
        return ops.linear(small, self.B)  # (..., r) -> (..., n_out)

    def matrix(self) -> np.ndarray:
        """What it adds to the weights of the Linear: α/r·A B, (n_in, n_out)"""
        return (self.A.data * self.scale) @ self.B.data


def add(
    model: Module,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Iterable[str] | None = None,
    dropout: float = 0.0,
    *,
    rng: np.random.Generator | None = None,
) -> Module:
    """Freeze the model and give its Linears adapters, which are then all that is trained; returns the model.

    targets: parts of the names of Linears, such as "qkv", "mlp" or "blocks.0.attention.out": a list, or joined by
        commas. By default every Linear of the blocks; of a model without any Block, every Linear.
    dropout: rate on the input of the adapters, in training.

    The parts in `model.fresh` are trained as well, and get no adapter. Raises ConfigError for a rank or an
    alpha of 0, a target that is not there, and a model that has adapters already.
    """
    require_type("model", model, Module, "a Module")
    words = targets.split(",") if isinstance(targets, str) else targets
    LoRAConfig(rank=rank, alpha=alpha, dropout=dropout)
    sizes: Any = {"rank": rank, "alpha": alpha, "dropout": dropout, "rng": rng or np.random.default_rng()}
    attach(model, {name: Adapter(*x.weight.shape, **sizes) for name, x in targeted(model, words).items()})
    return model


def attach(model: Module, adapters: Mapping[str, Adapter]) -> None:
    """Freeze the model but for its fresh parts, and give Linears these adapters, by the names of the Linears.

    An adapter takes the dtype of the weights beside it, and the mode of the Linear.
    """
    if adapted(model):
        raise ConfigError(f"this {type(model).__name__} has adapters already; merge them first: nn.lora.merge(model)")
    for name, parameter in model.named_parameters():
        parameter.requires_grad, parameter.grad = _is_fresh(model, name), None
    linears: dict[str, Any] = dict(model.named_modules())
    for name, adapter in adapters.items():
        linear = linears[name]
        adapter.astype(linear.weight.dtype).train(linear.training)
        for parameter in adapter.parameters():
            parameter.data = to_device(parameter.data, linear.weight.device)
        linear.adapter = adapter


def _is_fresh(model: Module, name: str) -> bool:
    return any(f"{name}.".startswith(f"{part}.") for part in model.fresh)


def targeted(model: Module, targets: Iterable[str] | None, rank: int = 1) -> dict[str, Linear]:
    """The Linears that these targets of `add` name, by name.

    Raises ConfigError for a target that is not there, and a rank above that of every one of their matrices.
    """
    modules = dict(model.named_modules())
    linears = {name: x for name, x in modules.items() if isinstance(x, Linear)}
    known = {name: x for name, x in linears.items() if not _is_fresh(model, f"{name}.weight")}
    if targets is None:
        blocks = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Block))
        found = [name for name in known if name.startswith(blocks)] or [*known]
    else:
        matches = {target: [name for name in known if f".{target.strip()}." in f".{name}."] for target in targets}
        missing = [target for target, names in matches.items() if not names]
        parts = [name.split(".") for name in known]
        allowed = dict.fromkeys(part for name in parts for part in name if not part.isdigit())
        numbered = [".".join(name[:2]) for name in parts if name[1:2] and name[1].isdigit()]
        check_keys(missing, [*allowed, *numbered[:1]], "targets")
        found = [name for name in known if any(name in names for names in matches.values())]
    if not found:
        raise ConfigError(f"targets names no Linear of this {type(model).__name__}; leave it out, for all")
    if rank > (most := max(min(known[name].weight.shape) for name in found)):
        raise ConfigError(f"rank is {rank}, and no matrix of the targets has one above {most}; give {most} or less")
    return {name: known[name] for name in found}


def adapted(model: Module) -> dict[str, Linear]:
    """The Linears that have an adapter, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module.adapter is not None
    }


@contextlib.contextmanager
def off(model: Module) -> Iterator[None]:
    """Inside this block the model has no adapters: it computes what it did before `add`, bit for bit."""
    adapters = {linear: linear.adapter for linear in adapted(model).values()}
    for linear in adapters:
        linear.adapter = None
    try:
        yield
    finally:
        for linear, adapter in adapters.items():
            linear.adapter = adapter


def merge(model: Module) -> Module:
    """Add every adapter to the weights beside it and remove it; all parameters can be trained again. Returns the model.

    The result is the same within rounding. The sum is a new Parameter: where the old one is in another place as well,
    such as a table that is shared, it stays there as it was.
    """
    for linear in {*adapted(model).values()}:
        linear.weight = Parameter(linear.weight.data + linear.adapter.matrix())
        linear.adapter = None
    return model.unfreeze()


def _specimens(draw: Any) -> Any:
    yield Adapter(3, 2, rank=2, alpha=3.0, dropout=0.2), (draw(2, 2, 3),)
    yield add(Linear(2, 3), rank=1), (draw(3, 2),)


Adapter.specimens = _specimens
