"""A GPT as a model of EleutherAI's lm-evaluation-harness, which scores it on the harness's own tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanograd_llm.errors import ConfigError
from nanograd_llm.inference.likelihood import encode_pair, log_likelihoods, score_text
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.inference.writing import stream_text
from nanograd_llm.models.gpt import GPT
from nanograd_llm.text import Tokenizer


def harness_model(model: GPT, tokenizer: Tokenizer, *, max_new_tokens: int = 256) -> Any:
    """The model for `lm_eval.simple_evaluate(model=harness_model(model, tokenizer), tasks=[...])`.

    max_new_tokens: of a generated answer, where a task does not say it. A long prompt loses its beginning, so that the
    answer has room in the context, but the last half of a context is kept. Raises ConfigError without lm_eval.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise ConfigError("harness_model needs lm-evaluation-harness: pip install lm-eval") from None

    class Adapter(LM):
        """What the harness asks of a model; a request has its arguments in `args`."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return log_likelihoods(model, [encode_pair(tokenizer, *request.args) for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            stride = model.config.context_length
            texts = [request.args[0] for request in requests]
            return [-float(score_text(model, text, tokenizer, stride=stride).losses.sum()) for text in texts]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            found, context_length = [], model.config.context_length
            for context, settings in (request.args for request in requests):
                until = settings.get("until") or ()
                length = int(settings.get("max_gen_toks", max_new_tokens))
                temperature = float(settings.get("temperature") or 0) if settings.get("do_sample") else 0.0
                room = context_length - min(length, context_length // 2)
                pieces = stream_text(
                    model,
                    tokenizer,
                    tokenizer.encode(context)[-room:],
                    max_new_tokens=length,
                    sampling=Sampling(temperature=temperature),
                    stop=[until] if isinstance(until, str) else until,
                )
                found.append("".join(pieces))
            return found

    return Adapter()
