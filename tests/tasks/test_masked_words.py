"""Masked words: whole words are hidden in the shares that are set, and the score counts what was hidden."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.backend.randomness import generator
from nanograd_llm.errors import BadFileError, ConfigError, ShapeError
from nanograd_llm.models import BERT, BERTConfig
from nanograd_llm.runs.prepare import prepare_run
from nanograd_llm.settings import IGNORE_INDEX
from nanograd_llm.tasks.masked_words import HidingConfig, HidingTextConfig, MaskedWords
from nanograd_llm.text import CharTokenizer
from nanograd_llm.training import TrainConfig, Trainer

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = BERTConfig(vocab_size=1, context_length=32, n_layer=1, n_head=2, n_embd=16)
SHORT = TrainConfig(steps=1, batch_size=50, workers=1)
SENTENCES = [f"the {a} cats unaffably see {b} houses {c}." for a in "abcd" for b in ("no", "two") for c in "xyz"]


@pytest.fixture
def text(tmp_path: Path) -> HidingTextConfig:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES * 3), encoding="utf-8")
    return HidingTextConfig(str(path), lines=True, vocab_size=50)


def task_of(text: HidingTextConfig, **hiding: Any) -> MaskedWords:
    return MaskedWords(text, HidingConfig(**hiding), SMALL, SHORT)


def word_by_word(task: MaskedWords, row: np.ndarray) -> list[list[int]]:
    """The places of each word of a row of ids, by the pieces as they are written."""
    found: list[list[int]] = []
    for place, i in enumerate(row.tolist()):
        piece = task.tokenizer.decode_bytes([i])
        if task.is_special[i]:
            continue
        if piece.isalnum() and found and found[-1][-1] == place - 1:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def test_words_are_hidden_whole_at_least_one_a_row_and_never_a_special_token(text: HidingTextConfig) -> None:
    task = task_of(text)
    assert task.tokenizer.continues[np.concatenate(task.learned)].any()
    for step in range(5):
        tokens, targets, lengths = task.batch(step)
        hidden = targets != IGNORE_INDEX
        whole = np.where(hidden, targets, tokens)
        assert tokens.shape == targets.shape == (50, lengths.max()) and (np.sum(hidden, axis=1) >= 1).all()
        for row, there, length in zip(whole, hidden, lengths):
            assert task.tokenizer.decode(row[1 : length - 1]) in SENTENCES
            words = word_by_word(task, row[:length])
            assert sum(map(len, words)) == length - 2
            taken = [there[places] for places in words]
            assert all(word.all() or not word.any() for word in taken)
            assert sum(word.all() for word in taken) == max(1, round(0.15 * len(words)))
            assert not there[length:].any()


def test_hidden_words_become_masks_random_words_or_stay_in_the_shares_that_are_set() -> None:
    task = MaskedWords(HidingTextConfig(), HidingConfig(as_mask=0.6, as_random=0.3), SMALL, SHORT)
    shown, wanted = (np.concatenate(parts) for parts in zip(*((t[h], g[h]) for t, g, h in hidden_of(task, 200))))
    masked, same = shown == task.mask, shown == wanted
    assert abs(masked.mean() - 0.6) < 0.02 and abs(same.mean() - 0.1) < 0.02
    random = shown[~masked & ~same]
    assert abs(len(random) / len(shown) - 0.3) < 0.02
    assert not task.is_special[random].any() and len(np.unique(random)) > 0.9 * len(task.ordinary)


def hidden_of(task: MaskedWords, steps: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    batches = [task.batch(step)[:2] for step in range(steps)]
    return [(tokens, targets, targets != IGNORE_INDEX) for tokens, targets in batches]


def test_all_pieces_of_a_word_share_its_fate(text: HidingTextConfig) -> None:
    task = task_of(text, hidden=1.0, as_mask=0.5, as_random=0.0)
    tokens, targets, lengths = task.batch(0)
    for row, there, length in zip(tokens, targets, lengths):
        for places in word_by_word(task, np.where(there == IGNORE_INDEX, row, there)[:length]):
            assert len({*(row[places] == task.mask)}) == 1


def test_a_batch_follows_from_the_seed_and_the_step(text: HidingTextConfig) -> None:
    one, two = task_of(text), task_of(text)
    assert all(np.array_equal(x, y) for x, y in zip(one.batch(5), two.batch(5)))
    assert not np.array_equal(one.batch(6)[0], one.batch(5)[0])


def test_windows_of_a_text_without_lines_have_all_its_pieces_once(text: HidingTextConfig) -> None:
    task = task_of(dataclasses.replace(text, lines=False))
    learned, _ = ng.text.split_text(ng.text.read_text(str(text.file)))
    ids = np.concatenate(task.learned)
    ordinary = ids[~task.is_special[ids]]
    assert ordinary.tolist() == task.tokenizer.encode(learned).tolist()
    assert {len(row) for row in task.learned[:-1]} == {32}


def test_lines_are_rows_and_the_last_ones_are_held_out(text: HidingTextConfig) -> None:
    task = task_of(text)
    assert (len(task.learned), len(task.held_out)) == (65, 7)


def test_a_model_that_knows_the_words_is_scored_right_and_the_baseline_is_that_of_unigrams(
    text: HidingTextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(text)
    hidden: list[np.ndarray] = []
    original = task._hide

    def remember(*arguments: Any) -> Any:
        shown, targets = original(*arguments)
        hidden.append(targets[targets != IGNORE_INDEX])
        return shown, targets

    def oracle(model: Any, tokens: np.ndarray, places: np.ndarray, lengths: Any) -> np.ndarray:
        logits = np.zeros((places.sum(), task.tokenizer.vocab_size))
        logits[np.arange(len(logits)), hidden[-1]] = 20
        logits[0] = -logits[0]  # one of them wrong
        return logits

    monkeypatch.setattr(task, "_hide", remember)
    monkeypatch.setattr("nanograd_llm.tasks.masked_words.hidden_logits", oracle)
    score, of = task.score(), hidden[-1]
    counts = np.bincount(np.concatenate(task.learned), minlength=task.tokenizer.vocab_size) * ~task.is_special + 1
    assert score.figure == pytest.approx(100 * (len(of) - 1) / len(of))
    assert score.also["unigrams"] == pytest.approx(100 * np.mean(of == counts.argmax()))
    assert score.also["loss of unigrams"] == pytest.approx(-np.log(counts[of] / counts.sum()).mean())
    assert f"{len(of)} hidden pieces in all 7 held-out rows" in score.measured_on


def test_a_model_that_is_no_better_than_unigrams_is_said_to_be_so(
    text: HidingTextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(text)
    for row in (np.eye(task.tokenizer.vocab_size)[task.mask], task.unigram):  # always wrong; the same as unigrams

        def logits(model: Any, tokens: Any, places: np.ndarray, lengths: Any, row: np.ndarray = row) -> np.ndarray:
            return np.tile(row, (int(places.sum()), 1))

        monkeypatch.setattr("nanograd_llm.tasks.masked_words.hidden_logits", logits)
        assert task.score().remark.startswith(f"no better than unigrams ({task.score().also['unigrams']:.1f} %)")


def test_the_score_is_the_same_each_time_and_its_loss_is_the_models(text: HidingTextConfig) -> None:
    task = task_of(text)
    assert task.score(5) == task.score(5)
    tokens, words, lengths = task._take(task.held_out, np.arange(7))
    shown, targets = task._hide(tokens, words, generator(0, 7), 0.15, 1.0, 0.0)
    task.model.eval()
    assert task.score().also["loss"] == pytest.approx(task.model.loss(shown, targets, lengths).item(), rel=1e-5)


def test_after_some_steps_does_do_and_not_are_filled_in_better_than_by_chance() -> None:
    config = TrainConfig(steps=120, batch_size=32, learning_rate=3e-3, workers=1)
    sizes = BERTConfig(vocab_size=1, context_length=32, n_layer=1, n_head=4, n_embd=64)
    task = MaskedWords(HidingTextConfig(), HidingConfig(), sizes, config)
    trainer = Trainer(task.model, config)
    for step in range(120):
        trainer.step(*task.batch(step))
    score = task.score(200)
    assert score.also["does/do/not"] > 40 and score.figure > 1.2 * score.also["unigrams"]
    assert score.also["loss"] < score.also["loss of unigrams"] - 0.3
    assert "-> " in task.sample().text and "[MASK]" in task.sample(last=True).text


@pytest.mark.thorough
def test_the_default_task_fills_in_does_do_and_not_in_the_steps_that_a_minute_has() -> None:
    sizes = {name: MaskedWords.fresh[name] for name in ("context_length", "n_layer", "n_head", "n_embd")}
    config = TrainConfig(steps=800, **{name: x for name, x in MaskedWords.fresh.items() if name not in sizes})
    task = MaskedWords(HidingTextConfig(), HidingConfig(), BERTConfig(vocab_size=1, **sizes), config)
    trainer = Trainer(task.model, config)
    for _ in trainer.run(task.batch):
        pass
    assert task.score().also["does/do/not"] >= 93


@pytest.mark.parametrize("text_of", ["lines", "windows", "built-in"])
def test_the_example_has_a_mask_that_fill_takes(text_of: str, text: HidingTextConfig) -> None:
    words = HidingTextConfig() if text_of == "built-in" else dataclasses.replace(text, lines=text_of == "lines")
    task = task_of(words)
    example = task.example()
    assert example.count("[MASK]") == 1 and not example.startswith("-")
    assert len(ng.inference.fill(task.model, task.tokenizer, example)) == 1


def run_on(start: Path, text: HidingTextConfig, folder: Path, **train: Any) -> Any:
    options = {"task": "masked-words", "init": str(start), "file": str(text.file), "lines": True, "steps": 2}
    return prepare_run(folder, options={**options, "workers": 1, **train})


def test_a_bert_goes_on_with_its_weights_and_its_tokenizer(text: HidingTextConfig, tmp_path: Path) -> None:
    options = {"task": "masked-words", "file": str(text.file), "lines": True, "steps": 2, "workers": 1, "n_embd": 16}
    first = prepare_run(tmp_path / "first", options=options)
    list(first.train())
    task = run_on(tmp_path / "first", text, tmp_path / "second").task
    before, after = ng.open_model(tmp_path / "first").model().state_dict(), task.model.state_dict()
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert task.tokenizer.vocab == first.task.tokenizer.vocab


def test_a_gpt_goes_on_with_its_tables_blocks_and_last_norm_and_gets_a_mask(
    text: HidingTextConfig, tmp_path: Path
) -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 32}
    options = {"file": str(text.file), "steps": 2, "workers": 1, "vocab_size": 300, **sizes}
    gpt = prepare_run(tmp_path / "gpt", options=options)
    list(gpt.train())
    run = run_on(tmp_path / "gpt", text, tmp_path / "bert")
    task, before = run.task, ng.open_model(tmp_path / "gpt").model().state_dict()
    after = task.model.state_dict()
    assert task.model.config.norm_first and task.model.config.vocab_size == task.mask + 1
    known = len(before["wte"])
    assert task.mask == known and np.array_equal(after["wte"][:known], before["wte"]) and not after["wtype"].any()
    assert np.array_equal(after["wte"][known], before["wte"].mean(axis=0, dtype=np.float32))
    same = [name for name in before if name != "wte"]
    assert all(np.array_equal(before[name], after[name.replace("ln_f.", "norm.")]) for name in same)
    assert len(same) > 10 and len(run.config.init) > 0
    *_, last = run.train()
    assert last.sample.text
    opened = ng.open_model(tmp_path / "bert", BERT)
    guesses = ng.inference.fill(opened.model(), opened.tokenizer(), "the a [MASK] see two houses.")
    assert len(guesses) == 1 and len(guesses[0]) == 5
    again = prepare_run(tmp_path / "again", file=tmp_path / "bert" / "config.toml")
    assert again.task.model.config == task.model.config and again.task.init == task.init


def test_the_config_of_a_run_makes_the_run_again(text: HidingTextConfig, tmp_path: Path) -> None:
    options = {"task": "masked-words", "file": str(text.file), "lines": True, "steps": 3, "workers": 1, "as_mask": 0.5}
    losses = []
    for folder, given in (("one", {"options": options}), ("two", {"file": tmp_path / "one" / "config.toml"})):
        events = list(prepare_run(tmp_path / folder, **given).train())
        losses.append([event.loss for event in events if hasattr(event, "loss")])
    assert losses[0] == losses[1] and len(losses[0]) == 3
    again = prepare_run(tmp_path / "three", file=tmp_path / "one" / "config.toml")
    assert again.task.hiding.as_mask == 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden": 0}, "hidden must be a finite number"),
        ({"as_mask": 0.95}, "as_mask 0.95 and as_random 0.1 are more than 1 together"),
        ({"as_random": -0.1}, "as_random must be"),
    ],
)
def test_shares_that_cannot_be_are_named(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HidingConfig(**settings)


def test_a_model_decides_its_sizes_and_its_vocabulary(text: HidingTextConfig, tmp_path: Path) -> None:
    for option in ("n_layer", "vocab_size"):
        with pytest.raises(ConfigError, match=f"init takes {option} from the model"):
            run_on(FIXTURES / "safetensors_float32", text, tmp_path / "x", **{option: 8})


def test_a_row_longer_than_the_models_context_is_refused(text: HidingTextConfig) -> None:
    with pytest.raises(ConfigError, match="context_length is 33 for a window, but the model takes at most 32"):
        task_of(dataclasses.replace(text, window=33))


def test_a_start_whose_alphabet_has_no_room_for_a_mask_is_refused(text: HidingTextConfig, tmp_path: Path) -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 32, "tokenizer": "characters"}
    list(prepare_run(tmp_path / "gpt", options={"file": str(text.file), "steps": 1, "workers": 1, **sizes}).train())
    assert isinstance(ng.open_model(tmp_path / "gpt").tokenizer(), CharTokenizer)
    with pytest.raises(ConfigError, match=r"has no room for \[MASK\]; start from a model whose tokenizer is bpe"):
        run_on(tmp_path / "gpt", text, tmp_path / "x")


def test_a_sample_shows_each_guess_in_brackets_in_place_of_its_mask(text: HidingTextConfig) -> None:
    hidden, filled = (line.split() for line in task_of(text).sample().text.splitlines()[:2])
    assert len(hidden) == len(filled) - 1 and "[MASK]" in " ".join(hidden)
    for before, after in zip(hidden, filled[1:]):
        assert before == after or ("[MASK]" in before and re.search(r"\[.+\]", after))


@pytest.mark.parametrize("lines", [True, False])
def test_json_lines_are_read_as_texts(lines: bool, tmp_path: Path) -> None:
    texts = [f"the cat sees house {n}" for n in "abcdefghijklmnopqrst"]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    learned, held_out = HidingTextConfig(str(tmp_path / "x.jsonl"), lines=lines).read()
    assert [line for text in learned + held_out for line in text.splitlines() if line] == texts or not lines
    assert '"' not in "".join(learned + held_out)


@pytest.mark.parametrize("content", ["\0" * 50, "\u200b\n" * 9])
def test_a_text_without_words_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(content, encoding="utf-8")
    for lines in (True, False):
        with pytest.raises((BadFileError, ShapeError), match=r"text\.txt.*(NUL|no words)"):
            task_of(HidingTextConfig(str(path), lines=lines))
