"""Bombs: files that claim the largest sizes that their readers allow.

`plant` writes one. Run as a script, this reads the bombs in the subfolders of a folder, and prints a line of JSON for
each: how far the memory of the process has risen above its value at the start.
"""

from __future__ import annotations

import contextlib
import functools
import json
import struct
import sys
import zipfile
from pathlib import Path

from fuzz import table, varint

from nanograd_llm.errors import BadFileError, StorageError
from nanograd_llm.files.json import MAX_BYTES, MAX_VALUES
from nanograd_llm.files.leveldb import MAX_ENTRIES, MAX_SIZE, MAX_VALUE
from nanograd_llm.files.safetensors import read_safetensors
from nanograd_llm.files.shards import MAX_SHARDS, read_shards
from nanograd_llm.files.tensor_pickle import MAX_INSTRUCTIONS
from nanograd_llm.files.tensorflow import read_tensorflow
from nanograd_llm.files.torch import MAX_PICKLE, read_torch_object
from nanograd_llm.files.zip import MAX_DIRECTORY


def safetensors(text, data=b""):
    return {"x": len(text).to_bytes(8, "little") + text + data}


def many_tensors(number):
    entries = (f'"{n}":{{"dtype":"BF16","shape":[1],"data_offsets":[{2 * n},{2 * n + 2}]}}' for n in range(number))
    return safetensors(f"{{{','.join(entries)}}}".encode(), b"\0" * 2 * number)


def zipped(program, records=()):
    """The file that torch.save would write around the pickle `program`."""
    return {"x": [("x/data.pkl", program), *records]}


def legacy(structure=b"}.", version=b"M\xe9\3.", keys=b"].", data=b""):
    """The file that torch.save would write before 1.6."""
    magic = b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    return {"x": magic + version + b"}X\r\0\0\0little_endian\x88s." + structure + keys + data}


def tensorflow(*rows):
    return {"x.index": table(b"".join([b"\0\0\2\x08\1", *rows])), "x.data-00000-of-00001": b""}


def row(shared, key, value):
    return varint(shared) + varint(len(key)) + varint(len(value)) + key + value


NOTHING = b"\x08\1\x12\2\x12\0\x35" + struct.pack("<I", 0xA282EAD8)  # float32 (0,): a variable without bytes
TEXT = b"X" + struct.pack("<I", MAX_PICKLE - 20)
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\nq\0((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\1tQ"
)
TENSOR += b"K\0))\x89NtR" + b"0"  # 0 is no instruction
ARGUMENTS = b"((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\1tQK\0K\1\x85K\1\x85\x89Ntq\1"
SAME_ARGUMENTS = b"((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\1tQK\0K\1\x85K\1\x85\x89Ntq\1"
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\5\0\0\0%05dX\0\0\0\0K\0tQ"
SAME_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\nq\0" + ARGUMENTS

BOMBS = {
    "safetensors: empty lists": lambda: safetensors(b'{"x":[' + b"[]," * (MAX_VALUES // 2 - 10) + b"[]]}"),
    "safetensors: empty objects": lambda: safetensors(b'{"x":[' + b"{}," * (MAX_VALUES // 2 - 10) + b"{}]}"),
    "safetensors: objects": lambda: safetensors(b'{"x":[' + b'{"":0},' * (MAX_VALUES // 2 - 10) + b"{}]}"),
    "safetensors: numbers": lambda: safetensors(b'{"x":[' + b"99999999999999," * (MAX_VALUES - 10) + b"1]}"),
    "safetensors: wide text": lambda: safetensors(b'{"x":"\xf0\x9f\x98\x80' + b"a" * (MAX_BYTES - 20) + b'"}'),
    "safetensors: deep nesting": lambda: safetensors(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "safetensors: as many tensors as it may have": lambda: many_tensors(MAX_VALUES // 7),
    "index: as many tensors as it may have": lambda: {
        "x": json.dumps({"weight_map": {str(n): "y" for n in range(MAX_VALUES - 10)}}).encode(),
        "y": b"",
    },
    "index: as many files as it may have": lambda: {
        "x": json.dumps({"weight_map": {str(n): str(n) for n in range(MAX_SHARDS)}}).encode()
    },
    "torch: dicts": lambda: zipped(b"}" * MAX_INSTRUCTIONS),
    "torch: stored dicts": lambda: zipped(b"}\x94" * MAX_INSTRUCTIONS),
    "torch: stored lists": lambda: zipped(b"]\x94" * MAX_INSTRUCTIONS),
    "torch: marks": lambda: zipped(b"(" * MAX_INSTRUCTIONS),
    "torch: deep nesting": lambda: zipped(
        b"]" * (MAX_INSTRUCTIONS // 2 - 1) + b"a" * (MAX_INSTRUCTIONS // 2 - 2) + b"."
    ),
    "torch: deeply nested tuples": lambda: zipped(b")" + b"\x85" * (MAX_INSTRUCTIONS - 2) + b"."),
    "torch: long integers": lambda: zipped((b"\x8a\xff" + b"\x7f" * 255) * (MAX_PICKLE // 257)),
    "torch: wide text": lambda: zipped(TEXT + b"\xf0\x9f\x98\x80" + b"a" * (MAX_PICKLE - 24) + b"."),
    "torch: keys": lambda: zipped(
        b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(2**17 - 5)) + b"u."
    ),
    "torch: one tensor very many times": lambda: zipped(
        SAME_TENSOR + b"R(" + b"h\0h\1R" * (MAX_INSTRUCTIONS // 3 - 30) + b"t\x86.", [("x/data/0", b"\0" * 4)]
    ),
    "torch: a nest of tuples before 1.6": lambda: legacy(version=b")" + b"\x85" * (MAX_INSTRUCTIONS - 2) + b"."),
    "torch: very many storages before 1.6": lambda: legacy(
        b"(" + b"".join(STORAGE % n for n in range(10_000)) + b"t.",
        keys=b"](" + b"".join(b"X\5\0\0\0%05d" % n for n in range(10_000)) + b"e.",
        data=b"\0" * 8 * 10_000,
    ),
    "torch: one large storage before 1.6": lambda: legacy(
        b"(X\7\0\0\0storagectorch\nBFloat16Storage\nX\1\0\0\0" + b"0X\0\0\0\0J\0\0\0\1tQ.",
        keys=b"]X\1\0\0\0" + b"0a.",
        data=(2**24).to_bytes(8, "little") + b"\0" * 2**25,
    ),
    "torch: as many records as it may have": lambda: zipped(
        b"}.", [(f"x/data/{n}", b"") for n in range(MAX_DIRECTORY // 64)]
    ),
    "torch: a program as long as it may be": lambda: zipped(b"N" * MAX_PICKLE),
    "tensorflow: as many variables as it may have": lambda: tensorflow(
        *(row(0, b"%05d" % n, NOTHING) for n in range(MAX_ENTRIES - 1))
    ),
    "tensorflow: long keys that share all but a byte": lambda: tensorflow(
        *(
            row(0 if n == 0 else 995, (b"k" * 995 if n == 0 else b"") + b"%05d" % n, NOTHING)
            for n in range(MAX_ENTRIES - 1)
        )
    ),
    "tensorflow: entries of unknown fields": lambda: tensorflow(
        *(row(0, b"%05d" % n, b"\x78\0" * (MAX_VALUE // 2)) for n in range(MAX_SIZE // MAX_VALUE - 2))
    ),
    "tensorflow: a shape of very many sizes": lambda: tensorflow(
        row(0, b"w", b"\x08\1\x12" + varint(4 * 1000) + b"\x12\2\x08\1" * 1000)
    ),
}


READERS = {
    "safetensors": read_safetensors,
    "index": functools.partial(read_shards, read=read_safetensors),
    "torch": read_torch_object,
    "tensorflow": lambda path: read_tensorflow(path.with_name("x.index")),
}


def plant(bomb, folder):
    """Write the files of a bomb into `folder`; its reader, and the path to give to it."""
    for name, content in BOMBS[bomb]().items():
        if isinstance(content, list):
            with zipfile.ZipFile(folder / name, "w") as file:
                for record, its_content in content:
                    file.writestr(zipfile.ZipInfo(record), its_content)
        else:
            (folder / name).write_bytes(content)
    return READERS[bomb.partition(":")[0]], folder / "x"


def most_memory():
    """The peak memory of this process, in bytes."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(folder):
    before = most_memory()
    for number, bomb in enumerate(BOMBS):
        files = Path(folder) / str(number)
        with contextlib.suppress(BadFileError, StorageError):
            READERS[bomb.partition(":")[0]](files / "x")
        size = sum(file.stat().st_size for file in files.iterdir())
        print(json.dumps({"bomb": bomb, "size": size, "memory": most_memory() - before}))


if __name__ == "__main__":
    main(sys.argv[1])
