"""A Module is a tree: its attributes are parameters and other modules, and their names are attribute paths."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nanograd_llm.autograd.modes import modes, within_module
from nanograd_llm.autograd.tensor import Parameter, Tensor, array_of
from nanograd_llm.backend.arrays import device_of, is_array, library, on_default_device, to_device, to_host
from nanograd_llm.backend.lazy import absent
from nanograd_llm.errors import DtypeError, NanogradError, ShapeError, SignatureError
from nanograd_llm.ops.composed import count_targets

Specimen = tuple[Callable[..., Any], tuple[Any, ...]]  # a module or its loss, and inputs to check its gradients with
_INSTEAD = {  # PyTorch's name -> what to use
    **{"cuda": "to('cuda')", "save": "ng.save_gpt2 or ng.save_bert"},
    **{"generate": "ng.inference.generate(model, ids)", "named_children": "named_modules()", "children": "modules()"},
    **{
        "register_parameter": "an attribute that is an ng.Parameter",
        "half": "astype(dtype)",
        "double": "astype(dtype)",
    },
}


class Module:
    """Base class of layers and models. Assign parameters, modules or lists of them as attributes; write `forward`.

        class Bigram(Module):
            def __init__(self, vocab_size):
                self.table = Parameter(np.zeros((vocab_size, vocab_size), np.float32))

            def forward(self, tokens):
                return ops.embedding(self.table, tokens)

    Names are attribute paths, such as `blocks.2.attention.qkv.weight`. A parameter that is in two places is one
    parameter, under the first of its names. It can be replaced by another leaf, a Module or None; anything else raises
    DtypeError, and so does a new attribute that is a Tensor with requires_grad=True: use a Parameter.

    specimens: modules and inputs for the gradient check: a function of a `draw` (as for the samples of an op) that
        gives pairs (a module of this class, or its `loss`; a tuple of inputs). `nanograd-llm gradcheck` checks them,
        with random parameters.
    fresh: names of parts that begin without pretrained weights, such as the head of a classifier: `nn.lora.add` lets
        them be trained as a whole.
    """

    specimens: ClassVar[Callable[[Any], Iterable[Specimen]] | None] = None
    training = True  # is dropout active? set by `train()` and `eval()` for the whole tree
    _buffers: tuple[str, ...] = ()  # the names given to `register_buffer`
    fresh: tuple[str, ...] = ()
    loss_items = "items"  # what `loss` is a mean over, as a noun for progress and errors

    def __setattr__(self, name: str, value: Any) -> None:
        is_lost = value is not None and not isinstance(value, (Parameter, Module))
        if is_lost and isinstance(value, Tensor):
            is_lost = not (value.requires_grad and value.is_leaf)  # a leaf may replace it, as for hvp in one weight
        if is_lost and isinstance(vars(self).get(name), Parameter):
            raise DtypeError(
                f"{type(self).__name__}.{name} is a Parameter, and assigning this {type(value).__name__} would remove "
                f"it from the model; write into it, {name}.data[...] = ..., or assign a Parameter"
            )
        is_leaf = (
            isinstance(value, Tensor) and not isinstance(value, Parameter) and value.requires_grad and value.is_leaf
        )
        if is_leaf and not isinstance(vars(self).get(name), Tensor):
            raise DtypeError(
                f"{type(self).__name__}.{name} would not be trained: a Module finds only Parameters; "
                f"write self.{name} = ng.Parameter(...), or self.{name} = x.detach() for an x that is only kept"
            )
        if name in self._buffers:
            value = array_of(value) if is_array(array_of(value)) else on_default_device(np.asarray(value))
        object.__setattr__(self, name, value)

    if not TYPE_CHECKING:  # type checkers would think that a Module has every attribute

        def __getattr__(self, name: str) -> None:
            raise absent(f"{type(self).__name__!r} object", name, _INSTEAD)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `module(...)` computes. Subclasses write it; here it raises NanogradError."""
        raise NanogradError(f"{type(self).__name__} has no forward; write one")

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """What a Trainer minimises: a Tensor (), a mean over `loss_count(...)` items. Subclasses write it."""
        raise NanogradError(f"{type(self).__name__} has no loss; write loss(tokens, targets), a mean over the targets")

    def loss_count(self, *batch: np.ndarray) -> int:
        """The number of items that `loss(*batch)` is a mean over: the weight of a part of a batch.

        By default the number of targets that are not -100 if the last array holds integers, else its number of rows.
        """
        last = batch[-1]
        return count_targets(last) if last.dtype.kind in "iu" else len(last)

    def loss_costs(self, *batch: np.ndarray) -> np.ndarray:
        """How long `loss(*batch)` computes for each row, relative to the other rows: array (B,).

        A trainer gives each worker rows that cost about as much in sum. By default all rows cost the same.
        """
        return np.ones(len(batch[0]))

    def example_batch(self, draw: Any) -> tuple[Any, ...]:
        """A small random batch for `loss`, to check its gradients at the model's own weights. draw: as for specimens.

        Models write it; here it raises NanogradError.
        """
        raise NanogradError(f"{type(self).__name__} has no example_batch; write one, which gives a batch for its loss")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if not modes().tracing_calls:  # then a block would only take time
                return self.forward(*args, **kwargs)
            with self.entered():
                return self.forward(*args, **kwargs)
        except TypeError:
            self._require_signature(args, kwargs)
            raise

    def _require_signature(self, args: Any, kwargs: Any) -> None:
        """Raise SignatureError if `forward` does not accept these arguments."""
        import inspect  # here, because most calls are right

        takes = inspect.signature(self.forward)
        try:
            takes.bind(*args, **kwargs)
        except TypeError as error:
            hint = ""
            if type(self).loss is not Module.loss:
                batch = ", ".join(inspect.signature(self.loss).parameters)
                hint = f"; for the loss, which it does not return, call model.loss({batch})"
            own = f"{type(self).__name__}.forward takes ({', '.join(takes.parameters)})"
            raise SignatureError(f"{own}; {error}{hint}") from None

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Inside this block `checked()` and `watched()` report paths of modules that start here, as in `forward`.

        For other methods that call modules, such as a loss that does not call `self(...)`.
        """
        if not modes().tracing_calls:
            return contextlib.nullcontext()
        caller = modes().innermost
        paths = (path for path, below in caller.named_modules() if below is self) if caller else ()
        return within_module(next(iter(paths), ""), self)

    def _attributes(self, kind: type) -> Iterator[tuple[str, Any]]:
        """(name, value) of the attributes of this type, including those in lists, tuples and dicts."""
        return _of_kind(kind, vars(self), "")

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(name, module) of this module, whose name is `prefix`, and of all modules in it, with dotted names."""
        yield prefix, self
        for name, child in self._attributes(Module):
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> list[Module]:
        """This module and all modules in it."""
        return [module for _, module in self.named_modules()]

    def apply(self, f: Callable[[Module], Any]) -> Module:
        """Call f on every module in this one, and on this one last; returns the module."""
        for module in reversed(self.modules()):
            f(module)
        return self

    def register_buffer(self, name: str, array: Any) -> None:
        """Add an array that is not trained, such as a running mean, as an attribute that `state_dict` includes."""
        array = array_of(array)
        setattr(self, name, array.copy() if is_array(array) else np.array(array))
        self._buffers = (*(other for other in self._buffers if other != name), name)

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of each registered buffer, with dotted names."""
        for path, module in self.named_modules():
            for name in module._buffers:
                yield (f"{path}.{name}" if path else name), getattr(module, name)

    def _all_parameters(self) -> Iterator[tuple[str, Parameter]]:
        for path, module in self.named_modules():
            for name, parameter in module._attributes(Parameter):
                yield (f"{path}.{name}" if path else name), parameter

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter) of each parameter, once, with dotted names."""
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
        """Stop training all parameters: they get no gradient and a trainer does not change them; returns the module."""
        return self._require_grad(False)

    def unfreeze(self) -> Module:
        """Train all parameters again; returns the module."""
        return self._require_grad(True)

    def _require_grad(self, required: bool) -> Module:
        for parameter in self.parameters():
            parameter.requires_grad, parameter.grad = required, None
        return self

    def parameter_count(self, unique: bool = True) -> int:
        """The number of elements of all parameters; with unique=False a shared one counts once for each name."""
        return sum(p.size for _, p in (self.named_parameters() if unique else self._all_parameters()))

    def train(self, mode: bool = True) -> Module:
        """Set training mode (with dropout) for the whole tree; returns the module."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set evaluation mode (without dropout) for the whole tree; returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set the `.grad` of every parameter to None."""
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

    def to(self, device: str) -> Module:
        """Move every parameter, its gradient and every buffer to this device, in place; returns the module.

        device: "cpu", or "cuda" for a GPU, which needs CuPy. Parameters that are shared stay shared. A trainer must be
        made after the move. Raises DeviceError if the GPU cannot be used.
        """
        library(device)
        for parameter in self.parameters():
            gradient = parameter.grad
            parameter.data = to_device(parameter.data, device)
            parameter.grad = None if gradient is None else to_device(gradient, device)
        for module in self.modules():
            for name in module._buffers:
                setattr(module, name, to_device(getattr(module, name), device))
        return self

    def cpu(self) -> Module:
        """Move the module to the CPU, as `to("cpu")`."""
        return self.to("cpu")

    def arrays(self) -> dict[str, Any]:
        """{name: array} of all parameters and buffers, without copies, each where it is: on the CPU or on a GPU."""
        return {name: parameter.data for name, parameter in self.named_parameters()} | dict(self.named_buffers())

    def state_dict(self) -> dict[str, np.ndarray]:
        """{name: NumPy array} of all parameters and buffers, for a file: without copies, unless they are on a GPU."""
        return {name: to_host(array) for name, array in self.arrays().items()}

    def load_state_dict(self, arrays: Mapping[str, np.ndarray], *, assign: bool = False) -> None:
        """Copy these arrays, which may be on any device, into the parameters and buffers of the same names.

        If a name is missing or extra, or a shape or dtype differs, one ShapeError lists all of them, and no parameter
        changes.

        assign: use the arrays themselves as the parameters' data, without a copy. They may be of any float dtype, the
            same for all, and read-only, such as a mapped file; a trainer makes its own copy.
        """
        own = self.arrays()
        dtype = next(iter(arrays.values())).dtype if assign and arrays else None
        if dtype is not None and dtype.kind == "f":  # expected shapes and dtypes, as arrays that use no memory
            own |= {name: np.broadcast_to(np.zeros((), dtype), p.shape) for name, p in self.named_parameters()}
        require_fit(own, arrays, f"this {type(self).__name__}")
        for name, parameter in self.named_parameters():
            if assign:
                parameter.data, parameter.grad = to_device(arrays[name], parameter.device), None
            else:
                parameter.data[...] = to_device(arrays[name], parameter.device)
        for name, buffer in self.named_buffers():
            buffer[...] = to_device(arrays[name], device_of(buffer))

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}: {self.parameter_count():,} parameters"]
        lines += [
            f"  {name} {p.shape} {p.dtype}{'' if p.requires_grad else ' frozen'}" for name, p in self.named_parameters()
        ]
        return "\n".join(lines)


@contextlib.contextmanager
def evaluating(modules: Iterable[Module]) -> Iterator[None]:
    """Inside this block these modules, such as `model.modules()`, are in evaluation mode; after it, in their own."""
    active = [module for module in modules if module.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True


def _of_kind(kind: type, held: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in held.items():
        if isinstance(value, kind):
            yield f"{prefix}{key}", value
        elif isinstance(value, (list, tuple, dict)):
            inner = value if isinstance(value, dict) else dict(enumerate(value))
            yield from _of_kind(kind, inner, f"{prefix}{key}.")


def require_fit(own: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], owner: str) -> None:
    """Raise one ShapeError that lists every name that is missing, extra, or has another shape or dtype than expected.

    own: the expected arrays; arrays: what was given; owner: what they are for, in words.
    """
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
