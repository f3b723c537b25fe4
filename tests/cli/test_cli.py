"""The command line: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from nanograd_llm import __version__
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.backend.processes import CAN_FORK
from nanograd_llm.cli import COMMANDS, main
from nanograd_llm.cli.terminal import row
from nanograd_llm.cli.train import train
from nanograd_llm.cli.usage import as_typed
from nanograd_llm.errors import StorageError
from nanograd_llm.runs import RunFolder
from nanograd_llm.runs.opening import open_model
from nanograd_llm.runs.prepare import options_of
from nanograd_llm.runs.tables import COMMAND, PREFIXED, tables_of
from nanograd_llm.tasks.registry import DEFAULT, TASKS, task_named
from nanograd_llm.text import sources

TINY = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context-length", "16", "--batch-size", "4"]
QUICK = [*TINY, "--held-out", "0.01", "--vocab-size", "270"]  # on the built-in corpus, in a second


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of a few steps on the built-in corpus."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--steps", "4", "--out", str(path), *QUICK]) == 0
    return path


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """The folder of a run with two checkpoints."""
    path = tmp_path_factory.mktemp("runs") / "two"
    assert main(["train", "--steps", "4", "--checkpoint-every", "2", "--out", str(path), *QUICK]) == 0
    return path


def printed(capsys):
    """(stdout, stderr), where stderr has at most one line."""
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1
    assert "Traceback" not in err
    return out, err


def test_train_ends_with_the_score_a_sample_the_folder_and_the_next_command(tmp_path, capsys):
    assert main(["train", "--steps", "3", "--out", str(tmp_path / "a run"), *QUICK]) == 0
    out, _ = printed(capsys)
    assert re.search(r"batches of \d+, (1 thread|\d+ (threads|processes))\b", out)
    assert re.search(r"model +n_layer=1, n_head=2, n_embd=16, context_length=16: ", out)
    assert re.search(r"step +3: held out \d\.\d{3} bits per byte", out)
    assert "    | " in out
    assert f"Next:       nanograd-llm generate '{tmp_path}/a run'" in out


def test_train_without_a_folder_makes_one_named_after_the_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert main(["train", "--steps", "1", *QUICK]) == 0
        assert (tmp_path / "runs" / f"nano-{number}" / "config.toml").exists()


def test_a_run_that_recomputes_activations_is_the_same_run_and_says_so(run, tmp_path):
    assert main(["train", "--steps", "4", "--out", str(tmp_path / "b"), *QUICK, "--recompute-activations"]) == 0
    losses = [
        [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, tmp_path / "b")
    ]
    assert losses[0] == losses[1]
    assert "recompute_activations = true" in (tmp_path / "b" / "config.toml").read_text()


def test_generate_continues_the_prompt_and_the_same_seed_writes_the_same(run, capsys):
    texts = []
    for arguments in (["--seed", "3"], ["--seed", "3"], ["--seed", "4"], ["--seed", "3", "--no-cache"]):
        assert main(["generate", str(run), "The", "--max-new-tokens", "20", *arguments]) == 0
        texts.append(printed(capsys)[0])
    assert texts[0].startswith("The")
    assert texts[0] == texts[1] == texts[3]
    assert texts[0] != texts[2]


def test_without_a_seed_generate_draws_one_and_prints_how_to_repeat_it(run, capsys):
    arguments = ["generate", str(run), "The", "--max-new-tokens", "30"]
    texts = []
    for _ in range(2):
        assert main(arguments) == 0
        texts.append(printed(capsys))
    (out, err), (other, _) = texts
    assert out != other
    seed = re.fullmatch(r"to get this text again, add --seed (\d+)\n", err)[1]
    assert main([*arguments, "--seed", seed]) == 0
    assert printed(capsys) == (out, "")


def test_info_of_a_folder_of_runs_lists_them(run, capsys):
    assert main(["info", str(run.parent)]) == 0
    out, _ = printed(capsys)
    assert re.fullmatch(rf"{run}: 4 steps, .*; \d\.\d+ bits per byte at step 4, on \d+ % of what is held out\n", out)


def test_a_run_is_resumed_and_says_from_where(tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "--steps", "4", "--checkpoint-every", "3", "--out", str(path), *TINY]) == 0
    (path / "checkpoints" / "step-00000004.safetensors").write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["train", "--resume", str(path), "--steps", "5"]) == 0
    out, _ = printed(capsys)
    assert f"resumed     {path} from step 3; the checkpoint of step 4 is damaged\n" in out
    assert "step      5: saved" in out
    first = json.loads((path / "metrics.jsonl").read_text("utf-8").split("\n")[0])["loss"]
    assert re.search(rf"(?m)^loss +\S+ {first:.3f} to ", out)  # of the whole run
    assert main(["train", "--resume", str(path)]) == 2
    out, err = printed(capsys)
    assert "all 5 steps of this run are done; give a larger total, such as --steps 10\n" in err and "reading" not in out


@pytest.mark.parametrize("beside", [["--out", "x"], ["--preset", "nano"], ["--config", "c.toml"]])
def test_resume_takes_everything_else_from_the_run(beside, capsys):
    assert main(["train", *beside, "--resume", "run"]) == 2
    said = f"--resume takes {beside[0]} from the run; leave that out (--init run starts another run)"
    assert said in printed(capsys)[1]


def test_train_reads_standard_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a text that is piped. " * 300)))
    assert main(["train", "-", "--steps", "1", "--out", str(tmp_path / "run"), *TINY]) == 0
    assert "text        -: trained on" in printed(capsys)[0]


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("init takes vocab_size, tokenizer from the model; leave that out", "--init takes --vocab-size, --tokenizer"),
        ("init takes pooling, first, from the classifier; leave that out", "--init takes --pooling, first, from the"),
        ("the task translation has no presets; leave preset out, and give sizes", "leave --preset out"),
        ("preset is nano, but c.toml has sizes under [model]", "--preset is nano"),
        ("lora_rank trains adapters beside a model; say which one with init", "--lora-rank trains .* with --init$"),
        ("tokenizer must be one of bpe; got 'init'", "^--tokenizer must be one of bpe; got 'init'$"),
        ("file and data are both given; give one", "^FILE and --data are both given"),
        ("d holds BPETokenizer(vocab_size=400) and not init", r"^d holds BPETokenizer\(vocab_size=400\) and not init$"),
        ("processes=True needs Linux", "^--processes needs Linux"),
        ("workers is 4, but a GPU has one worker; set workers to 1", "^--workers is 4, .*; set --workers to 1$"),
        (
            "out/data: is no run, since init is a word; the tokenizer is bad",
            "^out/data: is no .* init is .* tokenizer is",
        ),
    ],
)
def test_an_error_names_each_option_as_it_is_typed(message, typed):
    options = "--vocab-size --tokenizer --pooling --preset --lora-rank --init --data --processes --workers --out"
    assert re.search(typed, as_typed(message, options.split()))


def test_each_setting_out_of_range_is_named_as_its_option(tmp_path, capsys):
    tasks = {}  # for each setting, the first task that has it
    for task in TASKS:
        tables = tables_of(task_named(task))
        for name, table in options_of(task_named(task)).items():
            field = name.removeprefix(PREFIXED.get(table, ""))
            if tables[table].setting_types[field][0] in (int, float):
                tasks.setdefault((name, tables[table]), task)
    assert {*tasks.values()} == {*TASKS}
    for (name, _), task in tasks.items():
        option = f"--{name.replace('_', '-')}"
        assert main(["train", "--task", task, "--out", str(tmp_path / "run"), option, "-7"]) == 2
        assert f"{option} must be" in (err := printed(capsys)[1]), err


def test_several_texts_at_temperature_zero_are_refused(run, capsys):
    assert main(["generate", str(run), "The", "--n", "2", "--temperature", "0"]) == 2
    assert "--n is 2, but at temperature 0 each text is the same; leave --n out" in printed(capsys)[1]


def test_a_run_whose_text_was_moved_says_how_to_go_on_and_does(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    out = tmp_path / "a run"
    assert main(["train", str(text), "--steps", "2", "--out", str(out), *TINY]) == 0
    moved = text.rename(tmp_path / "moved.txt")
    printed(capsys)
    assert main(["train", "--resume", str(out), "--steps", "3"]) == 4
    assert f"say to where: nanograd-llm train FILE --resume '{out}'" in printed(capsys)[1]
    assert main(["train", str(moved), "--resume", str(out), "--steps", "3"]) == 0


def test_a_config_of_a_prepared_text_with_another_text_is_named(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    (tmp_path / "x.toml").write_text('[text]\ntokenizer = "prepared"\n')
    arguments = [
        "train",
        str(tmp_path / "text.txt"),
        "--config",
        str(tmp_path / "x.toml"),
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(arguments) == 2
    assert 'x.toml has tokenizer = "prepared", but' in printed(capsys)[1]


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_a_text_to_tokenize_is_read_from_a_pipe(arguments, run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n"))
    assert main(["tokenize", *arguments, "--model", str(run)]) == 0
    assert "2 bytes" in printed(capsys)[0]


def test_a_second_ctrl_c_between_two_steps_names_the_checkpoint(tmp_path, capsys, monkeypatch):
    def interrupted(_run, events):
        next(events)
        raise KeyboardInterrupt

    monkeypatch.setattr("nanograd_llm.cli.train.show", interrupted)
    assert main(["train", "--steps", "9", "--out", str(tmp_path / "run"), *TINY]) == 130
    assert re.search(r"stopped\. The weights of step 1 are in .*step-00000001\.safetensors", printed(capsys)[1])


def test_a_second_ctrl_c_during_the_first_step_says_that_nothing_is_saved_and_how_to_go_on(
    tmp_path, capsys, monkeypatch
):
    def interrupted(_run, _events):
        raise KeyboardInterrupt

    monkeypatch.setattr("nanograd_llm.cli.train.show", interrupted)
    assert main(["train", "--steps", "2", "--out", str(tmp_path / "run"), *TINY]) == 130
    resume = f"nanograd-llm train --resume {tmp_path / 'run'}"
    assert f"stopped. No checkpoint was saved yet; to go on: {resume}" in printed(capsys)[1]
    monkeypatch.undo()
    assert main(resume.split()[1:]) == 0


@pytest.mark.parametrize("name", ["fill", "translate", "classify", "embed", "search"])
def test_the_help_of_a_command_for_another_model_does_not_name_gpt2(name, capsys):
    main([name, "--help"])
    out = capsys.readouterr().out
    assert "gpt2" not in out and "folder of a run" in " ".join(out.replace("│", " ").split())


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_choice_among_tokens_at_temperature_zero_is_refused(command, run, capsys):
    words = [command, str(run), *(["The"] if command == "generate" else []), "--temperature", "0", "--top-k", "5"]
    assert main(words) == 2
    assert "--top-k chooses among the likeliest tokens, but at temperature 0 the likeliest" in printed(capsys)[1]


def test_a_dash_for_a_prompt_is_standard_input(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The piped\n")))
    assert main(["generate", str(run), "-", "--max-new-tokens", "2", "--seed", "1"]) == 0
    assert printed(capsys)[0].startswith("The piped")


def test_a_prompt_is_read_from_a_pipe(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The next\n"))
    assert main(["generate", str(run), "--max-new-tokens", "3", "--seed", "0"]) == 0
    piped = printed(capsys)[0]
    assert main(["generate", str(run), "The next", "--max-new-tokens", "3", "--seed", "0"]) == 0
    assert printed(capsys)[0] == piped and piped.startswith("The next")


def no_network():
    raise StorageError("gpt2: there is no such path")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "tiny", "x"], "tiny: no such run; did you mean runs/tiny?"),
        (["generate", "runs/tin", "x"], "runs/tin: no such run; did you mean runs/tiny?"),
        (["generate", "run/tiny", "x"], "run/tiny: no such run; did you mean runs/tiny?"),
        (["generate", "runs", "x"], "it holds 'other', 'tiny'; give one of them, such as runs/other"),
        (["compare", "runs"], "it holds 'other', 'tiny'; give one of them, such as runs/other"),
        (["plot", "runs"], "it holds 'other', 'tiny'; give one of them, such as runs/other"),
        (["train", "--resume", "runs"], "it holds 'other', 'tiny'; give one of them, such as runs/other"),
        (["compare", "runs/zz"], "runs/zz: no such run; check the path: nanograd-llm info FOLDER lists runs"),
        (["plot", "tiny"], "tiny: no such run; did you mean runs/tiny?"),
        (["generate", "The cafe", "runs/tiny"], "MODEL comes first: nanograd-llm generate runs/tiny 'The cafe'"),
    ],
)
def test_a_model_that_is_not_found_is_guessed(arguments, said, tmp_path, run, capsys, monkeypatch):
    for name in ("tiny", "other"):
        shutil.copytree(run, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == (2 if "MODEL comes first" in said else 4)
    assert said in printed(capsys)[1]


def test_tokenize_without_a_network_shows_bytes_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr("nanograd_llm.pretrained.gpt2_tokenizer", no_network)
    assert main(["tokenize", "the cat"]) == 0
    out, err = printed(capsys)
    assert "7 tokens, 7 bytes, by ByteTokenizer" in out
    assert "GPT-2's tokenizer is not on this machine, so each byte is a token; --model RUN takes that of a run" in err


def test_tokenize_shows_the_merges_that_made_each_piece(capsys, tmp_path):
    (tmp_path / "text.txt").write_text("the thin theory, then the other", "utf-8")
    assert main(["prepare", str(tmp_path / "text.txt"), "--held-out", "0.5", "--out", str(tmp_path / "data")]) == 2
    assert "=0.5 of 1 text leaves none to" in printed(capsys)[1]
    (tmp_path / "text.txt").write_text("the thin theory, then the other\n" * 500, "utf-8")
    few = ["--vocab-size", "260", "--out", str(tmp_path / "data")]
    assert main(["prepare", str(tmp_path / "text.txt"), *few]) == 0
    assert main(["train", str(tmp_path / "data"), "--steps", "1", "--out", str(tmp_path / "run"), *TINY]) == 0
    printed(capsys)
    assert main(["tokenize", " then", "--model", str(tmp_path / "run"), "--show-merges", "1"]) == 0
    out = printed(capsys)[0].splitlines()
    assert out[0] == "0: 't' + 'h' -> 'th'"
    assert out[1].split() == "258 ' the' 0: 't' + 'h', 1: 'th' + 'e', 2: ' ' + 'the'".split()
    assert out[2].split() == ["110", "'n'"]
    assert main(["tokenize"]) == 2


def test_nul_characters_are_told_by_prepare_and_train(capsys, tmp_path):
    lines = "the thin theory, then the other\n" * 500
    (tmp_path / "text.txt").write_text(f"{lines}one\0two\0{lines}", "utf-8")
    text, data = str(tmp_path / "text.txt"), str(tmp_path / "data")
    told = "; 2 characters of it NUL, as in a binary file"
    assert main(["prepare", text, "--tokenizer", "bytes", "--out", data]) == 0
    parts = [line for line in printed(capsys)[0].splitlines() if line.startswith(("train", "held out"))]
    assert sum(line.endswith(told) for line in parts) == 1 and sum("NUL" in line for line in parts) == 1
    run = ["train", text, "--tokenizer", "bytes", "--steps", "1", "--out", str(tmp_path / "run"), *TINY]
    assert main(run) == 0
    assert f"{told}\n" in printed(capsys)[0]


def test_no_prompt_and_an_empty_one_are_a_new_line(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    texts = []
    for prompt in ([], [""], ["\n"]):
        assert main(["generate", str(run), *prompt, "--max-new-tokens", "3", "--seed", "0"]) == 0
        texts.append(printed(capsys)[0])
    assert texts[0] == texts[1] == texts[2]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A run on characters, of a text that is one line."""
    path = tmp_path_factory.mktemp("letters")
    (path / "text.txt").write_text("the cat sat on the mat; " * 50, "utf-8")
    arguments = ["train", str(path / "text.txt"), "--tokenizer", "characters", "--steps", "2", "--workers", "1"]
    assert main([*arguments, "--out", str(path / "run"), *TINY]) == 0
    return path / "run"


def test_a_run_without_a_new_line_among_its_characters_writes_without_a_prompt(letters, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    capsys.readouterr()
    assert main(["generate", str(letters), "--max-new-tokens", "5", "--seed", "0"]) == 0
    out, err = printed(capsys)
    assert not err
    assert out[0] == " " and len(out) == 7  # the first of its characters, five more, and the end of the line


def test_a_line_with_an_unknown_character_is_an_error_message_and_the_chat_continues(letters, capsys, monkeypatch):
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("the\nthat \u00e9\n\n"))
    assert main(["chat", str(letters), "--max-new-tokens", "5", "--temperature", "0"]) == 0
    out, err = printed(capsys)
    assert "character 'é' at position 5 is not among" in err
    assert [len(line) for line in out.splitlines()] == [5, 5]


def test_where_the_model_ends_the_text_at_once_only_the_prompt_is_printed(run, capsys, monkeypatch):
    monkeypatch.setattr("nanograd_llm.inference.writing.stream", lambda *_, **__: iter([(None,)]))
    assert main(["generate", str(run), "The end"]) == 0
    assert printed(capsys)[0] == "The end\n"


def test_info_shows_every_parameter(run, capsys):
    assert main(["info", str(run)]) == 0
    out, _ = printed(capsys)
    for part in ("wte", "blocks.0.attention.qkv.weight", "bits per byte", "4 steps", "vocab_size=270"):
        assert part in out


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{"step": 3, "loss": 1.0}', r"trained +3 steps, loss 1\.000\n"),
        ('{"step": 3, "items": 1234, "loss": "NaN"}', r"trained +3 steps, 1,234 tokens, loss nan\n"),
        ('{"step": 3, "bits_per_byte": 2}', r"held out +2\.000 bits per byte at step 3\n"),
        ('{"step": 3, "bits_per_byte": 2, "scored_share": 0.256}', r"at step 3, on 26 % of what is held out\n"),
        ('{"step": 3}', r"tokenizer .*\ncheckpoints "),
    ],
)
def test_info_shows_the_metrics_that_are_there(line, shown, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(line + "\n", "utf-8")
    assert main(["info", str(tmp_path / "run")]) == 0
    assert re.search(shown, printed(capsys)[0])


def test_info_of_metrics_that_are_not_numbers_is_code_3_with_the_file(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 3, "bits_per_byte": null}\n', "utf-8")
    assert main(["info", str(tmp_path / "run")]) == 3
    assert "metrics.jsonl, near the end: not a metrics record: its bits_per_byte is None" in printed(capsys)[1]


def test_info_of_an_older_checkpoint_shows_the_score_and_steps_of_its_time(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 50, encoding="utf-8")
    every = ["--evaluate-every", "1", "--checkpoint-every", "1"]
    assert (
        main(["train", str(tmp_path / "text.txt"), "--steps", "3", *every, "--out", str(tmp_path / "run"), *TINY]) == 0
    )
    printed(capsys)
    assert main(["info", str(tmp_path / "run" / "checkpoints" / "step-00000001.safetensors")]) == 0
    out, _ = printed(capsys)
    assert re.search(r"trained +1 step, 64 tokens, loss", out) and re.search(r"held out .* at step 1\n", out)


def test_info_shows_the_hash_of_the_text_and_no_empty_row(run, capsys):
    assert main(["info", str(run)]) == 0
    out, _ = printed(capsys)
    digest = (run / "text.sha256").read_text("utf-8")[:12]
    assert re.search(rf"^text hash +SHA-256 {digest}$", out, flags=re.MULTILINE)
    assert all(len(line.split()) > 1 for line in out.partition("\n┏")[0].splitlines())


def test_info_of_a_prepared_folder_says_what_it_is_and_the_next_command(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on the mat.\n" * 999)
    data = str(tmp_path / "data")
    assert main(["prepare", str(tmp_path / "text.txt"), "--tokenizer", "bytes", "--out", data]) == 0
    capsys.readouterr()
    assert main(["info", data]) == 0
    out = printed(capsys)[0]
    assert "sources=" in out and "tokens=" in out
    assert f"{data} is a prepared folder; next: nanograd-llm train {data}\n" in out


def test_info_opens_the_run_once(run, capsys, monkeypatch):
    opened, open_run = [], RunFolder.open
    monkeypatch.setattr(RunFolder, "open", lambda path: opened.append(path) or open_run(path))
    assert main(["info", str(run)]) == 0
    assert [str(path) for path in opened] == [str(run)]


def test_info_shows_the_settings_that_were_used_in_short_form(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 50, encoding="utf-8")
    arguments = ["--minutes", "0.001", "--tokenizer", "characters", "--learning-rate", "0.0006000000000000001"]
    main(["train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "run"), *arguments, *TINY])
    printed(capsys)
    assert main(["info", str(tmp_path / "run")]) == 0
    lines = {line.split()[0]: line for line in printed(capsys)[0].splitlines()}
    assert "vocab_size" not in lines["text"] and "vocab_size=11," in lines["model"]
    assert "learning_rate=0.0006," in lines["train"]
    assert " steps=" not in lines["train"] and "minutes=0.001" in lines["train"]
    assert "None" not in "".join(lines.values())


@pytest.mark.parametrize("width", [42, 60, 200])
def test_info_on_a_narrow_terminal_shows_the_beginning_and_the_end_of_every_name(width, run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    main(["info", str(run)])
    lines = printed(capsys)[0].splitlines()
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    table = [row[0].strip() for row in rows]
    assert len(rows[0]) == {42: 2, 60: 3, 200: 4}[width]  # columns are left out, numbers are not cut
    assert all("…" not in cell for row in rows for cell in row[1:])
    names = [name for name, _ in open_model(run).model().named_parameters()]
    assert len(set(table)) == len(table) == len(names) + 1
    for shown, name in zip(table, [*names, "all"]):
        begin, _, end = shown.partition("…")
        assert name.startswith(begin) and name.endswith(end)
        assert shown == name or width < 80


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_is_a_page_on_stdout_that_of_a_command_ends_with_examples(command, capsys):
    assert main([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert "Usage: nanograd-llm" in out and not err
    assert ("Start with nanograd-llm train: it takes a minute, and ends" in " ".join(out.split())) is (not command)
    page, _, examples = out.partition("Examples:")
    for name in command:
        assert f"nanograd-llm {name}" in " ".join(examples.split())
        assert examples.splitlines()[2].startswith("nanograd-llm") and "ARGS" not in page


@pytest.mark.parametrize("columns", [42, 80])
def test_a_help_page_of_any_width_breaks_no_name_of_an_option(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    options = {f"--{name}".replace("_", "-") for name in options_of(task_named(DEFAULT)) if name != "file"}
    for words, names in ((["train"], options), ([], {*COMMANDS, "--install-completion"})):
        main([*words, "--help"])
        page = capsys.readouterr().out
        assert max(map(len, page.splitlines())) <= columns and names <= {*re.findall(r"[\w-]+", page)}


def test_help_is_a_command_as_well(capsys):
    for words, option in (
        (["help"], ["--help"]),
        (["help", "help"], ["--help"]),
        (["help", "train"], ["train", "--help"]),
    ):
        assert main(words) == 0
        page = capsys.readouterr().out
        assert main(option) == 0 and page == capsys.readouterr().out


def test_help_shows_every_default(capsys):
    main(["train", "--help"])
    out, _ = capsys.readouterr()
    shown = {"--preset": "nano if not given", "--out": "if not given, runs/PRESET-N"}
    shown |= {
        "--init": "Start from the weights",
        "--config": "of a run makes the run again",
        "--resume": "The folder of a run that was stopped",
    }
    shown |= {
        "--n-layer": "[default: the preset's, 2 for nano]",
        "--minutes": "[default: 1.0]",
        "--steps": "Steps of the run.",
    }
    descriptions = re.split(r"│ (?=--)", out)[1:]
    assert len(descriptions) > 25
    for described in descriptions:
        option, text = described.split()[0], " ".join(described.replace("│", " ").split())
        assert shown.get(option, "[default: ") in text or "if not given." in text, option
    for section in ("Run", "Text", "Model", "Training"):
        assert f"╭─ {section} ─" in out


OF_ONE_TASK = {
    "language-model": ("--tokenizer", "--preset", "[default: the preset's, 8 for nano; 8 with --init]"),
    "translation": (
        "--label-smoothing",
        "--beta2",
        "[default: 0.002; 0.0003 with --init; ten times",
        "[default: 64; the model's with --init]",
    ),
    "masked-words": (
        "--as-mask",
        "[default: 64; 128, or the model's if smaller, with --init]",
        "[default: 64; 16 with --init]",
    ),
    "classification": ("--label-column", "--pooling", "with a folder for each"),
    "instruction": ("--include-prompt", "--show-batch", "[default: 32, or 8 for more than 256 channels]"),
    "preference": ("--supervised", "--show-batch", "the chosen answer and the rejected one"),
}


@pytest.mark.parametrize("task", OF_ONE_TASK)
def test_the_help_of_a_task_shows_its_options_and_defaults_alone(task, capsys):
    assert main(["train", "--task", task, "--help"]) == 0
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"the options of the task {task}." in page and "train --task NAME --help" in page
    for words in OF_ONE_TASK[task]:
        assert words in page, words
    foreign = {words for other in OF_ONE_TASK.values() for words in other if words.startswith("--")}
    of_all = {f"--{name.replace('_', '-')}" for name in options_of(task_named(task))} | {"--preset", "--show-batch"}
    assert not [word for word in foreign - of_all if f"{word} " in page]
    shown = re.findall(r"nanograd-llm train .*?(?=nanograd-llm|$)", page.partition("Examples:")[2])
    assert shown and (task == "language-model" or all(f"--task {task} " in line for line in shown))
    shown = {f"--{name.replace('_', '-')}" for name in options_of(task_named(task)) if name != "file"}
    assert not [word for word in shown if f"{word} " not in page]


def test_the_help_of_train_is_that_of_a_language_model_and_names_the_other_tasks(capsys):
    assert main(["train", "--help"]) == 0
    page = capsys.readouterr().out
    assert main(["train", "--task=language-model", "-h"]) == 0 and capsys.readouterr().out == page
    assert "--label-column" not in page and "translation, masked-words" in page
    assert main(["train", "--task", "translating", "--help"]) == 2
    assert "did you mean 'translation'?" in capsys.readouterr().err


def test_a_settings_file_makes_the_run_and_options_override_it(run, tmp_path, capsys):
    arguments = ["train", "--config", str(run / "config.toml")]
    assert main([*arguments, "--out", str(tmp_path / "again")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "other"), "--n-layer", "2", "--steps", "2"]) == 0
    configs = [(folder / "config.toml").read_text("utf-8") for folder in (run, tmp_path / "again", tmp_path / "other")]
    assert configs[0] == configs[1]
    assert configs[2] == configs[0].replace("n_layer = 1", "n_layer = 2").replace("steps = 4", "steps = 2")
    first, again = (folder / "checkpoints" / "step-00000004.safetensors" for folder in (run, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ("[train]\nstpes = 3", 3, "x.toml [train]: unknown 'stpes', did you mean 'steps'?"),
        ("import os", 3, "x.toml: is not valid TOML"),
        (None, 4, "x.toml: no such file"),
    ],
)
def test_a_settings_file_that_cannot_be_used_is_one_line(content, code, said, tmp_path, capsys):
    if content is not None:
        (tmp_path / "x.toml").write_text(content, "utf-8")
    assert main(["train", "--config", str(tmp_path / "x.toml"), "--out", str(tmp_path / "run")]) == code
    assert said in printed(capsys)[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("option", "value"), [("--warmup", "1"), ("--held-out", "0"), ("--max-norm", "0")])
def test_an_option_is_checked_as_its_setting(option, value, capsys):
    assert main(["train", option, value]) == 2
    assert f"nanograd-llm: {option} must be a finite number" in printed(capsys)[1]


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "--stpes", "3"], 2, "--stpes is no option of train; did you mean --steps? See"),
        (["train", "text.txt", "--bogus", "1"], 2, "--bogus is no option of train; see nanograd-llm train --help\n"),
        (["train", "--lr", "3"], 2, "--lr is no option of train; did you mean --learning-rate? See"),
        (["train", "--block-size", "3"], 2, "did you mean --context-length? See"),
        (["train", "--block_size", "3"], 2, "did you mean --context-length? See"),
        (["train", "--batch", "3"], 2, "did you mean --batch-size? See"),
        (["train", "--max_iters", "3"], 2, "did you mean --steps? See"),
        (["train", "--epochs", "3"], 2, "--epochs takes no value, and 3 is no file; did you mean --steps?"),
        (["train", "--same-batch", "true"], 2, "--same-batch takes no value, and true is no file; check the path, or"),
        (["train", "--recompute-activations", "a.txt"], 2, "a.txt is no file; check the path, or leave it out\n"),
        (["train", "--epochs", "a.txt"], 2, "--epochs takes no value, and a.txt is no file; check the path, or leave"),
        (["generate", "r", "--temp", "3"], 2, "did you mean --temperature? See"),
        (["generate", "r", "--num_samples", "3"], 2, "did you mean --n? See"),
        (
            ["generate", "--model", "r"],
            2,
            "give MODEL without an option: nanograd-llm generate [OPTIONS] MODEL",
        ),
        (["prepare", "text.txt", "-o", "x"], 2, "-o is no option of prepare; did you mean --out? See"),
        (["train", "--continue", "x"], 2, "no option of train; to go on with a run: nanograd-llm train --resume RUN"),
        (["resume", "runs/x"], 2, "'resume' is no command; to go on with a run: nanograd-llm train --resume RUN"),
        (["generate", "r", "-n", "3"], 2, "-n is no option of generate; did you mean --n? See"),
        (["train", "-o", "x"], 2, "-o is no option of train; did you mean one of --out, --optimizer? See"),
        (["-V"], 2, "-V is no option of nanograd-llm; did you mean --version? See"),
        (["trian"], 2, "'trian' is no command; did you mean train? See nanograd-llm --help"),
        (["xyz"], 2, "'xyz' is no command; the commands are train, generate,"),
        (["train", "--steps", "many"], 2, "--steps must be an integer; got 'many'; see"),
        (["train", "--minutes", "ten"], 2, "--minutes must be a number; got 'ten'; see"),
        (["train", "--processes=maybe"], 2, "--processes must be true or false; got 'maybe'; see"),
        (["train", "--tokenizer", "bpee"], 2, "one of bpe, bytes, characters; got 'bpee'; did you mean bpe? See"),
        (["train", "--tokenizer", "chars"], 2, "got 'chars'; did you mean characters? See"),
        (["train", "--seed"], 2, "--seed is given without a value; put an integer after it; see"),
        (["train", "--seed", "1", "--seed", "2"], 2, "--seed is given twice; give it once; see"),
        (
            ["tokenize", "a", "b", "c"],
            2,
            "'b', 'c': too many words; tokenize takes only TEXT, and a model with --model; put quotes around a text "
            'with spaces; for example: nanograd-llm tokenize "the cat sat" --model runs/nano-1; see',
        ),
        (["tokenize", "."], 2, ". is a folder, not a text; its tokenizer is used with --model ."),
        (["gradcheck", "exp"], 2, "'exp': too many words; gradcheck takes only options, and a model with"),
        (["gradcheck", "exp"], 2, "--model; for example: nanograd-llm gradcheck --op softmax; see"),
        (["gradcheck", "."], 2, "--model; for example: nanograd-llm gradcheck --model .; see"),
        (
            ["tokenize", ".", "def parse"],
            2,
            "with --model; for example: nanograd-llm tokenize --model . 'def parse'; see",
        ),
        (["tokenize", "--model", ".", "a", "b"], 2, 'a text with spaces; for example: nanograd-llm tokenize "the cat'),
        (["help", "trian"], 2, "'trian' is no command; did you mean train?"),
        (
            ["chat", "r", "a"],
            2,
            "'a': too many words; chat takes only MODEL; for example: nanograd-llm chat runs/nano-1",
        ),
        (["generate", "r", "- a"], 2, "'- a' is no option of generate; put a text that begins with a dash last, after"),
        (
            ["prepare", "x.txt", "--out", "new", "--tokenizer", "wordpiece"],
            2,
            "must be one of bpe, bytes, characters, or",
        ),
        (["train", "no*such.txt"], 4, "no*such.txt: no file matches this pattern; check it"),
        (["train", "nowhere.txt"], 4, "nowhere.txt: no such file; check the path"),
        (["tokenize", "-a"], 2, "'-a' is no option of tokenize; put a text that begins with a dash last, after --"),
        (["generate", "r", "--", "-x", "--seed", "5"], 2, "--seed comes after --, where everything is text; put"),
        (["generate", "r", "a", "--", "-x"], 2, "'-x': too many words; generate takes only MODEL and PROMPT; put"),
        (["train", "--steps", "0"], 2, "steps must be an integer of at least 1; got 0"),
        (["train", "--steps", "1", "--minutes", "1"], 2, "--steps and --minutes are both given"),
        (["train", "a.txt", "--data", "b.txt"], 2, "FILE and --data are both given"),
        (["prepare", "a.txt", "--out", "d", "--tokenizer", "byte"], 2, "such as a run or gpt2; did you mean bytes?"),
        (["train", "--minutes", "nan"], 2, "minutes must be a finite number"),
        (["train", "--learning-rate", "1e999"], 2, "--learning-rate must be a finite number"),
        (["train", "--checkpoint-every", "0"], 2, "--checkpoint-every must be an integer of at least 1; got 0"),
        (["train", "--tokenizer", "bytes", "--vocab-size", "500"], 2, "--vocab-size applies to the tokenizer bpe,"),
        (["train", "--n-embd", "1" + "0" * 19], 2, "--n-embd must be an integer of at most 2,147,483,647"),
        (["train", "--batch-size", "1" + "0" * 19], 2, "--batch-size must be an integer of at most 2,147,483,647"),
        (["generate", "x" * 300], 4, "x…x"),
        (["train", "", "--steps", "2"], 2, "an argument is empty, as a shell variable may be; give a name, or leave"),
        (["train", "--task", "classification", ""], 2, "an argument is empty"),
        (["prepare", "a.txt", "--out", ""], 2, "an argument is empty"),
        (["embed", "r", "a", "--out", ""], 2, "--out must be a path; got ''; see"),
        (["train", "--n-head", "3"], 2, "--n-embd must be a multiple of --n-head"),
        (["train", "--preset", "nono"], 2, "--preset"),
        (["generate"], 2, "generate needs MODEL; for example: nanograd-llm generate runs/nano-1"),
        (["convert", "gpt2"], 2, "convert needs --to, one of hf, numpy, peft; for example: nanograd-llm convert"),
        (["search", "MiniLM", "a query"], 2, "--file; for example: nanograd-llm search MiniLM"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    _, err = printed(capsys)
    assert said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "right"), [("eval", "{} text.txt"), ("generate", "{} < text.txt")])
def test_a_file_before_the_model_is_refused_with_the_right_order(command, right, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat", encoding="utf-8")
    assert main([command, "text.txt", str(run)]) == 2
    assert f"MODEL comes first: nanograd-llm {command} {right.format(run)}\n" in printed(capsys)[1]


def test_a_run_where_train_takes_it_otherwise_is_refused_with_the_right_words(run, tmp_path, capsys):
    assert main(["train", str(run), "--resume"]) == 2
    assert (
        f"--resume is given without a value; to go on with a run: nanograd-llm train --resume {run}; see"
        in (printed(capsys)[1])
    )
    assert main(["train", str(tmp_path / "text.txt"), "--config", str(run)]) == 2
    assert f"{run} is a run; give {run / 'config.toml'}\n" in printed(capsys)[1]


@pytest.mark.parametrize("first", ["no/gpt9", "run/checkpoints/step-1.safetensors"])
@pytest.mark.parametrize("second", ["a prepared folder", "a run", "a folder that cannot be read"])
def test_a_model_that_is_given_first_is_not_taken_for_a_text(first, second, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "a run")
    os.makedirs(second, exist_ok=True)
    if second == "a prepared folder":
        for name in ("prepared.toml", "train.bin", "val.bin"):
            open(f"{second}/{name}", "wb").close()
    listdir = os.listdir

    def refuse(path):
        if path == "a folder that cannot be read":
            raise PermissionError(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert main(["eval", first, second]) == 4 or (first, second) == ("no/gpt9", "a run")
    is_swapped = "MODEL comes first" in printed(capsys)[1]
    assert is_swapped == ((first, second) == ("no/gpt9", "a run"))  # which may be a text, named before its model


def test_the_name_of_a_file_in_place_of_a_text_is_warned_of(run, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat", encoding="utf-8")
    assert main(["classify", str(run), str(tmp_path / "text.txt")]) == 2  # as this run is no classifier
    assert "text.txt is taken as a text, though there is a file of this name" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["plot"], ["compare"], ["train", "--resume"]])
def test_a_file_in_place_of_a_run_is_named_as_that(arguments, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat", encoding="utf-8")
    assert main([*arguments, str(tmp_path / "text.txt")]) == 4
    assert "text.txt: is a file; expected the folder of a run" in printed(capsys)[1]


def test_an_unknown_lora_target_is_refused_before_the_text_is_read_with_the_near_name(run, tmp_path, capsys):
    words = ["--init", str(run), "--lora-rank", "2", "--lora-targets", "qvk", "--out", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / "no.txt"), *words]) == 2
    assert "--lora-targets: unknown 'qvk', did you mean 'qkv'?" in printed(capsys)[1]


def test_a_text_that_is_not_utf_8_is_code_3_and_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(b"caf\xe9 " * 1000)
    assert main(["train", "text.txt"]) == 3
    assert "text.txt" in printed(capsys)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_file_in_the_way_of_the_run_folder_is_code_4(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    assert main(["train", "--out", str(tmp_path / "taken"), "--steps", "1"]) == 4
    printed(capsys)
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["file", "file/run", "full", "new/run", None])
def test_a_run_folder_that_cannot_be_made_is_refused_before_the_text_is_read(name, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.toml").touch()
    monkeypatch.chdir(tmp_path)
    if name in ("new/run", None):
        monkeypatch.setattr("os.access", lambda path, mode: False)  # as root may write anywhere
    assert main(["train", "no such text", *(["--out", name] if name else [])]) == 4
    assert f"{name or 'runs'}: " in (err := printed(capsys)[1]) and "no such text" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_a_folder_that_is_not_a_run_is_code_4(tmp_path, capsys):
    assert main(["generate", str(tmp_path), "The"]) == 4
    assert "no run" in printed(capsys)[1]


def test_a_damaged_checkpoint_is_code_3(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "copy")
    (path,) = (tmp_path / "copy" / "checkpoints").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert main(["generate", str(tmp_path / "copy"), "The"]) == 3
    assert "SHA-256" in printed(capsys)[1]


@pytest.mark.parametrize("command", ["generate", "info", "eval", "convert"])
def test_where_the_newest_checkpoint_is_damaged_an_older_one_can_be_given_instead(
    command, run_of_two, tmp_path, capsys
):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 50, encoding="utf-8")
    arguments = {"generate": ["The"], "eval": [str(tmp_path / "text.txt")], "convert": ["--to", "hf"]}.get(command, [])
    if command == "convert":
        arguments += ["--out", str(tmp_path / "converted")]
    shutil.copytree(run_of_two, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    printed(capsys)
    assert main([command, str(tmp_path / "run"), *arguments]) == 3
    (older,) = re.findall(r"step 2 is whole: give its file, (\S+)", printed(capsys)[1])
    assert main([command, older, *arguments]) == 0
    assert command != "info" or "checkpoints 2, 4; these weights are of step 2\n" in printed(capsys)[0]


def test_an_unknown_op_is_refused_with_the_nearest_name(capsys):
    assert main(["gradcheck", "--op", "sofmax"]) == 2
    assert "softmax" in printed(capsys)[1]


def test_gradcheck_passes_for_an_op_and_prints_a_table(capsys):
    assert main(["gradcheck", "--op", "softmax", "--cases", "3"]) == 0
    assert "softmax" in printed(capsys)[0]


def test_gradcheck_of_a_wrong_rule_is_code_1_and_says_why(monkeypatch, capsys):
    rule = registry["exp"].rule
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: 2 * rule(dy, y))
    assert main(["gradcheck", "--op", "exp", "--cases", "3"]) == 1
    out, _ = printed(capsys)
    assert "wrong" in out and "off by the factor 2" in out and out.endswith("0 of 1 are right\n")


def test_gradcheck_of_a_rule_that_raises_is_code_1_and_says_what_it_raises_and_where(monkeypatch, capsys):
    monkeypatch.setattr(registry["exp"], "rule", lambda dy, y: dy * undefined)  # noqa: F821
    assert main(["gradcheck", "--op", "exp", "--cases", "3"]) == 1
    out, _ = printed(capsys)
    assert re.search(r"\nexp: it raises NameError: name 'undefined' is not defined \(\S*test_cli\.py:\d+\)\n", out)
    assert out.endswith("0 of 1 are right\n")


def test_gradcheck_of_a_trained_model_says_what_it_costs_and_reports(letters, capsys):
    capsys.readouterr()
    assert main(["gradcheck", "--model", str(letters)]) == 0
    out, err = printed(capsys)
    assert "random directions each: about" in out and "gradients of loss: right" in out and "wte" in out
    assert "checking" not in out + err  # the seconds that a terminal shows


@pytest.mark.parametrize("options", [["--model", "run", "--cases", "3"], ["--thorough", "--cases", "3"]])
def test_options_of_gradcheck_that_do_not_go_together_are_refused(options, capsys):
    assert main(["gradcheck", *options]) == 2
    printed(capsys)


def command(*arguments):
    return [sys.executable, "-c", "import sys; from nanograd_llm.cli import main; sys.exit(main())", *arguments]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_cleanly(tmp_path, number, code):
    arguments = command("train", "--steps", "100000", "--out", str(tmp_path / "run"), *QUICK)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("step " in line for line in process.stdout)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "saved" in out
    assert out.endswith(f"to go on:   nanograd-llm train --resume {tmp_path / 'run'}\n")
    again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
    assert err == f"\nstopping after this step, then saving{again}\n"
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def handle_ctrl_c():
    """For a new process: what a shell starts in the background ignores Ctrl-C, also when it runs these tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_during_generate_is_one_line_and_code_130(run):
    arguments = command("generate", str(run), "The", "--max-new-tokens", "1000000", "--temperature", "0")
    with subprocess.Popen(arguments, stdout=-1, stderr=-1, preexec_fn=handle_ctrl_c) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"nanograd-llm: stopped\n")


def piped(arguments, reader):
    """(stdout, stderr) of a command whose output goes to `reader`; its exit code is the last line of stdout."""
    line = " ".join(f"'{word}'" for word in arguments) + f" | {reader}; code=${{PIPESTATUS[0]}}; echo; echo $code"
    process = subprocess.run(line, shell=True, executable="/bin/bash", capture_output=True, text=True, errors="replace")
    return process.stdout, process.stderr


@pytest.mark.parametrize("arguments", [("generate", "RUN", "The"), ("info", "RUN"), ("train", "--help")])
def test_a_command_whose_reader_has_ended_ends_without_a_message(run, arguments):
    out, err = piped(command(*(str(run) if word == "RUN" else word for word in arguments)), "head -c 5")
    assert not err
    assert out.splitlines()[-1] == "141"


def test_a_command_works_without_stdout(run):
    line = " ".join(f"'{word}'" for word in command("generate", str(run), "The", "--seed", "0")) + " >&-"
    process = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_command_works_without_stderr(run, tmp_path):
    (tmp_path / "text.txt").write_text("the text " * 20, "utf-8")
    line = " ".join(f"'{word}'" for word in command("eval", str(run), str(tmp_path / "text.txt"))) + " 2>&-"
    process = subprocess.run(line, shell=True, stdout=subprocess.PIPE, text=True)
    assert process.returncode == 0
    assert "bits per byte" in process.stdout


def test_a_chat_without_stdin_ends(run):
    line = " ".join(f"'{word}'" for word in command("chat", str(run))) + " <&-"
    process = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_a_line_that_is_not_utf_8_is_an_error_and_the_chat_continues(run):
    found = []
    for said in (b"a\xff\nb\n", b"b\n"):
        process = subprocess.run(
            command("chat", str(run), "--max-new-tokens", "5", "--seed", "0"), input=said, capture_output=True
        )
        assert process.returncode == 0
        found.append((process.stdout, process.stderr))
    assert found[0][0] == found[1][0] != b"" and found[1][1] == b""
    said = b"nanograd-llm: this line is not UTF-8: byte 0xff at offset 1 (invalid start byte); convert it to UTF-8"
    assert found[0][1].startswith(said) and found[0][1].count(b"\n") == 1


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("arguments", [("generate", "RUN"), ("tokenize", "-", "--model", "RUN")])
def test_a_piped_text_that_is_not_utf_8_is_a_bad_file(arguments, locale, run):
    words = [str(run) if word == "RUN" else word for word in arguments]
    how = {"capture_output": True, "env": {**os.environ, "LC_ALL": locale}}
    process = subprocess.run(command(*words), input=b"caf\xe9", **how)
    assert (process.returncode, process.stdout) == (3, b"")
    assert process.stderr == (
        b"nanograd-llm: standard input is not UTF-8: byte 0xe9 at offset 3 (unexpected end of data); convert it to "
        b"UTF-8 first, for example: iconv -f WINDOWS-1252 -t UTF-8\n"
    )


@pytest.mark.parametrize("option", ["--steps", "--n-layer", "--seed"])
def test_a_fraction_for_an_integer_is_refused(option, tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), option, "2.5"]) == 2
    assert "2.5" in printed(capsys)[1]


def test_a_run_whose_time_is_over_at_the_start_does_one_step_and_saves_it(tmp_path, capsys):
    assert main(["train", "--minutes", "0.001", "--out", str(tmp_path / "run"), *QUICK]) == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001.safetensors"]


def test_where_reading_took_much_of_the_time_a_line_says_so_and_what_to_do(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 99)
    words = ["--tokenizer", "bytes", "--minutes", "0.001", *TINY]
    assert main(["train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "run"), *words]) == 0
    found = r"warning: \S+ s of 0\.06 s went into reading the data; give more minutes, or --steps, which do not"
    assert re.search(found, printed(capsys)[1])


ROWS = [
    ("a.csv", "nanograd-llm train {} --task classification learns their labels, {}#COLUMN is the text of one column"),
    ("a.TSV", "learns their labels, --task translation learns their translations, {}#COLUMN is"),
    (
        "a.csv.gz",
        "after gunzip -k a.csv.gz, nanograd-llm train a.csv --task classification learns their labels, a.csv#C",
    ),
    ("a.po", "train {} --task translation learns their translations, and - < {} is all of it"),
    ("a.json", "train {} --task instruction learns their answers, --task preference learns"),
]


@pytest.mark.parametrize("words", [["train"], ["train", "--task", "masked-words"], ["prepare", "--out", "data"]])
@pytest.mark.parametrize("name, said", ROWS)
def test_a_file_of_rows_is_no_plain_text_and_the_commands_that_take_it_are_named(
    name, said, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("text,label\n" + "the cat sat,a\n" * 99)
    assert main([words[0], name, *words[1:]]) == 2
    assert said.replace("{}", name) in (err := printed(capsys)[1])
    assert f"- < {name.removesuffix('.gz')} is all of it as plain text" in err
    assert os.listdir() == [name]


def test_the_tasks_that_are_named_for_rows_exist():
    assert {task for tasks in sources.ROWS.values() for task in tasks} | {*sources.KEYS.values()} <= {*TASKS}


@pytest.mark.parametrize("words", [["classify", "runs/a"], ["embed", "runs/a"], ["search", "runs/a", "a cat"]])
@pytest.mark.parametrize(
    "name, said",
    [("a b.csv", "--file 'a b.csv'#COLUMN is the text of one column, by its name in line 1, and "), ("a.json", "")],
)
def test_rows_are_no_lines_of_text_and_how_to_give_them_is_said(name, said, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("text,label\nthe cat sat,a\n")
    assert main([*words, "--file", name]) == 2
    assert f"{name} holds rows: {said}--file - < {shlex.quote(name)} is all of it as plain text\n" in printed(capsys)[1]


def test_of_rows_that_are_to_be_scored_no_command_that_learns_is_named(run, tmp_path, monkeypatch, capsys):
    run = run.resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\nthe cat sat,a\n")
    assert main(["eval", str(run), "a.csv"]) == 2
    assert "a.csv holds rows: a.csv#COLUMN is the text of one column, by its name in line 1, and" in printed(capsys)[1]


@pytest.mark.parametrize("source", ["-", "."])
def test_rows_are_learned_as_plain_text_where_they_are_piped_in_or_in_a_folder(source, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(rows := "text,label\n" + "the cat sat,a\n" * 99)
    monkeypatch.chdir(tmp_path / "in")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
    words = ["--tokenizer", "bytes", "--steps", "1", *TINY]
    assert main(["train", source, "--out", str(tmp_path / "run"), *words]) == 0


@pytest.mark.parametrize("key, task", [("output", "instruction"), ("rejected", "preference"), ("label", "classif")])
def test_rows_without_a_text_name_the_task_that_learns_from_them(key, task, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "Say 1.", key: "1"}))
    assert main(["train", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "run")]) == 3
    assert f"a.jsonl#prompt; or train it with --task {task}" in printed(capsys)[1]


def test_of_rows_without_any_text_no_field_is_suggested(tmp_path, capsys):
    for content, said in (
        ({"messages": [{"role": "user", "content": "hi"}]}, "its fields are 'messages'; train it with --task instruc"),
        ({"id": 1}, "its fields are 'id'; write a text on each line"),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps(content))
        assert main(["train", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "run")]) == 3
        assert said in printed(capsys)[1]


def test_an_error_in_a_config_names_the_file_once(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text("utf-8").replace("n_head", "foo"), "utf-8")
    assert main(["info", str(tmp_path / "run")]) == 3
    assert printed(capsys)[1].count("config.toml") == 1


def test_the_names_that_a_setting_of_a_task_cannot_have_are_those_of_train():
    assert {*inspect.signature(train).parameters} - {"settings"} == {*COMMAND} - {"help"}


def test_a_negative_seed_of_a_check_is_refused(capsys):
    assert main(["gradcheck", "--op", "exp", "--seed", "-1"]) == 2
    assert "seed must be an integer of at least 0" in printed(capsys)[1]


def test_a_training_run_whose_reader_has_ended_is_saved(tmp_path):
    out, err = piped(command("train", "--steps", "200", "--out", str(tmp_path / "run"), *QUICK), "head -11")
    assert not err
    assert out.splitlines()[-1] == "141"
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_console_that_lacks_a_character_gets_a_question_mark(run):
    process = subprocess.run(
        command("generate", str(run), "caf\udcff\u6f22", "--max-new-tokens", "30", "--seed", "0"),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert process.returncode == 0
    assert not process.stderr
    assert process.stdout.startswith(b"caf?")


def test_output_that_cannot_be_written_is_code_4(run):
    with open("/dev/full", "w") as full:
        process = subprocess.run(command("info", str(run)), stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 4
    assert process.stderr.count("\n") == 1


def test_a_model_larger_than_the_memory_is_one_line_and_leaves_no_folder(tmp_path, capsys):
    assert main(["train", "--n-embd", "100000000", "--out", str(tmp_path / "run")]) == 4
    assert "memory" in printed(capsys)[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script(1) to pretend to be a terminal")
def test_the_progress_bar_ends_at_the_end(tmp_path):
    """On a terminal, which `script` pretends to be."""
    options = ["--steps", "5", "--workers", "2", "--out", str(tmp_path / "run"), *QUICK]
    line = " ".join(f"'{word}'" for word in command("train", *options))
    process = subprocess.run(["script", "-qec", line, "/dev/null"], capture_output=True, text=True)
    assert process.returncode == 0
    assert "100%" in process.stdout
    assert "2 processes" in process.stdout or not CAN_FORK  # also beside the thread of the bar
    assert "tokens/s" in process.stdout


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script(1) to pretend to be a terminal")
def test_a_check_of_a_model_counts_its_seconds_on_a_terminal(letters):
    line = " ".join(f"'{word}'" for word in command("gradcheck", "--model", str(letters)))
    process = subprocess.run(["script", "-qec", line, "/dev/null"], capture_output=True, text=True)
    assert process.returncode == 0
    assert re.search(r"checking.*0:00:\d\d", process.stdout)


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script(1) to pretend to be a terminal")
@pytest.mark.parametrize("name", ["generate", "info", "missing"])
def test_escapes_from_a_prompt_a_config_or_a_name_never_reach_a_terminal(name, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text("utf-8").replace("[text]", '[text]\nfile = "\\u001b[2J"'), "utf-8")
    arguments = {
        "generate": ["generate", str(run), "a\x1b[2Jb", "--max-new-tokens", "2"],
        "info": ["info", str(tmp_path / "run")],
        "missing": ["info", "no\x1b[2Jrun"],
    }[name]
    line = " ".join(f"'{word}'" for word in command(*arguments))
    process = subprocess.run(["script", "-qec", line, "/dev/null"], capture_output=True, text=True)
    assert "\x1b[2J" not in process.stdout and "\\x1b[2J" in process.stdout


def test_shell_completion_can_be_installed(capsys):
    main(["--help"])
    assert "--install-completion" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_ctrl_c_ends_a_reply_and_the_chat_continues(run):
    import pty

    terminal, own_end = pty.openpty()
    arguments = command("chat", str(run), "--max-new-tokens", "100000000", "--seed", "0")
    with subprocess.Popen(
        arguments, stdin=own_end, stdout=own_end, stderr=own_end, preexec_fn=handle_ctrl_c, close_fds=True
    ) as process:
        os.close(own_end)

        def read_until(text):
            seen = b""
            while text not in seen:
                seen += os.read(terminal, 1000)
            return seen

        for _ in range(2):
            read_until(b"> ")
            os.write(terminal, b"The statement\n")
            read_until(b"statement\r\n")
            os.read(terminal, 10)
            process.send_signal(signal.SIGINT)
        read_until(b"> ")
        os.write(terminal, b"\x04")
        assert process.wait(timeout=30) == 0
    os.close(terminal)


@pytest.mark.parametrize("width", [42, 80])
def test_an_error_on_a_terminal_is_wrapped_between_words(width, monkeypatch, capsys):
    assert main(["train", "--continue", "runs/a-run"]) == 2
    line = printed(capsys)[1]
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["train", "--continue", "runs/a-run"]) == 2
    err = capsys.readouterr().err
    assert err.split() == line.split() and len(line) > 100
    assert all(len(part) < width for part in err.splitlines())


@pytest.mark.parametrize("width", [42, 80])
def test_a_row_on_a_terminal_is_wrapped_and_its_value_stays_in_its_column(width, monkeypatch):
    line = row("model", "n_layer=2, n_head=4, n_embd=128, context_length=64: 537,600 parameters\x1b[2J")
    assert "\n" not in line
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout", Terminal())
    first, *rest = row("model", line.partition(" ")[2].strip()).splitlines()
    assert first.startswith("model       n_layer=2") and len(rest) > 0
    assert all(part.startswith(" " * 12 + part.split()[0]) and len(part) < width for part in rest)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "stopped"),
        (KeyboardInterrupt("The weights of step 2 are in x"), "stopped. The weights of step 2 are in x"),
    ],
)
def test_ctrl_c_is_one_line_that_says_what_was_saved(error, said, monkeypatch, capsys):
    def interrupted(_):
        raise error

    monkeypatch.setattr("nanograd_llm.cli._run", interrupted)
    assert main(["train"]) == 130
    assert printed(capsys)[1] == f"nanograd-llm: {said}\n"
