"""`nanograd-llm translate`: an encoder-decoder writes the translation of a text."""

from __future__ import annotations

import sys

from nanograd_llm.cli.options import NOTHING, Device, Given, Translator, given_text, options, with_options
from nanograd_llm.cli.terminal import written
from nanograd_llm.inference import BeamSearch, stream_translation


@with_options(search=options(BeamSearch, "Search"))
def translate(
    model: Translator, text: str | None = None, /, *, device: Device = "cpu", search: Given = NOTHING
) -> None:
    """Translate a text with a model that was trained by `train --task translation`; words appear as they are written.

    Parameters
    ----------
    text
        What to translate; if not given, or -, what is piped in. Put one that begins with a dash last, after " -- ".
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.models.encoder_decoder import EncoderDecoder
    from nanograd_llm.runs.opening import open_model

    text = given_text(text, "translate")
    use_device(device)
    opened = open_model(model, EncoderDecoder)
    translation = ""
    for piece in stream_translation(opened.model(), opened.tokenizer(), text, search=BeamSearch(**search)):
        translation += piece
        print(written(piece), end="", flush=True)
    print(flush=True)
    if not translation.strip():
        print("(nothing: the model ends the translation at once)", file=sys.stderr)
