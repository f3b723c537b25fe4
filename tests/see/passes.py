"""The same pass recorded by `trace` and walked by hand, and the inputs to do it with: every op, layer and model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import nanograd_llm as ng
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import walk
from nanograd_llm.autograd.tensor import Tensor, origin, registry
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.gradcheck.cases import samples
from nanograd_llm.gradcheck.cases.samples import draw_cases, laid_out, varied
from nanograd_llm.gradcheck.every_layer import draw_specimens, layers
from nanograd_llm.see.record import Record, layout_copy

OPS = [name for name, op in registry.items() if "." not in name]
LAYERS = [layer for layer in layers() if layer.__module__.startswith("nanograd_llm.") and layer.specimens]

METRICS = [
    {"step": s, "items": 10 * s, "loss": 3 / s, "learning_rate": 0.1, "gradient_norm": 2.0, "items_per_second": 5.0}
    for s in range(1, 9)
]

Pass = tuple[Callable[..., Any], tuple[Any, ...], Any]  # a function, its inputs, the cotangent of its result


def op_passes(name: str, cases: int, dtype: str, seed: int = 0) -> Iterator[Pass]:
    """Calls of an op with odd layouts, partial needs and Tensors given twice; those without a gradient are left out."""
    op, rng = registry[name], np.random.default_rng(seed)
    for case in draw_cases(op, rng, cases):
        case = varied(op, case, rng).astype(dtype)
        f, arrays = case.on(op)
        places = [i for i, _ in samples.differentiated(op, case) if case.needs is None or case.needs[i]]
        if case.layouts:
            arrays = [laid_out(a, case.layouts[i]) for a, i in zip(arrays, places)]
        y = f(*arrays)
        if arrays and np.asarray(y).dtype.kind == "f":
            yield f, tuple(arrays), rng.standard_normal(np.shape(y)).astype(np.asarray(y).dtype)


def layer_passes(layer: type, count: int = 1) -> Iterator[Pass]:
    rng = np.random.default_rng(0)
    for f, inputs in draw_specimens(layer, rng, count):
        y = f(*[Tensor(x) if getattr(x, "dtype", None) is not None and x.dtype.kind == "f" else x for x in inputs])
        yield f, inputs, rng.standard_normal(y.shape).astype(y.dtype)


def small_gpt(**changes: Any) -> Any:
    """A GPT with one block, and a batch for its loss."""
    sizes = dict(vocab_size=5, context_length=5, n_layer=1, n_head=2, n_embd=8)
    model = ng.GPT(ng.GPTConfig(**{**sizes, **changes}), seed=0)
    rng = np.random.default_rng(1)
    for p in model.parameters():  # no bias 0, no scale 1
        p.data = p.data + 0.1 * rng.standard_normal(p.shape).astype(np.float32)
    return model, np.array([[4, 0, 3, 2, 4]]), np.array([[0, 3, 2, 4, 1]])


def by_hand(f: Callable[..., Any], inputs: tuple[Any, ...], cotangent: Any) -> tuple[Any, list[Any], list[Any]]:
    """The result, (op, cotangent, gradients) of each call in the order of the forward, and the leaves' gradients."""
    given = [
        Tensor(layout_copy(x), requires_grad=True) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
        for x in inputs
    ]
    with blas_threads(1):
        y = f(*given)
        sums, steps = Sums(), []
        for node, arrived, gradients in walk(origin(y), np.asarray(cotangent, y.dtype), sums):
            copies = [None if g is None else g.copy() for g in gradients]
            steps.append((node.op, arrived.copy(), copies))
    return y.data, steps[::-1], list(sums.results().values())


def same_bits(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def differences(record: Record, f: Callable[..., Any], inputs: tuple[Any, ...], cotangent: Any) -> list[str]:
    """Where a record differs from the pass by hand, in any bit."""
    y, steps, leaves = by_hand(f, inputs, cotangent)
    found = [] if same_bits(y, record.result.array) else ["the result"]
    if [step[0] for step in steps] != [call.op for call in record.calls]:
        return [f"{[step[0].name for step in steps]} are not {[call.op.name for call in record.calls]}"]
    for call, (_, arrived, gradients) in zip(record.calls, steps):
        if not same_bits(arrived, call.cotangent):
            found.append(f"the cotangent of {call.number} {call.op.name}")
        for sent, gradient in zip(call.sent, gradients):
            if (sent is None) != (gradient is None) or not same_bits(sent, gradient) and sent is not None:
                found.append(f"a gradient of {call.number} {call.op.name}")
    own = [leaf.grad for leaf in record.leaves.values() if leaf.grad is not None]
    if len(own) != len(leaves) or not all(any(same_bits(gradient, grad) for grad in own) for gradient in leaves):
        found.append("the gradient of a leaf")
    return found
