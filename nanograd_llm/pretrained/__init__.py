"""GPT-2's pretrained weights: from every form of file that people have to a GPT, and out again.

Read `gpt2_names`, `gpt2_config`, `load`, `save`; then the formats: `safetensors_files` is the simplest.
"""

from nanograd_llm.pretrained.load import load_gpt2, load_gpt2_tokenizer
from nanograd_llm.pretrained.save import save_gpt2
from nanograd_llm.pretrained.source import Source, find_source
from nanograd_llm.pretrained.tokenizer_files import gpt2_tokenizer

__all__ = ["Source", "find_source", "gpt2_tokenizer", "load_gpt2", "load_gpt2_tokenizer", "save_gpt2"]
