"""File formats, one home each, which know no model: bytes in, named arrays out, and nothing believed unchecked.

Read `atomic` (whole or not there), `mapped` (bytes as arrays), then the formats; `safetensors` is the simplest.
"""
