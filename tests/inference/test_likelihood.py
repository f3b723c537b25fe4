"""The likelihood of texts, continuations and choices: each token once, as the harness has them."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
import tracemalloc
import types

import numpy as np
import pytest

from nanograd_llm import GPT, GPTConfig
from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError, ConfigError, ShapeError
from nanograd_llm.inference import (
    Sampling,
    answer_choices,
    evaluate,
    evaluate_text,
    generate,
    hardest,
    harness,
    interval,
    log_likelihoods,
    score_text,
    score_texts,
    stream_text,
    write_texts,
)
from nanograd_llm.inference.likelihood import RESAMPLES, ScoredText, encode_pair, token_losses
from nanograd_llm.inference.writing import before_stop
from nanograd_llm.runs.opening import open_model
from nanograd_llm.runs.prepare import prepare_run
from nanograd_llm.runs.scoring import score_run
from nanograd_llm.text import ByteTokenizer, CharTokenizer
from nanograd_llm.text.examples import read_choices
from nanograd_llm.text.prepared import prepare

BYTES = ByteTokenizer()
TEXT = "It was — häufig — a naïve text, and then some more of it."


@pytest.fixture(scope="module")
def model():
    return GPT(GPTConfig(vocab_size=257, context_length=8, n_layer=1, n_head=2, n_embd=16), seed=1).eval()


def by_hand(model, context, continuation):
    """The log-likelihood of a continuation, one token at a time."""
    ids, total, greedy = [*context], 0.0, True
    for token in continuation:
        logits = model(np.array([ids])).data[0, -1].astype(float)
        total += logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        greedy &= int(logits.argmax()) == token
        ids.append(token)
    return total, greedy


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_of_a_text_has_one_loss_and_their_mean_is_that_of_evaluate(model, stride):
    ids = BYTES.encode(TEXT)
    losses = token_losses(model, ids, context_length=8, stride=stride)
    found = evaluate(model, ids, BYTES, context_length=8, stride=stride)
    assert losses.shape == (len(ids) - 1,) and losses.mean() == pytest.approx(found.loss, rel=1e-5)
    assert losses[:3] == pytest.approx(
        [-by_hand(model, ids[: n + 1], ids[n + 1 : n + 2])[0] for n in range(3)], rel=1e-4
    )


@pytest.mark.parametrize("tokenizer", [BYTES, CharTokenizer.train(TEXT)])
def test_a_text_shorter_than_the_stride_is_scored_in_one_window_and_only_a_stride_over_the_context_is_refused(
    model, tokenizer
):
    losses = score_text(model, "It w", tokenizer, stride=8).losses
    assert losses.tolist() == score_text(model, "It w", tokenizer).losses.tolist()
    with pytest.raises(ConfigError, match="stride is 9, which skips targets; expected at most context_length=8"):
        score_text(model, "It w", tokenizer, stride=9)


def test_the_bytes_of_scored_texts_are_all_bytes_of_them(model):
    found = score_texts(model, [("first", TEXT), ("second", "another one")], BYTES).whole
    assert found.bytes == found.tokens == len(TEXT.encode()) + 11
    characters = CharTokenizer.train(TEXT)
    small = GPT(GPTConfig(vocab_size=characters.vocab_size, context_length=8, n_layer=1, n_head=1, n_embd=8))
    assert evaluate_text(small, TEXT, characters).bytes == len(TEXT[1:].encode())


def test_the_interval_holds_the_score_and_has_its_width():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        losses = rng.exponential(math.log(2), size=(60, 10)).ravel()  # a mean of one bit
        text = ScoredText(np.zeros(600, int), losses, np.ones(600, int), 10)
        low, high = interval(text.blocks(), seed)
        assert low < losses.mean() / math.log(2) < high
        covered += low < 1 < high
    assert 0.88 * 200 < covered <= 200 and RESAMPLES >= 1000
    assert interval(ScoredText(np.zeros(5, int), np.ones(5), np.ones(5, int), 10).blocks()) is None


def test_the_interval_and_the_hardest_tokens_of_a_long_text_need_little_memory():
    text = ScoredText(np.zeros(40_000, int), np.linspace(1, 2, 40_000), np.ones(40_000, int), 10)
    tracemalloc.start()
    try:
        interval(text.blocks())
        hardest(text, BYTES, 0), hardest(text, BYTES, 5)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_only_the_tokens_that_a_text_has_are_decoded_for_their_sizes(model):
    decoded = []

    class Counting(list):
        def __getitem__(self, i):
            decoded.append(i)
            return super().__getitem__(i)

    tokenizer = ByteTokenizer()
    tokenizer._table = Counting(tokenizer._table)
    assert score_text(model, "abca", tokenizer).sizes.tolist() == [1, 1, 1, 1]
    assert decoded == [97, 98, 99]


def test_the_hardest_tokens_of_several_texts_come_first_and_no_text_is_read_before_it_is_scored(model):
    texts = {"one": "abc", "two": "defg"}
    waiting, done = list(texts.items()), list[str]()

    def read():
        while waiting:
            assert len(done) == 2 - len(waiting)  # each is scored before the next is read
            yield waiting.pop(0)

    found = score_texts(model, read(), BYTES, top=3, progress=lambda name, share: share == 1 and done.append(name))
    alone = {name: score_text(model, text, BYTES) for name, text in texts.items()}
    losses = sorted(np.concatenate([text.losses for text in alone.values()]), reverse=True)
    assert [token.loss for token in found.hardest] == losses[:3] and done == [*texts]
    assert all(token.before + token.token in "abc defg" for token in found.hardest)
    assert [(name, one.loss) for name, one in found.each] == [(name, t.losses.mean()) for name, t in alone.items()]


def test_continuations_of_different_lengths_have_the_likelihoods_of_one_at_a_time(model):
    pairs = [([1, 2, 3], [4, 5]), ([7], [8]), ([1] * 20, [9, 9, 9]), ([5, 6], [*range(8)])]
    for (found, greedy), (context, continuation) in zip(log_likelihoods(model, pairs), pairs):
        room = 9 - len(continuation)  # the context loses its beginning
        expected, is_greedy = by_hand(model, context[-room:], continuation)
        assert found == pytest.approx(expected, rel=1e-4) and greedy == is_greedy
    best = int(model(np.array([[1, 2]])).data[0, -1].argmax())
    assert log_likelihoods(model, [([1, 2], [best])])[0][1]


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1], [1] * 9)])
def test_a_pair_that_has_no_likelihood_is_refused(model, pair):
    with pytest.raises(ShapeError, match="pair 0 has a context of"):
        log_likelihoods(model, [pair])


def test_an_empty_context_is_the_end_of_a_text():
    assert encode_pair(BYTES, "", "ab") == ([256], [97, 98])
    assert encode_pair(BYTES, "a  ", "b") == ([97], [32, 32, 98])
    with pytest.raises(ConfigError, match="no end-of-text token to stand for an empty context"):
        encode_pair(CharTokenizer("ab"), "", "a")


def test_the_choice_with_the_highest_likelihood_is_the_answer(model):
    questions = [("cat", ["s", "xyzw"], 0), ("dog", ["runs", "sits", "is"], 2)]
    sums = [[sum(by_hand(model, *encode_pair(BYTES, c, f" {e}"))[:1]) for e in ends] for c, ends, _ in questions]
    found = answer_choices(model, BYTES, questions)
    assert found.right == sum(int(np.argmax(row)) == question[2] for row, question in zip(sums, questions))
    per = [np.array(row) / [len(e) for e in ends] for row, (_, ends, _) in zip(sums, questions)]
    assert found.right_per_character == sum(int(np.argmax(row)) == q[2] for row, q in zip(per, questions))


def test_questions_are_read_from_json_lines_and_others_are_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"ctx": "a", "endings": ["b", "c"], "label": "1", "ind": 4}))
    assert read_choices(path) == [("a", ["b", "c"], 1)]
    for row in ({"ctx": "a", "endings": ["b"], "label": 0}, {"ctx": "a", "endings": ["b", "c"], "label": 2}, {}):
        path.write_text(json.dumps(row))
        with pytest.raises(BadFileError, match='q.jsonl, line 1: expected a string "ctx"'):
            read_choices(path)


def test_a_penalty_makes_what_came_before_less_likely_whatever_its_sign():
    logits = np.array([[2.0, -2.0, 1.0]])
    assert Sampling(repetition_penalty=2.0).penalised(logits, np.array([[0, 1, 1]])).tolist() == [[1.0, -4.0, 1.0]]
    assert Sampling().penalised(logits, np.array([[0]])) is logits


def test_a_high_penalty_repeats_nothing(model):
    sampling = Sampling(temperature=0, repetition_penalty=1000.0)
    (plain,), (ids,) = (
        generate(model, [1], max_new_tokens=20, sampling=s) for s in (Sampling(temperature=0), sampling)
    )
    assert len({*ids}) == 20 > len({*plain})


@pytest.mark.parametrize("pieces", [["abcSTOPdef"], list("abcSTOPdef"), ["abcS", "TO", "Pdef"]])
def test_a_text_ends_before_a_stop_however_it_comes(pieces):
    assert "".join(before_stop(pieces, ["STOP", "zz"])) == "abc"
    assert "".join(before_stop(pieces, ["STOX"])) == "abcSTOPdef"


def test_prompts_of_any_lengths_are_continued_as_each_alone(model):
    prompts = [BYTES.encode(text) for text in ("a", "some longer prompt", "bc")]
    sampling = Sampling(temperature=0)
    together = write_texts(model, BYTES, prompts, max_new_tokens=6, sampling=sampling, cache=False)
    alone = ["".join(stream_text(model, BYTES, p, max_new_tokens=6, sampling=sampling, cache=False)) for p in prompts]
    assert together == alone


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    (folder / "texts").mkdir()
    for i in range(3):
        (folder / "texts" / f"{i}.txt").write_text(f"text {i}: the cat sat on the mat\n" * 40)
    sizes = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context-length", "16", "--tokenizer", "bytes"]
    assert main(["train", str(folder / "texts"), "--steps", "2", "--out", str(folder / "run"), *sizes]) == 0
    return folder


def test_eval_shows_a_line_for_each_text_the_interval_and_the_hardest_tokens(run, capsys):
    capsys.readouterr()
    assert main(["eval", str(run / "run"), str(run / "texts"), "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert all(f"{i}.txt" in out for i in range(3)) and "(95 %: " in out
    assert len(out.rstrip().splitlines()[-2:]) == 2 and " -> " in out.splitlines()[-1]
    total = sum((run / "texts" / f"{i}.txt").stat().st_size for i in range(3))
    assert f"{total:,} bytes" in out


def test_eval_says_of_a_text_that_the_run_was_trained_on_it_whatever_its_name(run, capsys, tmp_path):
    shutil.copytree(run / "texts", tmp_path / "copy")
    (tmp_path / "other.txt").write_text("another text: the cat sat on the mat\n" * 40)
    capsys.readouterr()
    for text in (run / "texts", run / "texts" / "0.txt", tmp_path / "copy"):
        assert main(["eval", str(run / "run"), str(text)]) == 0
        told = (
            f"{text}: this run was trained on it, so the score flatters the model; nanograd-llm eval {run}/run scores"
        )
        assert told in capsys.readouterr().err
    assert main(["eval", str(run / "run"), str(tmp_path / "other.txt")]) == 0
    assert "trained on" not in capsys.readouterr().err


def test_eval_leaves_files_of_a_folder_out_that_are_no_text_and_says_so(run, capsys, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "one.txt").write_text("the cat sat")
    (tmp_path / "two.jsonl").write_text('{"text": "on the"}\n{"text": "mat"}\n')
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "__init__.py").touch()
    capsys.readouterr()
    assert main(["eval", str(run / "run"), str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "left out 2 of 4 files: " in err and "logo.png is not UTF-8" in err and "__init__.py is empty" in err
    assert f" {os.path.join('more', 'one.txt')} " in out and " two.jsonl " in out
    assert f"{len('the cat sat') + len('on the') + 3 + len('mat')} bytes" in out


def test_what_is_typed_as_standard_input_is_read_before_anything_else_is_shown(run, capsys, monkeypatch):
    capsys.readouterr()
    keyboard = io.TextIOWrapper(io.BytesIO(b"the cat sat on the mat\n"))
    monkeypatch.setattr(keyboard, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", keyboard)
    assert main(["eval", str(run / "run"), "-"]) == 0
    out, err = capsys.readouterr()
    assert (
        "23 bytes" in out and err == "nanograd-llm: type or paste the text; Ctrl-D at the beginning of a line ends it\n"
    )


def test_eval_without_a_terminal_says_now_and_then_how_far_it_is(run, capsys, monkeypatch):
    capsys.readouterr()
    monkeypatch.setattr("nanograd_llm.cli.terminal.LINE_EVERY", 0.0)
    assert main(["eval", str(run / "run")]) == 0
    out, err = capsys.readouterr()
    assert "373 tokens: 100%\n" in err and out.count("scoring") == 1


AT_ONCE = {"translation": "translation.SCORED_AT_ONCE", "masked-words": "masked_words.SCORE_TOKENS"}


@pytest.mark.parametrize("task", AT_ONCE)
def test_eval_of_a_run_of_any_task_says_how_far_it_is(tmp_path, monkeypatch, task):
    monkeypatch.setattr(f"nanograd_llm.tasks.{AT_ONCE[task]}", 4)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 4, "steps": 1, "batch_size": 2, "workers": 1, "evaluate_every": 1}
    run = prepare_run(tmp_path / "run", options={"task": task, **sizes})
    next(run.train())
    shares = []
    score_run(tmp_path / "run", lambda doing, share: doing.startswith("scoring") and shares.append(share), 12)
    assert len(shares) > 2 and shares[-1] == 1


def test_eval_without_a_text_scores_all_that_was_held_out(run, capsys):
    capsys.readouterr()
    assert main(["eval", str(run / "run")]) == 0
    assert "bits per byte (loss" in (out := capsys.readouterr().out) and "over all" in out


def test_eval_answers_questions(run, capsys, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"ctx": "the cat", "endings": ["sat", "flew"], "label": 0}))
    capsys.readouterr()
    assert main(["eval", str(run / "run"), "--choices", str(tmp_path / "q.jsonl")]) == 0
    assert "of 1 question" in capsys.readouterr().out


def test_generate_writes_several_texts_to_a_stop_and_refuses_a_prompt_that_is_too_long(run, capsys):
    capsys.readouterr()
    few = ["--max-new-tokens", "4", "--seed", "1"]
    assert main(["generate", str(run / "run"), "ab", "--n", "3", *few]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("--- ")] == [
        "--- 1",
        "--- 2",
        "--- 3",
    ]
    assert main(["generate", str(run / "run"), "a" * 40, *few]) == 2
    assert (
        "the prompt has 40 tokens, and the model sees 16; give a shorter one, or --truncate" in capsys.readouterr().err
    )
    assert main(["generate", str(run / "run"), "a" * 40, "--truncate", "--stop", "\\n", *few]) == 0
    assert main(["generate", str(run / "run"), "a", "--stop", "\\", *few]) == 2


@pytest.mark.parity
def test_the_harness_finds_the_same_numbers_with_its_own_model(run, tmp_path):
    pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    import nanograd_llm as ng
    from nanograd_llm.inference import harness_model

    model = GPT(GPTConfig(vocab_size=50257, context_length=32, n_layer=1, n_head=2, n_embd=16), seed=3)
    tokenizer = ng.pretrained.gpt2_tokenizer()
    ng.save_gpt2(model, tmp_path / "hf", tokenizer=tokenizer)
    theirs = HFLM(pretrained=str(tmp_path / "hf"), device="cpu", dtype="float32", batch_size=1)
    ours = harness_model(model, tokenizer)
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 6

    def asked(kind, arguments):
        return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]

    pairs = [("The cat", " sat on the mat"), ("", "Once upon"), ("It is ", "true"), (text, " end")]
    for (a, b), (c, d) in zip(*(one.loglikelihood(asked("loglikelihood", pairs)) for one in (ours, theirs))):
        assert a == pytest.approx(c, rel=1e-4) and b == d
    rolling = [(text,), ("short",), ("word " * 31,)]
    for a, b in zip(*(one.loglikelihood_rolling(asked("loglikelihood_rolling", rolling)) for one in (ours, theirs))):
        assert a == pytest.approx(b, rel=1e-4)
    settings = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    prompts = [("The cat", settings), (text, settings)]
    mine, other = (one.generate_until(asked("generate_until", prompts)) for one in (ours, theirs))
    assert mine == other


@pytest.mark.parametrize(("settings", "seen"), [({}, 4), ({"max_gen_toks": 2}, 6), ({"max_gen_toks": 100}, 4)])
def test_the_adapter_continues_the_end_of_a_prompt_at_least_half_a_context_long(model, monkeypatch, settings, seen):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lm_eval.api.model"].LM = object
    shown = []

    def write(model, tokenizer, ids, **settings):
        shown.append(tokenizer.decode(ids))
        return ()

    monkeypatch.setattr(harness, "stream_text", write)
    request = types.SimpleNamespace(args=("0123456789", settings))
    harness.harness_model(model, BYTES).generate_until([request])
    assert shown == ["0123456789"[-seen:]]


def test_the_adapter_is_refused_without_the_harness(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ConfigError, match="pip install lm-eval"):
        harness.harness_model(model, BYTES)


def test_eval_of_some_rows_is_the_score_that_training_gives_on_as_many(run, capsys):
    capsys.readouterr()
    assert main(["eval", str(run / "run"), "--rows", "4"]) == 0
    first, score, over = capsys.readouterr().out.splitlines()
    assert first.startswith("scoring 4 rows of what is held out, its last 10%: ")
    task = prepare_run(run / "again", file=run / "run" / "config.toml").task
    vars(task)["model"] = open_model(run / "run").model()
    assert score == str(task.score(4)) and over == f"over {task.score(4).measured_on}"


def test_eval_of_some_windows_of_a_text_scores_each_of_their_bytes_once(run, capsys):
    capsys.readouterr()
    assert main(["eval", str(run / "run"), str(run / "texts"), "--rows", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("scoring 3 windows of 3 texts, 3,720 characters\n") and "95 %" not in out
    assert "over           29 tokens, 29 bytes" in out  # a window of 16, half of one, and what is left for the last


def test_eval_of_a_prepared_folder_scores_its_held_out_part_by_the_tokenizer_that_made_it(run, capsys, tmp_path):
    prepare([str(run / "texts")], tmp_path / "data", ByteTokenizer(), held_out=0.4)
    capsys.readouterr()
    assert main(["eval", str(run / "run"), str(tmp_path / "data")]) == 0
    held_out = (tmp_path / "data" / "val.bin").stat().st_size // 2
    out = capsys.readouterr().out
    assert out.startswith(f"scoring the held-out part of {tmp_path / 'data'}, {held_out:,} tokens\n")
    assert f"over           {held_out - 1:,} tokens" in out
    prepare([str(run / "texts")], tmp_path / "other", "characters", held_out=0.4)
    for arguments, said in [
        ([tmp_path / "other"], "was prepared with CharTokenizer"),
        ([tmp_path / "data", run / "texts"], "which is scored by itself; give it alone"),
        ([tmp_path / "data", "--top", "1"], "leave it out"),
        ([run / "texts", "--top", "-1"], "--top must be an integer of at least 0; got -1"),
        ([run / "texts", "--rows", "0"], "--rows must be an integer of at least 1; got 0"),
        (["--rows", "0"], "--rows must be an integer of at least 1; got 0"),
        (["--top", "1"], "--top is for a text, and none is given; give one, or leave --top out"),
        (["--stride", "4"], "--stride is for a text, and none is given; give one, or leave --stride out"),
    ]:
        assert main(["eval", str(run / "run"), *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert said in err and not out
