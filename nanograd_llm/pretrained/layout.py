"""From the arrays of a file to the parameters of a model, and back, whatever the model: by a table of names.

A square matrix has the same shape as its transpose, so the layout follows from the form of the file, not from shapes.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.nn.module import Module
from nanograd_llm.pretrained.opened import require_finite
from nanograd_llm.settings import listed

MAX_LISTED = 1000  # GPT-2 XL has 580 parameters
# Prefixes that torch adds when it wraps a model.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
AnyModule = TypeVar("AnyModule", bound=Module)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a form of file names the parameters of a model, and lays out its matrices.

    names: the file's name of each parameter here, {layer} in both in place of a number. Several names, one for each
        part, where the file has apart what lies side by side here, such as queries, keys and values.
    matrices: the axes of a stored matrix. turned: how the names here end that are such matrices.
    """

    title: str
    names: Mapping[str, str | tuple[str, ...]]
    matrices: str
    turned: tuple[str, ...]

    def parts(self, ours: str) -> tuple[str, ...]:
        """The file's names of the parts of the parameter whose name here is `ours`."""
        number = re.search(r"(?<=\.)\d+(?=\.)", ours)
        found = self.names[ours if number is None else f"{ours[: number.start()]}{{layer}}{ours[number.end() :]}"]
        names = (found,) if isinstance(found, str) else found
        return tuple([name.format(layer=number and number[0]) for name in names])

    def name(self, ours: str) -> str:
        """The file's name of a parameter that it has in one part."""
        (name,) = self.parts(ours)
        return name

    def stored(self, ours: str, array: NDArray) -> dict[str, NDArray]:
        """Views of a parameter's parts in the file's layout, by its names."""
        names = self.parts(ours)
        views = np.split(array, len(names), axis=-1)
        if self.matrices != "in, out" and ours.endswith(self.turned):
            views = [view.T if self.matrices == "out, in" else view[None] for view in views]
        return dict(zip(names, views))

    def restored(self, ours: str, parts: Mapping[str, NDArray]) -> NDArray:
        """The parameter from its parts in the file: a view where there is one part, else a new array."""
        views = [parts[name] for name in self.parts(ours)]
        if self.matrices != "in, out" and ours.endswith(self.turned):
            views = [view.T if self.matrices == "out, in" else view[0] for view in views]
        return views[0] if len(views) == 1 else np.concatenate(views, axis=-1)


def warn_left_out(names: list[str], where: str) -> None:
    """Warn of these names of arrays, if there are any: the model does without them."""
    if names:
        warnings.warn(f"{where}: left out, not part of the language model: {listed(names)}", stacklevel=2)


def fill(
    model: AnyModule,
    arrays: Mapping[str, NDArray[Any]],
    layout: Layout,
    where: str,
    *,
    dtype: np.dtype[Any],
    strict: bool,
    biases: bool = True,
) -> AnyModule:
    """The model with the arrays of a file as its parameters, in evaluation mode. Arrays of this dtype are not copied.

    biases: whether the file has them; if not, they are zeros, which gives the same result.
    strict: refuse weights that are not finite; otherwise a warning names them.
    Raises BadFileError, which lists by the file's names all that is missing, extra, or of a wrong shape or dtype.
    """
    own = {name: p.data for name, p in model.named_parameters()}
    in_file = [name for name in own if biases or not name.endswith("bias")]
    wanted = {theirs: view.shape for name in in_file for theirs, view in layout.stored(name, own[name]).items()}
    problems = [f"missing: {name}" for name in wanted if name not in arrays]
    problems += [
        f"extra: {name if name.isprintable() else ascii(name):.200}, {array.shape} {array.dtype}"
        for name, array in arrays.items()
        if name not in wanted
    ]
    for name, shape in wanted.items():
        if name in arrays and (arrays[name].shape != shape or arrays[name].dtype.kind != "f"):
            found = arrays[name]
            problems.append(f"misfit: {name} is {found.shape} {found.dtype}, expected {shape} of floats")
    if problems:
        problems[MAX_LISTED:] = [f"and {len(problems) - MAX_LISTED:,} more"] if len(problems) > MAX_LISTED else []
        raise BadFileError(f"{where}: the weights do not match the sizes of the model:\n  " + "\n  ".join(problems))
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is reported below
        parts = {name: arrays[name].astype(dtype, copy=False) for name in wanted}
    require_finite(parts, where, "download it again, or load it without strict", strict=strict)
    zeros = {name: np.zeros(x.shape, dtype) for name, x in own.items() if name not in in_file}
    model.load_state_dict(zeros | {name: layout.restored(name, parts) for name in in_file}, assign=True)
    model.eval()
    return model
