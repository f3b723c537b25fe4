"""Functions of PyTorch: any function of its tensors, a Module with its parameters, a torch.autograd.Function.

The gradient is what PyTorch's autograd computes. Numbers come from the function alone, on complex128 where it runs on
that, or what it is made of does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch._decomp import decomposition_table
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nanograd_llm.errors import DtypeError
from nanograd_llm.gradcheck.check.function import input_names, label, owner_of
from nanograd_llm.gradcheck.check.references import references
from nanograd_llm.gradcheck.check.trees import leaves, rebuilt
from nanograd_llm.gradcheck.foreign.function import Arrays, Foreign
from nanograd_llm.gradcheck.foreign.library import Library, is_wider
from nanograd_llm.ops.primitive import erf


class Torch(Library):
    """Tensors. Where some inputs require a gradient only those are checked, else all of floats.

    Each call draws the same random numbers, so that dropout is the same in each.
    """

    def __init__(self, inputs: Sequence[Any]):
        self._marked = any(isinstance(x, torch.Tensor) and x.requires_grad for _, x in leaves(list(inputs)))
        self._random = torch.Generator().manual_seed(0).get_state()

    def is_checked(self, leaf: Any, name: str) -> bool:
        if not isinstance(leaf, torch.Tensor):
            return isinstance(leaf, np.ndarray) and super().is_checked(leaf, name)
        if leaf.is_complex():
            raise DtypeError(f"{name} is complex; give its real and imaginary parts as float tensors")
        return leaf.is_floating_point() and (leaf.requires_grad or not self._marked)

    def to_numpy(self, leaf: Any) -> np.ndarray:
        if not isinstance(leaf, torch.Tensor):
            return np.asarray(leaf)
        if leaf.dtype in (torch.float16, torch.bfloat16):
            raise DtypeError(f"a tensor is {leaf.dtype}, too coarse to check a gradient; use float64 or float32")
        return leaf.numpy(force=True)

    def native(self, array: np.ndarray, like: Any) -> Any:
        if is_wider(array):
            raise DtypeError(f"PyTorch has no {array.dtype}; use float64")
        return torch.tensor(array, device=getattr(like, "device", None))

    def constant(self, leaf: Any) -> Any:
        is_float = isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"
        leaf = self.native(leaf, leaf) if is_float else leaf  # as one that is checked
        return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        dtype, random, threads = torch.get_default_dtype(), torch.get_rng_state(), torch.get_num_threads()
        torch.set_default_dtype(torch.float64 if self.only is None else torch.float32)
        torch.set_rng_state(self._random)
        torch.set_num_threads(1)  # of small arrays, on which threads wait for each other more than they compute
        try:
            with warnings.catch_warnings(), _Widening():
                warnings.filterwarnings("ignore", "Casting complex values to real")  # then differences are taken
                yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_rng_state(random)
            torch.set_num_threads(threads)


class _Widening(TorchFunctionMode):
    """Where an operation refuses operands of float32 and float64, all become float64; where it refuses complex numbers,
    it is computed from operations that take them.

    So a function that refers to float32 weights can be checked in float64, and softmax by complex step.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _PASSES:  # not again with copies of the inputs, which no gradient reaches
            with _InBackward():
                return function(*args, **kwargs)
        if function in _CONVOLUTIONS and _is_complex([args, kwargs]):
            args, kwargs = _widened([args, kwargs]) or (args, kwargs)
            return _convolved(function, *args, **kwargs)
        try:
            return function(*args, **kwargs)
        except RuntimeError:
            wide = _widened([args, kwargs])
            if not wide and not _is_complex([args, kwargs]):
                raise
            args, kwargs = wide or (args, kwargs)
            with _OnComplex():
                return function(*args, **kwargs)


_PASSES = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)
_CONVOLUTIONS = [getattr(torch, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)]


def _is_complex(operands: list[Any]) -> bool:
    return any(isinstance(x, torch.Tensor) and x.is_complex() for _, x in leaves(operands))


def _convolved(function: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any = None, *how: Any, **named: Any) -> Any:
    """The convolution of complex numbers from four of real ones. PyTorch takes three, (a + b)(c + d) - ac - bd, in
    which the small imaginary part of a complex step is lost."""

    def part(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        return function(x, weight, bias, *how, **named)

    real, imaginary = (None, None) if bias is None else (bias.real, bias.imag)
    return torch.complex(
        part(x.real, weight.real, real) - part(x.imag, weight.imag),
        part(x.real, weight.imag, imaginary) + part(x.imag, weight.real),
    )


class _InBackward(TorchDispatchMode):
    """Widens in a backward pass, in which PyTorch calls no TorchFunctionMode."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            return function(*args, **kwargs)
        except RuntimeError:
            wide = _widened([args, kwargs])
            if not wide or function._schema.is_mutable:  # what it writes would be lost with the copy
                raise
            return function(*wide[0], **wide[1])


def _widened(operands: list[Any]) -> list[Any] | None:
    """The operands of an operation, with each float as wide as the widest; None where all are alike."""
    tensors = [x for _, x in leaves(operands) if isinstance(x, torch.Tensor)]
    floats = {x.dtype for x in tensors if x.is_floating_point() or x.is_complex()}
    if len(floats) < 2:
        return None
    widest = functools.reduce(torch.promote_types, floats)
    wide = (x.to(widest) if getattr(x, "dtype", None) in floats else x for _, x in leaves(operands))
    return rebuilt(operands, wide)


class _OnComplex(TorchDispatchMode):
    """An operation that refuses complex numbers is computed from those that it is made of, by PyTorch's own table.

    Comparisons are of the real parts, and so is what is largest, as in NumPy.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, is_complex = kwargs or {}, any(isinstance(x, torch.Tensor) and x.is_complex() for x in args)
        own = _ANALYTIC.get(function.overloadpacket) if is_complex else None
        try:
            if own is None:
                return function(*args, **kwargs)
        except RuntimeError:
            if not is_complex:
                raise
        with self:
            own = own or decomposition_table.get(function)
            found = own(*args, **kwargs) if own else function.decompose(*args, **kwargs)
        if found is NotImplemented:
            found = function(*(x.real if isinstance(x, (torch.Tensor, complex)) else x for x in args), **kwargs)
            if not isinstance(found, torch.Tensor) or found.dtype != torch.bool:
                raise NotImplementedError(f"{function} is not computed on complex numbers")
        return found


def _largest(x: torch.Tensor, axes: Any = (), keepdim: bool = False) -> torch.Tensor:
    """Of entries with the same real part the one whose imaginary part is larger."""
    is_largest = x.real == x.real.amax(axes, keepdim=True)
    imaginary = torch.where(is_largest, x.imag, -torch.inf)
    return torch.complex(x.real.amax(axes, keepdim), imaginary.amax(axes, keepdim))


def _normalised(x: torch.Tensor, shape: Any, weight: Any, bias: Any, epsilon: float) -> tuple[torch.Tensor, ...]:
    variance, mean = _spread(x, range(-len(shape), 0), False, True)
    scale = 1 / torch.sqrt(variance + epsilon)
    y = (x - mean) * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, scale


def _spread(
    x: torch.Tensor, axes: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None
) -> tuple[torch.Tensor, ...]:
    """Variance and mean; that of |z|, which PyTorch takes, is not analytic."""
    axes = tuple(range(x.ndim) if axes is None else axes)
    mean = x.mean(axes, keepdim=True)
    number = x.numel() / mean.numel() - (unbiased if correction is None else correction)
    return ((x - mean) ** 2).sum(axes, keepdim) / number, mean if keepdim else x.mean(axes)


_aten: Any = torch.ops.aten
_ANALYTIC: dict[Any, Callable[..., Any]] = {  # what PyTorch's table lacks, or computes with |z|
    _aten.abs: lambda x: torch.where(x.real < 0, -x, x),
    _aten.amax: _largest,
    _aten.amin: lambda x, *how: -_largest(-x, *how),
    _aten.max: lambda x, *how: (_largest(x, *how), x.real.max(*how).indices) if how else _largest(x),
    _aten.min: lambda x, *how: (-_largest(-x, *how), x.real.min(*how).indices) if how else -_largest(-x),
    _aten.maximum: lambda a, b: torch.where(a.real >= b.real, a, b),
    _aten.minimum: lambda a, b: torch.where(a.real <= b.real, a, b),
    _aten.native_layer_norm: _normalised,
    _aten.var_mean: _spread,
    _aten.erf: lambda x: torch.tensor(erf(x.numpy(force=True)), device=x.device),
}


class Autograd(Foreign):
    """The rule is PyTorch's: what its autograd makes of the function.

    Checked too are the parameters that f uses of the Modules that it is or refers to, and any tensor that a gradient
    reaches, unless f makes it itself.
    """

    shares = "it uses what calls share, as in a class or a global; store it in ctx, as ctx.save_for_backward(x)"

    def __init__(self, f: Callable[..., Any], inputs: Sequence[Any], library: Library):
        function = owner_of(f)
        is_own = isinstance(function, type) and issubclass(function, torch.autograd.Function)
        self._is_own, has_context = is_own, is_own and _takes_context(function)
        self._function = function.apply if is_own else f
        names = input_names(function.forward if is_own else f, len(inputs) + has_context)[has_context:]
        held = list(references([("", f), *zip(names, inputs)], _is_held, "torch"))
        self._modules = _Modules(x for _, x in held if isinstance(x, torch.nn.Module))
        tensors = dict([*self._modules.named_parameters(), *self._modules.named_buffers()])
        self._constants = {name: x for name, x in tensors.items() if not x.requires_grad}
        self._tensors = [x for x in self._modules.parameters() if x.requires_grad]
        known: dict[int, str] = {}
        for name, value in held:
            for path, x in value.named_parameters(name) if isinstance(value, torch.nn.Module) else [(name, value)]:
                known.setdefault(id(x), path)
        self._unknown: dict[str, str] = {}  # where a gradient arrives that is not checked, and why
        self.functions: dict[Any, None] = {}  # the torch.autograd.Functions on the way
        used = self._used(inputs, library)
        shown: dict[str, torch.Tensor] = {}
        taken = {name for x, whole in zip(inputs, names) for name, _ in leaves(x, whole)}
        for x in [used[i] for i in dict.fromkeys([*known, *used]) if i in used]:
            name = known.get(id(x), f"tensor {tuple(x.shape)}")
            others = (f"{name} #{number}" for number in itertools.count(2))
            shown[next(n for n in itertools.chain([name], others) if n not in taken and n not in shown)] = x
        checked = {name: x for name, x in shown.items() if name not in library.unused}
        self._tensors = list(checked.values())  # that are checked besides the inputs
        constant = {id(x) for name, x in shown.items() if name not in checked}
        self._constants |= {name: x for name, x in tensors.items() if id(x) in constant}
        super().__init__(self._function, [*self._tensors, *inputs], [*checked, *names], library, f)
        self.may_be_unused = [*dict.fromkeys([*self.inputs.all_names, *known.values(), *shown, *self._unknown])]
        self._known = {id(x) for x in shown.values()}  # checked, or named as unused
        self.label = label(function if is_own else f)
        self.who = f"the backward of {self.label}"
        self._writers: dict[str, None] = {}  # Functions whose backward writes into its cotangent
        self._passes = itertools.count()
        if not is_own:
            self.doubts["no gradient goes through .detach(), .data, .item(), float() and torch.no_grad()"] = ""

    def call(self, *arguments: Any) -> Any:
        values, inputs = arguments[: len(self._tensors)], arguments[len(self._tensors) :]

        def work() -> Any:
            result = self._function(*inputs)  # which may be one of the tensors itself
            alike = (x.view_as(x) if isinstance(x, torch.Tensor) else x for _, x in leaves(result))
            return rebuilt(result, alike)

        return self._with(values, work)

    def pull(self, dy: np.ndarray, arrays: Arrays) -> list[np.ndarray]:
        count = len(self._tensors)
        natives = self.natives(arrays)
        sources = [*self._tensors, *(x.requires_grad_() for x in natives[count:])]

        def work() -> list[np.ndarray]:
            inputs = self.inputs.having(iter(natives))[count:]
            before = _made_so_far()
            result = self.guarded(lambda: self._function(*inputs), arrays)
            both = zip(leaves(result), leaves(self.cotangent(dy, result)))
            pairs = [(y, v) for (_, y), (_, v) in both if isinstance(y, torch.Tensor) and y.requires_grad]
            if not pairs:
                return [np.zeros_like(a) for a in arrays]
            results, cotangents = zip(*pairs)
            self.between()
            self._look_at(_nodes(results, before), {*self._known, *map(id, sources)}, before)
            torch.default_generator.manual_seed(next(self._passes))  # so that a backward that draws numbers varies
            gradients = self.guarded(
                lambda: torch.autograd.grad(results, sources, cotangents, allow_unused=True), arrays, self.who
            )
            return self.gradients(list(gradients), arrays)

        with self.library.context():
            return self._with(natives[:count], work)

    def _with(self, values: Sequence[torch.Tensor], work: Callable[[], Any]) -> Any:
        """What `work` returns while the tensors have these values, and the Modules copies of their constants.

        A backward pass belongs into `work`: it may call the Modules again, and looks at the tensors' values.
        """
        dtype, before = torch.get_default_dtype(), [x.data for x in self._tensors]
        own = [(name, x, dtype if x.is_floating_point() else x.dtype) for name, x in self._constants.items()]
        constants = {name: x.detach().to(kind, copy=True) for name, x, kind in own}
        try:
            for x, value in zip(self._tensors, values):
                x.requires_grad_(not value.is_complex())  # of which PyTorch differentiates less than it computes
                x.data = value.detach()
            return torch.func.functional_call(self._modules, constants, (work,))
        finally:
            for x, value in zip(self._tensors, before):
                x.data = value
                x.requires_grad_()

    def _used(self, inputs: Sequence[Any], library: Library) -> dict[int, torch.Tensor]:
        """By id, what f uses besides its inputs: the parameters of Modules, and any tensor that a gradient arrives at.

        Tensors that f makes are others in each call.
        """
        parameters, calls = {id(p) for p in self._modules.parameters()}, list[dict[int, torch.Tensor]]()
        for _ in range(2):
            given = [(library.constant(x), library.is_checked(x, name)) for name, x in leaves([*inputs])]
            uses, before, found = _Uses(), _made_so_far(), dict[int, torch.Tensor]()
            with contextlib.suppress(Exception), library.context():  # `settle` reports what f raises
                values = [_as_checked(x, True) for x in self._tensors]
                own = [_as_checked(x, is_float) if isinstance(x, torch.Tensor) else x for x, is_float in given]
                with uses:
                    result = self._with(values, functools.partial(self._function, *rebuilt([*inputs], iter(own))))
                results = [y for _, y in leaves(result) if isinstance(y, torch.Tensor)]
                seen, nodes = [*uses.found.values(), *results], _nodes(results, before)
                found |= {id(x): x for x in seen if id(x) in parameters and x.requires_grad}
                found |= {id(node.variable): node.variable for node in nodes if hasattr(node, "variable")}
                if calls:
                    self._look_at(nodes, {*calls[0], *map(id, own)}, before)
            calls.append(found)
        return {i: x for i, x in calls[0].items() if i in calls[1]}

    def problems(self, seed: int) -> Iterator[str]:
        yield from super().problems(seed)
        for name in self._writers:
            yield f"{name} writes into its cotangent, which other inputs may share; copy it first"

    def unchecked(self) -> Iterator[str]:
        yield from super().unchecked()
        for name, when in self._unknown.items():
            if name not in self.library.unused:
                yield (
                    f"a gradient of {self.label} reaches {name}, {when}: not checked; give it as an input, or, if it "
                    f"is a constant, detach() it or pass unused={[name]}"
                )

    def chosen(self, returned: list[Any]) -> list[Any]:
        return returned

    def held(self) -> Iterator[tuple[str, Any, Sequence[Any]]]:
        """The torch.autograd.Functions that f applies: the name of each, itself, and the inputs of its first call."""
        calls: dict[Any, Sequence[Any]] = {}

        def recording(function: Any) -> Any:
            forward, has_context = function.forward, _takes_context(function)

            def recorded(*inputs: Any) -> Any:
                given = inputs[has_context:]
                calls.setdefault(function, [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in given])
                return forward(*inputs)

            return staticmethod(recorded)

        own = {function: vars(function).get("forward") for function in self.functions if not self._is_own}
        try:
            for function in own:
                function.forward = recording(function)
            self.run([a.astype(np.float64) for a in self.values])
        finally:
            for function, forward in own.items():
                if forward is None:  # it is inherited
                    del function.forward
                else:
                    function.forward = forward
        for function, inputs in calls.items():
            yield function.__name__, function, inputs

    def _look_at(self, nodes: Sequence[Any], known: set[int], before: int) -> None:
        """Note the torch.autograd.Functions on the way, and where it ends apart from the known tensors."""
        for node in nodes:
            if hasattr(node, "variable") and id(node.variable) not in known:
                self._unknown[f"tensor {tuple(node.variable.shape)}"] = "which it makes in each call"
            elif node._sequence_nr() < before:
                self._unknown[f"the result of {node.name()}"] = "which was computed before the call"
        own = [node for node in nodes if isinstance(node, torch.autograd.function.BackwardCFunction)]
        self.functions = dict.fromkeys(node._forward_cls for node in own)
        self.rules = {f"{node._forward_cls.__name__}.backward": node._forward_cls.backward for node in own}
        for node in own:
            self._watch(node)

    def _watch(self, node: Any) -> None:
        """Note where the backward of a Function writes into its cotangent."""
        name, before = f"{node._forward_cls.__name__}.backward", list[int]()

        def versions(cotangents: Any) -> list[int]:
            return [v._version for v in cotangents if v is not None]

        def after(gradients: Any, cotangents: Any) -> None:
            self._writers |= {name: None} if versions(cotangents) != before else {}

        node.register_prehook(lambda cotangents: before.extend(versions(cotangents)))
        node.register_hook(after)


def _takes_context(function: Any) -> bool:
    """Is the first argument of this torch.autograd.Function's forward its context, which is no input?"""
    return function.setup_context is torch.autograd.Function.setup_context


def _nodes(results: Sequence[torch.Tensor], before: int) -> list[Any]:
    """The nodes of the graph behind these results; nothing behind those that were made before."""
    found, stack = dict[Any, None](), [y.grad_fn for y in results]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found[node] = None
            stack += [following for following, _ in node.next_functions] if node._sequence_nr() >= before else []
    return list(found)


def _as_checked(x: torch.Tensor, is_float: bool) -> torch.Tensor:
    """A copy of an input, a checked one as a leaf in the numbers of a check."""
    return x.detach().to(torch.get_default_dtype() if is_float else x.dtype, copy=True).requires_grad_(is_float)


def _made_so_far() -> int:
    """Nodes of the graph that are made from now on have at least this number; those of leaves the largest."""
    return torch.ones((), requires_grad=True).clone().grad_fn._sequence_nr()


class _Uses(TorchFunctionMode):
    """Every tensor that operations get, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, torch.Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = [args, kwargs or {}]
        self.found |= {id(x): x for _, x in leaves(operands) if isinstance(x, torch.Tensor)}
        return function(*args, **operands[1])


def _is_held(value: Any) -> bool:
    return isinstance(value, (torch.nn.Module, torch.Tensor))


class _Modules(torch.nn.ModuleList):
    """The Modules that f refers to; while it runs, others may take the place of what they hold."""

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()
