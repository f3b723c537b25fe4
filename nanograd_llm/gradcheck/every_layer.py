"""Every Module that declares specimens, checked as every op is: layers, models and their losses, yours among them."""

from __future__ import annotations

import copy
import importlib
import math
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nanograd_llm import models, nn, ops
from nanograd_llm.autograd.op import Op, keys_of
from nanograd_llm.autograd.tensor import Tensor, registry
from nanograd_llm.backend.arrays import beside, on_default_device
from nanograd_llm.backend.randomness import noise
from nanograd_llm.errors import ConfigError, NanogradError
from nanograd_llm.gradcheck.cases.samples import Draw
from nanograd_llm.gradcheck.check.check import DIRECTIONS, gradcheck, quiet
from nanograd_llm.gradcheck.check.function import owner_of, tape_below, untrained_arrays
from nanograd_llm.gradcheck.check.report import Report
from nanograd_llm.gradcheck.every_op import CASES, OpSummary, Summary, check_op, require_counts
from nanograd_llm.gradcheck.mutation.mutants import scaled
from nanograd_llm.nn.module import Module, Specimen, evaluating
from nanograd_llm.settings import nearest

PASSES = 25  # forward and backward, that a check of one parameter is worth, as measured,
HIGHER_ORDER_PASSES = 60  # and so many times more for each further order
LAYER_SHARE = 10  # a layer is made of many ops, each of them checked by itself: it gets a tenth of their cases

for room in (nn, models):  # in any file of which a class of Modules may be
    for file in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
        importlib.import_module(file.name)


def layers(base: type[Module] = Module) -> Iterator[type[Module]]:
    """Every class of Modules that exists, in the order of their definitions, each before those derived from it."""
    for layer in base.__subclasses__():
        yield layer
        yield from layers(layer)


def check_all(names: Iterable[str] | None = None, *, order: int = 2, cases: int = CASES, seed: int = 0) -> Summary:
    """Check every op that is registered and every Module that declares specimens, or those named: see `check_each`."""
    return Summary(tuple(check_each(names, order=order, cases=cases, seed=seed)))


def check_each(
    names: Iterable[str] | None = None, *, order: int = 2, cases: int = CASES, seed: int = 0
) -> Iterator[OpSummary]:
    """What `check_op` and `check_layer` find, as it is found. Raises ConfigError for a name that none has.

    An error that Python raises in the code of an op or layer, such as a NameError, is a problem of that one.
    """
    known: dict[str, Op | type[Module]] = {**registry}
    known |= {layer.__name__: layer for layer in layers() if "specimens" in vars(layer)}
    wanted: list[str] = []
    for name in known if names is None else names:
        if not (keys := keys_of(name, known)):
            if name in {layer.__name__ for layer in layers()}:
                raise _undeclared(name)
            near = nearest(name, known)
            raise ConfigError(f"there is no op or layer {name!r}" + (f"; did you mean {near!r}?" if near else ""))
        wanted += keys
    for name in wanted:
        check: Callable[..., OpSummary] = check_op if isinstance(known[name], Op) else check_layer
        try:
            found = check(known[name], order=order, cases=cases, seed=seed)
        except (NanogradError, MemoryError):
            raise
        except Exception as error:  # whatever a half-written op or layer raises
            at = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"it raises {type(error).__name__}: {error} ({at.filename}:{at.lineno})"
            found = OpSummary(name, 0, (math.nan,) * order, 0, (), (problem,))
        yield found


@quiet()
def check_layer(
    layer: type[Module] | Module, *inputs: Any, order: int = 2, cases: int = CASES, seed: int = 0
) -> OpSummary:
    """Check a Module on the specimens that its class declares, with parameters drawn at random, dropout seeded.

    layer: a class, or a Module of one's own: as it is for the first case, copies with other parameters for
        the rest.
    inputs: what a Module is called with, where its class declares no specimens.

    A tenth of `cases` is drawn, of which the smallest is checked beyond first order. There is one mutant for each op
    that the layer records: all gradients of the op are off by a billionth. Raises NanogradError for a class without
    specimens, ConfigError unless `cases` and `order` are integers of at least 1.
    """
    require_counts(cases, order, seed)
    rng, count = np.random.default_rng(seed), max(1, cases // LAYER_SHARE)
    drawn = draw_specimens(layer, rng, count) if isinstance(layer, type) else _of_instance(layer, inputs, rng, count)
    smallest = min(drawn, key=_numbers)  # a layer costs thousands of passes beyond first order
    problems, notes, errors = list[tuple[int, str]](), dict[str, None](), [math.nan] * order  # see `check_op`
    for number, (f, inputs) in enumerate(drawn):
        notes.update(dict.fromkeys(_notes(f, inputs)))
        report = gradcheck(f, *inputs, order=order if f is smallest[0] else 1, seed=seed + number)
        errors = [float(np.fmax(error, report.relative_error(n + 1))) for n, error in enumerate(errors)]
        if not report.passed:
            problems.append((report.doubtful, f"{', '.join(str(np.shape(x)) for x in inputs)}: {report}"))
        problems += ((0, problem) for problem in _split_problems(f, inputs, notes))
    problems.sort(key=lambda problem: problem[0])  # what is wrong comes first
    doubtful = problems[0][0] if problems else 0
    users: dict[Op, list[Specimen]] = {}
    for specimen in sorted(drawn, key=_numbers) if doubtful > 1 or not problems else ():
        for op in _ops_of(*specimen):
            users.setdefault(op, []).append(specimen)
    survivors = [op.name for op, specimens in users.items() if not _is_caught(op, specimens)]
    name = layer.__name__ if isinstance(layer, type) else type(layer).__name__
    found = tuple(errors), len(users), tuple(survivors), tuple(problem for _, problem in problems), tuple(notes)
    return OpSummary(name, len(drawn), *found, doubtful)


def _split_problems(f: Any, batch: tuple[Any, ...], notes: dict[str, None]) -> list[str]:
    """In words: where the loss of a batch is not the mean of those of its halves, each weighted by its count.

    A loss that cannot be computed of half a batch, as one that compares its rows, gets a note.
    """
    is_loss = getattr(f.f, "__func__", None) is type(owner_of(f.f)).loss
    if not is_loss or not all(map(np.ndim, batch)) or len({*map(len, batch)}) > 1 or len(batch[0]) < 2:
        return []
    halves = [tuple(np.array_split(x, 2)[part] for x in batch) for part in (0, 1)]
    model = owner_of(f.f)
    with evaluating(model.modules()):
        counts = [model.loss_count(*half) for half in halves]
        try:
            parts = [count * f(*map(on_default_device, half)).item() for half, count in zip(halves, counts) if count]
        except Exception as error:  # the loss is the user's
            notes[f"its loss of half a batch raises {type(error).__name__}: train it with one worker"] = None
            return []
        whole, mean = f(*map(on_default_device, batch)).item(), sum(parts) / max(1, sum(counts))
    if not sum(counts) or abs(whole - mean) <= 1e-4 * (abs(whole) + sum(map(abs, parts)) / sum(counts)):
        return []
    return [
        f"the loss of a batch is {whole:.4g}, but that of its halves {mean:.4g}, weighted by loss_count ({counts[0]} "
        f"and {counts[1]}), so training depends on the number of workers: return the mean over what loss_count "
        "counts, of shapes that do not broadcast"
    ]


def _notes(f: Any, inputs: tuple[Any, ...]) -> Iterator[str]:
    """In words: what is no mistake in a gradient, but seldom meant."""
    model, untrained = owner_of(f.f), untrained_arrays(f.f)  # before it keeps some
    with evaluating(model.modules()):
        if ops.dropout in _ops_of(f, inputs):
            yield "it drops in evaluation mode as well; use nn.Dropout, which also draws another mask in each call"
    yield from untrained


def draw_specimens(layer: type[Module], rng: np.random.Generator, count: int) -> list[Specimen]:
    """`count` specimens of a class of Modules, or each that it declares once where there are more."""
    drawn: list[Specimen] = []
    made: list[Specimen] = []
    while len(drawn) < count:
        if layer.specimens is not None and not callable(layer.specimens):
            raise _undeclared(layer.__name__, "specimens that are no function")
        made = list(layer.specimens(Draw(rng))) if layer.specimens else []
        if not made or not all(isinstance(pair, tuple) and isinstance(pair[-1], tuple) for pair in made):
            raise _undeclared(layer.__name__, "specimens in another form" if made else "no specimens")
        for f, _ in made:
            for parameter in owner_of(f).parameters():  # as they start, many are all zeros or ones
                numbers = 0.5 * rng.standard_normal(parameter.shape) + (parameter.numpy() == 1)
                parameter.data = beside(numbers, parameter.data)
        drawn += [(_Repeatable(f, len(drawn) + number), inputs) for number, (f, inputs) in enumerate(made)]
    return drawn[: max(count, len(made))]


def _undeclared(name: str, found: str = "no specimens") -> NanogradError:
    form = f"{name}.specimens = lambda draw: [(a module, or its loss, and a tuple of inputs), ...]"
    return NanogradError(f"{name} declares {found}; write {form}")


def _of_instance(module: Module, inputs: tuple[Any, ...], rng: np.random.Generator, count: int) -> list[Specimen]:
    """A module and copies of it with other parameters, on these inputs, or on those of its class's specimens."""
    if not inputs:
        declared = type(module).specimens
        inputs = next((given for _, given in declared(Draw(rng))), ()) if declared else ()
    if not inputs:
        raise NanogradError(
            f"{type(module).__name__} declares no specimens to take its inputs from; give them: check_layer(module, x)"
        )
    drawn: list[Specimen] = []
    for number in range(count):
        made = copy.deepcopy(module)
        for parameter in made.parameters() if number else ():
            parameter.data = parameter.data + beside(0.5 * rng.standard_normal(parameter.shape), parameter.data)
        drawn.append((_Repeatable(made, number), inputs))
    return drawn


class _Repeatable:
    """A module, or its loss, whose dropout is the same in every call."""

    def __init__(self, f: Callable[..., Any], seed: int):
        self.f, self.seed = f, seed
        self.forward = getattr(f, "forward", f)
        self.named_parameters, self.parameters = owner_of(f).named_parameters, owner_of(f).parameters
        self.__name__ = getattr(f, "__name__", type(f).__name__)

    def __call__(self, *inputs: Any) -> Tensor:
        with noise(self.seed):
            return self.f(*inputs)


def check_model(model: Any, *, order: int = 1, seed: int = 0) -> Report:
    """`gradcheck` of a model's loss at its own weights, as it is (in evaluation mode, if it has dropout), on the random
    batch of its `example_batch`. `cost_of_model` says what that takes."""
    return gradcheck(model.loss, *_batch_of(model, seed), order=order, seed=seed, jacobian=0)


def cost_of_model(model: Any, *, order: int = 1) -> str:
    """What `check_model` does and about how long that takes, in words: the quickest of a few passes is timed."""
    batch, seconds = _batch_of(model, 0), math.inf
    for _ in range(4):  # the first also brings weights and libraries into memory
        begin = time.perf_counter()
        model.loss(*batch).backward()
        seconds = min(seconds, time.perf_counter() - begin)
        model.zero_grad()
    sizes = [parameter.size for parameter in model.parameters()]
    seconds *= PASSES * len(sizes) * HIGHER_ORDER_PASSES ** (order - 1)
    return (
        f"the loss of this {type(model).__name__}: {sum(sizes):,} numbers in {len(sizes)} parameters, on a batch of "
        f"shape {batch[0].shape}, in {DIRECTIONS} random directions each: about {seconds:.0f} s"
    )


def _batch_of(model: Any, seed: int) -> tuple[Any, ...]:
    return tuple(model.example_batch(Draw(np.random.default_rng(seed))))


def _ops_of(f: Callable[..., Tensor], inputs: tuple[Any, ...]) -> set[Op]:
    leaves = [Tensor(x, requires_grad=True) if np.asarray(x).dtype.kind == "f" else x for x in inputs]
    return {node.op for node in tape_below(f(*leaves)) if not isinstance(node, Tensor)}


def _is_caught(op: Op, specimens: list[Specimen]) -> bool:
    """Is it noticed on one of these when all gradients of this op are off by a billionth?"""
    with scaled(op, 1 + 1e-9).planted():
        return any(not gradcheck(f, *inputs, explain=False).passed for f, inputs in specimens)


def _numbers(specimen: Specimen) -> float:
    """How many numbers it holds and is given; infinitely many where it is given none, and shows nothing."""
    f, inputs = specimen
    held = sum(parameter.size for parameter in owner_of(f).parameters())
    return held + sum(map(np.size, inputs)) if all(map(np.size, inputs)) else math.inf
