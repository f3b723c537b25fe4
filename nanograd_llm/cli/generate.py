"""`nanograd-llm generate`: a model continues a prompt."""

from __future__ import annotations

import itertools
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from nanograd_llm.cli.options import NOTHING, Device, Given, Model, options, with_options
from nanograd_llm.cli.terminal import text_or_piped, write_pieces
from nanograd_llm.inference import Sampling, stream_text, write_texts
from nanograd_llm.inference.sampling import PROSE, strategy_of
from nanograd_llm.inference.writing import default_prompt, unescaped
from nanograd_llm.settings import require_int

_SHOWN = {**vars(PROSE), "temperature": f"{PROSE.temperature}; 0 for a model that answers", "seed": "a random one"}
SAMPLING = options(Sampling, "Sampling", shown=_SHOWN)


@with_options(sampling=SAMPLING)
def generate(
    model: Model,
    prompt: str | None = None,
    /,
    *,
    max_new_tokens: int = 200,
    n: int = 1,
    stop: Annotated[list[str], Parameter(consume_multiple=True, negative=(), show_default=False)] = [],  # noqa: B006
    truncate: bool = False,
    cache: bool = True,
    raw: bool = False,
    device: Device = "cpu",
    sampling: Given = NOTHING,
) -> None:
    """Continue a prompt with a model; the text appears while it is generated.

    A model that was trained on instructions answers it: the prompt is put into the template of the model, and the
    answer alone is written.

    Parameters
    ----------
    prompt
        The text to continue; if not given, or -, what is piped in. If nothing is: a new line, or, if the
        tokenizer has none, its first token. Put a prompt that begins with a dash last, after " -- ".
    max_new_tokens
        Tokens to write; fewer if the model ends the text.
    n
        Texts to write, each after the same prompt.
    stop
        End before the first of these texts, such as "\\n\\n"; none if not given.
    truncate
        If the prompt is longer than the model's context, use its end; otherwise it is refused.
    cache
        Keep keys and values instead of computing them again, which is faster; the text is the same.
    raw
        Continue the prompt as it is, without a template.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.errors import ConfigError, ShapeError
    from nanograd_llm.models.gpt import GPT
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.text.template import template_beside

    use_device(device)
    opened = open_model(model, GPT)
    tokenizer, loaded = opened.tokenizer(), opened.model()
    prompt = text_or_piped(prompt)
    template = template_beside(opened.path) if prompt and not raw else None
    prompt = prompt or default_prompt(tokenizer)
    ids = tokenizer.encode(prompt if template is None else template.fill(prompt))
    require_int("n", n, 1)
    if len(ids) > (context := loaded.config.context_length):
        if not truncate:
            raise ShapeError(
                f"the prompt has {len(ids):,} tokens, and the model sees {context:,}; give a shorter one, or "
                "--truncate for its end"
            )
        ids = ids[-context:]
    strategy = strategy_of(sampling, answers=template is not None)
    if n > 1 and strategy.temperature == 0:
        raise ConfigError(f"n is {n}, but at temperature 0 each text is the same; leave n out, or give a temperature")
    ends = [unescaped(text) for text in stop]
    settings: Any = {"max_new_tokens": max_new_tokens, "sampling": strategy, "cache": cache, "stop": ends}
    begin = prompt if template is None else ""
    if n > 1:
        for number, text in enumerate(write_texts(loaded, tokenizer, [ids] * n, **settings), 1):
            write_pieces([f"--- {number}\n{begin}{text}\n"])
    else:
        pieces = stream_text(loaded, tokenizer, ids, **settings)
        write_pieces(itertools.chain([begin + next(pieces, "")], pieces))  # an error comes before the prompt
        print(flush=True)
    if "seed" not in sampling and strategy.temperature > 0:
        print(f"to get this text again, add --seed {strategy.seed}", file=sys.stderr)
