"""Runs and pretrained models are opened in the same way, and either can be trained further."""

from __future__ import annotations

import re
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.errors import BadFileError, ConfigError, StorageError
from nanograd_llm.runs import RunFolder
from nanograd_llm.runs.opening import open_model
from nanograd_llm.runs.run import Run, Scored
from nanograd_llm.tasks import LanguageModelling, TextConfig
from nanograd_llm.training import StepRecord, TrainConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = ng.GPTConfig(vocab_size=1, context_length=16, n_layer=1, n_head=2, n_embd=16)
CATS, BIRDS = "the cat sat on the mat and the dog sat on the cat. ", "a bird in the tree sang to a fox at the river. "


def text(folder: Path, content: str, tokenizer: str = "bpe") -> TextConfig:
    path = folder / f"{content[:5].strip()}.txt"
    path.write_text(content * 80, encoding="utf-8")
    return TextConfig(str(path), tokenizer, 300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that was trained on a text."""
    folder = tmp_path_factory.mktemp("runs")
    config = TrainConfig(steps=40, batch_size=4, workers=1, learning_rate=1e-2)
    made = Run(folder / "run", LanguageModelling(text(folder, CATS), TINY, config))
    list(made.train())
    return folder / "run"


@pytest.fixture(scope="module", params=["run", "hf", "numpy"])
def source(request: pytest.FixtureRequest, run: Path) -> Path:
    """The same model as a run and as each form that it can be saved in."""
    if request.param == "run":
        return run
    folder = run.parent / request.param
    opened = open_model(run)
    model, tokenizer = opened.model(), opened.tokenizer()
    ng.save_gpt2(model, folder, tokenizer, form=request.param)
    return folder


def further(folder: Path, source: Path, content: str, **changes: Any) -> Run:
    begin = open_model(source)
    config = TrainConfig(**{"steps": 60, "batch_size": 4, "workers": 1, "learning_rate": 1e-2, **changes})
    task = LanguageModelling(text(folder, content, "model"), begin.config, config, start=begin)
    return Run(folder / "further", task)


def test_a_model_is_the_same_in_every_form_it_is_opened_from(source: Path, run: Path) -> None:
    opened = open_model(source)
    model, tokenizer = opened.model(), opened.tokenizer()
    expected, its_tokenizer = open_model(run).model(), open_model(run).tokenizer()
    assert opened.config == model.config == expected.config and not model.training
    assert all(np.array_equal(model.state_dict()[name], x) for name, x in expected.state_dict().items())
    assert tokenizer.encode(BIRDS).tolist() == its_tokenizer.encode(BIRDS).tolist()
    assert (opened.form == "run") == (source == run)


@pytest.fixture
def files_opened() -> Iterator[list[str]]:
    """The names of all files that are opened while the test runs."""
    names: list[str] = []
    watchers.append(names)
    yield names
    watchers.remove(names)


watchers: list[list[str]] = []


def note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    # io.open with an opener of its own gives two events, with and without a mode: only os.open has none
    if event == "open" and watchers and isinstance(arguments[0], (str, Path)):
        watchers[-1].append(Path(arguments[0]).name + ("" if arguments[1] is None else " by io.open"))


def times_opened(name: str, files_opened: list[str]) -> int:
    return max(files_opened.count(name), files_opened.count(f"{name} by io.open"))


sys.addaudithook(note_opened)


def test_settings_and_tokenizer_are_opened_once_and_only_when_they_are_needed(
    source: Path, files_opened: list[str]
) -> None:
    opened = open_model(source)
    read = {path.name for path in source.iterdir() if path.suffix in (".toml", ".json", ".txt", ".bpe")}
    read -= {"tokenizer_config.json", "samples.txt"}  # the first is written for transformers
    assert {name for name in read if times_opened(name, files_opened)} <= {"config.toml", "config.json"}  # the kind
    for _ in range(2):
        opened.tokenizer()
        opened.model()
        assert opened.config.n_layer == 1
    assert {name: times_opened(name, files_opened) for name in read} == dict.fromkeys(read, 1)


def test_weights_are_not_read_for_the_tokenizer(source: Path, files_opened: list[str]) -> None:
    opened = open_model(source)
    assert opened.tokenizer().vocab_size == opened.config.vocab_size
    assert not [name for name in files_opened if any(part in name for part in (".safetensors", ".npz", ".ckpt"))]


def test_two_models_of_one_opening_share_no_parameter_that_can_be_written(source: Path) -> None:
    opened = open_model(source)
    one, two = opened.model(), opened.model()
    for a, b in zip(one.parameters(), two.parameters()):
        assert not (a.data.flags.writeable and np.shares_memory(a.data, b.data))


def test_a_tokenizer_of_another_model_is_refused_with_both_sizes(source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "copy")
    for path in folder.glob("*.json"):
        if path.name not in ("config.json", "hparams.json"):
            path.unlink()
    name = "tokenizer.json" if (folder / "config.toml").exists() else "nanograd_tokenizer.json"
    for path in folder.glob("*.txt"):
        path.unlink()
    for path in folder.glob("*.bpe"):
        path.unlink()
    ng.text.CharTokenizer.train("abc").save(folder / name)
    opened = open_model(folder)
    with pytest.raises(BadFileError, match=f"its tokenizer has 3 tokens, the model {opened.config.vocab_size}"):
        opened.tokenizer()
    assert opened.model().config == opened.config


def test_a_run_without_a_tokenizer_opens_and_raises_only_when_it_is_asked_for_one(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "tokenizer.json").unlink()
    opened = open_model(folder)
    assert opened.model().config == opened.config
    with pytest.raises(StorageError, match=r"tokenizer\.json: (cannot read: )?[Nn]o such file"):
        opened.tokenizer()


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("text", 'window = "abc"', "window must be an integer of at least 1; got 'abc'"),
        ("train", "steps = true", "steps must be an integer"),
        ("run", "init = 3", "init must be a string; got 3"),
        ("run", 'task = "cooking"', "task must be one of"),
        ("model", 'n_head = "two"', "n_head must be an integer"),
    ],
)
def test_a_setting_of_a_run_that_cannot_be_is_named_when_the_run_is_opened(
    run: Path, tmp_path: Path, table: str, line: str, message: str
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    change_setting(folder, table, line)
    with pytest.raises(BadFileError, match=rf"config\.toml \[{table}\]: {message}"):
        open_model(folder)


def test_a_run_of_an_older_version_with_settings_of_other_names_opens(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    change_setting(folder, "train", "threads = 2")
    change_setting(folder, "model", "checkpoint_activations = true")
    assert open_model(folder).model().config.recompute_activations


def change_setting(folder: Path, table: str, line: str) -> None:
    """Put the line into the table of config.toml, in place of one of the same name."""
    config = (folder / "config.toml").read_text("utf-8")
    before, head, after = config.partition(f"[{table}]\n")
    own, bracket, rest = after.partition("\n[")
    name = line.partition(" =")[0]
    own = re.sub(rf"^{name} = .*$", "", own, flags=re.MULTILINE)
    (folder / "config.toml").write_text(f"{before}{head}{line}\n{own}{bracket}{rest}", "utf-8")


@pytest.mark.parametrize("size", ["context_length = 6000000", "n_layer = 100000", "vocab_size = 2147483647"])
def test_sizes_that_the_checkpoint_cannot_have_take_no_memory(run: Path, tmp_path: Path, size: str) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    config = (folder / "config.toml").read_text("utf-8")
    name = size.partition(" ")[0]
    before, _, table = config.partition("[model]")  # [text] has a vocab_size as well
    changed = re.sub(rf"^{name} = \d+$", size, table, count=1, flags=re.MULTILINE)
    (folder / "config.toml").write_text(f"{before}[model]{changed}", "utf-8")
    tracemalloc.start()
    with pytest.raises(BadFileError, match="its sizes need|the checkpoint does not fit the sizes"):
        open_model(folder).model()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_model_has_the_dtype_that_is_asked_for_in_every_form(source: Path, run: Path) -> None:
    expected = open_model(run).model().state_dict()
    for name, array in open_model(source).model(dtype="float64").state_dict().items():
        assert array.dtype == np.float64 and np.array_equal(array, expected[name])
    with pytest.raises(ConfigError, match="dtype must be float32 or float64; got float16"):
        open_model(source).model(dtype="float16")


def test_a_checkpoint_of_a_run_opens_as_the_model_of_its_step(run: Path, tmp_path: Path) -> None:
    folder = RunFolder.open(shutil.copytree(run, tmp_path / "run"))
    opened = open_model(run)
    model, tokenizer = opened.model(), opened.tokenizer()
    changed = {name: array + 1 for name, array in folder.load_checkpoint()[0].items()}
    folder.save_checkpoint(50, changed, {})
    for step, added in ((40, 0), (50, 1)):
        older = open_model(folder.checkpoint_path(step))
        found, its_tokenizer = older.model(), older.tokenizer()
        assert np.array_equal(found.state_dict()["wte"], model.state_dict()["wte"] + np.float32(added))
        assert its_tokenizer.encode(BIRDS).tolist() == tokenizer.encode(BIRDS).tolist()
        assert older.step == step
    with pytest.raises(StorageError, match="has no checkpoint of step 60; it has 40, 50"):
        open_model(folder.checkpoint_path(60)).model()


def test_training_a_model_further_lowers_the_held_out_loss(source: Path, tmp_path: Path) -> None:
    events = list(further(tmp_path, source, BIRDS).train())
    scores = [(event.step, event.score.also["loss"]) for event in events if isinstance(event, Scored)]
    assert scores[0][0] == 0 and scores[-1][0] == 60
    assert scores[-1][1] < 0.7 * scores[0][1]


def test_further_training_starts_from_the_weights_and_does_not_change_the_files(source: Path, tmp_path: Path) -> None:
    begin = open_model(source).model()
    before = {name: array.copy() for name, array in begin.state_dict().items()}
    made = further(tmp_path, source, CATS)
    assert all(np.array_equal(made.task.model.state_dict()[name], array) for name, array in before.items())
    first = next(event for event in made.train() if isinstance(event, StepRecord))
    assert first.loss == pytest.approx(begin.loss(*made.task.batch(0)).item(), rel=1e-5)
    assert all(np.array_equal(open_model(source).model().state_dict()[name], array) for name, array in before.items())


def test_a_run_from_another_model_opens_without_that_model(source: Path, tmp_path: Path, run: Path) -> None:
    made = further(tmp_path, source, BIRDS, steps=2)
    list(made.train())
    opened = open_model(tmp_path / "further")
    model, tokenizer = opened.model(), opened.tokenizer()
    assert all(np.array_equal(model.state_dict()[name], x) for name, x in made.task.model.state_dict().items())
    assert tokenizer.encode(CATS).tolist() == open_model(run).tokenizer().encode(CATS).tolist()
    assert RunFolder.open(tmp_path / "further").read_config()["run"]["init"] == str(source)


def test_weights_that_are_not_finite_are_a_warning_or_refused(run: Path, tmp_path: Path) -> None:
    opened = open_model(run)
    model, tokenizer = opened.model(), opened.tokenizer()
    model.ln_f.bias.data[0] = np.nan
    ng.save_gpt2(model, tmp_path / "hf", tokenizer)
    with pytest.warns(UserWarning, match="NaN or infinity in ln_f.bias"):
        open_model(tmp_path / "hf").model()
    with pytest.raises(ng.NanogradError, match="NaN or infinity in ln_f.bias"):
        open_model(tmp_path / "hf").model(strict=True)


def test_load_gpt2_refuses_a_run_and_names_open_model(run: Path) -> None:
    with pytest.raises(BadFileError, match=r"run: holds a run of nanograd_llm; open it with .*\.open_model"):
        ng.load_gpt2(run)


def test_what_was_opened_shows_its_source(source: Path) -> None:
    assert repr(open_model(source)) in (f"OpenedRun({str(source)!r})", f"OpenedGPT2({str(source)!r})")


def test_an_empty_source_and_the_folder_of_checkpoints_are_refused_with_what_to_give(run: Path) -> None:
    with pytest.raises(ConfigError, match="source is empty; give the folder of a run"):
        open_model("")
    with pytest.raises(StorageError, match="checkpoints: holds the checkpoints of a run; give the run, "):
        open_model(run / "checkpoints")


def test_a_source_where_nothing_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no run of nanograd_llm, and no weights"):
        open_model(tmp_path)
    with pytest.raises(StorageError, match="no such file or folder"):
        open_model(tmp_path / "nothing")
