"""`check_gradient`: any function, of NumPy, PyTorch or JAX, and any gradient of it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import Node
from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.errors import InPlaceError, NanogradError, SignatureError
from nanograd_llm.gradcheck.check.check import JACOBIAN, SECONDS, examined, quiet
from nanograd_llm.gradcheck.check.culprit import MOST
from nanograd_llm.gradcheck.check.function import as_names, input_names, label, owner_of, place_of, require_unused
from nanograd_llm.gradcheck.check.kinks import IN_STEPS
from nanograd_llm.gradcheck.check.report import Culprit, GradientError, Report
from nanograd_llm.gradcheck.check.trees import branches, leaves, rebuilt
from nanograd_llm.gradcheck.foreign.function import Foreign, WithCache, WithGradient, WithVjp
from nanograd_llm.gradcheck.foreign.inputs import described
from nanograd_llm.gradcheck.foreign.layers import Layer, is_layer
from nanograd_llm.gradcheck.foreign.library import Library, first_line
from nanograd_llm.settings import nearest

_CALLS = {"gradient": "gradient(*inputs)", "vjp": "vjp(dy, *inputs)", "backward": "backward(dy, cache)"}
_MISSING = (
    "give it directly behind the function, as in check_gradient(np.sin, np.cos, x), or as gradient=, vjp=, backward=; "
    "a function of this package's Tensors is checked by gradcheck"
)
_NATIVE = {"torch": "PyTorch takes torch.tensor(x)", "jax": "JAX takes jax.numpy.array(x)"}


@quiet()
def check_gradient(
    f: Any,
    *inputs: Any,
    gradient: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    seed: int = 0,
    jacobian: int = JACOBIAN,
    explain: bool = True,
    seconds: float = SECONDS,
    unused: Sequence[str] = (),
    **other: Any,
) -> Report:
    """Check the gradient of any function in any library, with the verdicts and reports of `gradcheck`.

        check_gradient(np.sin, np.cos, x)                        # f and gradient(*inputs)
        check_gradient(f, x, w, vjp=f_vjp)                       # f_vjp(cotangent, *inputs)
        check_gradient(f_forward, x, w, backward=f_backward)     # f_forward returns (y, cache); f_backward(dy, cache)
        check_gradient(layer, x)                                 # its methods forward(x) and backward(dy)
        check_gradient(torch_module, x)                          # or a torch.autograd.Function, any function of tensors
        check_gradient(jax_function, params, x)

    f: returns a float array, a number, or a tuple, list or dict of them. A function that also runs on complex numbers
        is checked more exactly.
    inputs: float arrays and floats are checked, as float64 copies; everything else is handed on as it is. They may be
        lists, tuples and dicts of arrays. If the first of them is a function, it is `gradient`, or a vjp if it takes
        one argument more than f.
    gradient, vjp, backward: at most one of them. Each returns one array for each input, of the input's shape (None for
        an input that is a constant); for a single input the array alone. `gradient(*inputs)` returns the gradient of a
        number; for an f that returns an array the derivative of each entry, if f maps each entry by itself, or the
        Jacobian, of shape y.shape + x.shape. The cotangent of an f that returns a tuple is a tuple.
    seed, jacobian, explain, seconds: see `gradcheck`.
    unused: names of float inputs, such as targets, and of float arrays of a layer, that are constants. Any other that
        moves the result, and for which no gradient is returned or stored, is wrong or a problem.

    A layer's parameters are checked as well: float arrays for which backward stores a gradient, `W` and `dW`,
    `params["W"]` and `grads["W"]`, or returns it behind those of the inputs. So are those of Modules that f uses.

    Raises NanogradError if f or the gradient raises an exception, or returns something other than the above; GraphError
    if there is nothing to check, or if f gives other numbers when it is called again. A function that writes into its
    input, and a cache that a later call overwrites, are problems in the report.
    """
    if other:
        known = [p.name for p in inspect.signature(check_gradient).parameters.values() if p.kind is p.KEYWORD_ONLY]
        takes = f"it takes {', '.join(f'{name}=' for name in known)}; give arguments of f by functools.partial"
        raise SignatureError(f"check_gradient has no {', '.join(other)}; {takes}")
    if "jax" in sys.modules:  # so that the classes that are registered there are opened
        importlib.import_module("nanograd_llm.gradcheck.foreign.jax_arrays")
    own = iter([copy.copy(x) if isinstance(x, np.ndarray) else x for one in inputs for _, x in leaves(one)])
    inputs = tuple(rebuilt(x, own) for x in inputs)  # f may write into them
    if inputs and gradient is None and callable(inputs[0]) and branches(inputs[0]) is None:
        if not hasattr(inputs[0], "forward") or not _takes(f, len(inputs)):  # else it is a Module, an input
            gradient, inputs = inputs[0], inputs[1:]
    if any(isinstance(x, Tensor) for _, x in leaves([*inputs])):
        raise SignatureError(
            "an input is a Tensor of this package, whose functions gradcheck checks; give check_gradient its .data"
        )
    rules = {"gradient": gradient, "vjp": vjp, "backward": backward}
    unused = as_names(unused)
    foreign = _foreign(f, inputs, unused, {name: rule for name, rule in rules.items() if rule is not None})
    require_unused(unused, foreign.may_be_unused, foreign.label)
    if kept := _defaults(f, len(inputs)):
        foreign.notes[f"checked with {', '.join(kept)} only: to check other values, give them as inputs"] = None

    def report() -> Report:
        return examined(_Recorded(foreign), (), 1, seed, jacobian, explain, seconds, trace=False)

    try:
        foreign.settle()
        found = report()
        if found.findings and not found.passed and foreign.is_narrow():
            foreign.narrow = True  # is the difference no more than the rounding of float32?
            found = report()
        problems = found.problems + tuple(foreign.problems(seed)) + tuple(foreign.unchecked())
    except InPlaceError as error:
        return Report(foreign.label, (), (str(error),), notes=tuple(foreign.notes))
    wrong = tuple(finding.name for finding in found.findings if finding.verdict == "wrong")
    faulty = wrong or tuple(finding.name for finding in found.findings if found.problems and finding.kinks)
    culprits = tuple(_culprits(foreign, faulty) if faulty and explain else ())
    doubts = [note for note, name in foreign.doubts.items() if name in wrong or wrong and not name]
    return dataclasses.replace(
        found,
        problems=problems,
        culprits=culprits,
        notes=(*found.notes, *foreign.notes, *doubts),
    )


def assert_gradient(f: Any, *inputs: Any, **how: Any) -> None:
    """`check_gradient`, for tests: raises GradientError, an AssertionError with the report, unless all is right."""
    report = check_gradient(f, *inputs, **how)
    if not report.passed:
        raise GradientError(report)


class _Recorded:
    """The function as `gradcheck` takes it: of Tensors, which it holds as a Module holds its parameters."""

    def __init__(self, foreign: Foreign):
        self.__name__ = foreign.label
        self._op = _ForeignOp(foreign)
        self._leaves = {name: Tensor(a.astype(np.float64), True) for name, a in zip(foreign.names, foreign.values)}

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._leaves.items()

    def __call__(self) -> Tensor:
        return self._op(*self._leaves.values())


class _ForeignOp(Op):
    """One op on the tape, whose forward is the function and whose rule is its gradient; it is in no registry."""

    def __init__(self, foreign: Foreign):
        def forward(*inputs: np.ndarray) -> np.ndarray:
            """A function of this shape line: inputs (?) -> y (?)"""
            return foreign.run(inputs)

        forward.__name__ = foreign.label
        super().__init__(forward, "y = f(inputs)", "inputs_bar = gradient", None, (), {}, None)
        self.foreign = foreign
        self.backward(lambda dy, inputs: tuple(foreign.pull(dy, inputs)))

    def pull_back(self, node: Node, cotangent: Any, needs: tuple[bool, ...], sums: Sums) -> list[Any]:
        return list(self.foreign.pull(cotangent, node.saved[0]))  # whose errors need no help from the engine


def _foreign(f: Any, inputs: Sequence[Any], unused: Sequence[str], rules: dict[str, Callable[..., Any]]) -> Foreign:
    """The function in the form that its type, the types of its inputs, and how its gradient is given ask for."""
    if len(rules) > 1:
        raise SignatureError(f"a gradient is given once; got {' and '.join(f'{name}=' for name in rules)}")
    if not callable(f) and not is_layer(f):
        kind = type(f)
        lacks = next((name for name in ("backward", "forward") if not callable(getattr(f, name, None))), "")
        near = nearest(lacks, (name for name in dir(kind) if callable(getattr(kind, name, None))))
        what = f"; its {lacks} is missing" + (f": is it {near}?" if near else "") if hasattr(f, "__dict__") else ""
        rest = [*rules.values(), *inputs]
        what = "; the function comes first" if any(callable(x) or is_layer(x) for x in rest) and not near else what
        raise SignatureError(f"check_gradient takes a function or a layer first; got {described(f)}{what}")
    if isinstance(f, type) and callable(getattr(f, "forward", None)) and not hasattr(f, "setup_context"):
        raise SignatureError(f"{label(f)} is a class; give a layer that is made: check_gradient({label(f)}(...), x)")
    if rules and not callable(f):
        what = "computes its gradient by its own backward: leave the other out, or give its forward as the function"
        raise SignatureError(f"{label(f)} is a layer, which {what}")
    if isinstance(f, Op):
        name = "ops." * (getattr(ops, f.name, None) is f) + f.name
        raise SignatureError(f"{f.name} is an op of this engine, which gradcheck checks: gradcheck({name}, ...)")
    missing = _MISSING + "".join(f"; a function of {hint}" for name, hint in _NATIVE.items() if name in sys.modules)
    if len(inputs) > 1 and isinstance(inputs[0], np.ndarray) and inputs[0].shape == np.shape(inputs[1]):
        missing = f"if the first array is the gradient, give the function that computes it, not its result; {missing}"
    if callable(getattr(f, "backward", None)) and not callable(getattr(f, "forward", None)):
        missing = f"{label(f)} has a backward and no forward; rename its __call__ to forward"
    names = input_names(f, len(inputs))
    library, autograd = library_of([f, owner_of(f), *(x for _, x in leaves(list(inputs)))], inputs)
    form, rule = next(iter(rules.items()), ("", None))
    owner = getattr(f, "__self__", None)
    if is_layer(owner) and f == owner.forward and rule == owner.backward:  # type: ignore[union-attr]
        f, rule = owner, None
    if rule is None and autograd is None and not is_layer(f):
        library, autograd = library_of([_result(f, inputs, missing)], inputs)  # of NumPy arrays, but computes in JAX
    library.unused = unused
    if rule is None and is_layer(f):
        return Layer(f, inputs, names, library)
    if rule is None and autograd is not None:
        return autograd(f, inputs, library)
    if rule is None:
        raise SignatureError(f"the gradient of {label(f)} is missing: {missing}")
    if not callable(rule):
        raise SignatureError(f"{form}= is {described(rule)}; give the function that computes it, not its result")
    if form == "gradient" and not _takes(rule, len(inputs)) and _takes(rule, len(inputs) + 1):
        form = "vjp"
    count = {"gradient": len(inputs), "vjp": len(inputs) + 1, "backward": 2}[form]
    if not _takes(rule, count):
        others = " or ".join(f"{name}= if it is called as {call}" for name, call in _CALLS.items() if name != form)
        lacks = ": is the cotangent dy, its first argument, missing?" if _takes(rule, count - 1) else ""
        given = "the gradient" if form == "gradient" else f"{form}="  # which may have been given without its name
        raise SignatureError(
            f"{given} is called as {_CALLS[form]}, here with {count} argument{'s' * (count != 1)}; "
            f"{label(rule)}{inspect.signature(rule)} does not take them{lacks}; give it as {others}"
        )
    kind = {"gradient": WithGradient, "vjp": WithVjp, "backward": WithCache}[form]
    made = kind(f, inputs, names, library, rule)
    first = input_names(rule, 1)[0]
    if form == "vjp" and first in names and first.isidentifier():  # not "input 0", of builtins
        words = f"{made.who} is called as vjp(dy, *inputs): its first argument, here {first}, is the cotangent"
        made.doubts[words] = ""
    return made


def _result(f: Callable[..., Any], inputs: Sequence[Any], missing: str) -> Any:
    """What f returns. Raises SignatureError where it raises an exception: the call may be meant otherwise."""
    try:
        return f(*inputs)
    except Exception as error:
        what = f"the gradient of {label(f)} is missing, and {label(f)} raised {type(error).__name__}"
        raise SignatureError(f"{what}: {first_line(error)}; {missing}") from error


def library_of(values: Sequence[Any], inputs: Sequence[Any]) -> tuple[Library, Callable[..., Foreign] | None]:
    """The library that one of these values belongs to, and the class of functions that it differentiates itself."""
    types = [x if isinstance(x, type) else type(x) for x in values]
    packages = {base.__module__.partition(".")[0] for kind in types for base in kind.__mro__}
    if "torch" in packages:
        from nanograd_llm.gradcheck.foreign import pytorch

        return pytorch.Torch(inputs), pytorch.Autograd
    if packages & {"jax", "jaxlib"}:
        from nanograd_llm.gradcheck.foreign import jax_arrays

        return jax_arrays.Jax(), jax_arrays.Autograd
    return Library(), None


def _takes(rule: Callable[..., Any], count: int) -> bool:
    """May it be called with so many arguments?"""
    try:
        inspect.signature(rule).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a builtin says nothing
        return True
    return True


def _defaults(f: Any, count: int) -> list[str]:
    """The settings that f was not given, as `axis=-1`."""
    if isinstance(f, np.ufunc):  # whose settings, such as casting=, leave the derivative as it is
        return []
    try:
        parameters = [*inspect.signature(getattr(f, "forward", f)).parameters.values()][count:]
    except (TypeError, ValueError):  # a builtin says nothing
        return []
    return [f"{p.name}={p.default!r}" for p in parameters if isinstance(p.default, (bool, int, float, str))]


def _culprits(foreign: Foreign, names: tuple[str, ...]) -> Iterator[Culprit]:
    """The functions that compute a wrong gradient, and where they are written; of a network, those of its layers."""
    found = list(itertools.islice(_in_parts(foreign), MOST)) if hasattr(foreign, "held") else []
    if found:  # no other reason is needed
        foreign.doubts = {note: name for note, name in foreign.doubts.items() if name}
    yield from found
    for name, rule in foreign.rules.items() if not found else ():
        if where := place_of(rule):
            place = f"computed by {name}" + (", or by another of these" if len(foreign.rules) > 1 else "")
            if name.endswith(".backward") and name != f"{foreign.label}.backward":
                place += ", or lost around it, as by .detach()"
            yield Culprit(foreign.label, place, where, names)


def _in_parts(whole: Any) -> Iterator[Culprit]:
    """The culprits in the layers that a network holds, or in the torch.autograd.Functions that a function applies: each
    is checked by itself with the inputs that it gets there."""
    right, in_doubt = [], False
    for name, part, inputs in whole.held():
        try:
            report = check_gradient(part, *inputs)
        except NanogradError as error:
            whole.notes[f"{name} could not be checked by itself: {first_line(error)}"] = None
            in_doubt = True
            continue
        for culprit in report.culprits:
            yield culprit if culprit.op == name else dataclasses.replace(culprit, op=f"{name}, {culprit.op}")
        if steps := [f for f in report.findings if f.reason == IN_STEPS]:
            names = tuple(f.name for f in steps)
            place = f"computed by {name}.backward"
            yield Culprit(name, place, place_of(part.backward) or repr(part.backward), names, IN_STEPS)
        right += [name] if report.passed else []
        in_doubt |= not report.passed
    if right and not in_doubt and not isinstance(whole, Layer):
        whole.rules = {}  # what is wrong lies between them
    if right:
        where = f"with the inputs that they get in {whole.label}"
        whole.notes[f"right by themselves, {where}: {', '.join(right)}"] = None
