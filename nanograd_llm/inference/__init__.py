"""Using a model: sampling strategies, generation with a key-value cache, translation, evaluation on held-out text."""

from nanograd_llm.inference.evaluate import Evaluation, evaluate, evaluate_text
from nanograd_llm.inference.generate import generate, stream
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.inference.translate import BeamSearch, show_attention, stream_translation, translate
from nanograd_llm.inference.writing import Conversation, stream_text

__all__ = [
    "BeamSearch",
    "Conversation",
    "Evaluation",
    "Sampling",
    "evaluate",
    "evaluate_text",
    "generate",
    "show_attention",
    "stream",
    "stream_text",
    "stream_translation",
    "translate",
]
