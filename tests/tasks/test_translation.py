"""Translation as a task: its batches, its score, its files, and that it learns; and the grammar that it learns from."""

from __future__ import annotations

import dataclasses
import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError, ConfigError, IndexRangeError, ShapeError
from nanograd_llm.runs.prepare import options_of, prepare_run
from nanograd_llm.runs.tables import PREFIXED, tables_of
from nanograd_llm.tasks import TASKS, PairsConfig, Translation, grammar, task_named
from nanograd_llm.training import TrainConfig

SIZES = ng.EncoderDecoderConfig(vocab_size=1, context_length=16, n_layer=1, n_head=2, n_embd=32)
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 32}
SHORT = TrainConfig(steps=2, batch_size=4, workers=1, learning_rate=5e-3, beta2=0.98)
NUMBERS = {"one": "un", "two": "deux", "three": "trois", "red": "rouge", "blue": "bleu"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Each pair is a colour and two numbers, which the target has in the other order."""
    words = [*NUMBERS]
    rows = [(a, b, c) for a in words[3:] for b in words[:3] for c in words[:3]] + [(a, b) for a in words for b in words]
    lines = [f"{' '.join(row)}\t{' '.join(NUMBERS[word] for word in row[::-1])}" for row in rows]
    (tmp_path / "x.tsv").write_text("\n".join(np.random.default_rng(0).permutation(lines)) + "\n", "utf-8")
    return str(tmp_path / "x.tsv")


def task(file: str | None, **training: Any) -> Translation:
    return Translation(PairsConfig(file), SIZES, dataclasses.replace(SHORT, **training))


def test_pairs_that_occur_again_are_left_out_and_counted(file: str) -> None:
    lines = Path(file).read_text("utf-8")
    Path(file).write_text(lines * 2, "utf-8")
    with pytest.warns(UserWarning, match=f"{(n := lines.count(chr(10)))} of {2 * n} rows occur again and are left out"):
        learned, held_out, _ = PairsConfig(file).read()
    assert len(learned) + len(held_out) == n


# The grammar


def test_the_grammar_gives_the_pairs_that_it_promises_none_twice() -> None:
    learned, held_out, unseen = grammar.builtin_pairs()
    assert (len(learned), len(held_out), len(unseen)) == (20_000, 1_000, 1_000)
    sources = [english for pairs in (learned, held_out, unseen) for english, _ in pairs]
    assert len({*sources}) == len(sources)
    assert grammar.builtin_pairs()[1] == held_out


def test_what_the_second_held_out_set_combines_no_other_pair_does() -> None:
    plain, reserved = grammar.pairs(3_000)
    nouns = {form: row[0] for row in grammar._NOUNS for form in row[:2]}
    adjectives = [row[0] for row in grammar._BEFORE + grammar._AFTER]

    def combined(english: str) -> set[tuple[str, str]]:
        found, words = set(), english.split()
        for place, word in enumerate(words):
            before = words[max(0, place - 2) : place]
            if word in nouns:
                found |= {(nouns[word], adjective) for adjective in before if adjective in adjectives}
        return found

    seen = {pair for one in plain for pair in combined(one.english)}
    assert all(combined(one.english) - seen for one in reserved) and len(seen) > 500


@pytest.mark.parametrize(
    ("english", "french"),
    [  # agreement, elision, order, negation, contraction
        ("my apple", "ma pomme"),
        ("near the", "près du|près des|près de la|près de l'"),
        ("near the cat", "près du chat"),
        ("some old friends", "de vieux amis"),
        ("this old tree", "ce vieil arbre"),
        ("this man", "cet homme"),
        ("my school", "mon école"),
        ("the island", "l'île"),
        ("red car", "voiture rouge"),
        ("does not see a", "ne voit pas de|ne voit pas d'"),
        ("I love", "j'aime"),
    ],
)
def test_french_is_as_french_is(english: str, french: str) -> None:
    found = [pair.french for pair in grammar.pairs(20_000)[0] if f" {english} " in f" {pair.english} "]
    assert found and all(any(f" {one}" in f" {text}" for one in french.split("|")) for text in found)


# The task


def test_a_batch_is_the_source_the_target_shifted_and_the_target(file: str) -> None:
    made = task(file)
    source, target_in, target = made.batch(3)
    assert len(source) == len(target_in) == len(target) == 4 and made.end == 0
    for one, before, after in zip(source, target_in, target):
        counted = after[after != -100]
        assert before[0] == 0 and counted[-1] == 0 and np.array_equal(before[1 : len(counted)], counted[:-1])
        words = made.tokenizer.decode(one[one != 0]).split()
        assert made.tokenizer.decode(counted[:-1]).split() == [NUMBERS[word] for word in words[::-1]]
    again = task(file)
    assert all(np.array_equal(a, b) for a, b in zip(again.batch(3), (source, target_in, target)))
    assert not np.array_equal(made.batch(4)[0], source)


def test_a_run_learns_scores_translates_and_is_made_again_to_the_bit(file: str, tmp_path: Path, capsys: Any) -> None:
    options = ["--steps", "150", "--batch-size", "16", "--workers", "1", "--n-layer", "1", "--n-embd", "32"]
    run = str(tmp_path / "run")
    assert main(["train", file, "--task", "translation", *options, "--learning-rate", "0.01", "--out", run]) == 0
    out = capsys.readouterr().out
    assert "held out exact match 100.0 % (word accuracy 100.0 %" in out and "it writes" in out and "█" in out
    assert f"nanograd-llm translate {run}" in out
    for beam in ("1", "4"):
        assert main(["translate", run, "red two one", "--beam", beam]) == 0
        assert capsys.readouterr().out == "un deux rouge\n"
    again = prepare_run(tmp_path / "again", file=f"{run}/config.toml")
    assert isinstance(again.task, Translation)
    list(again.train())
    first = tmp_path / "run" / "checkpoints" / "step-00000150.safetensors"
    assert again.folder.checkpoint_path(150).read_bytes() == first.read_bytes()
    further = prepare_run(tmp_path / "further", {"run": {"init": run, "task": "translation"}, "pairs": {"file": file}})
    assert further.task.score().figure == 100 and further.task.init.startswith(f"{run}/checkpoints/step-")


def test_the_sizes_fit_the_longest_pair_unless_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text(f"a\tb\n{'a ' * 80}\tb\nb\ta\n", "utf-8")
    options = {"task": "translation", "file": str(tmp_path / "x.tsv"), **SMALL, "steps": 1}
    assert prepare_run(tmp_path / "run", options=options).task.model.config.context_length == 80
    with pytest.raises(ShapeError, match=r"context_length is 70, but the pair 'a a .* has 80 tokens; give a larger"):
        prepare_run(tmp_path / "other", options={**options, "context_length": 70})
    (tmp_path / "long.tsv").write_text(f"{'a ' * 81}\tb\n", "utf-8")  # to be scored, when the size is decided
    with pytest.raises(ShapeError, match=r"but the pair 'a a .* has 81 tokens; remove the pair$"):
        prepare_run(tmp_path / "scored", options=options).task.hold_out(str(tmp_path / "long.tsv"))


def test_bpe_translates_words_that_were_never_seen(file: str) -> None:
    made = Translation(PairsConfig(file, vocabulary="bpe", vocab_size=270), SIZES, SHORT)
    assert made.end == made.tokenizer.vocab_size - 1 and made.tokenizer.encode("green").size
    assert 0 <= made.score().figure <= 100


def test_a_pretrained_bleu_is_reported_where_sacrebleu_is_installed(file: str, monkeypatch: Any) -> None:
    module = importlib.import_module("nanograd_llm.tasks.translation")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(module, "_bleu", lambda outputs, references: float(len(outputs) == len(references)))
    assert task(file).score().also["BLEU"] == 1


def test_a_score_of_some_rows_says_so(file: str) -> None:
    made = Translation(PairsConfig(file, held_out=0.3), SIZES, SHORT)
    total = len(made.held_out.sources)
    score = made.score(2)
    assert score.share == 2 / total
    assert score.measured_on == f"2 of the {total} held-out pairs" and str(score).startswith("exact match 0.0 %")
    assert {"exact_match_percent", "held_out_word_accuracy_percent", "held_out_loss"} == score.metrics().keys()
    assert made.score().measured_on == f"all {total} held-out pairs"


def test_a_last_sample_that_does_not_end_is_shown_with_its_attention(file: str) -> None:
    made = Translation(PairsConfig(file), dataclasses.replace(SIZES, context_length=8), SHORT)
    norm: Any = made.model.decoder_norm
    norm.weight.data[:], norm.bias.data[:], made.model.target_table.data[made.end] = (
        0,
        1,
        -1,
    )  # the end is never written
    sample = made.sample(last=True)
    wrote = sample.text.splitlines()[1].removeprefix("it writes   ").split()
    assert len(wrote) == 8 and len(sample.text.splitlines()) == 4 + 8


# What cannot be


def test_a_run_of_another_kind_is_refused_in_one_line(file: str, tmp_path: Path, capsys: Any) -> None:
    run = prepare_run(tmp_path / "run", options={"task": "translation", "file": file, **SMALL, "steps": 1})
    list(run.train())
    path = str(run.folder.path)
    assert main(["generate", path, "one"]) == 2
    said = f"{path} is a model of the class EncoderDecoder; expected GPT; use nanograd-llm translate"
    assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="a model of the class EncoderDecoder; this task goes on from a GPT"):
        prepare_run(tmp_path / "gpt", options={"init": path})
    for words in (["translate", path, "one green"], ["step", path, "one", "--target", "one green"]):
        assert main(words) == 2
        assert "the word 'green', number 2 of 'one green', is not among" in capsys.readouterr().err
    assert main(["translate", path, " ".join(["one"] * 70)]) == 2
    assert "context_length is 64 but 70 tokens were given; give a shorter source" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="init takes n_layer, vocabulary from the model; leave that out"):
        options = {"task": "translation", "init": path, "file": file, "n_layer": 2, "vocabulary": "bpe"}
        prepare_run(tmp_path / "x", options=options)
    (tmp_path / "y.tsv").write_text("green\tvert\nred\trouge\n", "utf-8")
    with pytest.raises(IndexRangeError, match="the word 'green'"):
        prepare_run(tmp_path / "x", options={"task": "translation", "init": path, "file": str(tmp_path / "y.tsv")})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 3}, "options: unknown 'window'"),
        ({"tokenizer": "bytes"}, "tokenizer is for the task language-model"),
        ({"target": "x.fr"}, "target is x.fr, but no source is given"),
        ({"vocab_size": 300}, "vocab_size is for the vocabulary bpe"),
    ],
)
def test_options_of_another_task_are_refused_by_name(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare_run(tmp_path / "run", options={"task": "translation", **options})


def test_two_files_of_lines_are_refused_with_the_option_for_the_second(tmp_path: Path, capsys: Any) -> None:
    for name in ("x.en", "x.fr"):
        (tmp_path / name).write_text("one\ntwo\n", "utf-8")
    source, target = str(tmp_path / "x.en"), str(tmp_path / "x.fr")
    assert main(["train", source, "--task", "translation"]) == 3
    assert "give the target as well (train takes it as --target FILE)" in capsys.readouterr().err
    assert main(["train", source, target, "--task", "translation"]) == 2
    said = f"this run is of the task translation; give one file, and the second as --target {target}\n"
    assert said in (told := capsys.readouterr().err) and "--data" not in told
    assert main(["train", source, target, "--task", "classification"]) == 2
    assert "this run is of the task classification; give one file\n" in capsys.readouterr().err


def test_a_preset_and_a_file_of_another_task_are_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigError, match="the task translation has no presets"):
        prepare_run(tmp_path / "run", options={"task": "translation"}, preset="nano")
    (tmp_path / "x.toml").write_text('[text]\ntokenizer = "bytes"\n', "utf-8")
    with pytest.raises(ConfigError, match=r"task is translation, but .*x.toml is of the task language-model"):
        prepare_run(tmp_path / "run", options={"task": "translation"}, file=tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text('[run]\ntask = "translation"\n[text]\nvocab_size = 300\n', "utf-8")
    with pytest.raises(BadFileError, match="x.toml: unknown 'text', allowed are run, pairs, model, train"):
        prepare_run(tmp_path / "run", file=tmp_path / "x.toml")


def test_a_share_that_leaves_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\na\tb\n", "utf-8")
    with pytest.raises(ShapeError, match="has 1 different pair; held_out=0.05 leaves none to learn; give more pairs"):
        task(str(tmp_path / "x.tsv"))


@pytest.mark.parametrize("name", TASKS)
def test_settings_of_one_name_have_one_type_in_all_tasks_and_one_table_in_each(name: str) -> None:
    types: dict[str, Any] = {}
    for other in TASKS:
        for table, kind in tables_of(task_named(other)).items():
            for option in [key for key, place in options_of(task_named(other)).items() if place == table]:
                setting = option.removeprefix(PREFIXED.get(table, ""))
                field = kind.__dataclass_fields__[setting]
                is_chosen = bool(field.metadata["choices"])
                found = kind.setting_types[setting][0], is_chosen
                first, known = types.setdefault(option, (other, found))
                assert known == found, f"{option} of {first} is {known}, of {other} {found} (type, has choices)"
    chosen = task_named(name)
    assert chosen.name == name and "model" in chosen.tables
    names = [PREFIXED.get(table, "") + key for table, kind in tables_of(chosen).items() for key in kind.setting_types]
    visible = [key for key in names if key in options_of(chosen)]
    hidden = [key for names in chosen.hidden.values() for key in names]
    assert all(visible.count(key) - hidden.count(key) <= 1 for key in visible)


def test_what_a_translation_cannot_do_is_said_with_what_to_do(
    file: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    run = prepare_run(tmp_path / "run", options={"task": "translation", "file": file, **SMALL, "steps": 1})
    list(run.train())
    path = str(run.folder.path)
    capsys.readouterr()
    assert main(["convert", path, "--to", "hf", "--out", str(tmp_path / "hf")]) == 2
    assert "train one with --no-norm-first --positions sinusoidal_halves" in capsys.readouterr().err
    assert main(["eval", path, file, "--top", "3"]) == 2
    assert "of the class EncoderDecoder, and eval scores language models" in capsys.readouterr().err
    monkeypatch.setattr("nanograd_llm.cli.translate.stream_translation", lambda *_, **__: iter([""]))
    assert main(["translate", path, "one"]) == 0
    assert capsys.readouterr() == ("\n", "(nothing: the model ends the translation at once)\n")


def test_each_line_that_is_piped_in_is_translated_by_itself_and_all_are_read_before_the_first(
    file: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    run = prepare_run(tmp_path / "run", options={"task": "translation", "file": file, **SMALL, "steps": 1})
    list(run.train())
    path = str(run.folder.path)
    (tmp_path / "lines.txt").write_text("one\nunknown\n")
    assert main(["translate", path, "--file", str(tmp_path / "lines.txt")]) == 2
    assert capsys.readouterr().out == ""
    assert main(["translate", path, "one", "two"]) == 2
    assert "too many words; translate takes only MODEL and TEXT; put quotes" in capsys.readouterr().err
    monkeypatch.setattr("nanograd_llm.cli.translate.stream_translation", lambda _, __, text, **___: iter([text[::-1]]))
    monkeypatch.setattr("sys.stdin", io.StringIO("one two\n\ngreen\n"))
    assert main(["translate", path]) == 0
    assert capsys.readouterr().out == "owt eno\nneerg\n"


def test_of_a_file_of_pairs_the_sources_are_translated(
    file: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    run = prepare_run(tmp_path / "run", options={"task": "translation", "file": file, **SMALL, "steps": 1})
    list(run.train())
    (tmp_path / "more.tsv").write_text("one two\tun deux\ngreen\tvert\n")
    capsys.readouterr()
    monkeypatch.setattr("nanograd_llm.cli.translate.stream_translation", lambda _, __, text, **___: iter([text[::-1]]))
    assert main(["translate", str(run.folder.path), "--file", str(tmp_path / "more.tsv")]) == 0
    assert capsys.readouterr().out == "owt eno\nneerg\n"


def test_the_last_sample_and_the_example_are_short_for_any_translation(file: str, monkeypatch: Any) -> None:
    made = task(file)
    made.held_out.sources[0] = np.resize(made.held_out.sources[0], 60)
    assert len(made.example()) <= 80 and made.example().split()[-1] in NUMBERS
    monkeypatch.setattr("nanograd_llm.tasks.translation.SHOWN", 3)
    made = task(file)
    monkeypatch.setattr("nanograd_llm.tasks.translation.translate", lambda *_, **__: [[5] * 9])
    lines = made.sample(last=True).text.splitlines()
    assert len(lines) == 3 + 1 + 3 + 1 and lines[-1] == "... and 7 more"


def test_texts_are_not_embedded_by_an_encoder_decoder_which_is_one_line(file: str, tmp_path: Path, capsys: Any) -> None:
    run = prepare_run(tmp_path / "run", options={"task": "translation", "file": file, **SMALL, "steps": 1})
    list(run.train())
    capsys.readouterr()
    assert main(["embed", str(run.folder.path), "one"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("is a model of the class EncoderDecoder; vectors of texts need a BERT or a GPT\n")
    assert err.count("\n") == 1
