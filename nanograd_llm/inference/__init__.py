"""Using a model: sampling strategies, generation with a key-value cache, evaluation on held-out text."""

from nanograd_llm.inference.evaluate import Evaluation, evaluate
from nanograd_llm.inference.generate import generate, stream
from nanograd_llm.inference.sampling import Sampling

__all__ = ["Evaluation", "Sampling", "evaluate", "generate", "stream"]
