"""Questions with their answers, and pairs of answers, from the files that people keep them in: .json or .jsonl.

instruction, output; perhaps input     Alpaca's form
prompt, completion                     each a text, or messages of a chat
messages                               of a chat, with a role and a content; the last is the answer
chosen, rejected                       in place of the answer: the better one and the other one
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.json import read_json_rows
from nanograd_llm.settings import shown

FORMS = ("instruction", "output"), ("prompt", "completion"), ("messages",), ("conversations",)
PAIRS = *((name, "chosen", "rejected") for name in ("instruction", "prompt", "conversations")), ("chosen", "rejected")
USER, ASSISTANT, SYSTEM = ("user", "human"), ("assistant", "gpt"), ("system",)
Messages = list[tuple[str, str]]  # (role, content); "" for the role of a text that is no message


class Turn(NamedTuple):
    """A question, the material that it is about, and the answer."""

    instruction: str
    input: str
    answer: str


class Example(NamedTuple):
    """Turns of a conversation, mostly one. rejected: an answer to the last that is not wanted; "" if there is none."""

    turns: tuple[Turn, ...]
    rejected: str = ""


def read_examples(path: str | os.PathLike[str], *, pairs: bool = False) -> list[Example]:
    """The examples of a file; with `pairs` each has a rejected answer as well.

    Raises BadFileError, with the row or the line, for other keys, an empty question or answer, messages out of order,
    or a pair of two equal answers; otherwise as `read_json_rows` does.
    """
    return [_example(row, where, PAIRS if pairs else FORMS) for where, row in read_json_rows(path)]


def read_choices(path: str | os.PathLike[str]) -> list[tuple[str, list[str], int]]:
    """Questions with choices in HellaSwag's form: the context, the endings, and the number of the right one, from 0.

    path: a .jsonl or .json of objects with "ctx", "endings" and "label"; others of their values are left out.
    Raises as `read_json_rows`, BadFileError for a row of another form.
    """
    found = []
    for where, row in read_json_rows(path):
        context, label = row.get("ctx"), row.get("label")
        endings: Any = row.get("endings")
        number = int(label) if isinstance(label, str) and label.isdecimal() else label
        is_list = isinstance(endings, list) and len(endings) > 1 and all(isinstance(one, str) for one in endings)
        if not (isinstance(context, str) and is_list and type(number) is int and 0 <= number < len(endings)):
            expected = 'a string "ctx", strings "endings" and as "label" the number of the right one, from 0'
            raise BadFileError(f"{where}: expected {expected}; got {shown(row, 80)}")
        found.append((context, endings, number))
    return found


def _example(row: Mapping[str, Any], where: str, forms: Sequence[tuple[str, ...]]) -> Example:
    form = next((form for form in forms if row.keys() >= {*form}), None)
    if form is None:
        expected = "; or ".join(", ".join(form) for form in forms)
        keys = f"its keys are {', '.join(map(repr, row))}" if row else "has no keys"
        raise BadFileError(f"{where}: {keys}; expected {expected}")
    parts = [_messages(row[name], f"{where}: {name}") for name in form]
    if len(form) == 3 and min(map(len, parts[1:])) > 1:  # whole chats beside their prompt
        form, parts = form[1:], parts[1:]
    if form[0] in ("chosen", "messages") or form == ("conversations",):
        history, answers = parts[0][:-1], [part[-1:] for part in parts]
        if any(part[:-1] != history for part in parts):
            raise BadFileError(f"{where}: chosen and rejected differ before their last messages; they need one prompt")
    else:
        history, *answers = parts
    found = []
    for name, messages in zip(form[-len(answers) :], answers):
        if len(messages) != 1 or messages[0][0] not in ("", *ASSISTANT) or not messages[0][1].strip():
            raise BadFileError(f"{where}: {name} gives no answer; expected a text, or a last message of the assistant")
        found.append(messages[0][1].strip())
    if found[0] == found[-1] and len(found) > 1:
        raise BadFileError(
            f"{where}: chosen and rejected are equal, {shown(found[0], 50)}; give two answers, or remove it"
        )
    *turns, last = _turns(history, where)
    material = _messages(row.get("input") or "", f"{where}: input")[0][1].strip() if form[0] == "instruction" else ""
    return Example((*turns, last._replace(input=material, answer=found[0])), *found[1:])


def _messages(value: Any, where: str) -> Messages:
    """A text, a message or a list of messages, as a list."""
    if isinstance(value, str):
        return [("", value)]
    found = []
    for message in value if isinstance(value, list) else [value]:
        role, content = ([message.get(a, message.get(b)) for a, b in (("role", "from"), ("content", "value"))]
                         if isinstance(message, dict) else (None, None))  # fmt: skip
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):  # parts, each a text
            parts = [part.get("text", part.get("value")) for part in content]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else content
        if not isinstance(content, str) or role not in (*SYSTEM, *USER, *ASSISTANT):
            raise BadFileError(
                f"{where} has {shown(message, 80)}; expected a text, or messages with a role and a content"
            )
        found.append((role, content))
    return found


def _turns(history: Messages, where: str) -> list[Turn]:
    """The turns before the last answer, of which the last has no answer yet. What the system says is put before."""
    turns, before, question = [], "", ""
    for role, content in history:
        if role in SYSTEM and content.strip():
            before = f"{content.strip()}\n\n"
        elif role in ASSISTANT and question and content.strip():
            turns.append(Turn(question, "", content.strip()))
            question = ""
        elif role in ("", *USER) and not question and content.strip():
            before, question = "", before + content.strip()
        elif role not in SYSTEM:
            wrong = f"{shown(content, 50)} is out of turn"
            if not content.strip():
                wrong = f"a message of {role or 'the user'} is empty"
            raise BadFileError(f"{where}: {wrong}; expected questions and answers in turn")
    if not question:
        raise BadFileError(f"{where}: has no question before its answer")
    return [*turns, Turn(question, "", "")]
