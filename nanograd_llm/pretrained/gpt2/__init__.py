"""GPT-2's pretrained weights: load a GPT from any of the usual file formats, and save one in them.

Read `names`, `config`, `load`, `save`.
"""
