"""GPT-2's pretrained weights: from every form of file that people have to a GPT, and out again.

Read `gpt2`; the formats themselves are in `files`, which knows no model.
"""

from nanograd_llm.pretrained.gpt2.load import OpenedGPT2, load_gpt2
from nanograd_llm.pretrained.gpt2.save import save_gpt2
from nanograd_llm.pretrained.gpt2.source import Source, find_source
from nanograd_llm.pretrained.gpt2.tokenizer import gpt2_tokenizer

__all__ = ["OpenedGPT2", "Source", "find_source", "gpt2_tokenizer", "load_gpt2", "save_gpt2"]
