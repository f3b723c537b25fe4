"""GPT-2's pretrained weights: a GPT from every form of file that people have, and the files to give to others.

Read `names`, `config`, `load`, `save`.
"""
