"""Tables of the names and layouts that each form of file has for GPT-2's parameters. Nothing is guessed.

A square matrix has the same shape as its transpose, so the layout follows from the form of the file, not from shapes.

C channels
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError

MAX_LISTED = 1000  # GPT-2 XL has 580 parameters

WHOLE = (
    # here, Hugging Face and nanoGPT, OpenAI, llm.c
    ("wte", "wte.weight", "wte", "wte"),
    ("wpe", "wpe.weight", "wpe", "wpe"),
    ("ln_f.weight", "ln_f.weight", "ln_f/g", "lnfw"),
    ("ln_f.bias", "ln_f.bias", "ln_f/b", "lnfb"),
)
HEAD = ("head", "lm_head.weight")  # of a model whose head is not tied to the token table

BLOCK = (
    ("ln_1.weight", "ln_1.weight", "ln_1/g", "ln1w"),
    ("ln_1.bias", "ln_1.bias", "ln_1/b", "ln1b"),
    ("attention.qkv.weight", "attn.c_attn.weight", "attn/c_attn/w", "qkvw"),
    ("attention.qkv.bias", "attn.c_attn.bias", "attn/c_attn/b", "qkvb"),
    ("attention.out.weight", "attn.c_proj.weight", "attn/c_proj/w", "attprojw"),
    ("attention.out.bias", "attn.c_proj.bias", "attn/c_proj/b", "attprojb"),
    ("ln_2.weight", "ln_2.weight", "ln_2/g", "ln2w"),
    ("ln_2.bias", "ln_2.bias", "ln_2/b", "ln2b"),
    ("mlp.up.weight", "mlp.c_fc.weight", "mlp/c_fc/w", "fcw"),
    ("mlp.up.bias", "mlp.c_fc.bias", "mlp/c_fc/b", "fcb"),
    ("mlp.down.weight", "mlp.c_proj.weight", "mlp/c_proj/w", "fcprojw"),
    ("mlp.down.bias", "mlp.c_proj.bias", "mlp/c_proj/b", "fcprojb"),
)
MATRICES = tuple(row[0] for row in BLOCK if row[0].endswith("weight") and not row[0].startswith("ln"))

# Masks that Hugging Face's files may also hold. The model does not need them.
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
# Prefixes that torch adds when it wraps a model; and all names of a GPT-2's parameters, after any prefix.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PARTS = r"h\.\d+\..+|(?:wte|wpe|ln_f|lm_head)\.(?:weight|bias)"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a form of file names the parameters, and lays out the matrices of the blocks.

    column: in the tables above. whole, block: patterns of names. matrices: the axes of a stored matrix.
    """

    title: str
    column: int
    whole: str
    block: str
    matrices: str

    def name(self, ours: str) -> str:
        """The file's name of the parameter whose name here is `ours`."""
        if ours == HEAD[0]:
            return HEAD[1]
        rows = {row[0]: row[self.column] for row in (*BLOCK, *WHOLE)}
        found = re.fullmatch(r"blocks\.(\d+)\.(.*)", ours)
        if found:
            return self.block.format(layer=found[1], name=rows[found[2]])
        return self.whole.format(name=rows[ours])

    def shape(self, ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a parameter whose shape here is `shape`."""
        return self.stored(ours, np.broadcast_to(np.float32(0), shape)).shape

    def stored(self, ours: str, array: NDArray) -> NDArray:
        """A view of a parameter in the file's layout."""
        if self.matrices == "in, out" or not ours.endswith(MATRICES):
            return array
        return array.T if self.matrices == "out, in" else array[None]

    def restored(self, ours: str, array: NDArray) -> NDArray:
        """A view of a file's array in the layout used here."""
        if self.matrices == "in, out" or not ours.endswith(MATRICES):
            return array
        return array.T if self.matrices == "out, in" else array[0]


HUGGING_FACE = Layout("Hugging Face", 1, "{name}", "h.{layer}.{name}", "in, out")
NANOGPT = Layout("nanoGPT", 1, "{name}", "h.{layer}.{name}", "out, in")
OPENAI = Layout("OpenAI", 2, "model/{name}", "model/h{layer}/{name}", "1, in, out")
LLMC = Layout("llm.c", 3, "{name}", "{name}[{layer}]", "out, in")


def restore(
    arrays: Mapping[str, NDArray],
    shapes: Mapping[str, tuple[int, ...]],
    layout: Layout,
    where: str,
    *,
    biases: bool = True,
) -> dict[str, NDArray]:
    """Views of a file's arrays, by the names and in the layout used here.

    shapes: of the parameters, by their names here.
    biases: whether the model has them; if not, they are zeros, which gives the same result.
    Raises BadFileError, which lists by the file's names all that is missing, extra, or of a wrong shape or dtype.
    """
    wanted = {layout.name(ours): ours for ours in shapes if biases or not ours.endswith("bias")}
    problems = [f"missing: {name}" for name in wanted if name not in arrays]
    problems += [
        f"extra: {name if name.isprintable() else ascii(name):.200}, {array.shape} {array.dtype}"
        for name, array in arrays.items()
        if name not in wanted
    ]
    restored = {}
    for name, ours in wanted.items():
        if name in arrays:
            array, shape = arrays[name], layout.shape(ours, shapes[ours])
            if array.shape != shape or array.dtype.kind != "f":
                problems.append(f"misfit: {name} is {array.shape} {array.dtype}, expected {shape} of floats")
            else:
                restored[ours] = layout.restored(ours, array)
    if problems:
        problems[MAX_LISTED:] = [f"and {len(problems) - MAX_LISTED:,} more"] if len(problems) > MAX_LISTED else []
        raise BadFileError(f"{where}: the weights do not match the sizes of the model:\n  " + "\n  ".join(problems))
    dtype = next(iter(restored.values())).dtype
    return {ours: restored[ours] if ours in restored else np.zeros(shape, dtype) for ours, shape in shapes.items()}
