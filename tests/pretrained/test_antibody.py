"""A model of another kind needs a table of names: an encoder-decoder that numbers antibodies is read, and numbers one.

pytest -m weights tests/pretrained        fetches 18 MB with pip, of which nothing is installed or run

ANARCII (Greenshields-Watson et al. 2025) reads the amino acids of an antibody and writes the IMGT number of each.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.files.torch import read_torch
from nanograd_llm.inference import BeamSearch, translate
from nanograd_llm.pretrained.layout import Layout, fill

CONFIG = ng.EncoderDecoderConfig(
    vocab_size=136,
    source_vocab_size=25,
    context_length=210,
    n_layer=2,
    n_head=4,
    n_embd=128,
    n_inner=512,
    norm_first=False,
    activation="relu",
    positions="learned",
    scale_embedding=True,
    tie_word_embeddings=False,
    head_bias=True,
    pad_id=0,
    start_id=1,
    end_id=2,
)
NAMES: dict[str, str | tuple[str, ...]] = {"head": "decoder.fc_out.weight", "head_bias": "decoder.fc_out.bias"}
for side, ours in (("encoder", "source"), ("decoder", "target")):
    NAMES |= {f"{ours}_table": f"{side}.tok_embedding.weight", f"{ours}_positions": f"{side}.pos_embedding.weight"}
    for kind in ("weight", "bias"):
        parts = {"attention.qkv": "self_attention.multihead_attn.in_proj_", "ln_1": "self_attn_layer_norm."}
        parts |= {"attention.out": "self_attention.multihead_attn.out_proj.", "ln_2": "ff_layer_norm."}
        parts |= {"mlp.up": "positionwise_feedforward.fc_1.", "mlp.down": "positionwise_feedforward.fc_2."}
        if side == "decoder":
            cross = "encoder_attention.multihead_attn."
            parts |= {"ln_cross": "enc_attn_layer_norm.", "cross_attention.out": f"{cross}out_proj."}
            parts |= {"cross_attention.q": f"{cross}in_proj_q_", "cross_attention.kv": f"{cross}in_proj_kv_"}
        NAMES |= {f"{side}.{{layer}}.{a}.{kind}": f"{side}.layers.{{layer}}.{b}{kind}" for a, b in parts.items()}
LAYOUT = Layout("ANARCII", NAMES, "out, in", tuple(f"{x}.weight" for x in ("qkv", ".q", "kv", "out", "up", "down")))

LETTERS = ["<PAD>", "<SOS>", "<EOS>", "<SKIP>", *"ACDEFGHIKLMNPQRSTVWXY"]
LABELS = ["<PAD>", "<SOS>", "<EOS>", "<SKIP>", *map(str, range(1, 129)), "X", "H", "L", "K"]
TRASTUZUMAB = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTI"
    "SADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)
GAPS = {10, 31, 32, 33, 34, 60, 61, 73}  # of the IMGT numbers 1 to 128, those that its heavy chain does not have


def load(path: Path) -> ng.EncoderDecoder:
    """The model of a file; the queries of cross-attention lie beside its keys and values there."""
    arrays = {}
    for name, array in read_torch(path).items():
        if "encoder_attention" in name and "in_proj_" in name:
            q, k, v = np.split(array, 3)
            arrays[name.replace("in_proj_", "in_proj_q_")] = q
            arrays[name.replace("in_proj_", "in_proj_kv_")] = np.concatenate([k, v])
        else:
            arrays[name] = array
    model = ng.EncoderDecoder(CONFIG, seed=None)
    return fill(model, arrays, LAYOUT, str(path), dtype=np.dtype("float32"), strict=True)


@pytest.mark.weights
def test_the_antibody_model_numbers_a_heavy_chain_as_imgt_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    subprocess.run([*command, "anarcii==2.0.8"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        path = Path(file.extract("anarcii/models/antibody/antibody_4_2_128_512.pt", tmp_path))
    model = load(path)
    source = [LETTERS.index(letter) for letter in ["<SOS>", *TRASTUZUMAB, "<EOS>"]]
    wanted = ["H", *(str(number) for number in range(1, 129) if number not in GAPS)]
    for beam in (1, 3):
        (found,) = translate(model, source, search=BeamSearch(beam=beam))
        assert [LABELS[i] for i in found] == wanted


def test_its_table_has_every_parameter_once() -> None:
    model = ng.EncoderDecoder(CONFIG, seed=None)
    names = [theirs for ours, _ in model.named_parameters() for theirs in LAYOUT.parts(ours)]
    assert len(names) == len({*names}) == 66 + 4  # of the 66 arrays, 2 × 2 are cut in two
