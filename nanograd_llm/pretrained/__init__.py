"""Pretrained weights: read them from every form of file that people have, and write them for others.

Read `weights` and `hub`, which know no architecture, then `gpt2`. The file formats themselves are in `files`.
"""

from nanograd_llm.pretrained.gpt2.load import OpenedGPT2, load_gpt2
from nanograd_llm.pretrained.gpt2.save import save_gpt2
from nanograd_llm.pretrained.gpt2.source import Source, find_source
from nanograd_llm.pretrained.gpt2.tokenizer import gpt2_tokenizer

__all__ = ["OpenedGPT2", "Source", "find_source", "gpt2_tokenizer", "load_gpt2", "save_gpt2"]
