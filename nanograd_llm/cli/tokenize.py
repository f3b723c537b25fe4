"""`nanograd-llm tokenize`: show the tokens of a text and their ids."""

from __future__ import annotations


def tokenize(
    text: str | None = None,
    /,
    *,
    model: str | None = None,
    special: bool = False,
    show_merges: int | None = None,
) -> None:
    r"""Split a text into tokens: show each piece with its id, and the merges that built it from bytes.

    Parameters
    ----------
    text
        The text to split; if not given, or -, what is piped in. Put one that begins with a dash last, after " -- ".
    model
        Use the tokenizer of this model: the folder of a run, or a pretrained model; if not given, GPT-2's,
        or bytes if GPT-2's is not here and cannot be downloaded.
    special
        Read <|endoftext|> in the text as that token, not as ordinary text.
    show_merges
        Show the first N merges of the tokenizer.
    """
    import os
    import shlex
    import warnings

    from nanograd_llm.cli.options import given_text
    from nanograd_llm.errors import ConfigError, StorageError
    from nanograd_llm.pretrained import gpt2_tokenizer
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.settings import counted, require_int
    from nanograd_llm.text import ByteTokenizer, Tokenizer
    from nanograd_llm.text.bpe import readable
    from nanograd_llm.text.corpora import well_formed

    try:
        tokenizer: Tokenizer = gpt2_tokenizer() if model is None else open_model(model).tokenizer()
    except StorageError:
        if model is not None:
            raise
        warnings.warn(
            "GPT-2's tokenizer is not on this machine, so each byte is a token; --model RUN takes that of a run",
            stacklevel=2,
        )
        tokenizer = ByteTokenizer()
    if show_merges is not None:
        require_int("show_merges", show_merges, 1)
        print(tokenizer.show_merges(show_merges) or f"{tokenizer} has no merges")
    if text is None and show_merges is not None:
        return
    typed, text = text, given_text(text, "tokenize")
    if model is None and typed == text and os.path.isdir(text):
        raise ConfigError(f"{text} is a folder, not a text; its tokenizer is used with --model {shlex.quote(text)}")
    pieces = tokenizer.pieces(text, allow_special=special)
    width = max((len(readable(piece)) for _, piece in pieces), default=0)
    for i, piece in pieces:
        made = ", ".join(
            f"{number}: {readable(left)} + {readable(right)}"
            for number in tokenizer.merges_of(piece)
            for left, right in [tokenizer.byte_merges[number]]
        )
        print(f"{i:>8}  {readable(piece):<{width}}  {made}".rstrip())
    size = len(well_formed(text).encode())
    print(f"{counted(len(pieces), 'token')}, {counted(size, 'byte')}, by {tokenizer}")
