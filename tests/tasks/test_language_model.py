"""Language modelling: what a GPT is trained and scored on, and which settings fit together."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.models.gpt import PRESETS
from nanograd_llm.runs.prepare import prepare_run
from nanograd_llm.tasks import LanguageModelling, TextConfig, recipe
from nanograd_llm.tasks.language_model import RECIPES, pieces_of
from nanograd_llm.text import prepare
from nanograd_llm.training import TrainConfig

PRETRAINED = Path(__file__).parents[1] / "fixtures" / "safetensors_float32"  # a context_length of 7
SIZES = ng.GPTConfig(vocab_size=1, context_length=16, n_layer=1, n_head=2, n_embd=16)
SHORT = TrainConfig(steps=1, batch_size=3, workers=1)


@pytest.fixture
def text(tmp_path: Path) -> TextConfig:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the cat. " * 60, encoding="utf-8")
    return TextConfig(str(path), vocab_size=300)


def further(text: TextConfig, **changes: object) -> LanguageModelling:
    start = ng.open_model(PRETRAINED)
    config = dataclasses.replace(start.config, **changes)  # type: ignore[arg-type]
    return LanguageModelling(dataclasses.replace(text, tokenizer="model"), config, SHORT, start=start)


def test_the_example_of_several_texts_is_the_beginning_of_one(tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text('{"text": "yes"}\n{"text": "a cat sat"}\n' * 30, encoding="utf-8")
    prepare([str(tmp_path / "words.jsonl")], tmp_path / "out", "bytes")
    assert LanguageModelling(TextConfig(str(tmp_path / "out")), SIZES, SHORT).example() == "a cat sat"


def test_the_model_takes_its_vocabulary_from_the_tokenizer(text: TextConfig) -> None:
    task = LanguageModelling(text, SIZES, SHORT)
    assert task.model.config.vocab_size == task.tokenizer.vocab_size > 256


def test_a_batch_follows_from_the_seed_and_the_step(text: TextConfig) -> None:
    one, two = (LanguageModelling(text, SIZES, SHORT) for _ in range(2))
    tokens, targets = one.batch(5)
    assert tokens.shape == (3, 16) and np.array_equal(tokens[:, 1:], targets[:, :-1])
    assert np.array_equal(two.batch(5)[0], tokens) and not np.array_equal(one.batch(6)[0], tokens)


def test_the_score_is_that_of_evaluate_on_the_held_out_text(text: TextConfig) -> None:
    task = LanguageModelling(text, SIZES, SHORT)
    ids = task.tokenizer.encode(text.read()[0][1])
    found = ng.inference.evaluate(task.model, ids, task.tokenizer, context_length=16, stride=8)
    score = task.score()
    assert (score.name, score.figure) == ("bits per byte", found.bits_per_byte)
    assert score.metrics() == {
        "bits_per_byte": found.bits_per_byte,
        "held_out_loss": found.loss,
        "held_out_perplexity": found.perplexity,
    }


def test_a_long_text_of_few_tokens_is_refused_with_the_tokenizer_bytes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab" * 5_000, "utf-8")
    with pytest.raises(ShapeError, match=r"has \d+ tokens; .*, or the tokenizer bytes, which makes more tok"):
        LanguageModelling(TextConfig(str(tmp_path / "text.txt")), SIZES, SHORT)


def test_a_sample_continues_the_held_out_text_and_is_longer_at_the_end(text: TextConfig) -> None:
    task = LanguageModelling(text, SIZES, SHORT)
    short, long = task.sample(), task.sample(last=True)
    assert short.title.startswith("after '") and short.title.endswith("' it writes")
    assert len(long.text) > len(short.text) > 0


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (9, "to be held out has 1 token; a window of 16 and its targets need 17; give a longer text$"),
        (30, "to be held out has 3 tokens; a window of 16 .*; give a longer text, or a context_length of at most 2$"),
        (100, "to be held out has 10 tokens; .*, or a context_length of at most 9, or a larger held_out$"),
    ],
)
def test_a_text_shorter_than_a_window_is_refused_with_a_context_length_that_fits(
    tmp_path: Path, size: int, said: str
) -> None:
    path = tmp_path / "short.txt"
    path.write_text("s" * size, encoding="utf-8")
    with pytest.raises(ShapeError, match=said) as refused:
        LanguageModelling(TextConfig(str(path), "bytes"), SIZES, SHORT)
    for length in map(int, re.findall(r"at most (\d+)", str(refused.value))):
        LanguageModelling(TextConfig(str(path), "bytes"), dataclasses.replace(SIZES, context_length=length), SHORT)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tokenizer": "bpee"}, "did you mean 'bpe'"),
        ({"vocab_size": 10}, r"at least 257 \(256 bytes and end of text\); got 10"),
        ({"held_out": 0}, "held_out"),
    ],
)
def test_a_wrong_text_setting_is_named(settings, field):
    with pytest.raises(ConfigError, match=field):
        TextConfig(**settings)


def test_the_window_of_training_may_be_shorter_than_the_models_context(text: TextConfig) -> None:
    for window, T in [(8, 8), (16, 16), (None, 16)]:
        task = LanguageModelling(dataclasses.replace(text, window=window), SIZES, SHORT)
        assert task.batch(0)[0].shape == (3, T)
        assert task.model.config.context_length == 16


def test_a_window_longer_than_the_models_context_is_refused(text: TextConfig) -> None:
    with pytest.raises(ConfigError, match="context_length is 17 for a window, but the model takes at most 16 tokens"):
        LanguageModelling(dataclasses.replace(text, window=17), SIZES, SHORT)


def test_dropout_may_be_changed_when_a_model_is_trained_further(text: TextConfig) -> None:
    task = further(text, dropout=0.25)
    assert task.model.blocks[0].mlp.dropout.rate == 0.25
    assert np.array_equal(task.model.wte.data, ng.open_model(PRETRAINED).model().wte.data)


def test_a_new_tokenizer_and_a_start_exclude_each_other(text: TextConfig) -> None:
    for tokenizer, start in [("bpe", ng.open_model(PRETRAINED)), ("model", None)]:
        content = dataclasses.replace(text, tokenizer=tokenizer)
        with pytest.raises(ConfigError, match='tokenizer must be "model" if there is a start, and only then'):
            LanguageModelling(content, SIZES, SHORT, start=start)
    with pytest.raises(ConfigError, match="there is no model to start from"):
        dataclasses.replace(text, tokenizer="model").make_tokenizer("cats")


def test_a_text_in_pieces_is_the_text_or_pieces_spread_evenly_over_it() -> None:
    text = "".join(map(str, range(600_000)))
    assert "".join(pieces_of(text, len(text))) == text
    pieces = pieces_of(text, 2**20)
    assert len(pieces) == 16 and sum(map(len, pieces)) == 2**20
    places = [text.index(piece[:100]) for piece in pieces]
    assert places[0] == 0 and places == sorted(places) and places[-1] > len(text) * 0.9
    assert max(np.diff(places)) - min(np.diff(places)) <= 2**16
    assert pieces_of("ab", 1) == ["ab"]


def test_of_a_long_text_only_what_the_run_can_read_is_encoded_and_the_description_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long.txt").write_text("the cat sat on the mat. " * 40_000, "utf-8")
    text, reports = TextConfig(str(tmp_path / "long.txt"), vocab_size=300), []
    for name in ("LEARNED_AT_LEAST", "TOKENIZER_SAMPLE", "SCORED_AT_MOST"):
        monkeypatch.setattr(f"nanograd_llm.tasks.language_model.{name}", 2**16)
    task = LanguageModelling(text, SIZES, SHORT, report=lambda doing, share: reports.append((doing, share)))
    assert "from 65,536 of its 864,000 characters, as a short run needs no more" in task.describe()["text"]
    assert "its last 10%" in task.describe()["held out"] and "from 65,536 of" in task.describe()["held out"]
    some, whole = task.score(3), task.score()
    assert whole.measured_on == f"all {len(task.held_out_ids) - 1:,} held-out tokens, which are pieces of a longer text"
    assert whole.share == pytest.approx(65_536 / 96_000) and some.share < whole.share
    assert np.array_equal(task.rows[0], LanguageModelling(text, SIZES, SHORT).rows[0])
    words = ["reading", "training the tokenizer", "encoding the text trained on", "encoding the text held out"]
    assert [next(word for word in words if doing.startswith(word)) for doing, _ in reports] == words
    longer = LanguageModelling(text, SIZES, dataclasses.replace(SHORT, steps=10**6))
    assert "characters" not in longer.describe()["text"] and len(longer.rows[0]) > 10 * len(task.rows[0])
    by_the_clock = LanguageModelling(text, SIZES, dataclasses.replace(SHORT, steps=1000, minutes=0.01))
    assert "from 131,072 of" in by_the_clock.describe()["text"]  # of 2**24 a minute, in whole pieces


def test_a_score_of_a_part_is_per_byte_of_that_part_and_says_its_size(text: TextConfig) -> None:
    task = LanguageModelling(text, SIZES, SHORT)
    some, same, whole = task.score(3), task.score(3), task.score()
    assert some == same and some.figure != whole.figure
    assert some.figure == pytest.approx(whole.figure, rel=0.2)
    total = len(task.held_out_ids) - 1
    assert whole.measured_on == f"all {total} held-out tokens"
    assert some.measured_on == f"28 of the {total} held-out tokens"  # 16, 8 and the last 4
    assert (whole.share, some.share) == (1, 28 / total)


def test_the_prompt_of_a_sample_begins_with_a_word(text: TextConfig) -> None:
    task = LanguageModelling(dataclasses.replace(text, tokenizer="bytes"), SIZES, SHORT)
    task.held_out_ids = task.tokenizer.encode("lf a word, and more words after it")
    assert task.sample().title.startswith("after 'a")


def test_only_what_is_known_of_the_builtin_corpus_is_said_of_a_score(text: TextConfig) -> None:
    assert LanguageModelling(text, SIZES, SHORT).score(1).remark == ""
    score = LanguageModelling(TextConfig(tokenizer="bytes"), SIZES, SHORT).score(1)
    assert score.remark == "mostly nonsense; near 1.7 it is recognisable English" and score.advice == "try --minutes 5"


def test_a_vocabulary_smaller_than_asked_for_is_reported(text: TextConfig) -> None:
    shown = LanguageModelling(dataclasses.replace(text, vocab_size=10**6), SIZES, SHORT).describe()["tokenizer"]
    assert (
        shown == "BPETokenizer(vocab_size=275), not the 1,000,000 asked for: no further pair within a word occurs twice"
    )


def test_a_recipe_is_changed_by_what_is_given():
    assert recipe("nano", steps=5, seed=None) == TrainConfig(steps=5, **RECIPES["nano"])
    with pytest.raises(ConfigError, match="did you mean 'nano'"):
        recipe("nanno")


def test_every_preset_has_a_recipe():
    assert RECIPES.keys() == PRESETS.keys()


def test_fine_tuning_has_a_smaller_learning_rate_for_a_wider_model() -> None:
    tuning = LanguageModelling.tuning
    assert tuning.settings(n_embd=768) == {"learning_rate": 5e-5, "batch_size": 8}
    assert tuning.settings(n_embd=128)["learning_rate"] == pytest.approx(3e-4)


def test_the_hash_of_the_text_is_saved_in_the_form_of_sha256sum(text: TextConfig, tmp_path: Path) -> None:
    LanguageModelling(text, SIZES, SHORT).save_beside(tmp_path)
    digest = hashlib.sha256(Path(str(text.file)).read_bytes()).hexdigest()
    assert (tmp_path / "text.sha256").read_text("utf-8") == f"{digest}  {text.file}\n"


def test_what_a_prepared_folder_has_decided_is_refused_also_with_a_model_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("\n".join('{"text": "some words"}' for _ in range(40)))
    prepare([str(tmp_path / "texts.jsonl")], tmp_path / "data", "bytes")
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 4, "context_length": 8, "steps": 1, "workers": 1}
    list(prepare_run(tmp_path / "base", options={**sizes, "file": str(tmp_path / "data")}).train())
    options = {"file": str(tmp_path / "data"), "init": str(tmp_path / "base"), "steps": 1}
    prepare_run(tmp_path / "further", options=options)
    with pytest.raises(ConfigError, match="own tokenizer and held-out part; leave held_out out"):
        prepare_run(tmp_path / "other", options={**options, "held_out": 0.4})
