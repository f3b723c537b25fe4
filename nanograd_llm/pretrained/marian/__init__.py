"""Marian's translation models, as transformers stores them. Read `names`, `load`, `save`."""
