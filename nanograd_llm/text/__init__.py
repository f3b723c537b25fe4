"""From text to numbers: corpora, then tokenizers and the BPE trainer, then the windows that a model learns from.

Read `corpora`, `sources`, `bpe`, `tokenizers`, `gpt2`, `wordpiece`, `words`, `prepared`, `windows` in that order.
Each name is loaded when it is first used; none loads tiktoken by that.
"""

from typing import TYPE_CHECKING

from nanograd_llm.backend.lazy import lazily

if TYPE_CHECKING:
    from nanograd_llm.settings import IGNORE_INDEX
    from nanograd_llm.text.bpe import train_bpe
    from nanograd_llm.text.corpora import builtin_corpus, read_text, split_text
    from nanograd_llm.text.gpt2 import GPT2Tokenizer
    from nanograd_llm.text.prepared import TokenFiles, open_prepared, prepare
    from nanograd_llm.text.saved import load_tokenizer
    from nanograd_llm.text.sources import read_lines, read_source
    from nanograd_llm.text.tokenizers import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
    from nanograd_llm.text.windows import (
        count_windows,
        epoch_windows,
        mixed_windows,
        random_windows,
        show_batch,
        sliding_windows,
    )
    from nanograd_llm.text.wordpiece import WordPieceTokenizer
    from nanograd_llm.text.words import WordTokenizer

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "bpe": "train_bpe",
        "corpora": "builtin_corpus read_text split_text",
        "gpt2": "GPT2Tokenizer",
        "prepared": "TokenFiles open_prepared prepare",
        "saved": "load_tokenizer",
        "sources": "read_lines read_source",
        "tokenizers": "END_OF_TEXT BPETokenizer ByteTokenizer CharTokenizer Tokenizer",
        "windows": "IGNORE_INDEX count_windows epoch_windows mixed_windows random_windows show_batch sliding_windows",
        "wordpiece": "WordPieceTokenizer",
        "words": "WordTokenizer",
    },
)
