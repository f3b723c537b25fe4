"""GPT-2's pretrained weights: from every form of file that people have to a GPT, and out again.

Read `names`, `config`, `load`, `save`.
"""
