"""The template of a model that answers questions: the text around a question, saved in a file beside the model."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.files.atomic import read_bytes
from nanograd_llm.files.toml import read_toml, write_toml
from nanograd_llm.settings import Settings, setting, shown

FILE = "template.toml"
TEMPLATES = {
    "plain": "{instruction}\n\n{input}\n\n",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
}


class Template(Settings):
    r"""The text of a prompt. Raises ConfigError for one without {instruction}, or with a slot twice.

    Of a question without material, the paragraph around {input} is left out. The answer follows directly.

    >>> Template("Q: {instruction}\n\nWith: {input}\n\nA: ").fill("Sort this.")
    'Q: Sort this.\n\nA: '
    """

    text: str = setting("It has {instruction} where the question goes, and {input} where its material goes.")
    turns: int = setting("Questions of a chat, with their answers, that the model has learned from.", default=1, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        slots = re.findall(r"\{instruction\}|\{input\}", self.text)
        if "{instruction}" not in slots or len({*slots}) < len(slots):
            raise ConfigError(
                f"template is {shown(self.text, 200)}; it needs {{instruction}} once where the question goes, and may "
                f"have {{input}} once; or give the name of one: {', '.join(TEMPLATES)}"
            )

    @classmethod
    def of(cls, setting: str) -> Template:
        r"""The template of a name in TEMPLATES, or of a text, in which \n is a new line as well."""
        return cls(TEMPLATES.get(setting, setting.replace("\\n", "\n")))

    def fill(self, instruction: str, input: str = "") -> str:
        """The prompt. Raises ConfigError for an input that the template has no place for."""
        text = self.text
        if not input:
            text = "\n\n".join(part for part in text.split("\n\n") if "{input}" not in part)
        elif "{input}" not in text:
            raise ConfigError(
                f"template {shown(text, 200)} has no {{input}}, but this question has one: {shown(input, 50)}"
            )
        slots = {"{instruction}": instruction, "{input}": input}
        return re.sub(r"\{instruction\}|\{input\}", lambda found: slots[found[0]], text)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it into the folder of a model."""
        write_toml(Path(folder) / FILE, {"template": dataclasses.asdict(self)})


def template_files(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """The content of the file of a model's template, by its name; nothing where there is none. Raises as below."""
    if template_beside(path) is None:
        return {}
    return {FILE: read_bytes(_place(path))}


def template_beside(path: str | os.PathLike[str]) -> Template | None:
    """The template of a model, in its folder or beside its file; None if it has none.

    Raises BadFileError for one without its slots.
    """
    file = _place(path)
    if not os.path.exists(file):
        return None
    try:
        return Template(**read_toml(file).get("template", {"text": ""}))
    except ConfigError as error:
        raise BadFileError(f"{file}: {error}") from None


def _place(path: str | os.PathLike[str]) -> Path:
    """Where the template of a model lies: in its folder, or beside its file."""
    return (Path(path) if os.path.isdir(path) else Path(path).parent) / FILE
