"""From text to numbers: corpora, then tokenizers and the BPE trainer, then the windows that a model learns from.

Read `corpora`, `sources`, `bpe`, `tokenizers`, `gpt2`, `wordpiece`, `words`, `prepared`, `windows` in that order.
Importing this room does not load tiktoken.
"""

from nanograd_llm.text.bpe import train_bpe
from nanograd_llm.text.corpora import builtin_corpus, read_text, split_text
from nanograd_llm.text.gpt2 import GPT2Tokenizer
from nanograd_llm.text.prepared import TokenFiles, open_prepared, prepare
from nanograd_llm.text.saved import load_tokenizer
from nanograd_llm.text.sources import read_lines, read_source
from nanograd_llm.text.tokenizers import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from nanograd_llm.text.windows import (
    IGNORE_INDEX,
    count_windows,
    epoch_windows,
    mixed_windows,
    random_windows,
    show_batch,
    sliding_windows,
)
from nanograd_llm.text.wordpiece import WordPieceTokenizer
from nanograd_llm.text.words import WordTokenizer

__all__ = [
    "END_OF_TEXT",
    "IGNORE_INDEX",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "GPT2Tokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "TokenFiles",
    "builtin_corpus",
    "epoch_windows",
    "load_tokenizer",
    "mixed_windows",
    "open_prepared",
    "prepare",
    "random_windows",
    "read_lines",
    "read_source",
    "read_text",
    "show_batch",
    "count_windows",
    "sliding_windows",
    "split_text",
    "train_bpe",
]
