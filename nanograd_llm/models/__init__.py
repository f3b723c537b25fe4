"""Complete models, built from the layers of `nn`."""

from nanograd_llm.models.bert import BERT, BERTConfig
from nanograd_llm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, EncoderDecoderLook
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.models.heads import Classifier, ClassifierConfig, SentenceEncoder
from nanograd_llm.models.preference import PreferenceGPT
from nanograd_llm.models.transformer import Look, TransformerConfig

__all__ = [
    "BERT",
    "GPT",
    "BERTConfig",
    "Classifier",
    "ClassifierConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "EncoderDecoderLook",
    "GPTConfig",
    "Look",
    "PreferenceGPT",
    "SentenceEncoder",
    "TransformerConfig",
]
