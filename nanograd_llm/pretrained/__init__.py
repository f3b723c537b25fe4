"""Pretrained weights: read them from every form of file that people have, and write them for others.

Read `weights`, `hub`, `config_json` and `layout`, which know no architecture, then `gpt2`, `bert` and `marian`,
and `peft` for adapters. The file formats themselves are in `files`.
"""

from nanograd_llm.pretrained.bert.load import OpenedBERT, load_bert
from nanograd_llm.pretrained.bert.save import save_bert
from nanograd_llm.pretrained.gpt2.load import OpenedGPT2, load_gpt2
from nanograd_llm.pretrained.gpt2.save import save_gpt2
from nanograd_llm.pretrained.gpt2.source import Source, find_source
from nanograd_llm.pretrained.gpt2.tokenizer import gpt2_tokenizer
from nanograd_llm.pretrained.marian.load import OpenedMarian, load_marian
from nanograd_llm.pretrained.marian.save import save_marian
from nanograd_llm.pretrained.opening import open_pretrained, save_pretrained
from nanograd_llm.pretrained.peft import load_lora, save_lora

__all__ = [
    "OpenedBERT",
    "OpenedGPT2",
    "OpenedMarian",
    "Source",
    "find_source",
    "gpt2_tokenizer",
    "load_bert",
    "load_gpt2",
    "load_lora",
    "load_marian",
    "open_pretrained",
    "save_bert",
    "save_gpt2",
    "save_lora",
    "save_marian",
    "save_pretrained",
]
