"""Every command that README and the guides show ends with 0, in the order of its section, on small data and models."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from nanograd_llm import ops
from nanograd_llm.bench import detection
from nanograd_llm.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16"]
LINES = [f"the {a} cat {b} the {c} house." for a in ("big", "red") for b in ("sees", "likes", "has") for c in "abcde"]
FILES = {
    "my_text.txt": "\n".join(LINES * 30),
    "notes/a/b.md": "\n".join(LINES * 30),
    "sentences.txt": "\n".join(LINES * 3),
    "lines.txt": "how to open a file\nwhat an error is\n",
    "questions.jsonl": json.dumps({"ctx": "the big cat", "endings": ["sees it.", "has it."], "label": 0}),
    "texts.txt": "a text\nanother text\n",
    "pairs.tsv": "\n".join(f"{line[:-1]}\t{line[:-1].replace('the', 'le')}" for line in LINES),
    "messages.po": "\n\n".join(f'msgid "{line}"\nmsgstr "{line.replace("the", "le")}"' for line in LINES),
    "text.en": "\n".join(LINES),
    "text.fr": "\n".join(line.replace("the", "le") for line in LINES),
    "reviews.csv": "review,stars\n" + "\n".join(f"{line},{i % 2}" for i, line in enumerate(LINES)),
    "tickets.jsonl": "\n".join(json.dumps({"text": line, "label": "ab"[i % 2]}) for i, line in enumerate(LINES)),
    "train.tsv": "text\tlabel\n" + "\n".join(f"{line}\t{i % 2}" for i, line in enumerate(LINES)),
    "test.tsv": "text\tlabel\n" + "\n".join(f"a new {line}\t{i % 2}" for i, line in enumerate(LINES[:4])),
    **{f"articles/{'ab'[i % 2]}/{i}.txt": line for i, line in enumerate(LINES)},
}


def sections() -> list[tuple[str, list[str]]]:
    """The commands of each section of each page that has some."""
    found = []
    for page in PAGES:
        for part in re.split(r"(?m)^## ", page.read_text("utf-8")):
            blocks = re.findall(r"^```\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)
            lines = [word.strip() for block in blocks for line in block.splitlines() for word in line.split("&&")]
            shown = [line for line in lines if line.startswith("nanograd-llm ") and "--device cuda" not in line]
            if shown:
                found.append((f"{page.stem}: {part.partition(chr(10))[0]}", shown))
    return found


def shortened(command: str, number: int) -> list[str]:
    """The words of a command, with small sizes and few steps, more for a later one; with few cases or rounds."""
    words = shlex.split(command)[1:]
    if words[0] == "gradcheck" and "--model" not in words:  # CI checks all ops by itself
        op = [] if "--op" in words else ["--op", "tanh"]
        return [word for word in words if word != "--thorough"] + ["--cases", "3", *op]
    if words[0] == "bench":
        return [word for word in words if word not in ("--against", "torch")] + ["--rounds", "1"]
    if words[0] != "train":
        return words
    for option in ("--minutes", "--steps", "--n-layer", "--n-embd", "--batch-size"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    has_sizes = {"--init", "--resume", "--config"} & {*words}
    return [*words, "--steps", str(3 + number if "--resume" in words else 2), *([] if has_sizes else SMALL)]


def run(*words: str) -> None:
    assert main([*words]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, and the runs and models that pages take as given."""
    folder = tmp_path_factory.mktemp("made")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        few = ["--steps", "2", *SMALL]
        run("train", *few, "--context-length", "128", "--out", "runs/nano-1")
        run("train", "--tokenizer", "characters", *few, "--out", "runs/letters")
        run("train", "--task", "instruction", "--init", "runs/nano-1", "--steps", "2", "--out", "runs/tuned-1")
        run("train", "--task", "masked-words", *few, "--out", "runs/masked-words-1")
        run("train", "--task", "translation", *few, "--out", "runs/translation-1")
        for name in ("gpt2", "gpt2-medium"):
            run("convert", "runs/nano-1", "--to", "hf", "--out", name)
        for name in ("MiniLM", "all-MiniLM-L6-v2"):
            run("convert", "runs/masked-words-1", "--to", "hf", "--out", name)
    return folder


@pytest.mark.parametrize(("section", "commands"), sections(), ids=[name for name, _ in sections()])
def test_the_commands_of_a_section_work(section, commands, made, tmp_path, monkeypatch, capsys):
    for path in made.iterdir():
        if path.name != "runs":
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detection, "_package", lambda: [ops.exp])  # what `bench detection` measures
    for number, command in enumerate(commands):
        words = shortened(command, number)
        for name in re.findall(r"runs/[\w-]+", " ".join(words)):
            if (made / name).exists() and not Path(name).exists() and f"--out {name}" not in command:
                shutil.copytree(made / name, name)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        code = main(words)
        assert code == 0, f"{command} ends with {code}: {capsys.readouterr().err}"
