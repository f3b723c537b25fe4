"""fill, embed and search on the command line: what they print, and one line for whatever cannot be."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from nanograd_llm.cli import main
from nanograd_llm.pretrained.bert.tokenizer import write_tokenizer
from nanograd_llm.runs.opening import open_encoder, open_model
from nanograd_llm.text import WordPieceTokenizer
from nanograd_llm.text.wordpiece import SPECIAL

FIXTURES = Path(__file__).parents[1] / "fixtures"
LINES = "the cats see a house.\n\n  the dog is asleep\nthe cats see a house!\n"
TINY = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context-length", "32", "--steps", "2"]


def told(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """(stdout, stderr) with stderr being one line at most."""
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1 and "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    path.write_text(LINES * 10, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, lines: Path) -> str:
    path = str(tmp_path_factory.mktemp("runs") / "bert")
    assert main(["train", str(lines), "--task", "masked-words", "--lines", "--out", path, *TINY]) == 0
    return path


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory, lines: Path) -> str:
    path = str(tmp_path_factory.mktemp("runs") / "gpt")
    assert main(["train", str(lines), "--out", path, *TINY, "--vocab-size", "270"]) == 0
    return path


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained BERT without a head."""
    path = shutil.copytree(FIXTURES / "bert_pooler", tmp_path_factory.mktemp("models") / "headless")
    size = open_model(path).config.vocab_size
    write_tokenizer(WordPieceTokenizer([*SPECIAL, *map(chr, range(97, 97 + size - 5))]), path)
    return str(path)


def test_train_says_what_is_learned_the_baseline_and_the_next_command(lines: Path, tmp_path: Path, capsys) -> None:
    out_folder = tmp_path / "run"
    assert main(["train", str(lines), "--task", "masked-words", "--lines", "--out", str(out_folder), *TINY]) == 0
    out, _ = told(capsys)
    assert re.search(r"lines\.txt: 27 rows, 3 rows held out", out)
    score = r"hidden pieces right [\d.]+ % \(loss [\d.]+, unigrams [\d.]+ %, loss of unigrams [\d.]+\)"
    assert re.search(rf"step +2: held out {score}", out)
    assert re.search(
        r"%, on .*: no better than unigrams \([\d.]+ %\), which know only how frequent each piece is\n", out
    )
    assert f"nanograd-llm fill {out_folder} '" in out and "[MASK]" in out.splitlines()[-1]


def test_fill_shows_the_likeliest_words_with_their_probabilities(run: str, capsys) -> None:
    assert main(["fill", run, "the [MASK] see a [MASK].", "--top", "3"]) == 0
    out, _ = told(capsys)
    found = re.findall(r"^ +(\d+\.\d\d)%  (\S+)$", out, flags=re.MULTILINE)
    assert out.count("[MASK] ") == 2 and len(found) == 6
    assert [float(p) for p, _ in found[:3]] == sorted((float(p) for p, _ in found[:3]), reverse=True)


def test_embed_shows_cosines_or_writes_the_vectors(run: str, lines: Path, tmp_path: Path, capsys) -> None:
    assert main(["embed", run, "the cats", "a house", "--file", str(lines)]) == 0
    out, _ = told(capsys)
    assert out.startswith("32 texts, 16 numbers each: the mean of the last hidden states of a BERT\n")
    assert re.search(r"^ 1\.000 ( ?-?\d\.\d{3} ){7} ?the cats$", out, flags=re.MULTILINE)
    path = tmp_path / "vectors.npy"
    assert main(["embed", run, "the cats", "a house", "--out", str(path)]) == 0
    vectors = np.load(path)
    encoder, tokenizer = open_encoder(run)
    alone = encoder.embed([tokenizer.wrap(tokenizer.encode("the cats"))])
    assert vectors.shape == (2, 16) and np.allclose(vectors[0], alone[0], atol=1e-6)
    assert "written to" in told(capsys)[0]


@pytest.mark.parametrize(("name", "said"), [("lines.txt", "does not end in .npy"), ("x.npy", "already exists")])
def test_embed_writes_over_no_file_but_an_npy(name: str, said: str, run: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / name
    path.write_text(LINES)
    assert main(["embed", run, "--file", str(path), "--out", str(path)]) == 4
    assert said in told(capsys)[1] and path.read_text() == LINES
    for texts in (["a"], ["a", "b"]):
        assert main(["embed", run, *texts, "--out", str(tmp_path / "own.npy")]) == 0
    assert len(np.load(tmp_path / "own.npy")) == 2


def test_embed_takes_a_gpt_and_says_so(gpt: str, capsys) -> None:
    assert main(["embed", gpt, "the cats", "the cats"]) == 0
    out, _ = told(capsys)
    assert out.startswith("2 texts, 16 numbers each: the mean of the last hidden states of a GPT\n")
    assert " 1.000  1.000  the cats" in out


@pytest.mark.parametrize("model", ["run", "gpt", "headless"])
def test_search_shows_the_nearest_lines(model: str, lines: Path, request: pytest.FixtureRequest, capsys) -> None:
    source = request.getfixturevalue(model)
    capsys.readouterr()
    assert main(["search", source, "the dog is asleep", "--file", str(lines), "--top", "11"]) == 0
    shown = told(capsys)[0].splitlines()
    assert shown[:10] == [" 1.000  the dog is asleep"] * 10 and len(shown) == 11
    assert float(shown[10].split()[0]) < 0.9999


def test_a_gpt_fills_no_words_in(gpt: str, capsys) -> None:
    assert main(["fill", gpt, "a [MASK]"]) == 2
    assert "is a model of the class GPT; expected BERT; use nanograd-llm generate" in told(capsys)[1]


def test_a_bert_does_not_continue_a_text(run: str, capsys) -> None:
    assert main(["generate", run, "a"]) == 2
    assert "is a model of the class BERT; expected GPT; use nanograd-llm fill" in told(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fill", "RUN", "the cats"], 2, r"the text has no [MASK]"),
        (["fill", "RUN", ""], 2, "text 1 is '', which has no words"),
        (["fill", "RUN", "cats " * 40 + "[MASK]"], 2, "and the model takes 32; shorten it, or give --truncate"),
        (["fill", "HEADLESS", "a [MASK]"], 2, "no head that fills in words"),
        (["fill", "RUN", "a [MASK]", "--top", "0"], 2, "top must be an integer of at least 1"),
        (["embed", "RUN"], 2, "there is nothing to embed; give texts in quotes, or --file"),
        (["embed", "RUN", "a", ""], 2, "text 2 is '', which has no words"),
        (["embed", "RUN", "cats " * 40], 2, "text 1 has"),
        (["embed", "RUN", "a", "--out", "missing/vectors.npy"], 4, "missing/vectors.npy"),
        (["embed", "RUN", "--file", "NUL"], 3, "has NUL characters in it"),
        (["embed", "RUN", "--file", "BLANK"], 3, "has blank lines only"),
        (["search", "RUN", "", "--file", "LINES"], 2, "the query is '', which has no words; give another"),
        (["search", "RUN", "cats " * 40, "--file", "LINES"], 2, "the query has"),
        (["search", "MiniLM", "a", "--file", "LINES"], 4, "name, such as sentence-transformers/all-MiniLM-L6-v2"),
        (["search", "RUN", "a", "--file", "NUL"], 3, "has NUL characters in it"),
        (["search", "RUN", "a"], 2, "search needs --file"),
        (["search", "RUN", "a", "--file", "missing.txt"], 4, "missing.txt"),
        (["embed", "nowhere", "a"], 4, "nowhere"),
        (["embed", "UNFIT", "a"], 3, "its tokenizer has 200 tokens, the model"),
        (["train", "--task", "masked-words", "--init", "UNFIT"], 3, "its tokenizer has 200 tokens, the model"),
        (
            ["train", "LINES", "--task", "masked-words", "--init", "RUN", "--n-layer", "3"],
            2,
            "--init takes --n-layer from the model",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    code: int,
    said: str,
    run: str,
    headless: str,
    lines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nul.txt").write_bytes(b"\0" * 64)
    (tmp_path / "blank.txt").write_text("\n \n")
    unfit = shutil.copytree(headless, tmp_path / "unfit")
    write_tokenizer(WordPieceTokenizer([*SPECIAL, *map(str, range(195))]), unfit)
    places = {"RUN": run, "HEADLESS": headless, "LINES": lines, "UNFIT": unfit}
    places |= {"NUL": tmp_path / "nul.txt", "BLANK": tmp_path / "blank.txt"}
    assert main([str(places.get(word, word)) for word in arguments]) == code
    assert said in told(capsys)[1]


def test_truncate_keeps_the_first_tokens_and_says_of_how_many_texts(run: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "long.txt"
    path.write_text(f"{'cats ' * 90}\n{'dogs ' * 90}\n")
    for words, count in (
        (["fill", run, "[MASK] " + "cats " * 40], "1 text"),
        (["embed", run, "cats " * 40, "a cat"], "1 text"),
        (["search", run, "cats", "--file", str(path)], "2 texts"),
    ):
        assert main([*words, "--truncate"]) == 0
        assert f"warning: {count} of more than 32 tokens: only the first ones are read\n" in told(capsys)[1]


def test_tokenize_counts_the_bytes_of_the_text_not_of_what_its_pieces_decode_to(run: str, capsys) -> None:
    assert main(["tokenize", "der Fluß [MASK] zebra", "--model", run]) == 0
    assert ", 22 bytes, by WordPieceTokenizer" in capsys.readouterr().out


def test_info_and_tokenize_take_a_run_of_masked_words(run: str, capsys) -> None:
    assert main(["info", run]) == 0
    out = told(capsys)[0]
    assert "WordPieceTokenizer" in out and "blocks.0.attention.qkv.weight" in out and "words, loss" in out
    assert main(["tokenize", "the cats", "--model", run]) == 0
    assert "' the'" in told(capsys)[0]


def test_a_bert_without_a_head_gets_one_when_it_is_trained_further(
    headless: str, lines: Path, tmp_path: Path, capsys
) -> None:
    out = str(tmp_path / "run")
    given = ["--task", "masked-words", "--lines", "--init", headless, "--steps", "1", "--out", out]
    assert main(["train", str(lines), *given]) == 0
    assert main(["fill", out, "a [MASK]", "--top", "2"]) == 0
    assert "[MASK] 1" in told(capsys)[0]
    before, after = (open_model(path).model().state_dict() for path in (headless, out))
    assert {name for name in after if name not in before} == {name for name in after if name.startswith("head.")}
    assert {name for name in before if name not in after} == {"pooler.weight", "pooler.bias"}
