"""Using a model: sampling, generation with a cache, filling in, classification, embedding, translation, evaluation."""

from nanograd_llm.inference.classify import classify
from nanograd_llm.inference.embed import embed, nearest
from nanograd_llm.inference.evaluate import Evaluation, evaluate, evaluate_text
from nanograd_llm.inference.fill import Guess, fill
from nanograd_llm.inference.generate import generate, stream
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.inference.translate import BeamSearch, show_attention, stream_translation, translate
from nanograd_llm.inference.writing import Conversation, Dialogue, stream_text

__all__ = [
    "BeamSearch",
    "Conversation",
    "Dialogue",
    "Evaluation",
    "Guess",
    "Sampling",
    "classify",
    "embed",
    "evaluate",
    "evaluate_text",
    "fill",
    "generate",
    "nearest",
    "show_attention",
    "stream",
    "stream_text",
    "stream_translation",
    "translate",
]
