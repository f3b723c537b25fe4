"""`nanograd-llm translate`: an encoder-decoder writes the translations of texts."""

from __future__ import annotations

import sys
from pathlib import Path

from nanograd_llm.cli.options import NOTHING, Device, Given, Translator, given_texts, lines_of, options, with_options
from nanograd_llm.cli.terminal import written
from nanograd_llm.inference import BeamSearch, stream_translation


@with_options(search=options(BeamSearch, "Search"))
def translate(
    model: Translator,
    text: str | None = None,
    /,
    *,
    file: Path | None = None,
    device: Device = "cpu",
    search: Given = NOTHING,
) -> None:
    """Translate with a model that was trained by `train --task translation`; words appear as they are written.

    Parameters
    ----------
    text
        What to translate; if not given, or -, the lines that are piped in. Put one that begins with a dash last, after
        " -- ".
    file
        A UTF-8 file with more texts, a line each, or - for standard input; blank lines are left out. Of a .tsv, .po or
        .mo, as the task learns from, the sources of the pairs.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.models.encoder_decoder import EncoderDecoder
    from nanograd_llm.runs.opening import open_model

    lines = given_texts([] if text is None else [text], file, "translate", _texts_of)
    use_device(device)
    opened = open_model(model, EncoderDecoder)
    made, tokenizer, how = opened.model(), opened.tokenizer(), BeamSearch(**search)
    for pieces in [stream_translation(made, tokenizer, text, search=how) for text in lines]:  # unknown words raise here
        translation = ""
        for piece in pieces:
            translation += piece
            print(written(piece), end="", flush=True)
        print(flush=True)
        if not translation.strip():
            print("(nothing: the model ends the translation at once)", file=sys.stderr)


def _texts_of(file: Path) -> list[str]:
    """The lines of a file; of one of pairs the sources."""
    from nanograd_llm.text.pairs import read_pairs

    is_of_pairs = file.suffix.lower() in (".tsv", ".po", ".mo")
    return [source for source, _ in read_pairs(file)] if is_of_pairs else lines_of(file)
