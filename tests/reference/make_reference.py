"""Compute reference values with PyTorch in float64, which the package is compared with.

    pip install -e ".[parity]" && python tests/reference/make_reference.py

Until it has run, `tests/reference` fails for a new op or layer. It writes `ops.npz`, `layers.npz` and `gpt.npz` beside
this script. If PyTorch has a function, it is used; if not, it is written with PyTorch's primitives. PyTorch's autograd
computes every backward. Only the mask of a dropout comes from the package. `test_reference.py` needs only the files;
with the extra it also runs this script again.

Each file holds `numbers`, all floats one after the other, and `contents`, a JSON text that says what they are.

B batch, T time, C channels, H heads, D = C/H, V vocabulary
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nanograd_llm.ops.composed import dropout_mask

FOLDER = Path(__file__).parent
IGNORED = -100


class Draw:
    """Random inputs that depend on a name, so that a new case does not change the others."""

    def __init__(self, name: str):
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))

    def __call__(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.standard_normal(shape))

    def positive(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.uniform(0.5, 2.0, shape))

    def ids(self, size: int, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.integers(0, size, shape))


# Ops: PyTorch's form of each, under its name in the package.


def mask_of(shape: Sequence[int], rate: float, seed: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(dropout_mask(tuple(shape), np.zeros(()), rate, tuple(seed)))


def all_axes(x: torch.Tensor, axis: Any) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)


def logsumexp(x: torch.Tensor, axis: Any = -1, keepdim: bool = False) -> torch.Tensor:
    return torch.logsumexp(x, all_axes(x, axis), keepdim)


def softmax(x: torch.Tensor, axis: Any = -1) -> torch.Tensor:
    return torch.softmax(x, axis) if isinstance(axis, int) else torch.exp(x - logsumexp(x, axis, True))


def log_softmax(x: torch.Tensor, axis: Any = -1) -> torch.Tensor:
    return torch.log_softmax(x, axis) if isinstance(axis, int) else x - logsumexp(x, axis, True)


def places(index: Any, shape: Sequence[int]) -> torch.Tensor:
    """Where the elements named by a NumPy index lie in the flat array: PyTorch knows no negative steps."""
    return torch.from_numpy(np.arange(math.prod(shape)).reshape(shape)[index].copy())


def scatter(x: torch.Tensor, index: Any, shape: Sequence[int]) -> torch.Tensor:
    flat = torch.zeros(math.prod(shape), dtype=x.dtype)
    return flat.index_add(0, places(index, shape).flatten(), x.flatten()).reshape(shape)


def add_rows(x: torch.Tensor, ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    C = x.shape[-1]
    return torch.zeros(vocab_size, C, dtype=x.dtype).index_add(0, ids.flatten(), x.reshape(-1, C))


def attention(
    q: Any,
    k: Any,
    v: Any,
    key_mask: Any = None,
    *,
    causal: bool,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: Sequence[int] = (0,),
) -> torch.Tensor:
    n, m = q.shape[-2], k.shape[-2]
    seen = torch.ones(n, m, dtype=torch.bool)
    if causal:
        seen = seen.tril(m - n)
    if key_mask is not None:
        seen = seen & key_mask[..., None, :]
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2], seen.shape[:-2])
    if not dropout:
        q, k, v = (x.expand(*lead, *x.shape[-2:]) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale and 1 / scale)
    scores = q @ k.transpose(-1, -2) / (scale or math.sqrt(q.shape[-1]))
    weights = torch.softmax(scores.masked_fill(~seen, -math.inf), -1)
    return (weights * mask_of((*lead, n, m), dropout, seed)) @ v


def multi_head_attention(x: Any, kv: Any = None, key_mask: Any = None, *, n_head: int, **static: Any) -> torch.Tensor:
    parts = x.chunk(3, -1) if kv is None else (x, *kv.chunk(2, -1))
    heads = [part.unflatten(-1, (n_head, -1)).transpose(1, 2) for part in parts]  # (B, T, C) -> (B, H, T, D)
    y = attention(*heads, None if key_mask is None else key_mask[:, None], **static)
    return y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C)


def cross_entropy(logits: Any, targets: Any, weight: Any = None, **static: Any) -> torch.Tensor:
    rows, weight = logits.reshape(-1, logits.shape[-1]), None if weight is None else torch.from_numpy(weight)
    y = F.cross_entropy(rows, targets.flatten(), weight, **static)
    return y.reshape(targets.shape) if static.get("reduction") == "none" else y


def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    return F.linear(x, w.T, b)


PADDED = np.array([[True, True, False, False], [False, True, True, True], [False] * 4])  # keys of three sequences

OPS: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "subtract": torch.subtract,
    "multiply": torch.multiply,
    "divide": torch.divide,
    "negative": torch.negative,
    "power": torch.pow,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "logaddexp": torch.logaddexp,
    "min": lambda x, axis=None, keepdims=False: torch.amin(x, all_axes(x, axis), keepdims),
    "var": lambda x, axis=None, keepdims=False, ddof=0: torch.var(
        x, all_axes(x, axis), correction=ddof, keepdim=keepdims
    ),
    "cumsum": torch.cumsum,
    "contract": lambda *xs, subscripts: torch.einsum(subscripts, *xs),
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "absolute": torch.abs,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": torch.where,
    "clip": lambda x, low=-1.0, high=1.0: torch.clamp(x, low, high),
    "sum": lambda x, axis=None, keepdims=False: torch.sum(x, all_axes(x, axis), keepdims),
    "mean": lambda x, axis=None, keepdims=False: torch.mean(x, all_axes(x, axis), keepdims),
    "max": lambda x, axis=None, keepdims=False: torch.amax(x, all_axes(x, axis), keepdims),
    "matmul": torch.matmul,
    "reshape": lambda x, shape: torch.reshape(x, shape),
    "transpose": lambda x, axes=None: torch.permute(x, axes or tuple(range(x.ndim))[::-1]),
    "swapaxes": lambda x, axis1, axis2: torch.swapaxes(x, axis1, axis2),
    "broadcast_to": lambda x, shape: torch.broadcast_to(x, shape),
    "expand_dims": lambda x, axis: torch.reshape(x, np.expand_dims(np.empty(x.shape), axis).shape),
    "squeeze": lambda x, axis=None: torch.squeeze(x) if axis is None else torch.squeeze(x, axis),
    "concatenate": lambda *xs, axis=0: torch.cat(xs, axis),
    "stack": lambda *xs, axis=0: torch.stack(xs, axis),
    "getitem": lambda x, index: torch.take(x, places(index, x.shape)),
    "scatter": scatter,
    "embedding": lambda w, ids: F.embedding(ids, w),
    "add_rows": add_rows,
    "cast": lambda x, dtype: x.to(getattr(torch, dtype)),
    "tril": lambda x, k=0: torch.tril(x, k),
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "layernorm": lambda x, w, b, eps=1e-5: F.layer_norm(x, w.shape, w, b, eps),
    "rmsnorm": lambda x, w, eps=1e-5: F.rms_norm(x, w.shape, w, eps),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_exact": F.gelu,
    "silu": F.silu,
    "linear": linear,
    "dropout": lambda x, rate=0.1, seed=(0,): x * mask_of(x.shape, rate, seed),
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": lambda x, w, targets, **static: cross_entropy(x @ w.T, targets, **static),
    "attention": attention,
    "multi_head_attention": multi_head_attention,
}


def calls(name: str, draw: Draw) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The inputs and static arguments that an op is called with."""
    x = draw(2, 3, 4)
    if name in ("add", "subtract", "multiply"):
        yield from [((draw(3, 4), draw(3, 4)), {}), ((draw(2, 1, 4), draw(3, 1)), {}), ((draw(), draw(2)), {})]
    elif name == "divide":
        yield from [((draw(3, 4), draw.positive(3, 4)), {}), ((draw(2, 1, 4), -draw.positive(3, 1)), {})]
    elif name == "power":
        yield from [((draw.positive(3, 4), draw(3, 4)), {}), ((draw.positive(2, 1), draw(3)), {})]
    elif name in ("log", "log1p", "sqrt"):
        yield from [((draw.positive(3, 4),), {}), ((100 * draw.positive(5),), {})]
    elif name == "erf":
        yield from [((draw(3, 4),), {}), ((np.linspace(-6, 6, 25),), {})]
    elif name == "absolute":
        yield (np.array([-1.5, 0.0, 2.0]),), {}
        yield (draw(3, 4),), {}
    elif name == "relu":
        yield from [((np.array([-1.5, 0.0, 2.0]),), {}), ((draw(3, 4),), {})]
    elif name == "sigmoid":
        yield from [((draw(3, 4),), {}), ((np.linspace(-800, 800, 17),), {})]
    elif name == "logaddexp":
        yield from [((draw(3, 4), draw(4)), {}), ((np.array([1e3, 0.0, -1e3]), np.array([0.0, 0.0, 1e3])), {})]
    elif name in ("maximum", "minimum"):
        yield from [((draw(3, 4), draw(4)), {}), ((np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])), {})]
    elif name == "where":
        yield (draw(3, 4) > 0, draw(3, 4), draw(4)), {}
        yield (draw(2, 1) > 0, draw(), draw(2, 3)), {}
    elif name == "clip":
        yield (2 * draw(3, 4),), {}
        yield (np.array([-2.0, -0.9, 0.5, 0.9, 2.0]),), {"low": -1.0, "high": 1.0}
        yield (draw(3, 4),), {"low": None, "high": 0.25}
    elif name in ("sum", "mean", "max", "min"):
        for axis, keepdims in [(None, False), (0, False), (-1, True), ((0, 2), False)]:
            yield (x,), {"axis": axis, "keepdims": keepdims}
        if name in ("max", "min"):
            yield (np.array([[1.0, 3.0, 3.0], [0.0, 0.0, 1.0]]),), {"axis": -1}
    elif name == "var":
        for axis, keepdims, ddof in [(None, False, 0), (0, False, 1), (-1, True, 0), ((0, 2), False, 2)]:
            yield (x,), {"axis": axis, "keepdims": keepdims, "ddof": ddof}
    elif name == "cumsum":
        yield from [((x,), {"axis": axis}) for axis in (0, 1, -1)]
    elif name == "contract":
        yield (draw(2, 3, 4), draw(2, 4, 5)), {"subscripts": "bij,bjk->bki"}
        yield (draw(2, 3), draw(2), draw(4)), {"subscripts": "ij,i,k->ik"}
    elif name == "matmul":
        for a, b in [((3, 4), (4, 2)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (2, 4, 3)), ((2, 3, 4), (4,)), ((4,), (4,))]:
            yield (draw(*a), draw(*b)), {}
    elif name == "reshape":
        yield from [((x,), {"shape": (6, 4)}), ((x,), {"shape": (4, -1, 2)})]
    elif name == "transpose":
        yield from [((x,), {}), ((x,), {"axes": (2, 0, 1)})]
    elif name == "swapaxes":
        yield from [((x,), {"axis1": 0, "axis2": 1}), ((x,), {"axis1": -1, "axis2": 0})]
    elif name == "broadcast_to":
        yield from [((draw(3, 1),), {"shape": (2, 3, 4)}), ((draw(),), {"shape": (2,)})]
    elif name == "expand_dims":
        yield from [((draw(2, 3),), {"axis": -1}), ((draw(2, 3),), {"axis": (0, 3)})]
    elif name == "squeeze":
        yield from [((draw(1, 3, 1),), {}), ((draw(1, 3, 1),), {"axis": 0}), ((draw(1, 3, 1),), {"axis": (0, 2)})]
    elif name == "concatenate":
        yield (draw(2, 3), draw(1, 3), draw(3, 3)), {"axis": 0}
        yield (draw(2, 3), draw(2, 1)), {"axis": -1}
    elif name == "stack":
        yield from [((draw(2, 3), draw(2, 3)), {"axis": axis}) for axis in (0, 1, -1)]
    elif name in ("getitem", "scatter"):
        x, rows = draw(4, 5), np.array([2, 0, 2])
        for index in [
            -1,
            slice(1, 3),
            (slice(None, None, -2), 1),
            (..., None, 2),
            rows,
            (np.array([[1], [3]]), rows),
            (slice(None), rows),
            x > 0,
        ]:
            if name == "getitem":
                yield (x,), {"index": index}
            else:
                yield (np.array(x[index]),), {"index": index, "shape": x.shape}
    elif name == "embedding":
        yield (draw(5, 3), np.array([[4, 0, 4], [2, 4, 1]])), {}
        yield (draw(4, 2), np.array(1)), {}
    elif name == "add_rows":
        yield (draw(2, 3, 4), np.array([[4, 0, 4], [2, 4, 1]])), {"vocab_size": 6}
    elif name == "cast":
        yield from [((draw(2, 3),), {"dtype": "float32"}), ((draw(2, 3),), {"dtype": "float64"})]
    elif name == "tril":
        yield from [((x,), {"k": k}) for k in (-1, 0, 1)]
    elif name in ("softmax", "log_softmax", "logsumexp"):
        yield from [((3 * draw(3, 4),), {"axis": axis}) for axis in (-1, 0, None, (0, 1))]
        yield (1000 + 3 * draw(2, 5),), {}
        if name != "log_softmax":
            yield (np.where(np.tri(3, dtype=bool), draw(3, 3), -np.inf),), {}
    elif name == "layernorm":
        yield (draw(2, 3, 4), draw(4), draw(4)), {}
        yield (5 + 3 * draw(5, 7), draw(7), draw(7)), {"eps": 0.1}
    elif name == "rmsnorm":
        yield from [((draw(2, 3, 4), draw(4)), {}), ((5 + 3 * draw(5, 7), draw(7)), {"eps": 0.1})]
    elif name in ("gelu", "gelu_exact", "silu"):
        yield from [((draw(3, 4),), {}), ((np.linspace(-6, 6, 25),), {})]
    elif name == "linear":
        yield (draw(2, 3, 4), draw(4, 5), draw(5)), {}
        yield (draw(3, 4), draw(4, 2), None), {}
    elif name == "dropout":
        yield from [((draw(4, 5),), {"rate": rate, "seed": (7, 1)}) for rate in (0.3, 0.9)]
    elif name in ("cross_entropy", "linear_cross_entropy"):
        for lead, static in [
            ((6,), {}),
            ((2, 3), {"label_smoothing": 0.2}),
            ((2, 3), {"ignore_index": 4, "label_smoothing": 0.1}),
        ]:
            targets = draw.ids(5, *lead)
            targets.flat[1], targets.flat[4] = static.get("ignore_index", IGNORED), 2
            if name == "cross_entropy":
                yield (3 * draw(*lead, 5), targets), static
            else:
                yield (draw(*lead, 4), draw(5, 4), targets), static
        if name == "cross_entropy":
            for reduction in ("mean", "sum", "none"):
                yield (draw(2, 3, 5), targets), {"reduction": reduction, "weight": draw.positive(5)}
    elif name == "attention":
        causal, full = {"causal": True}, {"causal": False}
        yield (draw(2, 3, 4), draw(2, 3, 4), draw(2, 3, 5)), causal
        yield (draw(2, 1, 4), draw(2, 3, 4), draw(2, 3, 4)), causal
        yield (draw(2, 3, 4), draw(3, 4), draw(2, 1, 3, 4)), causal
        yield (draw(2, 3, 4), draw(2, 3, 4), draw(2, 3, 4)), {**causal, "dropout": 0.4, "seed": (3,)}
        yield (draw(66, 2), draw(67, 2), draw(67, 1)), causal  # more queries than one block of the package holds
        yield (draw(2, 3, 4), draw(2, 2, 4), draw(2, 2, 5)), full
        yield (draw(3, 5, 4), draw(3, 4, 4), draw(3, 4, 2), PADDED), {**full, "scale": 0.7}
        yield (draw(3, 2, 4), draw(3, 4, 4), draw(3, 4, 2), PADDED), causal
        yield (draw(1, 66, 2), draw(1, 4, 2), draw(1, 4, 2), PADDED[:1]), {**full, "dropout": 0.4, "seed": (3,)}
    elif name == "multi_head_attention":
        yield (draw(2, 3, 12), None, None), {"n_head": 2, "causal": True}
        yield (draw(2, 5, 12), None, None), {"n_head": 4, "causal": True, "dropout": 0.4, "seed": (3,)}
        yield (draw(3, 4, 12), None, PADDED), {"n_head": 2, "causal": False}
        yield (draw(2, 5, 4), draw(2, 3, 8), None), {"n_head": 2, "causal": False, "scale": 0.7}
        yield (draw(3, 5, 4), draw(3, 4, 8), PADDED), {"n_head": 1, "causal": False}
    else:
        yield from [((draw(3, 4),), {}), ((draw(),), {})]


def as_torch(x: Any) -> Any:
    """An array as a tensor, a leaf if it holds floats."""
    if not isinstance(x, np.ndarray):
        return x
    return torch.tensor(x, requires_grad=x.dtype.kind == "f")


def is_leaf(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.requires_grad


def op_case(name: str, inputs: Sequence[Any], static: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """One call of an op, forward and backward, against a random cotangent."""
    tensors = [as_torch(x) for x in inputs]
    try:
        y = OPS[name](*tensors, **static)
    except (TypeError, RuntimeError) as error:
        remedy = "if its input is not one array of any shape, add its inputs in `calls`"
        raise TypeError(f"{name}: {error}; {remedy}") from error
    cotangent = draw(*y.shape).astype(np.float32).astype(np.float64)  # exact also for a result in float32
    leaves = [x for x in tensors if is_leaf(x)]
    found = iter(torch.autograd.grad(y, leaves, torch.from_numpy(cotangent).to(y.dtype)))
    gradients = {str(i): next(found).numpy() for i, x in enumerate(tensors) if is_leaf(x)}
    output = y.detach().numpy().astype(np.float64)
    return dict(inputs=inputs, static=static, cotangent=cotangent, output=output, gradients=gradients)


def op_references() -> dict[str, Any]:
    """Every op of the package, called in several ways."""
    references = {}
    for name in OPS:
        draw = Draw(name)
        references[name] = [op_case(name, inputs, static, draw) for inputs, static in calls(name, draw)]
    return references


# Layers: each a function of its parameters (by the package's names for them) and its input.

Named = dict[str, torch.Tensor]


def part(p: Named, name: str) -> Named:
    """The parameters below a name."""
    return {key[len(name) + 1 :]: value for key, value in p.items() if key.startswith(name + ".")}


def affine(p: Named, x: torch.Tensor) -> torch.Tensor:
    return linear(x, p["weight"], p.get("bias"))


def layer_norm(p: Named, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p["weight"], p["bias"], eps)


def dropped(x: torch.Tensor, rate: float, keys: Iterator[Any] | None) -> torch.Tensor:
    return x if keys is None else x * mask_of(x.shape, rate, next(keys))


def one_head(p: Named, x: torch.Tensor, causal: bool, dropout: float = 0.0, keys: Any = None) -> torch.Tensor:
    q, k, v = (affine(part(p, name), x) for name in ("query", "key", "value"))
    if keys is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attention(q, k, v, causal=causal, dropout=dropout, seed=next(keys))


def many_heads(
    p: Named,
    x: torch.Tensor,
    n_head: int,
    dropout: float = 0.0,
    keys: Any = None,
    context: Any = None,
    key_mask: Any = None,
    causal: bool = True,
) -> torch.Tensor:
    noise = {} if keys is None else {"dropout": dropout, "seed": next(keys)}
    names = (
        ["qkv"] if context is None else ["q", "kv"]
    )  # (B, T, C) -> (B, T, 3C); or (B, T, C), (B, S, C) -> (B, S, 2C)
    made = [affine(part(p, name), z) for name, z in zip(names, (x, context))] + [None]
    y = multi_head_attention(*made[:2], key_mask, n_head=n_head, causal=causal and context is None, **noise)
    return dropped(affine(part(p, "out"), y), dropout, keys)


def list_of_heads(p: Named, x: torch.Tensor, n_head: int) -> torch.Tensor:
    return affine(part(p, "out"), torch.cat([one_head(part(p, f"heads.{i}"), x, True) for i in range(n_head)], -1))


def perceptron(p: Named, x: torch.Tensor, dropout: float = 0.0, keys: Any = None) -> torch.Tensor:
    y = F.gelu(affine(part(p, "up"), x), approximate="tanh")
    return dropped(affine(part(p, "down"), y), dropout, keys)


def block(
    p: Named,
    x: torch.Tensor,
    n_head: int,
    dropout: float = 0.0,
    keys: Any = None,
    context: Any = None,
    key_mask: Any = None,
    context_mask: Any = None,
    causal: bool = True,
    norm_first: bool = True,
) -> torch.Tensor:
    def add(x: torch.Tensor, norm: str, f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        normed = part(p, norm)
        return x + f(layer_norm(normed, x)) if norm_first else layer_norm(normed, x + f(x))

    own, cross = part(p, "attention"), part(p, "cross_attention")
    x = add(x, "ln_1", lambda x: many_heads(own, x, n_head, dropout, keys, None, key_mask, causal))
    if context is not None:
        x = add(x, "ln_cross", lambda x: many_heads(cross, x, n_head, dropout, keys, context, context_mask))
    return add(x, "ln_2", lambda x: perceptron(part(p, "mlp"), x, dropout, keys))


def shapes_of_affine(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_in, n_out), f"{name}.bias": (n_out,)}


def shapes_of_head(n_in: int, n_out: int, bias: bool, prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name in ("query", "key", "value"):
        shapes |= shapes_of_affine(prefix + name, n_in, n_out)
    return {name: shape for name, shape in shapes.items() if bias or not name.endswith("bias")}


def shapes_of_cross(C: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes = shapes_of_affine(prefix + "q", C, C) | shapes_of_affine(prefix + "kv", C, 2 * C)
    return shapes | shapes_of_affine(prefix + "out", C, C)


def shapes_of_block(C: int, cross: bool = False) -> dict[str, tuple[int, ...]]:
    crossing = {"ln_cross.weight": (C,), "ln_cross.bias": (C,), **shapes_of_cross(C, "cross_attention.")}
    return {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        **shapes_of_affine("attention.qkv", C, 3 * C),
        **shapes_of_affine("attention.out", C, C),
        **(crossing if cross else {}),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        **shapes_of_affine("mlp.up", C, 4 * C),
        **shapes_of_affine("mlp.down", 4 * C, C),
    }


def layer_calls(draw: Draw) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], Any, bool, Callable[..., Any]]]:
    """Layer, constructor's arguments, parameter shapes, input, whether it has dropout, and PyTorch's form of it."""
    x = draw(2, 5, 4)  # (B, T, C)
    C, C4 = {"weight": (4,)}, {"weight": (4,), "bias": (4,)}
    affine_shapes = {"weight": (4, 3), "bias": (3,)}
    yield "Linear", {"n_in": 4, "n_out": 3}, affine_shapes, x, False, affine
    yield "Linear", {"n_in": 4, "n_out": 3, "bias": False}, {"weight": (4, 3)}, x, False, affine
    ids = np.array([[1, 0, 1], [5, 1, 2]])
    yield "Embedding", {"count": 6, "size": 4}, {"weight": (6, 4)}, ids, False, lambda p, x: F.embedding(x, p["weight"])
    yield "LayerNorm", {"size": 4}, C4, x, False, layer_norm
    yield "LayerNorm", {"size": 4, "eps": 0.1}, C4, x, False, lambda p, x: layer_norm(p, x, 0.1)
    yield "RMSNorm", {"size": 4}, C, x, False, lambda p, x: F.rms_norm(x, (4,), p["weight"], 1e-5)
    yield "Dropout", {"rate": 0.3}, {}, x, False, lambda p, x: 1 * x
    yield "Dropout", {"rate": 0.3}, {}, x, True, lambda p, x, keys: dropped(x, 0.3, keys)
    mlp = {**shapes_of_affine("up", 4, 16), **shapes_of_affine("down", 16, 4)}
    yield "MLP", {"n_embd": 4}, mlp, x, False, perceptron
    yield "MLP", {"n_embd": 4, "dropout": 0.3}, mlp, x, True, lambda p, x, keys: perceptron(p, x, 0.3, keys)
    yield "SimplifiedSelfAttention", {}, {}, x, False, lambda p, x: torch.softmax(x @ x.mT, -1) @ x
    for bias in (False, True):
        head, shapes = {"n_in": 4, "n_out": 3, "bias": bias}, shapes_of_head(4, 3, bias)
        yield "SelfAttention", head, shapes, x, False, lambda p, x: one_head(p, x, False)
        yield "CausalAttention", head, shapes, x, False, lambda p, x: one_head(p, x, True)
    dropping = {"n_in": 4, "n_out": 3, "dropout": 0.3}
    shapes = shapes_of_head(4, 3, False)
    yield "CausalAttention", dropping, shapes, x, True, lambda p, x, keys: one_head(p, x, True, 0.3, keys)
    heads = {
        **shapes_of_head(4, 2, True, "heads.0."),
        **shapes_of_head(4, 2, True, "heads.1."),
        **shapes_of_affine("out", 4, 4),
    }
    yield "MultiHeadList", {"n_embd": 4, "n_head": 2}, heads, x, False, lambda p, x: list_of_heads(p, x, 2)
    shapes = {**shapes_of_affine("qkv", 4, 12), **shapes_of_affine("out", 4, 4)}
    two = {"n_embd": 4, "n_head": 2}
    yield "MultiHeadAttention", two, shapes, x, False, lambda p, x: many_heads(p, x, 2)
    yield "Block", two, shapes_of_block(4), x, False, lambda p, x: block(p, x, 2)
    dropping = {**two, "dropout": 0.3}
    yield "MultiHeadAttention", dropping, shapes, x, True, lambda p, x, keys: many_heads(p, x, 2, 0.3, keys)
    yield "Block", dropping, shapes_of_block(4), x, True, lambda p, x, keys: block(p, x, 2, 0.3, keys)
    context = draw(2, 3, 4)  # (B, S, C)
    mask, context_mask = np.arange(5) < np.array([[5], [2]]), np.arange(3) < np.array([[1], [3]])  # (B, T), (B, S)
    full, cross = {**two, "causal": False}, {**two, "cross": True}
    yield (
        "MultiHeadAttention",
        full,
        shapes,
        (x, None, mask),
        False,
        lambda p, x, context, mask: many_heads(p, x, 2, key_mask=mask, causal=False),
    )
    inputs = (x, context, context_mask)
    yield (
        "MultiHeadAttention",
        cross,
        shapes_of_cross(4),
        inputs,
        False,
        lambda p, x, context, mask: many_heads(p, x, 2, context=context, key_mask=mask),
    )
    inputs = (x, context, mask, context_mask)
    for forms in [(False, False, False), (False, True, True), (True, True, True)]:
        arguments = {**two, **dict(zip(("norm_first", "causal", "cross"), forms))}
        given = inputs if arguments["cross"] else (x, None, mask)
        shapes = shapes_of_block(4, arguments["cross"])
        yield "Block", arguments, shapes, given, False, functools.partial(any_block, *forms[:2])


def any_block(norm_first: bool, causal: bool, p: Named, x: torch.Tensor, *others: Any) -> torch.Tensor:
    return block(p, x, 2, 0.0, None, *others, norm_first=norm_first, causal=causal)


NOISE = (5, 2)  # the key of the block with dropout; each use of it adds its number, from 1


def layer_references() -> list[dict[str, Any]]:
    """Every layer: forward, and the gradients of its input and its parameters."""
    draw, references = Draw("layers"), []
    for name, arguments, shapes, x, noisy, form in layer_calls(draw):
        parameters = {key: draw(*shape) / math.sqrt(shape[0]) for key, shape in shapes.items()}
        p = {key: as_torch(value) for key, value in parameters.items()}
        inputs = x if isinstance(x, tuple) else (x,)
        given = {f"input {number}": as_torch(x) for number, x in enumerate(inputs)}
        leaves = {**p, **given}
        keys = {"keys": iter([(*NOISE, use) for use in range(1, 9)])} if noisy else {}
        y = form(p, *given.values(), **keys)
        leaves = {key: leaf for key, leaf in leaves.items() if is_leaf(leaf)}
        cotangent = draw(*y.shape)
        found = torch.autograd.grad(y, list(leaves.values()), torch.from_numpy(cotangent))
        references.append(
            dict(
                layer=name,
                arguments=arguments,
                noise=NOISE if noisy else None,
                parameters=parameters,
                inputs=inputs,
                cotangent=cotangent,
                output=y.detach().numpy(),
                gradients={key: gradient.numpy() for key, gradient in zip(leaves, found)},
            )
        )
    return references


# A whole GPT, and its training.

CONFIG = {"vocab_size": 13, "context_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}
# A bias on the keys does not change attention: its gradient is only rounding, about 1e-17. A step of AdamW is the
# gradient divided by its own size plus eps; with an eps of 1e-8, rounding would change the eleventh digit of that bias.
TRAINING = {
    "learning_rate": 0.02,
    "warmup": 0.25,
    "final": 0.1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-5,
    "max_norm": 0.5,  # some of the steps are clipped, some are not
    "steps": 10,
}


def gpt_parameters() -> Named:
    """Leaves by the package's names, larger than GPT-2's initial values, so that every path of the gradient matters."""
    draw, C = Draw("gpt"), CONFIG["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"wte": (CONFIG["vocab_size"], C), "wpe": (CONFIG["context_length"], C)}
    for i in range(CONFIG["n_layer"]):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in shapes_of_block(C).items()}
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    return {name: as_torch(draw(*shape) / math.sqrt(C)) for name, shape in shapes.items()}


def gpt(p: Named, tokens: torch.Tensor) -> torch.Tensor:
    """Logits: (B, T) -> (B, T, V)."""
    x = F.embedding(tokens, p["wte"]) + p["wpe"][: tokens.shape[1]]
    for i in range(CONFIG["n_layer"]):
        x = block(part(p, f"blocks.{i}"), x, CONFIG["n_head"])
    return F.linear(layer_norm(part(p, "ln_f"), x), p["wte"])  # the head is tied


def arrays_of(p: Named) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in p.items()}


def learning_rate(step: int) -> float:
    """Linear warm-up over the first quarter of the run, then half a cosine down; step counts from 1."""
    progress = step / TRAINING["steps"]
    if progress < TRAINING["warmup"]:
        return TRAINING["learning_rate"] * progress / TRAINING["warmup"]
    fallen = (progress - TRAINING["warmup"]) / (1 - TRAINING["warmup"])
    low = TRAINING["learning_rate"] * TRAINING["final"]
    return low + (TRAINING["learning_rate"] - low) * (1 + math.cos(math.pi * fallen)) / 2


def gpt_references() -> dict[str, Any]:
    """Loss, logits and all gradients of one batch; then ten steps of AdamW, each on a batch of its own."""
    p, draw = gpt_parameters(), Draw("batches")
    batches = []
    for _ in range(int(TRAINING["steps"])):
        tokens, targets = draw.ids(CONFIG["vocab_size"], 3, 7), draw.ids(CONFIG["vocab_size"], 3, 7)
        targets[0, :2] = IGNORED
        batches.append((tokens, targets))

    initial = arrays_of(p)
    tokens, targets = (torch.from_numpy(x) for x in batches[0])
    logits = gpt(p, tokens)
    loss = cross_entropy(logits, targets)
    gradients = arrays_of(dict(zip(p, torch.autograd.grad(loss, list(p.values())))))
    once = dict(loss=loss.item(), logits=logits.detach().numpy(), gradients=gradients)

    matrices = [value for value in p.values() if value.ndim >= 2]
    others = [value for value in p.values() if value.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": TRAINING["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        betas=(TRAINING["beta1"], TRAINING["beta2"]),
        eps=TRAINING["eps"],
    )
    losses, norms = [], []
    for step, (tokens, targets) in enumerate(batches, 1):
        optimizer.zero_grad()
        loss = cross_entropy(gpt(p, torch.from_numpy(tokens)), torch.from_numpy(targets))
        loss.backward()
        norm = math.sqrt(sum(float((value.grad * value.grad).sum()) for value in p.values()))
        if norm > TRAINING["max_norm"]:  # not clip_grad_norm_, which divides by norm + 1e-6
            for value in p.values():
                value.grad *= TRAINING["max_norm"] / norm
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)

    return dict(
        config=CONFIG,
        training=TRAINING,
        tokens=np.stack([tokens for tokens, _ in batches]),
        targets=np.stack([targets for _, targets in batches]),
        initial=initial,
        once=once,
        steps=dict(
            losses=np.array(losses),
            norms=np.array(norms),
            learning_rates=np.array([learning_rate(step) for step in range(1, len(batches) + 1)]),
            final=arrays_of(p),
        ),
    )


def everything() -> dict[str, Any]:
    """The content of each file, by its name."""
    return {"ops": op_references(), "layers": layer_references(), "gpt": gpt_references()}


def save(path: Path, tree: Any) -> None:
    """Write nested dicts and lists of arrays and plain values; a value that JSON lacks becomes a small dict."""
    numbers: list[np.ndarray] = []

    def encoded(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: encoded(value) for key, value in x.items()}
        if isinstance(x, (list, tuple)):
            return [encoded(value) for value in x]
        if isinstance(x, slice):
            return {"slice": [x.start, x.stop, x.step]}
        if x is ...:
            return {"ellipsis": True}
        if not isinstance(x, np.ndarray):
            return x
        if x.dtype != np.float64:
            return {"values": x.tolist(), "dtype": str(x.dtype)}
        start = sum(array.size for array in numbers)
        numbers.append(x.reshape(-1))
        return {"start": start, "shape": list(x.shape)}

    contents = np.array(json.dumps(encoded(tree)).encode())
    np.savez_compressed(path, numbers=np.concatenate(numbers), contents=contents)


if __name__ == "__main__":
    for name, tree in everything().items():
        path = FOLDER / f"{name}.npz"
        save(path, tree)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
