"""How a question is put to a model that learned to answer: the text around it, saved in a file beside the model."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nanograd_llm.errors import BadFileError, ConfigError
from nanograd_llm.files.atomic import write_atomically
from nanograd_llm.text.corpora import read_text

FILE = "template.txt"
TEMPLATES = {
    "plain": "{instruction}\n\n{input}\n\n",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
}


class Template:
    r"""The text of a prompt, with `{instruction}` where the question goes and `{input}` where its material goes.

    Of a question without material, the paragraph around {input} is left out. The answer follows directly.
    Raises ConfigError for a text without {instruction}, or with a slot twice.

    >>> Template("Q: {instruction}\n\nWith: {input}\n\nA: ").fill("Sort this.")
    'Q: Sort this.\n\nA: '
    """

    def __init__(self, text: str):
        slots = re.findall(r"\{instruction\}|\{input\}", text)
        if "{instruction}" not in slots or len({*slots}) < len(slots):
            raise ConfigError(
                f"template is {text!r:.200}; it needs {{instruction}} once where the question goes, and may have "
                f"{{input}} once; or give the name of one: {', '.join(TEMPLATES)}"
            )
        self.text, self.has_input = text, "{input}" in slots

    @classmethod
    def of(cls, setting: str) -> Template:
        r"""The template of a name in TEMPLATES, or of a text, in which \n is a new line as well."""
        return cls(TEMPLATES.get(setting, setting.replace("\\n", "\n")))

    def fill(self, instruction: str, input: str = "") -> str:
        """The prompt. Raises ConfigError for an input that the template has no place for."""
        if input and not self.has_input:
            raise ConfigError(
                f"the template {self.text!r:.200} has no {{input}}, but this question has one: {input!r:.50}"
            )
        text = self.text
        if not input:
            text = "\n\n".join(part for part in text.split("\n\n") if "{input}" not in part)
        slots = {"{instruction}": instruction, "{input}": input}
        return re.sub(r"\{instruction\}|\{input\}", lambda found: slots[found[0]], text)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it into the folder of a model."""
        write_atomically(Path(folder) / FILE, self.text.encode())


def template_beside(path: str | os.PathLike[str]) -> Template | None:
    """The template of a model, in its folder or beside its file; None if it has none.

    Raises BadFileError for one without its slots.
    """
    file = (Path(path) if os.path.isdir(path) else Path(path).parent) / FILE
    if not os.path.exists(file):
        return None
    try:
        return Template(read_text(file))
    except ConfigError as error:
        raise BadFileError(f"{file}: {error}") from None
