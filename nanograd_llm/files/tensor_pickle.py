"""A pickle is a program. This interpreter has the forty instructions that build tensors, and cannot run anything else.

The pickle machine has a stack, a memo of objects already made, and instructions of one byte: push a number or a string,
collect everything above the last mark into a tuple, list or dict. Three are dangerous in Python's own reader: GLOBAL
imports any function by name, REDUCE calls it, BUILD changes the result. Here

- GLOBAL pushes only the name; nothing is imported. A name in `PROGRAMS` is refused, because torch would run it;
- REDUCE knows three names, each a function of this file: an empty dict, a tensor over a storage, a parameter from a
  tensor. An object of any other name becomes an `Unread`;
- BUILD sets the fields of an `Unread`, and does nothing else;
- BINPERSID, by which a pickle refers to an object outside itself, finds one of the file's own storages.

    torch.save({"w": torch.zeros(2, 3)}, path) writes this data.pkl:

    EMPTY_DICT                                                {}
    BINUNICODE 'w'                                            {} 'w'
    GLOBAL 'torch._utils _rebuild_tensor_v2'                  {} 'w' f
    MARK (MARK 'storage' GLOBAL 'torch FloatStorage' '0' 'cpu' 6 TUPLE) BINPERSID
                                                              {} 'w' f ( storage
    0 (2, 3) (3, 1) False OrderedDict() TUPLE                 {} 'w' f (storage, 0, (2, 3), (3, 1), False, {})
    REDUCE                                                    {} 'w' array
    SETITEM STOP                                              {'w': array}

The machine: Lib/pickletools.py in CPython. What torch writes: torch/_utils.py and torch/serialization.py in PyTorch.
"""

from __future__ import annotations

import encodings.raw_unicode_escape  # noqa: F401  otherwise pickletools imports it while it reads a file
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.mapped import array_at, count, widen_bfloat16

MAX_PICKLE = 2**22  # bytes
MAX_INSTRUCTIONS = 2**17  # GPT-2 XL with the state of its optimizer takes about 72,000
DTYPES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",  # the bits; NumPy has no such type
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
PROGRAMS = set(  # names that run programs or change the process: a file with one of them is malicious
    "os posix nt subprocess sys importlib runpy ctypes shutil eval exec compile getattr setattr open __import__".split()
)


@dataclass(frozen=True, repr=False, eq=False)
class Unread:
    """A placeholder for an object that is not a tensor or plain value, such as a NumPy scalar or a dataclass.

    name: of its class, or of the function that would make it. fields: its attributes in the file, by name.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Storage:
    values: NDArray[Any]  # (numel,)


FindStorage = Callable[[str, int, int], "NDArray[np.uint8] | None"]


def read_tensor_pickle(program: bytes, find: FindStorage, where: str) -> Any:
    """The object that the pickle `program` builds: dicts, lists, tuples, strings, numbers, arrays, and `Unread`.

    find: (key, number of elements, number of bytes) -> the bytes of that storage, None if the file does not have it.
        Arrays are read-only views of them; bfloat16 is widened to float32.
    Raises BadFileError if the program is damaged, or longer than any model needs.
    """
    return _Machine(program, find, where).run()


def pickle_size(data: bytes, where: str) -> int:
    """How many bytes the first pickle in `data` has. Raises BadFileError if it is damaged or too long."""
    *_, (_, _, last) = _Machine(data, lambda *_: None, where).instructions()
    return last + 1


class _Machine:
    def __init__(self, program: bytes, find: FindStorage, where: str) -> None:
        self.program, self.find, self.where = program, find, where
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []  # for each open mark, the stack beneath it
        self.memo: dict[int, Any] = {}
        self.opened: dict[tuple[str, str], _Storage] = {}

    def instructions(self) -> Iterator[tuple[str, Any, int]]:
        """The name of each instruction, its argument, and its place."""
        try:
            for number, (code, argument, place) in enumerate(pickletools.genops(self.program)):
                if number == MAX_INSTRUCTIONS:
                    self.refuse(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
                yield code.name, argument, place or 0
        except BadFileError:
            raise
        except ValueError as error:
            self.damaged(f"the pickle is cut short or damaged: {str(error):.200}")

    def run(self) -> Any:
        last = 0
        for name, argument, last in self.instructions():
            if name in _PUSHED:
                self.push(argument)
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            elif name not in ("PROTO", "FRAME", "STOP"):
                self.refuse(f"the instruction {name} at byte {last:,} is not one that builds tensors")
        result = self.pop()
        if self.stack or self.below_marks or last != len(self.program) - 1:
            self.damaged("objects are left over at its end")
        return result

    def refuse(self, fault: str) -> NoReturn:
        raise BadFileError(
            f"{self.where}: {fault}; no code in it was run. If you trust the file, load it with torch and save only "
            "the state_dict"
        )

    def damaged(self, fault: str) -> NoReturn:
        raise BadFileError(f"{self.where}: {fault}; the file is damaged: fetch it again")

    def push(self, thing: Any) -> None:
        self.stack.append(thing)

    def pop(self) -> Any:
        if not self.stack:
            self.damaged("it takes an object from an empty stack")
        return self.stack.pop()

    def above_mark(self) -> list[Any]:
        if not self.below_marks:
            self.damaged("it uses a mark that was never set")
        above, self.stack = self.stack, self.below_marks.pop()
        return above

    def mark(self) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def push_tuple(self, size: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(size)])))

    def extend(self, things: list[Any]) -> None:
        target = self.pop()
        self.push(target)
        if isinstance(target, list):
            target.extend(things)
        elif not isinstance(target, Unread):
            self.damaged(f"it appends to a {_kind(target)}")

    def update(self, things: list[Any]) -> None:
        target = self.pop()
        self.push(target)
        if isinstance(target, Unread):
            return
        if not isinstance(target, dict) or len(things) % 2:
            self.damaged(f"it sets {len(things)} keys and values of a {_kind(target)}")
        for key, value in zip(things[::2], things[1::2]):
            # Hashing nested tuples can take forever, and large integers can be chosen to share one hash.
            if type(key) is not str and not (type(key) is int and 0 <= key < 2**32):
                self.refuse(f"a key is a {_kind(key)}; expected a string or an integer from 0 to 2^32")
            if key in target:
                self.damaged(f"duplicate key {key!r:.200}")
            target[key] = value

    def store(self, place: int) -> None:
        thing = self.pop()
        self.memo[place] = thing
        self.push(thing)

    def recall(self, place: int) -> None:
        if place not in self.memo:
            self.damaged(f"it recalls object {place:,}, which was never stored")
        self.push(self.memo[place])

    def find_global(self, module: Any, name: Any) -> None:
        if not isinstance(name, str) or not isinstance(module, str):
            self.refuse("it imports a name that is not a string")
        full_name = f"{module}.{name}"
        if PROGRAMS & set(full_name.split(".")):
            self.refuse(f"it asks for {full_name!r:.200}, which no file of tensors needs")
        self.push(Unread(full_name))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Unread) or not isinstance(arguments, tuple):
            self.refuse(f"it calls a {_kind(function)}")
        call = _CALLS.get(function.name)
        self.push(call(self, *arguments) if call else Unread(function.name))

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if isinstance(target, Unread):
            target = Unread(target.name, state if isinstance(state, dict) else {})
        elif not isinstance(target, dict):  # torch sets version numbers on a state_dict; they are not needed
            self.refuse(f"it sets fields of a {_kind(target)}")
        self.push(target)

    def find_storage(self) -> None:
        """Push the storage for the reference ("storage", type, key, device, number of elements).

        Before 1.6 the reference ends with None: the storage is not a part of another one.
        """
        reference = self.pop()
        if isinstance(reference, tuple) and len(reference) == 6 and reference[5] is None:
            reference = reference[:5]
        if not (
            isinstance(reference, tuple)
            and [type(part) for part in reference] == [str, Unread, str, str, int]
            and reference[0] == "storage"
            and reference[1].name in DTYPES
        ):
            kind = reference[1] if isinstance(reference, tuple) and len(reference) > 1 else reference
            self.refuse(f"it refers to {_kind(kind)!r:.200} outside itself, which is not a storage of tensors")
        _, kind, key, _, size = reference
        if (key, kind.name) not in self.opened:
            where = f"{self.where}: storage {key!r:.50}"
            needed = count((size,), where) * np.dtype(DTYPES[kind.name]).itemsize
            data = self.find(key, size, needed)
            if data is None:
                raise BadFileError(f"{where}: is not in the file")
            if needed != len(data):
                raise BadFileError(f"{where}: {size:,} elements take {needed:,} bytes; it has {len(data):,}")
            values = array_at(data, 0, DTYPES[kind.name], (size,), where)
            if kind.name == "torch.BFloat16Storage":
                values = widen_bfloat16(values)
            self.opened[key, kind.name] = _Storage(values)
        self.push(self.opened[key, kind.name])

    def ordered_dict(self, *arguments: Any) -> dict[Any, Any]:
        if arguments:
            self.refuse("it has an OrderedDict that is not built item by item")
        return {}

    def tensor(self, *arguments: Any) -> NDArray[Any]:
        """A view of a storage: offset, size and stride count elements, as in torch."""
        if len(arguments) not in (6, 7) or not isinstance(arguments[0], _Storage):
            self.refuse("it has a tensor that is not made from storage, offset, size, stride, settings and metadata")
        values, offset, size, stride = arguments[0].values, *arguments[1:4]
        if type(offset) is not int or not isinstance(size, tuple) or not isinstance(stride, tuple):
            self.refuse("it has a tensor whose offset, size or stride has the wrong type")
        numel = count(size, f"{self.where}: a tensor")
        if len(stride) != len(size) or not all(type(step) is int and step >= 0 for step in stride) or offset < 0:
            self.damaged(f"the offset and strides of a tensor of size {size!r:.200} are not integers of at least 0")
        if numel == 0:
            return array_at(values[:0].view(np.uint8), 0, values.dtype, size, self.where)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride))
        if last >= len(values) or numel > len(values):
            self.damaged(f"a tensor of size {size!r:.200} reaches beyond its storage of {len(values):,}, or repeats it")
        steps = [values.itemsize * step if length > 1 else values.itemsize for length, step in zip(size, stride)]
        return np.ndarray(size, values.dtype, values, values.itemsize * offset, steps)

    def parameter(self, *arguments: Any) -> NDArray[Any]:
        if len(arguments) != 3 or not isinstance(arguments[0], np.ndarray):
            self.refuse("it has a parameter that is not made from a tensor and two settings")
        return arguments[0]


def _kind(thing: Any) -> str:
    return thing.name if isinstance(thing, Unread) else type(thing).__name__.lstrip("_").lower()


_CALLS = {
    "collections.OrderedDict": _Machine.ordered_dict,
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
    "torch._utils._rebuild_parameter": _Machine.parameter,
}

# Instructions that only push their argument, then all others.
_PUSHED = set(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BYTEARRAY8".split()
)
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.mark(),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push_tuple(1),
    "TUPLE2": lambda m, _: m.push_tuple(2),
    "TUPLE3": lambda m, _: m.push_tuple(3),
    "TUPLE": lambda m, _: m.push(tuple(m.above_mark())),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.above_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "SETITEM": lambda m, _: m.update([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.update(m.above_mark()),
    "EMPTY_SET": lambda m, _: m.push(Unread("builtins.set")),
    "ADDITEMS": lambda m, _: m.extend(m.above_mark()),
    "BINPUT": lambda m, place: m.store(place),
    "LONG_BINPUT": lambda m, place: m.store(place),
    "MEMOIZE": lambda m, _: m.store(len(m.memo)),
    "BINGET": lambda m, place: m.recall(place),
    "LONG_BINGET": lambda m, place: m.recall(place),
    "GLOBAL": lambda m, names: m.find_global(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.find_global(*[m.pop(), m.pop()][::-1]),
    "BINPERSID": lambda m, _: m.find_storage(),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
}
