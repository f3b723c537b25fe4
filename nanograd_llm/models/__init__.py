"""Complete models, built from the layers of `nn`. Each name is loaded when it is first used.

Read `gpt`, then `transformer`, what it shares with `bert` and `encoder_decoder`; then `heads` and `preference`.
"""

from typing import TYPE_CHECKING

from nanograd_llm.backend.lazy import lazily

if TYPE_CHECKING:
    from nanograd_llm.models.bert import BERT, BERTConfig
    from nanograd_llm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, EncoderDecoderLook
    from nanograd_llm.models.gpt import GPT, GPTConfig
    from nanograd_llm.models.heads import Classifier, ClassifierConfig, SentenceEncoder
    from nanograd_llm.models.preference import PreferenceGPT
    from nanograd_llm.models.transformer import Look, TransformerConfig

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "bert": "BERT BERTConfig",
        "encoder_decoder": "EncoderDecoder EncoderDecoderConfig EncoderDecoderLook",
        "gpt": "GPT GPTConfig",
        "heads": "Classifier ClassifierConfig SentenceEncoder",
        "preference": "PreferenceGPT",
        "transformer": "Look TransformerConfig",
    },
)
