"""BERT's files. Read `names`, `config`, `load`, `save`; then `sentences` and `tokenizer`."""
