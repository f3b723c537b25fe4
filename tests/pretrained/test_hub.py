"""A model by its name: from the cache, or else downloaded, or else an error that says what to download."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanograd_llm as ng
from nanograd_llm.errors import StorageError
from nanograd_llm.pretrained import OpenedGPT2
from nanograd_llm.pretrained.hub import BESIDE, KNOWN, SAFETENSORS, cache_folder

FIXTURES = Path(__file__).parents[1] / "fixtures"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
IDS = np.array([[1, 2, 3]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return tmp_path / "hub"


def put(cache: Path, repository: str, fixture: str = "safetensors_float32") -> Path:
    """A model in the cache as huggingface_hub lays it out; returns the snapshot."""
    top = cache / f"models--{repository.replace('/', '--')}"
    snapshot = top / "snapshots" / COMMIT
    for folder in (top / "blobs", top / "refs", snapshot):
        folder.mkdir(parents=True)
    (top / "refs" / "main").write_text(COMMIT, encoding="ascii")
    for number, file in enumerate(sorted((FIXTURES / fixture).iterdir())):
        shutil.copy(file, top / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    return snapshot


@pytest.mark.parametrize("repository", ["gpt2", "openai-community/gpt2"])
def test_gpt2_is_found_under_its_current_and_its_old_name(cache: Path, repository: str) -> None:
    put(cache, repository)
    assert np.array_equal(ng.load_gpt2("gpt2")(IDS).data, ng.load_gpt2(FIXTURES / "safetensors_float32")(IDS).data)
    assert OpenedGPT2("gpt2").tokenizer().vocab_size == 264


@pytest.mark.parametrize("fixture", ["safetensors_sharded", "bin_float32", "bin_sharded"])
def test_shards_and_older_files_in_the_cache_are_read_through_their_links(cache: Path, fixture: str) -> None:
    put(cache, "someone/small-gpt2", fixture)
    model = ng.load_gpt2("someone/small-gpt2")
    assert np.array_equal(model.wte.data, ng.load_gpt2(FIXTURES / fixture).wte.data)


def test_an_existing_path_is_used_before_a_name(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURES / "exact_plain", tmp_path / "gpt2")
    put(cache, "gpt2")
    assert ng.load_gpt2("gpt2").config.vocab_size == 40


def test_a_folder_in_the_cache_may_be_given_by_its_path(cache: Path) -> None:
    snapshot = put(cache, "gpt2")
    assert np.array_equal(ng.load_gpt2(snapshot).wte.data, ng.load_gpt2("gpt2").wte.data)


@pytest.mark.parametrize("commit", ["../../../../etc", "", "no such commit"])
def test_a_reference_to_a_missing_snapshot_is_ignored(cache: Path, commit: str) -> None:
    put(cache, "gpt2")
    (cache / "models--gpt2" / "refs" / "main").write_text(commit, encoding="ascii")
    with pytest.raises(StorageError, match="not in the cache"):
        ng.load_gpt2("gpt2")


def test_the_error_for_a_missing_model_says_what_to_download_its_size_and_where_to_put_it(cache: Path) -> None:
    with pytest.raises(StorageError) as caught:
        ng.load_gpt2("gpt2-xl")
    for part in (
        f"not in the cache {cache}",
        "pip install huggingface_hub to download it",
        "or give a folder with the files of https://huggingface.co/openai-community/gpt2-xl (6,432 MB)",
    ):
        assert part in str(caught.value)


def test_the_sizes_in_the_error_are_those_of_the_parameters() -> None:
    for name, (_, size) in KNOWN.items():
        model = ng.GPT(ng.GPTConfig.preset(name), seed=None)
        assert 0 <= size / (4 * model.parameter_count()) - 1 < 0.12  # the files have masks as well


class Hub(types.ModuleType):
    """A substitute for huggingface_hub: it has one repository, and records the calls."""

    def __init__(self, cache: Path, fixture: str | None, error: Exception | None = None):
        super().__init__("huggingface_hub")
        self.cache, self.fixture, self.error = cache, fixture, error
        self.asked: list[tuple[str, list[str]]] = []

    def snapshot_download(self, repository: str, *, allow_patterns: list[str]) -> str:
        self.asked.append((repository, allow_patterns))
        if self.error is not None:
            raise self.error
        top = self.cache / f"models--{repository.replace('/', '--')}"
        if top.exists():
            shutil.rmtree(top)
        snapshot = put(self.cache, repository, self.fixture or "exact_plain")
        if not any(
            Path(file.name).match(pattern) for file in snapshot.iterdir() for pattern in allow_patterns[len(BESIDE) :]
        ):
            for file in snapshot.glob("*model*"):
                file.unlink()
        return str(snapshot)


def test_a_model_that_is_not_in_the_cache_is_downloaded_and_only_what_is_needed(cache: Path, monkeypatch: Any) -> None:
    hub = Hub(cache, "safetensors_sharded")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert ng.load_gpt2("distilgpt2").config.vocab_size == 264
    assert [name for name, _ in hub.asked] == ["distilbert/distilgpt2"]
    assert set(SAFETENSORS) <= set(hub.asked[0][1]) and "pytorch_model.bin" not in hub.asked[0][1]
    ng.load_gpt2("distilgpt2")
    assert len(hub.asked) == 1  # the second time it is in the cache


def test_a_model_without_safetensors_is_downloaded_as_torch_saved_it(cache: Path, monkeypatch: Any) -> None:
    hub = Hub(cache, "bin_float32")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert ng.load_gpt2("someone/old").config.vocab_size == 264
    assert len(hub.asked) == 2 and "pytorch_model.bin" in hub.asked[1][1]


@pytest.mark.parametrize("error", [OSError("no route\nto host"), ValueError("bad"), RuntimeError("closed")])
def test_a_failed_download_is_one_error_with_the_reason(cache: Path, monkeypatch: Any, error: Exception) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(cache, None, error))
    with pytest.raises(StorageError, match=f"the download failed: {type(error).__name__}: ") as caught:
        ng.load_gpt2("gpt2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["runs/nano-1", "someone/model"])
def test_a_name_that_may_be_a_path_is_first_said_not_to_be_there(
    name: str, cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError) as caught:
        ng.open_model(name)
    here = f"{name}: no such path here; check it, or change directory; and no model in the cache {cache}; "
    assert str(caught.value).startswith(f"{here}pip install huggingface_hub")
    assert str(caught.value).endswith(f"https://huggingface.co/{name}")


def test_a_missing_path_in_an_existing_folder_is_not_downloaded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(StorageError, match="no such file or folder"):
        ng.load_gpt2("runs/nano-9")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "a"}, "a"),
        ({"HF_HOME": "b"}, "b/hub"),
        ({"XDG_CACHE_HOME": "c"}, "c/huggingface/hub"),
        ({"HOME": "d"}, "d/.cache/huggingface/hub"),
    ],
    ids=str,
)
def test_the_cache_is_the_one_of_hugging_faces_libraries(variables: Any, folder: str, monkeypatch: Any) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)
