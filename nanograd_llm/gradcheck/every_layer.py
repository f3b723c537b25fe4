"""Every layer of `nn` and the GPT checked as every op is: the same table, one line more for each."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nanograd_llm import nn
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.tensor import Tensor, registry
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import ConfigError
from nanograd_llm.gradcheck.check.check import DIRECTIONS, gradcheck, verdicts
from nanograd_llm.gradcheck.check.function import tape_below
from nanograd_llm.gradcheck.check.report import Report
from nanograd_llm.gradcheck.every_op import CASES, OpSummary, Summary, check_op
from nanograd_llm.gradcheck.mutation.mutants import Mutant, mutants
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.ops import sequence_mask
from nanograd_llm.settings import IGNORE_INDEX, nearest, require_int, require_seed

PASSES = 25  # forward and backward, that a check of one parameter is worth, as measured,
HIGHER_ORDER_PASSES = 60  # and so many times more for each further order
LAYER_SHARE = 10  # a layer is made of many ops, each of them checked by itself: it gets a tenth of their cases

Specimen = tuple[nn.Module, tuple[Any, ...]]


class Seeded(nn.Module):
    """A layer, or its loss, whose dropout is the same in every call."""

    def __init__(self, layer: nn.Module, seed: int = 0, method: str = "forward"):
        self.layer = layer
        self.seed = seed
        self.method = method

    def forward(self, *inputs: Any) -> Tensor:
        with noise(self.seed):
            return getattr(self.layer, self.method)(*inputs)


def _x(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape))


def _size(rng: np.random.Generator, low: int = 1) -> int:
    return int(rng.integers(low, 4))


def _linear(rng: np.random.Generator) -> Specimen:
    n = _size(rng)
    lead = (int(rng.integers(0, 4)),) * int(rng.integers(0, 3))
    return nn.Linear(n, _size(rng), bias=rng.random() < 0.7, rng=rng), (_x(rng, *lead, n),)


def _embedding(rng: np.random.Generator) -> Specimen:
    count = _size(rng)
    return nn.Embedding(count, _size(rng), rng=rng), (rng.integers(0, count, (2, 3)),)


def _norm(make: Callable[[int], nn.Module]) -> Callable[[np.random.Generator], Specimen]:
    def specimen(rng: np.random.Generator) -> Specimen:
        size = _size(rng, 2)
        return make(size), (_x(rng, int(rng.integers(0, 3)), 2, size),)

    return specimen


def _attention(make: Callable[..., nn.Module], **settings: Any) -> Callable[[np.random.Generator], Specimen]:
    def specimen(rng: np.random.Generator) -> Specimen:
        n = _size(rng)
        return make(n, _size(rng), rng=rng, **settings), (_x(rng, 2, _size(rng, 2), n),)

    return specimen


def _heads(make: Callable[..., nn.Module], **settings: Any) -> Callable[[np.random.Generator], Specimen]:
    def specimen(rng: np.random.Generator) -> Specimen:
        n_head = _size(rng)
        n_embd = n_head * int(rng.integers(1, 3)) if n_head > 1 else _size(rng, 2)
        return make(n_embd, n_head, dropout=0.2, rng=rng, **settings), (_x(rng, 2, _size(rng, 2), n_embd),)

    return specimen


def _forms(make: Callable[..., nn.Module], *switches: str) -> Callable[[np.random.Generator], Specimen]:
    """Every form of attention: each of these arguments True or False, x and the context, if there is one, padded."""

    def specimen(rng: np.random.Generator) -> Specimen:
        settings = {name: bool(rng.random() < 0.5) for name in switches}
        layer, (x,) = _heads(make, **settings)(rng)
        context = _x(rng, 2, _size(rng, 2), x.shape[2]) if settings["cross"] else None
        x_mask, context_mask = (None if y is None else sequence_mask([y.shape[1], 1], y.shape[1]) for y in (x, context))
        masks = (x_mask, context_mask) if make is nn.Block else (x_mask if context is None else context_mask,)
        return layer, (x, context, *masks)

    return specimen


def _mlp(rng: np.random.Generator) -> Specimen:
    size = _size(rng)
    return nn.MLP(size, dropout=0.2, rng=rng), (_x(rng, 2, size),)


def _gpt(rng: np.random.Generator) -> Specimen:
    n_layer = 1 if rng.random() < 0.7 else 2
    sizes: dict[str, Any] = dict(vocab_size=5, context_length=3, n_layer=n_layer, n_head=2, n_embd=4, dropout=0.1)
    if rng.random() < 0.5:  # what other models of GPT-2's kind have
        sizes |= dict(n_inner=3, activation="gelu_exact", tie_word_embeddings=False, layer_norm_epsilon=0.1)
        sizes |= dict(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True)
    config = GPTConfig(**sizes)
    tokens, targets = rng.integers(0, 5, (2, 2, 3))
    targets[0, 0] = IGNORE_INDEX
    return GPT(config), (tokens, targets)


LAYERS: dict[str, Callable[[np.random.Generator], Specimen]] = {
    "Linear": _linear,
    "Embedding": _embedding,
    "LayerNorm": _norm(nn.LayerNorm),
    "RMSNorm": _norm(nn.RMSNorm),
    "Dropout": lambda rng: (nn.Dropout(0.4), (_x(rng, 3, _size(rng)),)),
    "MLP": _mlp,
    "SimplifiedSelfAttention": lambda rng: (nn.SimplifiedSelfAttention(), (_x(rng, 2, _size(rng, 2), _size(rng)),)),
    "SelfAttention": _attention(nn.SelfAttention),
    "CausalAttention": _attention(nn.CausalAttention, dropout=0.2),
    "MultiHeadList": _heads(nn.MultiHeadList, bias=False),  # softmax cancels a key's bias: nothing but rounding is left
    "MultiHeadAttention": _forms(nn.MultiHeadAttention, "causal", "cross"),
    "Block": _forms(nn.Block, "norm_first", "causal", "cross"),
    "GPT": _gpt,
}


def check_all(names: Iterable[str] | None = None, *, order: int = 2, cases: int = CASES, seed: int = 0) -> Summary:
    """Check every op that is registered, every layer of `nn` and the GPT, or those named: see `check_each`."""
    return Summary(tuple(check_each(names, order=order, cases=cases, seed=seed)))


def check_each(
    names: Iterable[str] | None = None, *, order: int = 2, cases: int = CASES, seed: int = 0
) -> Iterator[OpSummary]:
    """What `check_op` and `check_layer` find for each op and layer, one after the other, as it is found.

    Raises ConfigError for a name that none has, or where these do.
    """
    known = [*registry, *LAYERS]
    wanted = known if names is None else list(names)
    for name in wanted:
        if name not in known:
            near = nearest(name, known)
            raise ConfigError(f"there is no op or layer {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    for name in wanted:
        if name in LAYERS:
            yield check_layer(name, order=order, cases=cases, seed=seed)
        else:
            yield check_op(registry[name], order=order, cases=cases, seed=seed)


def check_layer(name: str, *, order: int = 2, cases: int = CASES, seed: int = 0) -> OpSummary:
    """Check a layer, or the GPT's loss, with random parameters and inputs, in training mode with its dropout seeded.

    A tenth of `cases` is drawn, of which the smallest is checked beyond first order. There is one mutant for each op
    that the layer records: all gradients of the op are off by a billionth.

    Raises ConfigError unless `cases` and `order` are integers of at least 1.
    """
    require_int("cases", cases, 1)
    require_seed(seed)
    require_int("order", order, 1)
    rng = np.random.default_rng(seed)
    drawn = [_specimen(name, rng, seed + number) for number in range(max(1, cases // LAYER_SHARE))]
    problems = []
    errors = [0.0] * order
    small = min(
        range(len(drawn)), key=lambda number: _numbers(drawn[number])
    )  # a layer costs thousands of passes there
    for number, (layer, inputs) in enumerate(drawn):
        report = gradcheck(layer, *inputs, order=order if number == small else 1, seed=seed + number)
        errors = [max(error, report.relative_error(n + 1)) for n, error in enumerate(errors)]
        if not report.passed:
            problems.append(f"{_sizes(inputs)}: {report}")
    recorded = {op.name: op for layer, inputs in drawn for op in _ops_of(layer, inputs)}
    survivors = [] if problems else [op.name for op in recorded.values() if not _is_caught(op, drawn)]
    return OpSummary(name, len(drawn), tuple(errors), len(recorded), tuple(survivors), tuple(problems))


def check_model(model: GPT, *, order: int = 1, seed: int = 0) -> Report:
    """`gradcheck` of a GPT's loss at its own weights, as it is (in evaluation mode, if it has dropout), on one short
    window of random tokens. `cost_of_model` says what that takes."""
    return gradcheck(model.loss, *_window(model, seed), order=order, seed=seed, jacobian=0)


def cost_of_model(model: GPT, *, order: int = 1) -> str:
    """What `check_model` does and about how long that takes, in words: the quickest of a few passes is timed."""
    window, seconds = _window(model, 0), math.inf
    for _ in range(4):  # the first also brings weights and libraries into memory
        begin = time.perf_counter()
        model.loss(*window).backward()
        seconds = min(seconds, time.perf_counter() - begin)
        model.zero_grad()
    parameters = [parameter.data.size for parameter in model.parameters()]
    seconds *= PASSES * len(parameters) * HIGHER_ORDER_PASSES ** (order - 1)
    return (
        f"{sum(parameters):,} numbers in {len(parameters)} parameters, on {window[0].size} tokens, in {DIRECTIONS} "
        f"random directions each: about {seconds:.0f} s"
    )


def _window(model: GPT, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random (tokens, targets), each (1, T), where T is 16 or what the model takes."""
    T = min(16, model.config.context_length)
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, T + 1))
    return ids[:, :-1], ids[:, 1:]


def _specimen(name: str, rng: np.random.Generator, seed: int) -> Specimen:
    layer, inputs = LAYERS[name](rng)
    for parameter in layer.parameters():  # as they start, many are all zeros or ones
        parameter.data = 0.5 * _x(rng, *parameter.shape) + (parameter.data == 1)
    return Seeded(layer, seed, "loss" if isinstance(layer, GPT) else "forward"), inputs


def _ops_of(layer: nn.Module, inputs: tuple[Any, ...]) -> list[Op]:
    leaves = [Tensor(x, requires_grad=True) if np.asarray(x).dtype.kind == "f" else x for x in inputs]
    return [node.op for node in tape_below(layer(*leaves)) if not isinstance(node, Tensor)]


@functools.cache
def _sharp_mutants(op: Op) -> list[Mutant]:
    return [mutant for mutant in mutants(op) if mutant.sharp]


def _is_caught(op: Op, drawn: list[Specimen]) -> bool:
    """Is it noticed when all gradients of this op are off by a billionth?"""
    with contextlib.ExitStack() as stack:
        for mutant in _sharp_mutants(op):
            stack.enter_context(mutant.planted())
        return any(not verdicts(layer, *inputs).passed for layer, inputs in sorted(drawn, key=_numbers))


def _numbers(specimen: Specimen) -> float:
    """How many numbers it holds and is given; infinitely many where it is given none, and shows nothing."""
    layer, inputs = specimen
    held = sum(p.data.size for p in layer.parameters())
    return held + sum(map(np.size, inputs)) if all(map(np.size, inputs)) else math.inf


def _sizes(inputs: tuple[Any, ...]) -> str:
    return ", ".join(str(np.shape(x)) for x in inputs)
