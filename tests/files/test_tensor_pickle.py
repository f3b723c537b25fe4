"""A pickle that builds tensors and plain values is read; any other is refused, and none of its code is run."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import os
import pathlib
import pickle
import struct
import sys
import types

import numpy as np
import pytest
from oracle import arrays_of

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.tensor_pickle import MAX_INSTRUCTIONS, Unread, read_tensor_pickle

STORAGES = {"0": np.arange(6, dtype="<f4").view(np.uint8), "1": np.array([0x3F80, 0x4000], "<u2").view(np.uint8)}
ORDERED = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def read(program):
    return read_tensor_pickle(program, lambda key, *_: STORAGES.get(key), "x.bin")


def refusal(program):
    with pytest.raises(BadFileError, match="^x.bin: ") as caught:
        read(program)
    return str(caught.value)


def text(string):
    data = string.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(number):
    return b"\x8a\x08" + struct.pack("<q", number)


def integers(numbers):
    return b"(" + b"".join(map(integer, numbers)) + b"t"


def storage(key="0", kind=b"FloatStorage", size=6):
    return b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu") + integer(size) + b"tQ"


def tensor(stored=None, offset=0, size=(2, 3), stride=(3, 1), *, size_of=None):
    sizes = integers(size) if size_of is None else size_of
    arguments = (stored or storage()) + integer(offset) + sizes + integers(stride) + b"\x89" + ORDERED
    return REBUILD + b"(" + arguments + b"tR"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [2, -3, 2**31, 2**70, -(2**40), 1.5, None, True, False, "ü", ""], "c": {}},
        (1, (2,), (3, 4), (5, 6, 7), (8, 9, 10, 11), ()),
        {0: {"step": 1.0}, 1: {"step": 2.0}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1]}]},
        [["x"] * 300, "x" * 300, list(range(1000))],
        collections.OrderedDict(a=1, b=collections.OrderedDict()),
    ],
)
def test_plain_values_are_read_as_pickle_wrote_them(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


def test_a_value_in_two_places_is_one_object():
    shared = ["x"]
    found = read(pickle.dumps([shared, shared], 2))
    assert found[0] is found[1]


def test_tensors_are_views_of_their_storage():
    found = read(b"(" + tensor() + tensor(offset=1, size=(2, 2), stride=(1, 3)) + tensor(size=(), stride=()) + b"t.")
    assert [x.tolist() for x in found] == [[[0, 1, 2], [3, 4, 5]], [[1, 4], [2, 5]], 0]
    assert all(np.shares_memory(x, STORAGES["0"]) for x in found)
    assert read(tensor(size=(0, 3), stride=(3, 1)) + b".").shape == (0, 3)
    assert read(b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88" + ORDERED + b"tR.").shape == (2, 3)


def test_tensors_of_one_bfloat16_storage_share_its_widened_values():
    stored = storage("1", b"BFloat16Storage", 2)
    both, second = read(b"(" + tensor(stored, 0, (2,), (1,)) + tensor(stored, 1, (1,), (1,)) + b"t.")
    assert both.dtype == np.float32 and both.tolist() == [1.0, 2.0]
    assert np.shares_memory(both, second)


class Runs:
    """Python's own reader runs a command when it unpickles this."""

    def __reduce__(self):
        return os.system, ("echo run > ran",)


class Changes:
    def __reduce__(self):
        return setattr, (os.system, "name", None)


class Plain:
    pass


@dataclasses.dataclass
class Sizes:
    n_layer: int


class Colour(enum.Enum):
    RED = 1


def nested_getattr():
    return b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + text("os") + b"tR" + text("system") + b"tR."


@pytest.mark.parametrize(
    "program",
    [
        *(pickle.dumps({"w": thing}, protocol) for protocol in (0, 1, 2, 4, 5) for thing in (Runs(), Changes())),
        pickle.dumps(os.system, 4),
        b"cos\nsystem\n(" + text("echo run > ran") + b"tR.",
        b"cposix\nsystem\n" + text("echo run > ran") + b"\x85R.",
        b"cbuiltins\nexec\n" + text("raise SystemExit") + b"\x85R.",
        b"(ios\nsystem\n.",  # INST
        b"(cos\nsystem\n" + text("echo") + b"o.",  # OBJ
        text("os") + text("system") + b"\x93(" + text("echo run > ran") + b"tR.",
        text("torch") + text("os.system") + b"\x93.",
        nested_getattr(),
        b"\x82\x01.",  # EXT1, a registry of the process
        b"P0\n.",  # PERSID
    ],
)
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    refusal(program)
    assert list(tmp_path.iterdir()) == [] and set(sys.modules) == before


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("thing", "name"),
    [
        pytest.param(Plain(), "test_tensor_pickle.Plain", id="plain"),
        (Sizes(4), "test_tensor_pickle.Sizes"),
        (types.SimpleNamespace(n_layer=4), "types.SimpleNamespace"),
        (np.float64(1), "multiarray.scalar"),
        (np.arange(3), ("multiarray._reconstruct", "numeric._frombuffer")),
        (1j, ".complex"),
        ({1, 2}, ".set"),
        (pathlib.PurePosixPath("a/b"), "PurePosixPath"),
        (collections.defaultdict(list, a=[1]), "collections.defaultdict"),
        (collections.Counter("ab"), "collections.Counter"),
        (Colour.RED, "test_tensor_pickle.Colour"),
        (datetime.timedelta(1), "datetime.timedelta"),
        (b"bytes", "_codecs.encode"),
    ],
    ids=repr,
)
def test_an_object_beside_tensors_is_left_unread_and_the_tensors_are_read(thing, name, protocol):
    found = read(pickle.dumps({"before": 1, "thing": thing, "after": [2.5]}, protocol))
    assert (found["before"], found["after"]) == (1, [2.5])
    thing = found["thing"]
    assert thing == b"bytes" or isinstance(thing, Unread) and thing.name.endswith(name)


def test_the_fields_of_a_dataclass_are_known():
    for thing in (Sizes(4), types.SimpleNamespace(n_layer=4)):
        assert read(pickle.dumps(thing, 2)).fields == {"n_layer": 4}


def test_a_refused_name_is_in_the_error():
    message = refusal(pickle.dumps(Runs(), 2))
    assert "'posix.system'" in message or "'nt.system'" in message
    assert "no code in it was run" in message


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (tensor(storage(size=7)) + b".", "7 elements take 28 bytes; it has 24"),
        (tensor(storage(size=5)) + b".", "5 elements take 20 bytes; it has 24"),
        (tensor(storage(size=-6)) + b".", "integers of at least 0"),
        (tensor(storage(size=2**62)) + b".", "larger than any array"),
        (tensor(storage("9")) + b".", "storage '9': is not in the file"),
        (tensor(storage("../0")) + b".", "is not in the file"),
        (tensor(storage(kind=b"ComplexFloatStorage")) + b".", "torch.ComplexFloatStorage"),
        (tensor(size=(2, 4)) + b".", "beyond its storage of 6"),
        (tensor(stride=(4, 1)) + b".", "beyond its storage of 6"),
        (tensor(offset=1) + b".", "beyond its storage of 6"),
        (tensor(offset=-1) + b".", "not integers of at least 0"),
        (tensor(offset=2**63 - 1) + b".", "beyond its storage of 6"),
        (tensor(stride=(-3, 1)) + b".", "not integers of at least 0"),
        (tensor(stride=(2**62, 2**62)) + b".", "beyond its storage of 6"),
        (tensor(size=(2**30, 2**30), stride=(0, 0)) + b".", "larger than any array"),
        (tensor(size=(1000, 1000), stride=(0, 0)) + b".", "beyond its storage of 6"),
        (tensor(size=(3, 3), stride=(1, 1)) + b".", "beyond its storage of 6"),
        (tensor(size=(-1, 3)) + b".", "integers of at least 0"),
        (tensor(size=(6,)) + b".", "not integers of at least 0"),
        (tensor(size=(2,) * 33, stride=(0,) * 33) + b".", "33 dimensions"),
        (tensor(text("no storage")) + b".", "not made from storage"),
        (REBUILD + b")R.", "not made from storage"),
        (REBUILD + b"]R.", "it calls a torch._utils._rebuild_tensor_v2"),
        (storage() + b"R.", "empty stack"),
        (b"ccollections\nOrderedDict\n(K\x01tR.", "not built item by item"),
        (b"K\x01)R.", "it calls a int"),
        (text("storage") + b"Q.", "not a storage of tensors"),
        (b"(" + text("storage") + ORDERED + text("0") + text("cpu") + b"K\x06tQ.", "not a storage of tensors"),
        (b"ctorch._utils\n_rebuild_parameter\n(K\x01\x88NtR.", "not made from a tensor"),
        (b"]}b.", "it sets fields of a list"),
        (b"}K\x01a.", "it appends to a dict"),
        (b"}(K\x01K\x02K\x03u.", "sets 3 keys and values"),
        (b"](K\x01K\x02u.", "sets 2 keys and values of a list"),
        (b"}K\x01\x85K\x01s.", "a key is a tuple"),
        (b"}\x88K\x01s.", "a key is a bool"),
        (b"}J\xff\xff\xff\xffK\x01s.", "a key is a int"),
        (b"}" + integer(2**61 - 1) + b"K\x01s.", "a key is a int"),  # it has the hash of 0
        (b"}(K\x01K\x02K\x01K\x03u.", "duplicate key 1"),
        (b"h\x07.", "recalls object 7"),
        (b"j\xff\xff\xff\xff.", "recalls object 4,294,967,295"),
        (b"q\x00.", "empty stack"),
        (b"u.", "a mark that was never set"),
        (b".", "empty stack"),
        (b"(.", "empty stack"),
        (b"K\x01(K\x02.", "left over at its end"),
        (b"K\x01K\x02.", "left over at its end"),
        (b"K\x01.K", "left over at its end"),
        (b"", "cut short"),
        (b"K", "cut short"),
        (b"X\xff\xff\xff\x7fx", "cut short"),
        (b"\x8a\xff\x01", "cut short"),
        (b"cos", "cut short"),
        (b"X\x01\x00\x00\x00\xff.", "'utf-8' codec can't decode"),
        (b"K\x01K\x02\x93.", "a name that is not a string"),
        (b"N" * (MAX_INSTRUCTIONS + 1), "more than 131,072 instructions"),
    ],
)
def test_a_pickle_that_is_not_a_structure_of_tensors_is_refused(program, message):
    found = refusal(program)
    assert message in found and len(found) < 1000


def test_a_pickle_that_doubles_its_size_200_times_takes_little_time():
    """Each tuple holds the one before it twice: visiting every path would take 2^200 steps."""
    doubled = b")" + b"".join(b"q%ch%c\x86" % (n % 256, n % 256) for n in range(200))
    assert len(read(doubled + b".")) == 2
    for program in (b"}" + doubled + b"Ns.", tensor(size_of=doubled) + b".", REBUILD + doubled + b"R."):
        refusal(program)


def test_a_list_may_contain_itself():
    found = read(b"]q\x00h\x00a.")
    assert found[0] is found
    assert list(arrays_of(found)) == []


def test_a_pickle_cut_at_any_byte_is_refused():
    program = b"\x80\x02}q\x00" + text("w") + tensor() + b"s."
    assert read(program)["w"].shape == (2, 3)
    for size in range(len(program)):
        refusal(program[:size])
