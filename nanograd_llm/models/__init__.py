"""Complete models, built from the layers of `nn`."""

from nanograd_llm.models.bert import BERT, BERTConfig
from nanograd_llm.models.gpt import GPT, GPTConfig, Look

__all__ = ["BERT", "GPT", "BERTConfig", "GPTConfig", "Look"]
