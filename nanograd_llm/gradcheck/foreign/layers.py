"""Layers as homework has them: an object with `forward`, which stores what `backward` needs, and arrays as parameters.

A parameter is a float array in the layer that forward uses and for which backward stores a gradient under a name made
of its own: `W` and `dW`, `W_grad` or `grad_W`; `params["W"]` and `grads["W"]`; `W.data` and `W.grad`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.errors import NanogradError
from nanograd_llm.gradcheck.check.trees import leaves, rebuilt
from nanograd_llm.gradcheck.foreign.function import Arrays, Foreign
from nanograd_llm.gradcheck.foreign.inputs import Inputs
from nanograd_llm.gradcheck.foreign.library import Library, first_line

Path = tuple[str | int, ...]
_FORMS = ("d{}", "d_{}", "g_{}", "delta_{}", "grad_{}", "grad{}", "gradient_{}", "{}_grad", "{}grad", "{}_gradient")
_PARAMETERS = {"param", "params", "parameters", "weights", "data", "value", "values"}
_GRADIENTS = {"grad", "grads", "gradient", "gradients", "dparams", "weight_grads"}


class Layer(Foreign):
    """An object with `forward(*inputs)` and `backward(cotangent)`, and its parameters, which are checked too.

    Or `forward` returns (result, cache), and the other is `backward(cotangent, cache)`. Every call is made on a fresh
    copy of the layer, whose stored gradients are zero: the layer itself stays as it is. `backward` may also return the
    gradients of the parameters, behind those of the inputs and in their order.
    """

    shares = "this call was of a copy, with which it shares what forward stored, as in its class; store it in self"

    def __init__(self, layer: Any, inputs: Sequence[Any], names: Sequence[str], library: Library):
        self.layer, self._given, self._inputs_as_given = layer, Inputs(inputs, names, library), inputs
        self._called_before: list[Sequence[Any]] = []  # with these inputs each copy is called first
        self._constants: list[str] = []  # float arrays that move the result, for which no gradient is stored
        self._integers: list[str] = []  # arrays of integers for which one is stored
        self._places: dict[str, tuple[Path, Path | None]] = {}
        self._parameters = self._found(inputs)
        super().__init__(layer.forward, [self._parameters, *inputs], ["", *names], library, layer.backward)
        self.names[: len(self._parameters)] = self._parameters
        self.label = type(layer).__name__
        self.who = f"{self.label}.backward"
        self.rules = {self.who: layer.backward}
        self.may_be_unused = [*self._given.all_names, *(path_name(layer, path) for path, _ in arrays_of(layer))]

    def problems(self, seed: int) -> Iterator[str]:
        yield from super().problems(seed)
        arrays = [a.astype(np.float64) for a in self.values]
        others = self.natives([a * (1 - 2.0**-10) for a in arrays])
        y = self.run(arrays)
        dy = np.random.default_rng(seed).standard_normal(y.shape)
        found = self.pull(dy, arrays)
        self._called_before = [self.inputs.having(iter(others))[1:]]
        again = [self.run(arrays), *self.pull(dy, arrays)]
        self._called_before = []
        same, *rest = (np.array_equal(a, b, equal_nan=True) for a, b in zip([y, *found], again))
        if same and not all(rest):  # one that counts its calls, as for dropout, has another result too
            yield (
                f"{self.who} gives another gradient where {self.label}.forward was called with other inputs before: it "
                "uses what an earlier call stored; store it again in each call"
            )

    def unchecked(self) -> Iterator[str]:
        for name in (*self._given.integers, *self._integers):
            yield f"{name} is integer, so its gradient was not checked: give floats"
        names = [name for name in self._constants if name not in self.library.unused]
        if names:
            owner, dot, last = names[0].rpartition(".")
            attribute, bracket, key = last.partition("[")
            gradient = "grads" if bracket and attribute.lower() in _PARAMETERS else f"d{attribute}"
            if not bracket and attribute in ("data", "param", "value"):
                gradient = "grad"
            yield (
                f"{self.who} stores no gradient for {', '.join(names[:4])}: not checked; store it as "
                f"{owner}{dot}{gradient}{bracket}{key}, or, if it is a constant, pass unused={names[:4]}"
            )

    def call(self, parameters: dict[str, Any], *inputs: Any) -> Any:
        return _called(self._with(parameters), inputs)[0]

    def pull(self, dy: np.ndarray, arrays: Arrays) -> list[np.ndarray]:
        def both(parameters: dict[str, Any], *inputs: Any) -> Any:
            layer = self._with(parameters)
            result, backward = _called(layer, inputs)
            cotangent = self.cotangent(dy, result)
            self.between()
            return layer, self.ruled(backward, cotangent)

        return self.gradients(self.applied(both, arrays, who=self.who), arrays)

    def held(self) -> Iterator[tuple[str, Any, Sequence[Any]]]:
        """The layers that this one holds and calls: the name of each, the layer, and the inputs of its first call."""
        network = copy.deepcopy(self.layer)
        calls: dict[Path, Sequence[Any]] = {}

        def recording(path: Path, forward: Any) -> Any:
            def recorded(*inputs: Any, **settings: Any) -> Any:
                calls.setdefault(path, copy.deepcopy(inputs))
                return forward(*inputs, **settings)

            return recorded

        others = _found_in(network, lambda part: part is not network and is_layer(part) and hasattr(part, "__dict__"))
        for path, part in list(others):
            vars(part)["forward"] = recording(path, part.forward)
        network.forward(*copy.deepcopy(self._inputs_as_given))
        for path, inputs in calls.items():
            yield path_name(self.layer, path), get_at(self.layer, path), inputs

    def _found(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """The layer's parameters by name, and in `_places` where each and its gradient lie; found by one call."""
        layer = copy.deepcopy(self.layer)
        before = dict(arrays_of(layer))
        try:
            result, backward = _called(layer, copy.deepcopy(inputs))
            if result is None:
                raise NanogradError(f"{type(layer).__name__}.forward returned None; return the output")
            used = {path: a for path, a in before.items() if get_at(layer, path) is a}  # others are what forward stores
            ones = rebuilt(result, iter([np.ones_like(leaf) for _, leaf in leaves(result)]))
            returned = backward(ones)
        except NanogradError:
            raise
        except Exception as error:
            what = f"{type(layer).__name__} raised {type(error).__name__}"
            raise NanogradError(f"{what}: {first_line(error)}") from error
        after = [path for path, _ in arrays_of(layer)]
        for path, a in used.items():
            gradient = next((place for place in after if _is_gradient_of(place, path)), None)
            if gradient is not None and not any(a is used[other] for other, _ in self._places.values()):
                self._places[path_name(layer, path)] = path, gradient
        extra = len(returned) - len(inputs) if isinstance(returned, (tuple, list)) else 0
        if not self._places and 0 < extra == len(used):
            self._places = {path_name(layer, path): (path, None) for path in used}
        matched = {id(used[path]) for path, _ in self._places.values()}
        gradients = [gradient for _, gradient in self._places.values()]
        self._constants = [
            path_name(layer, path)
            for path, a in used.items()
            if id(a) not in matched and path not in gradients and self._moves(path, inputs)
        ]
        integers = [path for path, _ in arrays_of(self.layer, "iu")]
        self._integers = [
            path_name(layer, path) for path in integers if any(_is_gradient_of(place, path) for place in after)
        ]
        return {name: used[path] for name, (path, _) in self._places.items()}

    def _moves(self, path: Path, inputs: Sequence[Any]) -> bool:
        """Does the result change where this array does?"""
        layers = [copy.deepcopy(self.layer) for _ in range(2)]
        a = get_at(layers[1], path)
        set_at(layers[1], path, 1.125 * a + 0.125 * np.abs(a).max(initial=0) + (not a.any()))
        results = [[np.asarray(y) for _, y in leaves(_called(layer, copy.deepcopy(inputs))[0])] for layer in layers]
        return not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*results))

    def _with(self, parameters: dict[str, Any]) -> Any:
        """A copy of the layer with these parameters, and with gradients that are zero."""
        layer = copy.deepcopy(self.layer)
        arrays = dict(arrays_of(layer))
        new = {}
        for name, (path, gradient) in self._places.items():
            new[id(arrays[path])] = parameters[name]
            if gradient is not None and gradient in arrays:
                new[id(arrays[gradient])] = np.zeros_like(parameters[name])
        for path, a in arrays.items():
            if id(a) in new:
                set_at(layer, path, new[id(a)])
        for inputs in self._called_before:
            layer.forward(*inputs)
        return layer

    def gave(self, name: str) -> str:
        path, place = self._places.get(name, ((), None))
        return "returned" if place is None else f"stored in {path_name(self.layer, place)}"

    def chosen(self, returned: tuple[Any, Any]) -> list[Any]:
        """The gradients that the layer stored, and those of the inputs, which backward returned."""
        layer, returned = returned
        if returned is None and self._given.values:
            gradient = next((name for name in ("dinputs", "dinput", "dx", "dX") if name in vars(layer)), "")
            hint = f": return self.{gradient}" if gradient else ""
            names = ", ".join(self._given.names)
            raise NanogradError(f"{self.who} returned None; return the gradient of {names}{hint}")
        stored = [get_at(layer, place) for _, place in self._places.values() if place is not None]
        if len(stored) < len(self._places):  # returned behind those of the inputs
            count = len(returned) - len(self._places)
            stored, returned = list(returned[count:]), returned[:count]
        return stored + self._given.gradients(returned, self.who)


def is_layer(f: Any) -> bool:
    return not isinstance(f, type) and callable(getattr(f, "forward", None)) and callable(getattr(f, "backward", None))


def _called(layer: Any, inputs: Sequence[Any]) -> tuple[Any, Callable[[Any], Any]]:
    """What the layer's forward computes of these inputs, and its backward as a function of the cotangent alone."""
    result, takes = layer.forward(*inputs), inspect.signature(layer.backward).parameters.values()
    needed = sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in takes)
    if needed == 2 and isinstance(result, (tuple, list)) and len(result) == 2:
        return result[0], lambda cotangent: layer.backward(cotangent, result[1])

    def without(cotangent: Any) -> Any:  # as the backward of a loss, whose cotangent is one
        if np.ndim(cotangent) != 0:
            who, shape = f"{type(layer).__name__}.backward", np.shape(cotangent)
            raise NanogradError(f"{who} takes no cotangent, but the result has shape {shape}; give it one")
        returned = layer.backward()
        many = isinstance(returned, (tuple, list))
        return [cotangent * g for g in returned] if many else cotangent * np.asarray(returned)

    return result, layer.backward if takes else without


def _parts(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return [(key, part) for key, part in value.items() if isinstance(key, (str, int))]
    if isinstance(value, list):
        return list(enumerate(value))
    return list(vars(value).items()) if hasattr(value, "__dict__") and not callable(getattr(value, "mro", None)) else []


def arrays_of(value: Any, kinds: str = "f") -> Iterator[tuple[Path, np.ndarray]]:
    """Every array of these kinds in an object's attributes, in its lists, dicts and objects, and where it lies."""
    return _found_in(value, lambda part: isinstance(part, np.ndarray) and part.dtype.kind in kinds)


def _found_in(
    value: Any, is_wanted: Callable[[Any], bool], path: Path = (), seen: frozenset[int] = frozenset()
) -> Iterator[tuple[Path, Any]]:
    """What is wanted of that, but nothing within it."""
    if is_wanted(value):
        yield path, value
    elif id(value) not in seen and not isinstance(value, np.ndarray):
        for key, part in _parts(value):
            yield from _found_in(part, is_wanted, (*path, key), seen | {id(value)})


def get_at(value: Any, path: Path) -> Any:
    for key in path:
        value = dict(_parts(value)).get(key)
    return value


def set_at(value: Any, path: Path, new: Any) -> None:
    owner = get_at(value, path[:-1])
    if isinstance(owner, (dict, list)):
        owner[path[-1]] = new  # type: ignore[index]
    else:
        vars(owner)[path[-1]] = new


def _is_gradient_of(place: Path, path: Path) -> bool:
    def fits(g: str, p: str) -> bool:
        return g in [form.format(p) for form in _FORMS] or g in _GRADIENTS and p in _PARAMETERS

    pairs = zip(place, path)
    is_near = all(g == p or isinstance(g, str) and isinstance(p, str) and fits(g.lower(), p.lower()) for g, p in pairs)
    return len(place) == len(path) and place != path and is_near


def path_name(layer: Any, path: Path) -> str:
    """`layers[0].params['W']`"""
    owners = [get_at(layer, path[:i]) for i in range(len(path))]
    steps = [f"[{key!r}]" if isinstance(owner, (dict, list)) else f".{key}" for owner, key in zip(owners, path)]
    return "".join(steps).removeprefix(".")
