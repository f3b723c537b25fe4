"""Mistakes planted in a function that computes gradients, in any library.

Inputs for an op can be drawn, inputs for any function cannot. So the calls that the tests make show which mistakes
change a gradient: each mistake is tried beside the first few calls.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.errors import SignatureError
from nanograd_llm.gradcheck.check.promises import ERRORS
from nanograd_llm.gradcheck.check.trees import leaves, rebuilt
from nanograd_llm.gradcheck.foreign.check_gradient import library_of
from nanograd_llm.gradcheck.foreign.layers import Path, arrays_of, get_at, path_name
from nanograd_llm.gradcheck.mutation import mutants
from nanograd_llm.gradcheck.mutation.mutants import Call, Mutant

_CALLS = 6  # beside which the mistakes are tried
_NO_INPUTS = ("self", "cls", "ctx")  # first parameters

backward_rules: dict[tuple[str, str], BackwardRule] = {}  # by module and name; the latest definition counts


def backward_rule(function: Any = None, *, cotangent: str | None = "") -> Any:
    """Decorator: name a function that computes gradients, so that `pytest --gradient-mutants` plants mistakes in it.

        @backward_rule
        def softmax_backward(dy, x): ...

        class Linear:
            @backward_rule
            def backward(self, dout): ...

    It may also be called, as in a conftest.py: `layers.softmax_backward = backward_rule(layers.softmax_backward)`. The
    function does what it did before. Mistakes are planted in the arrays that it returns, and in those that a method
    stores in its object.

    cotangent: the name of the parameter that is the cotangent; by default the first that is not self, cls or ctx. None
        for a function without one, such as `gradient(*inputs)`. For JAX's `bwd(residuals, dy)` it is "dy"; there no
        mistake can be planted inside jax.jit.

    Raises SignatureError for what is not a function, and for a cotangent that is not one of its parameters.
    """
    if function is None:
        return functools.partial(backward_rule, cotangent=cotangent)
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(backward_rule(function.__func__, cotangent=cotangent))
    if not inspect.isfunction(function):
        raise SignatureError(f"backward_rule takes a function that computes gradients; got {function!r:.100}")
    rule = BackwardRule(function, cotangent)
    backward_rules[rule.__module__, rule.name] = rule

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return rule.rule(*args, **kwargs)

    return call


class BackwardRule:
    """A function that computes gradients. rule: what is called in its place; the function itself, or with a mistake.

    is_traced: was it called with arrays whose numbers are not known, as inside jax.jit?
    """

    def __init__(self, function: Callable[..., Any], cotangent: str | None):
        self.function = self.rule = function
        self.__module__ = function.__module__  # as an Op has it
        self.name = function.__qualname__.rpartition("<locals>.")[2]
        self.signature = inspect.signature(function)
        names = list(self.signature.parameters)
        self.owner = names[0] if names and names[0] in _NO_INPUTS else ""
        inputs = names[bool(self.owner) :]
        self.cotangent = next(iter(inputs), None) if cotangent == "" else cotangent
        if self.cotangent is not None and self.cotangent not in inputs:
            raise SignatureError(f"{self.name} has no parameter {self.cotangent!r} as its cotangent; it has {names}")
        self.is_traced = False
        self._calls = 0
        self._changes: dict[str, tuple[Mutant, list[np.ndarray | None]]] = {}

    def observed(self, *args: Any, **kwargs: Any) -> Any:
        """The function; beside the first calls every mistake is tried."""
        if self._calls == _CALLS:
            return self.function(*args, **kwargs)
        call = _FunctionCall(self, args, kwargs)
        if call.call is None:
            self.is_traced = True
            return call.returned
        self._calls += 1
        for mutant in self._conceivable(call):
            found: np.ndarray | None = np.zeros(0)
            with contextlib.suppress(*ERRORS):  # a mistake that does not fit this call changes nothing in it
                found = mutants.change([call.call.gradients], [call.with_mistake(mutant)])
            self._changes.setdefault(mutant.name, (mutant, []))[1].append(found)
        return call.returned

    def mutants(self) -> list[Mutant]:
        """The mistakes that changed a gradient in the observed calls."""
        changes = []
        for mutant, found in self._changes.values():
            known = [by for by in found if by is not None]
            changes.append((mutant, np.concatenate(known) if len(known) == len(found) else None))
        return mutants.distinct(changes)

    def _conceivable(self, call: _FunctionCall) -> Iterator[Mutant]:
        """Every mistake that has a meaning for such a call, even if it changes nothing."""
        names = call.names()
        for place, name in enumerate(names):
            mistakes = mutants.in_any_gradient()
            if call.has_cotangent:
                mistakes += mutants.from_any_cotangent() + mutants.from_cotangent_of_same_shape()
                title, words, mistake = mutants.not_summed("the input")
                mistakes.append((title, words, functools.partial(_showing, place, mistake)))
            for title, words, mistake in mistakes:
                sharp = title.startswith("scaled")
                yield FunctionMutant(self, f"{name}: {title}", f"{name} {words}", sharp, mistake, place)
        for place, name in enumerate(call.inputs):
            words = f"the terms that have {name} as a factor are dropped"
            mistake = functools.partial(mutants.without_saved, place)
            yield FunctionMutant(self, f"terms with {name} dropped", words, False, mistake, None)
        for place, (a, b) in enumerate(zip(names, names[1:])):
            mistake = functools.partial(mutants.exchanged, place)
            yield FunctionMutant(self, f"{a} and {b} exchanged", f"{a} and {b} are exchanged", False, mistake, None)


def _showing(place: int, mistake: mutants.Mistake, call: Call) -> list[Any]:
    """The mistake, which needs an array of the input's shape: as the gradient is."""
    return mistake(dataclasses.replace(call, shown=call.gradients[place]))


class FunctionMutant(Mutant):
    """One mistake in a function that computes gradients."""

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        rule: BackwardRule = self.op

        def mistaken(*args: Any, **kwargs: Any) -> Any:
            call = _FunctionCall(rule, args, kwargs)
            return call.returned if call.call is None else call.put(call.with_mistake(self))

        with mutants.only_one(rule):
            before, rule.rule = rule.rule, mistaken
            try:
                yield
            finally:
                rule.rule = before


class _FunctionCall:
    """One call of the function, made; and the same call for other cotangents, made on copies of its arguments.

    returned: what the function returned.  inputs: names of its array arguments, but for the cotangent.
    call: how mistakes see it, with the returned and the stored gradients in a row; None where numbers are not known.
    """

    def __init__(self, rule: BackwardRule, args: Sequence[Any], kwargs: dict[str, Any]):
        bound = rule.signature.bind(*args, **kwargs)
        self._rule, self._owner = rule, bound.arguments.get(rule.owner)
        self._library, _ = library_of([x for _, x in leaves([*bound.arguments.values()])], [])
        self._arguments = {name: _copied(x) for name, x in bound.arguments.items()}
        before = {path: (a, a.copy()) for path, a in arrays_of(self._owner)}
        self.returned = rule.function(*args, **kwargs)
        self._stored: list[Path] = []
        for path, a in arrays_of(self._owner):
            known, numbers = before.get(path, (None, None))
            if a is not known or not np.array_equal(a, numbers, equal_nan=True):  # type: ignore[arg-type]
                self._stored.append(path)
        self.call: Call | None = None
        with contextlib.suppress(Exception):  # of JAX, where numbers are not known
            floats = [name for name, x in self._arguments.items() if name != rule.owner and self._is_float(x)]
            self.inputs = [name for name in floats if name != rule.cotangent]
            saved = [self._library.to_numpy(self._arguments[name]) for name in self.inputs]
            self.has_cotangent = rule.cotangent in floats
            dy = self._library.to_numpy(self._arguments[str(rule.cotangent)]) if self.has_cotangent else np.zeros(())
            self._arrays(self.returned, self._owner)
            self.call = Call(self._again, dy, saved)

    def names(self) -> list[str]:
        """What to call each gradient."""
        returned = len(self._arrays(self.returned, None))
        numbered = [f"result {i} of {returned}" for i in range(1, returned + 1)]
        names = numbered if returned > 1 else ["the result"] * returned
        if returned == len(self.inputs):
            names = [f"the gradient of {name}" for name in self.inputs]
        return names + [f"the stored {path_name(self._owner, path)}" for path in self._stored]

    def with_mistake(self, mutant: Mutant) -> list[Any]:
        assert self.call is not None
        return mutant.gradients(self.call)

    def put(self, gradients: Sequence[Any]) -> Any:
        """What the function returns, with these gradients in place of its own, also in its object."""
        given = iter(gradients)
        new = [self._native(next(given), x) if self._is_float(x) else x for _, x in leaves(self.returned)]
        for path in self._stored:
            np.copyto(get_at(self._owner, path), next(given))  # in place: others may refer to the array
        return rebuilt(self.returned, iter(new))

    def _again(self, dy: np.ndarray, *saved: np.ndarray) -> tuple[np.ndarray, ...]:
        arguments = {name: _copied(x) for name, x in self._arguments.items()}
        for name, a in zip(self.inputs, saved):
            arguments[name] = self._native(a.copy(), arguments[name])
        if self.has_cotangent:
            name = str(self._rule.cotangent)
            arguments[name] = self._native(dy.copy(), arguments[name])
        bound = inspect.BoundArguments(self._rule.signature, arguments)  # type: ignore[arg-type]
        returned = self._rule.function(*bound.args, **bound.kwargs)
        return tuple(self._arrays(returned, arguments.get(self._rule.owner)))

    def _arrays(self, returned: Any, owner: Any) -> list[np.ndarray]:
        found = [self._library.to_numpy(x) for _, x in leaves(returned) if self._is_float(x)]
        return found + ([np.array(get_at(owner, path)) for path in self._stored] if owner is not None else [])

    def _is_float(self, x: Any) -> bool:
        return (hasattr(x, "dtype") or isinstance(x, float)) and self._library.to_numpy(x).dtype.kind == "f"

    def _native(self, a: Any, like: Any) -> Any:
        return self._library.native(np.asarray(a).astype(self._library.to_numpy(like).dtype), like)


def _copied(x: Any) -> Any:
    try:
        return copy.deepcopy(x)
    except Exception:  # as the ctx of a torch.autograd.Function, which does not change
        return x
