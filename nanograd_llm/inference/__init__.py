"""Using a model: sampling, generation with a cache, filling in, classification, embedding, translation, evaluation."""

from nanograd_llm.inference.classify import classify
from nanograd_llm.inference.embed import embed, nearest
from nanograd_llm.inference.evaluate import Evaluation, evaluate, evaluate_text, score_texts, score_windows
from nanograd_llm.inference.fill import Guess, fill
from nanograd_llm.inference.generate import generate, stream
from nanograd_llm.inference.harness import harness_model
from nanograd_llm.inference.likelihood import answer_choices, hardest, interval, log_likelihoods, score_text
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.inference.translate import BeamSearch, show_attention, stream_translation, translate
from nanograd_llm.inference.writing import Conversation, Dialogue, stream_text, write_texts

__all__ = [
    "BeamSearch",
    "Conversation",
    "Dialogue",
    "Evaluation",
    "Guess",
    "Sampling",
    "answer_choices",
    "classify",
    "embed",
    "evaluate",
    "evaluate_text",
    "fill",
    "generate",
    "hardest",
    "harness_model",
    "interval",
    "log_likelihoods",
    "nearest",
    "score_text",
    "score_texts",
    "score_windows",
    "show_attention",
    "stream",
    "stream_text",
    "stream_translation",
    "translate",
    "write_texts",
]
