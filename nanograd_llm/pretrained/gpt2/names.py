"""Tables of the names and layouts that each form of file has for GPT-2's parameters. Nothing is guessed.

C channels
"""

from __future__ import annotations

import re

from nanograd_llm.pretrained.layout import Layout

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
# All names of a GPT-2's parameters, after any prefix.
PARTS = r"h\.\d+\..+|(?:wte|wpe|ln_f|lm_head)\.(?:weight|bias)"


def _layout(title: str, column: int, whole: str, block: str, matrices: str) -> Layout:
    """column: in the tables above. whole, block: patterns of names. matrices: the axes of a stored matrix."""
    names = {row[0]: whole.format(name=row[column]) for row in WHOLE} | dict([HEAD])
    for row in BLOCK:
        names[f"blocks.{{layer}}.{row[0]}"] = block.format(name=row[column], layer="{layer}")
    return Layout(title, names, matrices, MATRICES)


HUGGING_FACE = _layout("Hugging Face", 1, "{name}", "h.{layer}.{name}", "in, out")
NANOGPT = _layout("nanoGPT", 1, "{name}", "h.{layer}.{name}", "out, in")
OPENAI = _layout("OpenAI", 2, "model/{name}", "model/h{layer}/{name}", "1, in, out")
LLMC = _layout("llm.c", 3, "{name}", "{name}[{layer}]", "out, in")
