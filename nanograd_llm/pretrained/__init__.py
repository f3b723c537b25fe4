"""Pretrained weights: from the files that others wrote to named arrays, and out again."""
