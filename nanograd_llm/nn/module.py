"""A Module is a tree of attributes: the parameters and modules it holds, named by where they hang."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from nanograd_llm.autograd.modes import state, within_module
from nanograd_llm.autograd.tensor import Parameter, Tensor, array_of
from nanograd_llm.errors import DtypeError, NanogradError, ShapeError
from nanograd_llm.ops.composed import count_targets

Specimen = tuple[Callable[..., Any], tuple[Any, ...]]  # a module or its loss, and inputs to check its gradients with


class Module:
    """Base of every layer and model. Assign parameters, modules or lists of them as attributes; write `forward`.

        class Bigram(Module):
            def __init__(self, vocab_size):
                self.table = Parameter(np.zeros((vocab_size, vocab_size), np.float32))

            def forward(self, tokens):
                return ops.embedding(self.table, tokens)

    Names follow the attributes: `blocks.2.attention.qkv.weight`. A parameter that hangs in two places is one parameter,
    under the first of its names. Only another leaf, a Module or None may take its place.

    specimens: a function of a `draw` (as for the samples of an op) that gives pairs (a module of this class, or its
        `loss` if it has one; a tuple of inputs). `nanograd-llm gradcheck` checks them, with every parameter drawn.
    """

    specimens: ClassVar[Callable[[Any], Iterable[Specimen]] | None] = None
    training = True  # dropout asks; `train()` and `eval()` set it for a whole tree
    _buffers: tuple[str, ...] = ()  # the names that `register_buffer` was given
    loss_items = "items"  # what `loss` is a mean over, in a word for progress and errors

    def __setattr__(self, name: str, value: Any) -> None:
        is_lost = value is not None and not isinstance(value, (Parameter, Module))
        if is_lost and isinstance(value, Tensor):
            is_lost = not (value.requires_grad and value.is_leaf)  # a leaf may stand in, as in a function of one weight
        if is_lost and isinstance(vars(self).get(name), Parameter):
            raise DtypeError(
                f"{type(self).__name__}.{name} is a Parameter, which this {type(value).__name__} would remove from "
                f"the model; write into it, {name}.data[...] = ..., or assign a Parameter"
            )
        object.__setattr__(self, name, np.asarray(array_of(value)) if name in self._buffers else value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NanogradError(f"{type(self).__name__} has no forward; write one")

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        raise NanogradError(f"{type(self).__name__} has no loss; write loss(tokens, targets), a mean over the targets")

    def loss_count(self, *batch: np.ndarray) -> int:
        """How many items `loss(*batch)` is a mean over: the weight of a piece of a batch.

        Here the targets that are not -100 where the last array holds integers, and its rows where it does not.
        """
        last = batch[-1]
        return count_targets(last) if last.dtype.kind in "iu" else len(last)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.entered():
            return self.forward(*args, **kwargs)

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Inside this block `checked()` and `watched()` name the modules below this one, as they do in `forward`.

        For other methods that call modules, such as a loss that does not go through `self(...)`.
        """
        if not state.tracing_calls:
            return contextlib.nullcontext()
        caller = state.innermost
        paths = (path for path, below in caller.named_modules() if below is self) if caller else ()
        return within_module(next(iter(paths), ""), self)

    def _attributes(self, kind: type) -> Iterator[tuple[str, Any]]:
        """Attributes of a kind, those in lists, tuples and dicts included, with their names."""
        return _of_kind(kind, vars(self), "")

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (named `prefix`) and every one below it, with dotted names."""
        yield prefix, self
        for name, child in self._attributes(Module):
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> list[Module]:
        """This module and every one below it."""
        return [module for _, module in self.named_modules()]

    def apply(self, f: Callable[[Module], Any]) -> Module:
        """Call f on every module below this one and on this one last; returns the module."""
        for module in reversed(self.modules()):
            f(module)
        return self

    def register_buffer(self, name: str, array: Any) -> None:
        """Keep an array, such as a running mean, as an attribute that `state_dict` holds and that is not trained."""
        setattr(self, name, np.array(array_of(array)))
        self._buffers = (*(other for other in self._buffers if other != name), name)

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each array that was registered as a buffer, with its dotted name."""
        for path, module in self.named_modules():
            for name in module._buffers:
                yield (f"{path}.{name}" if path else name), getattr(module, name)

    def _all_parameters(self) -> Iterator[tuple[str, Parameter]]:
        for path, module in self.named_modules():
            for name, parameter in module._attributes(Parameter):
                yield (f"{path}.{name}" if path else name), parameter

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Each parameter once, with its dotted name."""
        seen: set[int] = set()
        for name, parameter in self._all_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> list[Parameter]:
        """Each parameter once, in the order of the tree."""
        return [parameter for _, parameter in self.named_parameters()]

    def trainable_parameters(self) -> list[Parameter]:
        """The parameters that are not frozen, in the order of the tree."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def freeze(self) -> Module:
        """Stop training the whole tree: it has no gradient, and a trainer leaves it as it is; returns the module."""
        return self._require_grad(False)

    def unfreeze(self) -> Module:
        """Train the whole tree again; returns the module."""
        return self._require_grad(True)

    def _require_grad(self, required: bool) -> Module:
        for parameter in self.parameters():
            parameter.requires_grad, parameter.grad = required, None
        return self

    def parameter_count(self, unique: bool = True) -> int:
        """How many numbers the parameters hold; with unique=False a tied parameter counts wherever it hangs."""
        return sum(p.size for _, p in (self.named_parameters() if unique else self._all_parameters()))

    def train(self, mode: bool = True) -> Module:
        """Set training mode (dropout acts) on the whole tree; returns the module."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set evaluation mode (no dropout) on the whole tree; returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients that backward has accumulated."""
        for parameter in self.parameters():
            parameter.grad = None

    def astype(self, dtype: Any) -> Module:
        """Convert every parameter and float buffer to another float dtype, in place; returns the module."""
        for parameter in self.parameters():
            parameter.data, parameter.grad = parameter.data.astype(dtype), None
        for module in self.modules():
            for name in module._buffers:
                if getattr(module, name).dtype.kind == "f":
                    setattr(module, name, getattr(module, name).astype(dtype))
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> array of every parameter and buffer: the arrays themselves, not copies."""
        return {name: parameter.data for name, parameter in self.named_parameters()} | dict(self.named_buffers())

    def load_state_dict(self, arrays: Mapping[str, np.ndarray], *, assign: bool = False) -> None:
        """Copy these arrays into the parameters and buffers of the same names.

        Strict: if any name is missing or extra, or any shape or dtype differs, all are listed in one ShapeError and no
        parameter has changed.

        assign: the parameters become the arrays themselves, of any one float dtype, without a copy. They may be
            read-only, such as a mapped file: a trainer copies them into an array of its own.
        """
        own = self.state_dict()
        dtype = next(iter(arrays.values())).dtype if assign and arrays else None
        if dtype is not None and dtype.kind == "f":  # of no memory: only shape and dtype are looked at
            own |= {name: np.broadcast_to(np.zeros((), dtype), p.shape) for name, p in self.named_parameters()}
        require_fit(own, arrays, f"this {type(self).__name__}")
        for name, parameter in self.named_parameters():
            if assign:
                parameter.data, parameter.grad = np.asarray(arrays[name]), None
            else:
                parameter.data[...] = arrays[name]
        for name, buffer in self.named_buffers():
            buffer[...] = arrays[name]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}: {self.parameter_count():,} parameters"]
        lines += [
            f"  {name} {p.shape} {p.dtype}{'' if p.requires_grad else ' frozen'}" for name, p in self.named_parameters()
        ]
        return "\n".join(lines)


def _of_kind(kind: type, held: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in held.items():
        if isinstance(value, kind):
            yield f"{prefix}{key}", value
        elif isinstance(value, (list, tuple, dict)):
            inner = value if isinstance(value, dict) else dict(enumerate(value))
            yield from _of_kind(kind, inner, f"{prefix}{key}.")


def require_fit(own: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], owner: str) -> None:
    """Raise one ShapeError that lists every name that is missing, extra, or of another shape or dtype than its own."""
    problems = [f"missing: {name} {own[name].shape}" for name in own.keys() - arrays.keys()]
    problems += [f"extra: {name} {arrays[name].shape}" for name in arrays.keys() - own.keys()]
    for name in own.keys() & arrays.keys():
        expected, found = own[name], arrays[name]
        if expected.shape != found.shape or expected.dtype != found.dtype:
            problems.append(
                f"misfit: {name} is {found.shape} {found.dtype}, expected {expected.shape} {expected.dtype}"
            )
    if problems:
        raise ShapeError(f"the arrays do not fit {owner}:\n  " + "\n  ".join(sorted(problems)))
