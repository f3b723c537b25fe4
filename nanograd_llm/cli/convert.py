"""`nanograd-llm convert`: write a model in a form that other programs read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from nanograd_llm.cli.options import Model
from nanograd_llm.settings import printable


def convert(
    model: Model,
    /,
    *,
    to: Literal["hf", "numpy", "peft"],
    out: Path | None = None,
    dtype: Literal["float32", "float64"] = "float32",
    with_tokenizer: bool = True,
) -> None:
    """Write a model, and its tokenizer, into a folder for other programs.

    Parameters
    ----------
    to
        hf: for transformers, such as GPT2LMHeadModel.from_pretrained. numpy: for numpy.load. peft: only the
        adapters of a LoRA run, for PeftModel.from_pretrained; hf and numpy have them merged into the weights.
    out
        The folder to write; if not given, MODEL-TO in the current folder.
    dtype
        The dtype of the weights that are written.
    with_tokenizer
        Write the tokenizer's files as well.
    """
    from nanograd_llm.pretrained import save_lora, save_pretrained
    from nanograd_llm.runs.opening import open_adapted, open_model

    folder = Path(f"{Path(model).resolve().name}-{to}") if out is None else out
    if to == "peft":
        run, loaded = open_adapted(model, dtype=dtype)
        parameters, written = loaded.trainable_parameters(), save_lora(loaded, folder, base=run.init)
    else:
        opened = open_model(model)
        tokenizer, loaded = opened.tokenizer() if with_tokenizer else None, opened.model(dtype=dtype)
        parameters, written = (
            loaded.parameters(),
            save_pretrained(loaded, folder, tokenizer, form=to, beside=opened.beside),
        )
    place = printable(shlex.quote(str(folder)))
    print(f"{sum(x.size for x in parameters):,} parameters of {parameters[0].dtype} written to {place}:")
    for path in written:
        print(f"{path.stat().st_size:>14,} bytes  {printable(str(path.relative_to(folder)))}")
