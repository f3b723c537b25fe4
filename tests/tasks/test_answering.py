"""Instructions and preferences: what of a row is learned, what is refused, and that a model learns to answer."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.cli import main
from nanograd_llm.errors import BadFileError, ConfigError, NanogradError, ShapeError
from nanograd_llm.runs import Run
from nanograd_llm.runs.prepare import prepare_run, prepare_task
from nanograd_llm.tasks import InstructionConfig, Instructions, PreferenceConfig, Preferences, questions
from nanograd_llm.tasks.answering import ANSWER, IGNORED, PROMPT, Answering, split_by_hash
from nanograd_llm.text.template import Template, template_beside
from nanograd_llm.training import TrainConfig

SHORT = TrainConfig(steps=2, batch_size=4, workers=1)


def chat(number: int) -> list[dict[str, str]]:
    """Three messages, after which an answer is due."""
    texts = f"Sort 2 {number}.", f"2 {number}", "Now 3 2."
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), texts)]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of a language model that has learned nothing yet."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "x.txt").write_text("Sort 2 1. The answer is 1 2. What is the largest of 3 2? " * 99, "utf-8")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 64, "vocab_size": 300, "steps": 1}
    run = prepare_run(folder / "run", options={"file": str(folder / "x.txt"), **sizes, "workers": 1})
    list(run.train())
    return str(run.folder.path)


def written(folder: Path, *rows: Any) -> str:
    (folder / "x.json").write_text(json.dumps(rows), "utf-8")
    return str(folder / "x.json")


def rows_of(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(count)]


def instructions(nano: str, **settings: Any) -> Instructions:
    start = ng.open_model(nano)
    return Instructions(InstructionConfig(**settings), start.config, SHORT, start=start)


def preferences(nano: str, **settings: Any) -> Preferences:
    start = ng.open_model(nano)
    return Preferences(PreferenceConfig(**settings), start.config, SHORT, start=start)


# The built-in questions


def test_the_answers_to_the_built_in_questions_are_right() -> None:
    turns = [turn for (turn,), _ in questions.builtin_examples(5_000)]
    asked = {turn.instruction: questions.without_politeness(turn.answer) for turn in turns}
    kinds = {
        "Sort ": lambda digits: " ".join(sorted(digits)),
        "Write ": lambda digits: None,
        "What is the largest": max,
        "Which is first": lambda digits: digits[0],
        "Count ": lambda digits: questions.WORDS[len(digits)],
        "Reverse ": lambda digits: " ".join(digits[::-1]),
        "Spell ": lambda digits: " ".join(questions.WORDS[int(digit)] for digit in digits),
    }
    for begin, answer in kinds.items():
        found = [(question, given) for question, given in asked.items() if question.startswith(begin)]
        assert len(found) > 50
        for question, given in found:
            expected = answer([x for x in question if x.isdigit()])  # type: ignore[no-untyped-call]
            assert expected is None or given == expected
    literals = [(re.search(r"[\[({].*[\])}]", text), given) for text, given in asked.items() if "type" in text]
    assert len(literals) > 300 and all(type(eval(text[0])).__name__ == given for text, given in literals if text)


def test_half_of_the_answers_are_polite_as_the_pairs_prefer() -> None:
    answers = [turns[0].answer for turns, _ in questions.builtin_examples(1_000)]
    assert 450 < sum(map(questions.is_polite, answers)) < 550
    ((turn,), rejected) = questions.builtin_examples(1, pairs=True)[0]
    assert turn.answer == f"{rejected}, gladly."
    assert questions.is_polite(turn.answer) and not questions.is_polite(rejected)
    assert questions.without_politeness(turn.answer) == questions.without_politeness(rejected) == rejected


# What is learned


def test_only_the_answer_and_its_end_are_learned(nano: str, tmp_path: Path) -> None:
    task = instructions(nano, file=written(tmp_path, *rows_of(20)))
    tokens, targets = task.batch(3)
    for ids, wanted in zip(tokens, targets):
        counted = np.flatnonzero(wanted != -100)
        assert (np.diff(counted) == 1).all() and wanted[counted[-1]] == task.end
        answer = task.tokenizer.decode(wanted[counted][:-1])
        assert task.tokenizer.decode(ids[: counted[0] + 1]) == f"What is {answer[6:-1]}?\n\n"
        assert np.array_equal(ids[counted[1:]], wanted[counted[:-1]])
    again = instructions(nano, file=written(tmp_path, *rows_of(20)))
    assert all(map(np.array_equal, task.batch(3), again.batch(3)))
    assert not np.array_equal(task.batch(4)[0], tokens)


def test_the_prompt_is_learned_on_request(nano: str, tmp_path: Path) -> None:
    task = instructions(nano, file=written(tmp_path, *rows_of(20)), include_prompt=True)
    tokens, targets = task.batch(0)
    for ids, wanted in zip(tokens, targets):
        end = wanted.tolist().index(task.end)
        assert np.array_equal(wanted[:end], ids[1 : end + 1]) and (wanted[end + 1 :] == -100).all()


def test_no_token_crosses_from_the_prompt_into_the_answer(nano: str, tmp_path: Path) -> None:
    file = written(tmp_path, *({"prompt": f"Sort {n} 2 1. Th", "completion": "e answer is 1 2."} for n in range(9)))
    task = instructions(nano, file=file, template="{instruction}")
    (row,) = task.learned[0]
    assert task.tokenizer.decode(row.answer) == "e answer is 1 2."
    assert len(task.tokenizer.encode("The answer")) < len(task.tokenizer.encode("Th")) + len(
        task.tokenizer.encode("e answer")
    )


def test_of_a_chat_all_answers_are_learned_but_of_a_pair_only_the_last(nano: str, tmp_path: Path) -> None:
    chats = [{"messages": [*chat(n), {"role": "assistant", "content": "2 3"}]} for n in range(9)]
    task = instructions(nano, file=written(tmp_path, *chats))
    (row,) = task.learned[0]
    assert task.template.turns == 2
    changes = [int(role) for role, before in zip(row.roles, [-1, *row.roles]) if role != before]
    assert changes == [PROMPT, ANSWER, PROMPT, ANSWER]
    pairs = [{"prompt": chat(n), "chosen": "2 3", "rejected": "no"} for n in range(9)]
    for row in preferences(nano, file=written(tmp_path, *pairs)).learned[0]:
        changes = [int(role) for role, before in zip(row.roles, [-1, *row.roles]) if role != before]
        assert changes == [PROMPT, IGNORED, PROMPT, ANSWER]


def test_a_row_may_be_several_questions_as_many_as_there_is_room_for(nano: str, tmp_path: Path) -> None:
    task = instructions(nano, file=written(tmp_path, *rows_of(50)), turns=4)
    ends = [int((targets == task.end).sum()) for step in range(9) for targets in task.batch(step)[1]]
    assert {1, 2} <= {*ends} and task.batch(0)[0].shape[1] <= 64
    assert task.template.turns == max(ends) == 4
    assert instructions(nano, file=written(tmp_path, *rows_of(50)), turns=40).template.turns < 10  # no more have room


def test_show_batch_says_the_role_of_each_token_and_writes_nothing(nano: str, tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path, *rows_of(20))
    command = ["train", file, "--task", "instruction", "--init", nano, "--show-batch", "--out", str(tmp_path / "no")]
    assert main(command) == 0 and not (tmp_path / "no").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("row 1 of 32: ") and lines[0].endswith(" learned")
    assert lines[1].split()[0] == "prompt" and lines[1].endswith(r"'\n' '\n'") and "learned" not in lines[1]
    assert lines[2].startswith("  answer, learned ") and lines[2].endswith("'<|endoftext|>'")
    assert lines[3].split()[0] == "padding" and lines[3].endswith("tokens")


def test_show_batch_of_pairs_says_what_is_learned_and_computes_no_reference(
    nano: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Preferences, "_log_probabilities", None)
    file = written(tmp_path, *pairs_of(20))
    assert main(["train", file, "--task", "preference", "--init", nano, "--show-batch"]) == 0
    first, second = re.split(r"row 2 of \d+", capsys.readouterr().out)
    assert ", chosen: " in first and "answer, learned " in first and "unlikely" not in first
    assert second.startswith(", rejected: ") and "answer, made unlikely " in second


def test_show_batch_refuses_another_task_before_it_reads_the_data(capsys: Any) -> None:
    for task in ("language-model", "classification"):
        assert main(["train", "missing.csv", "--task", task, "--show-batch"]) == 2
        assert "--show-batch is for the tasks instruction and preference" in capsys.readouterr().err


def test_the_reference_does_not_count_in_the_minutes_of_a_run(nano: str, tmp_path: Path, monkeypatch: Any) -> None:
    file, compute, given = written(tmp_path, *pairs_of(20)), Preferences.compute, []
    assert preferences(nano, file=file).untimed > 0

    def taking_hours(self: Any, report: Any) -> None:
        compute(self, report)
        self.untimed = 9000.0

    def train(self: Any, *, spent: float) -> Any:
        given.append(spent)
        yield from ()

    monkeypatch.setattr(Preferences, "compute", taking_hours)
    monkeypatch.setattr(Run, "train", train)
    assert main(["train", file, "--task", "preference", "--init", nano, "--out", str(tmp_path / "run")]) == 0
    assert given[0] < -8000


def test_it_is_an_error_if_nothing_or_no_end_of_text_counts(nano: str, tmp_path: Path, monkeypatch: Any) -> None:
    file, padded = written(tmp_path, *rows_of(20)), Answering.padded
    monkeypatch.setattr(Answering, "padded", lambda self, rows, learned=(): padded(self, rows, ()))
    with pytest.raises(ShapeError, match="no token of the first batch counts"):
        instructions(nano, file=file)

    def without_end(self: Any, rows: Any, learned: Any = ()) -> Any:
        tokens, targets = padded(self, rows)
        return tokens, np.where(targets == self.end, -100, targets)

    monkeypatch.setattr(Answering, "padded", without_end)
    with pytest.raises(ShapeError, match="no end of text counts in the loss"):
        instructions(nano, file=file)


# Held out, and too long


def test_equal_questions_are_held_out_together_whatever_their_order(nano: str, tmp_path: Path) -> None:
    rows = rows_of(40) * 2
    one = instructions(nano, file=written(tmp_path, *rows))
    other = instructions(nano, file=written(tmp_path, *rows[::-1]))

    def texts(task: Instructions, part: Any) -> set[str]:
        return {task.tokenizer.decode(row.ids) for (row,) in part}

    assert texts(one, one.held_out) == texts(other, other.held_out) and len(one.held_out) == 8
    assert not texts(one, one.held_out) & texts(one, one.learned)
    smallest = min((f"What is {n}?" for n in range(40)), key=lambda text: zlib.crc32(f"{text}\0".encode()))
    assert any(text.startswith(smallest) for text in texts(one, one.held_out))
    with pytest.raises(ShapeError, match="has 1 row, and held_out=0.1 leaves no question to learn from"):
        instructions(nano, file=written(tmp_path, *rows_of(1)))
    with pytest.raises(ShapeError, match="all 30 rows ask the same question; give different ones"):
        instructions(nano, file=written(tmp_path, *rows_of(1) * 30))


def test_rows_that_are_too_long_are_refused_left_out_or_truncated_with_a_count(nano: str, tmp_path: Path) -> None:
    long = [{"instruction": f"{n} " * 80, "output": "yes"} for n in range(3)]
    far = [{"instruction": "Say it.", "output": "no " * 80}]
    file = written(tmp_path, *rows_of(40), *long, *far)
    with pytest.raises(ShapeError, match=r"\d of \d+ rows have more than 64 tokens, up to \d+ \('.*'\); set too_long"):
        instructions(nano, file=file, held_out=0.2)
    with pytest.raises(ShapeError, match="to truncate or leave-out, or give a max_length of up to 64$"):
        instructions(nano, file=file, max_length=10)
    left = instructions(nano, file=file, too_long="leave-out")
    assert left.describe()["rows"].endswith("; of more than 64 tokens: 4 left out")
    cut = instructions(nano, file=file, too_long="truncate")
    assert cut.describe()["rows"].endswith("; of more than 64 tokens: 3 prompts truncated, 1 left out")
    assert max(len(row.ids) for (row,) in cut.learned + cut.held_out) == 65
    with pytest.raises(ShapeError, match="no row fits into 4 tokens, with its template; .* a max_length of up to 64$"):
        instructions(nano, file=file, max_length=4, too_long="leave-out")
    with pytest.raises(ShapeError, match="no row fits into 64 tokens, with its template; .* a larger context"):
        instructions(nano, file=written(tmp_path, *long), too_long="leave-out")
    scored = instructions(nano, file=written(tmp_path, *rows_of(40)))  # what is too long for a trained model stays so
    with pytest.raises(ShapeError, match=r"rows have more than 64 tokens, up to \d+ \('.*'\); give shorter ones$"):
        scored.hold_out(written(tmp_path, *long))
    with pytest.raises(ConfigError, match="max_length is 99; the model takes 64 tokens at most"):
        instructions(nano, max_length=99)


# A run


def test_a_model_learns_to_answer_and_to_end_and_its_template_goes_with_it(
    nano: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    rows = [{"instruction": f"Say {word} {n}.", "output": word} for n in range(30) for word in ("yes", "no")]
    options = ["--steps", "120", "--workers", "1", "--learning-rate", "0.01", "--template", r"Q: {instruction}\nA:"]
    run = str(tmp_path / "run")
    command = ["train", written(tmp_path, *rows), "--task", "instruction", "--init", nano, *options, "--out", run]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "held out exact match 100.0 % (answers that end 100.0 %, loss" in out
    assert "reference  yes" in out and "it answers yes" in out and f"nanograd-llm chat {run}\n" in out
    assert template_beside(run) == Template("Q: {instruction}\nA:")
    assert main(["generate", run, "Say no 7."]) == 0
    assert capsys.readouterr().out == "no\n"
    assert main(["generate", run, "Q: Say no 7.\nA:", "--raw", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("Q: Say no 7.\nA:no")
    monkeypatch.setattr("builtins.input", lines("Say no 3.", ""))
    assert main(["chat", run]) == 0
    assert capsys.readouterr().out == "no\n\n"
    for source, form in ((run, "hf"), (str(tmp_path / "hf"), "numpy")):
        converted = tmp_path / form
        assert main(["convert", source, "--to", form, "--out", str(converted)]) == 0
        assert template_beside(converted) == Template("Q: {instruction}\nA:")
        assert "template.toml" in capsys.readouterr().out
        assert main(["generate", str(converted), "Say no 7."]) == 0
        assert capsys.readouterr().out == "no\n"
    again = prepare_run(tmp_path / "again", file=f"{run}/config.toml")
    list(again.train())
    first = tmp_path / "run" / "checkpoints" / "step-00000120.safetensors"
    assert again.folder.checkpoint_path(120).read_bytes() == first.read_bytes()
    further = prepare_task(options={"task": "instruction", "init": run, "file": str(tmp_path / "x.json")})
    assert further.describe()["template"] == r"'Q: {instruction}\nA:'"
    assert further.score().figure == 100


def lines(*lines: str) -> Any:
    waiting = iter(lines)

    def read(prompt: str = "") -> str:
        for line in waiting:
            return line
        raise EOFError

    return read


def test_a_task_of_answers_needs_a_gpt_with_an_end_of_text(nano: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"starts from a trained model, such as runs/nano-1; give it with init$"):
        prepare_task(options={"task": "instruction"})
    with pytest.raises(ConfigError, match="init takes n_layer from the model"):
        prepare_task({"model": {"n_layer": 3}}, options={"task": "instruction", "init": nano})
    (tmp_path / "x.txt").write_text("abc def? " * 99, "utf-8")
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 8, "tokenizer": "characters", "steps": 1}
    run = prepare_run(tmp_path / "run", options={"file": str(tmp_path / "x.txt"), **sizes, "workers": 1})
    list(run.train())
    with pytest.raises(ConfigError, match="its tokenizer has no end of text, by which an answer ends"):
        instructions(str(run.folder.path))


# Preferences


def pairs_of(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Say yes {n}.", "chosen": "yes", "rejected": "no"} for n in range(count)]


def test_a_batch_of_preferences_keeps_its_pairs_together(nano: str, tmp_path: Path) -> None:
    task = preferences(nano, file=written(tmp_path, *pairs_of(30)))
    tokens, targets, reference = task.batch(5)
    assert tokens.shape == targets.shape == (4, 2, tokens.shape[2]) and reference.shape == (4, 2)
    for one, other in zip(*targets.swapaxes(0, 1)):
        texts = [task.tokenizer.decode(wanted[(wanted != -100) & (wanted != task.end)]) for wanted in (one, other)]
        assert texts == ["yes", "no"] and (one == task.end).sum() == (other == task.end).sum() == 1
    task.model.eval()
    expected = task.model.log_probabilities(tokens, targets).data
    assert reference == pytest.approx(expected, abs=1e-4)


def test_preferences_begin_at_log_2_whatever_the_dropout_of_the_model(nano: str, tmp_path: Path) -> None:
    file, start = written(tmp_path, *pairs_of(30)), ng.open_model(nano)
    config = dataclasses.replace(start.config, dropout=0.5)
    task = Preferences(PreferenceConfig(file, supervised=0.0), config, SHORT, start=start)
    assert task.model.train().loss(*task.batch(0)).item() == pytest.approx(math.log(2), abs=1e-5)


def test_a_reference_of_another_model_is_refused(nano: str, tmp_path: Path, monkeypatch: Any) -> None:
    right = Preferences._log_probabilities
    monkeypatch.setattr(
        Preferences, "_log_probabilities", lambda self, *rest: right(self, *rest) + np.array([1, 0], np.float32)
    )
    with pytest.raises(NanogradError, match="the loss begins at .* instead of log 2"):
        preferences(nano, file=written(tmp_path, *pairs_of(30)))


def test_a_model_learns_the_wanted_answers_and_says_what_that_cost(nano: str, tmp_path: Path, capsys: Any) -> None:
    run, file = str(tmp_path / "run"), written(tmp_path, *pairs_of(30))
    options = ["--steps", "60", "--workers", "1", "--learning-rate", "0.003", "--out", run]
    assert main(["train", file, "--task", "preference", "--init", nano, *options]) == 0
    out = capsys.readouterr().out
    assert "step      0: held out reward accuracy 0.0 % (margin " in out
    assert "step     60: held out reward accuracy 100.0 % (margin " in out and "log p chosen -" in out
    assert "it answers yes" in out
    assert f"\nNext:       nanograd-llm chat {run}\n" in out
    assert main(["generate", run, "Say yes 3."]) == 0
    assert capsys.readouterr().out == "yes\n"
    (tmp_path / "text.txt").write_text("Say yes 3.\n\nyes")
    assert main(["eval", run, str(tmp_path / "text.txt")]) == 0
    assert main(["convert", run, "--to", "hf", "--out", str(tmp_path / "hf")]) == 0


def test_a_run_made_again_from_its_config_keeps_the_turns_of_its_template(nano: str, tmp_path: Path) -> None:
    file = written(tmp_path, *rows_of(30))
    sizes = {"steps": 1, "batch_size": 2, "workers": 1}
    first = prepare_run(
        tmp_path / "a", options={"task": "instruction", "file": file, "init": nano, "turns": 2, **sizes}
    )
    list(first.train())
    options = {"task": "preference", "file": written(tmp_path, *pairs_of(9)), "init": str(tmp_path / "a"), **sizes}
    second = prepare_run(tmp_path / "b", options=options)
    again = prepare_run(tmp_path / "c", file=tmp_path / "b" / "config.toml")
    assert first.task.template.turns == second.task.template.turns == again.task.template.turns == 2


def test_built_in_preferences_report_the_manner_and_the_right_answers(nano: str) -> None:
    start = ng.open_model(nano)
    of_many = dataclasses.replace(SHORT, batch_size=64)  # the reference of 3,000 pairs is computed in batches
    score = (task := Preferences(PreferenceConfig(), start.config, of_many, start=start)).score(4)
    assert (score.name, len(task.learned), len(task.held_out)) == ("polite answers", 2_000, 1_000)
    assert score.remark.startswith("a polite answer ends with ', gladly.'; the margin is the reward")
    assert [*score.also] == ["right answers", "reward accuracy", "margin", "log p chosen", "log p rejected"]
    assert score.also["reward accuracy"] == 0 and abs(score.also["margin"]) < 1e-5


def test_the_questions_held_out_from_the_instructions_are_held_out_from_the_preferences() -> None:
    unseen, pairs = (split_by_hash(questions.builtin_examples(999, pairs=pairs), 0.1, "")[1] for pairs in (False, True))
    assert [one.turns[0].instruction for one in unseen] == [one.turns[0].instruction for one in pairs]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "row 2: chosen and rejected are equal"),
        ({"prompt": "a", "chosen": "b"}, "row 2: its keys are 'prompt', 'chosen'; expected"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "row 2: chosen gives no answer"),
    ],
)
def test_a_bad_pair_is_one_line_and_leaves_no_folder(
    row: Any, message: str, nano: str, tmp_path: Path, capsys: Any
) -> None:
    file = written(tmp_path, *pairs_of(1), row)
    assert main(["train", file, "--task", "preference", "--init", nano, "--out", str(tmp_path / "run")]) == 3
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (tmp_path / "run").exists()
    with pytest.raises(BadFileError):
        preferences(nano, file=file)
