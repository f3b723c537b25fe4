"""Thousands of damaged weight files: each fixture is changed in ways that suit its format, and the oracle watches.

    python tests/files/fuzz.py 10000
    python tests/files/fuzz.py 100000 --first 5000000 --only torch tensorflow

reads that many inputs of each format. Input n of a format is the same on every machine and in every run. An input that
breaks a rule is kept as a folder of `cases/`, which `test_fuzz.py` reads in every later run.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import random
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from oracle import Breach, read_watched

from nanograd_llm.errors import BadFileError
from nanograd_llm.files.crc32c import masked_crc32c
from nanograd_llm.files.leveldb import MAGIC
from nanograd_llm.files.npz import read_npz
from nanograd_llm.files.safetensors import read_safetensors
from nanograd_llm.files.shards import read_shards
from nanograd_llm.files.tensor_pickle import pickle_size
from nanograd_llm.files.tensorflow import read_tensorflow
from nanograd_llm.files.torch import read_torch_object
from nanograd_llm.pretrained.gpt2.llmc import read_llmc

HERE = Path(__file__).parent
CASES = HERE / "cases"
Files = dict[str, bytes]  # by name, all in one folder
NUMBERS = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63]
NUMBERS += [2**63 - 1, 2**64 - 1, 2**64]


@dataclass(frozen=True)
class Format:
    """How files of one format are read and damaged. seeds: whole files, by name, that the changes start from."""

    read: Callable[[Path], Any]
    entry: str  # the file (or prefix) that is given to `read`
    seeds: tuple[Files, ...]
    damage: Callable[[bytes, random.Random], bytes]
    endings: tuple[str, ...]  # the endings of the file names that `damage` understands


def make_input(name: str, n: int) -> Files:
    """Input `n` of the format `name`: one of its seeds with one to four changes."""
    rng = random.Random(f"{name} {n}")
    form = FORMATS[name]
    files = dict(rng.choice(form.seeds))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        target = rng.choice(sorted(files))
        if target.endswith(form.endings) and rng.random() < 0.6:
            files[target] = form.damage(files[target], rng)
        else:
            files[target] = change_bytes(files[target], rng)
    return files


def read_input(name: str, files: Files, folder: Path) -> Any:
    """Write the files to an empty `folder`, and read them while the oracle watches."""
    for file in folder.iterdir():
        file.unlink()
    for file_name, content in files.items():
        (folder / file_name).write_bytes(content)
    return read_watched(FORMATS[name].read, folder / FORMATS[name].entry, folder)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one change that suits any format."""
    if not data:
        return rng.randbytes(rng.randrange(64))
    at = rng.randrange(len(data))
    if rng.random() < 0.5:  # most of the structure is at the ends
        at = min(at, rng.randrange(256)) if rng.random() < 0.5 else max(at, len(data) - 1 - rng.randrange(256), 0)
    size = rng.choice([1, 2, 4, 8, rng.randrange(1, 64)])
    kind = rng.randrange(8)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + size :]
    if kind == 3:
        return data[:at] + rng.randbytes(size) + data[at:]
    if kind == 4:
        return data[:at] + data[at : at + size] * 2 + data[at + size :]
    if kind == 5:
        other = rng.randrange(len(data))
        return data[:at] + data[other : other + size] + data[at + size :]
    width = rng.choice([1, 2, 4, 8])
    number = rng.choice([*NUMBERS, len(data), len(data) - at, at, at + 1, rng.getrandbits(8 * width)])
    return data[:at] + (number % 256**width).to_bytes(width, "little") + data[at + width :]


def damage_json(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part replaced by something else."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            return {other: x for other, x in value.items() if other != key}
        if kind == 1:
            return value | {rng.choice(["", "x", "__metadata__", "\0", "\ud800", *value]): value[key]}
        return value | {key: damage_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return rng.choice(
            [value[:at], value + value[at:], value[:at] + [damage_json(value[at], rng)] + value[at + 1 :]]
        )
    if isinstance(value, int) and rng.random() < 0.7:
        return rng.choice([value + 1, value - 1, -value, value * 2, float(value), *NUMBERS])
    odd = [None, True, 1.5, -1, "", "x", [], {}, [[]], "\0", "../x", "/etc/passwd", "\ud800", "F32", "BF16", "BOOL"]
    return rng.choice([*odd, float("nan"), float("inf"), 10**50])


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header, and correct its stated length."""
    size = int.from_bytes(data[:8], "little")
    text, tail = data[8 : 8 + size], data[8 + size :]
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return change_bytes(data, rng)
    if rng.random() < 0.7:
        text = json.dumps(damage_json(header, rng)).encode()
    elif rng.random() < 0.5:
        text = change_bytes(text, rng)
    else:  # a key twice
        text = text.rstrip().removesuffix(b"}") + b"," + text.lstrip().removeprefix(b"{")
    return len(text).to_bytes(8, "little") + text + tail


def damage_index(data: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(damage_json(json.loads(data), rng)).encode()
    except (ValueError, RecursionError):
        return change_bytes(data, rng)


OPCODES = [bytes([code]) for code in range(256)]
GADGETS = [
    b"cos\nsystem\n",
    b"cbuiltins\nexec\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nBFloat16Storage\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"\x8c\x05posix\x8c\x06system\x93",
    b"\x8c\x02id\x85R",
    b"(ios\nsystem\n",
    b"X\x02\x00\x00\x00id",
    b"}\x94",
    b"h\x00h\x00\x86q\x00",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"\x8a\xff" + b"\x7f" * 255,
]


def damage_pickle(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at] + rng.choice(OPCODES) + data[at:]
    if kind == 1:
        return data[:at] + rng.choice(OPCODES) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.choice(GADGETS) + data[at:]
    if kind == 3:  # an integer of another value
        found = [place for place in range(len(data) - 1) if data[place : place + 1] in (b"K", b"M", b"J")]
        if found:
            place = rng.choice(found)
            return data[: place + 1] + bytes([rng.choice([0, 1, 2, 3, 6, 7, 127, 128, 255])]) + data[place + 2 :]
    if kind == 4:
        other = rng.randrange(len(data) + 1)
        low, high = sorted((at, other))
        return data[:low] + data[high:] if rng.random() < 0.5 else data[:high] + data[low:]
    return change_bytes(data, rng)


def damage_torch(data: bytes, rng: random.Random) -> bytes:
    """Change the pickle, another record, a name or the method, and write a correct zip file again."""
    if data[:1] == b"\x80":
        return damage_legacy(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            records = [(name, file.read(name)) for name in file.namelist()]
    except Exception:
        return change_bytes(data, rng)
    if not records:
        return change_bytes(data, rng)
    at = 0 if rng.random() < 0.7 else rng.randrange(len(records))
    name, content = records[at]
    method = zipfile.ZIP_STORED
    kind = rng.randrange(10)
    if kind == 0:
        records.insert(at, rng.choice(records))
    elif kind == 1:
        records[at] = (
            rng.choice(["../x", "/x/data.pkl", "x\\data.pkl", "", "a/b/data.pkl", name + "\0", "ü"]),
            content,
        )
    elif kind == 2:
        del records[at]
    elif kind == 3:
        method = zipfile.ZIP_DEFLATED
    else:
        records[at] = (name, damage_pickle(content, rng) if name.endswith("data.pkl") else change_bytes(content, rng))
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", method) as file:
        warnings.simplefilter("ignore")  # about duplicate names
        for name, content in records:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return written.getvalue()


def damage_legacy(data: bytes, rng: random.Random) -> bytes:
    """Change one of the pickles of torch's form before 1.6, or the number of elements of the first storage."""
    parts, place = [], 0
    for _ in range(5):
        try:
            size = pickle_size(data[place:], "")
        except BadFileError:
            return change_bytes(data, rng)
        parts.append(data[place : place + size])
        place += size
    tail, at = data[place:], rng.choice([0, 1, 2, 3, 3, 3, 4, 4, 5])
    if at == 5:
        tail = (rng.choice(NUMBERS) % 2**64).to_bytes(8, "little") + tail[8:]
    else:
        parts[at] = damage_pickle(parts[at], rng)
    return b"".join(parts) + tail


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def table_block(entries: bytes) -> bytes:
    """A block with one restart point and a right CRC."""
    block = entries + struct.pack("<3I", 0, 1, 0)[:8] + b"\0"
    return block + masked_crc32c(np.frombuffer(block, np.uint8)).to_bytes(4, "little")


def table(entries: bytes, last_key: bytes = b"~") -> bytes:
    """A table of one data block that holds `entries`."""
    block, meta = table_block(entries), table_block(b"")
    handle = varint(0) + varint(len(block) - 5)
    index = table_block(bytes([0, len(last_key), len(handle)]) + last_key + handle)
    handles = varint(len(block)) + varint(len(meta) - 5) + varint(len(block) + len(meta)) + varint(len(index) - 5)
    return block + meta + index + handles.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def damage_table(data: bytes, rng: random.Random) -> bytes:
    """Change the first block of the table, and correct its CRC."""
    trailer = data.find(b"\0\0\0\0\1\0\0\0")  # the restart points of a block with one
    entries = data[:trailer]
    if trailer < 1:
        return change_bytes(data, rng)
    at = rng.randrange(len(entries))
    kind = rng.randrange(4)
    if kind == 0:
        entries = entries[:at] + varint(rng.choice(NUMBERS)) + entries[at + 1 :]
    elif kind == 1:
        entries = entries[:at] + bytes([rng.choice([0, 1, 2, 3, 7, 8, 14, 127, 128, 255])]) + entries[at + 1 :]
    elif kind == 2:
        entries = entries[:at] + bytes([entries[at] + rng.choice([-1, 1]) & 255]) + entries[at + 1 :]
    else:
        entries = change_bytes(entries, rng)
    return table(entries)


def damage_llmc(data: bytes, rng: random.Random) -> bytes:
    if len(data) < 1024:
        return change_bytes(data, rng)
    at = 4 * rng.randrange(8)
    (number,) = struct.unpack_from("<i", data, at)
    changed = rng.choice([*NUMBERS, number + 1, number - 1, -number, 2 * number, 5, 3, 20240326])
    return data[:at] + (changed % 2**32).to_bytes(4, "little") + data[at + 4 :]


def fixture(folder: str) -> Files:
    """The files of a folder of fixtures."""
    return {file.name: file.read_bytes() for file in sorted((HERE.parent / "fixtures" / folder).iterdir())}


def numpy_seed() -> bytes:
    """What `numpy.savez` writes, without the time of day."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, array in {"a": np.arange(6.0, dtype="<f4").reshape(2, 3), "b": np.arange(3) > 1}.items():
            content = io.BytesIO()
            np.save(content, array)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    return written.getvalue()


def tensorflow_seeds() -> tuple[Files, ...]:
    few = {name: x for name, x in fixture("small").items() if name.startswith(("few.index", "few.data"))}
    gpt = {name: x for name, x in fixture("tensorflow").items() if name.startswith("model.ckpt")}
    return few, {name.replace("model.ckpt", "few"): x for name, x in gpt.items()}


FORMATS = {
    "safetensors": Format(
        read_safetensors,
        "model.safetensors",
        (
            {"model.safetensors": fixture("small")["few.safetensors"]},
            {"model.safetensors": fixture("safetensors_bfloat16")["model.safetensors"]},
        ),
        damage_safetensors,
        (".safetensors",),
    ),
    "sharded": Format(
        functools.partial(read_shards, read=read_safetensors),
        "model.safetensors.index.json",
        ({name: x for name, x in fixture("safetensors_sharded").items() if name != "config.json"},),
        damage_index,
        (".json",),
    ),
    "torch": Format(
        read_torch_object,
        "model.bin",
        tuple(
            {"model.bin": content}
            for content in (
                fixture("small")["few.bin"],
                fixture("bin_bfloat16")["pytorch_model.bin"],
                fixture("nanogpt")["ckpt.pt"],
                fixture("small")["legacy.bin"],
            )
        ),
        damage_torch,
        (".bin",),
    ),
    "npz": Format(read_npz, "model.npz", ({"model.npz": numpy_seed()},), damage_torch, (".npz",)),
    "tensorflow": Format(read_tensorflow, "few.index", tensorflow_seeds(), damage_table, (".index",)),
    "llmc": Format(
        read_llmc,
        "model.bin",
        tuple({"model.bin": content} for content in fixture("llmc").values()),
        damage_llmc,
        (".bin",),
    ),
}


def keep(name: str, files: Files) -> Path:
    """Keep an input that broke a rule."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]
    folder = CASES / f"{name}-{digest}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file_name, content in files.items():
        (folder / file_name).write_bytes(content)
    return folder


def run(name: str, numbers: range, folder: Path) -> tuple[Counter[str], list[str]]:
    """Read the inputs with these numbers. Returns the count of each outcome, and a line for each broken rule."""
    outcomes: Counter[str] = Counter()
    broken = []
    for seed in FORMATS[name].seeds:  # modules that are imported on first use are imported now
        read_input(name, seed, folder)
    for n in numbers:
        files = make_input(name, n)
        try:
            found = read_input(name, files, folder)
            outcomes[type(found).__name__ if isinstance(found, Exception) else "read"] += 1
        except Breach as breach:
            broken.append(f"{name} {n}: {breach}; kept in {keep(name, files)}")
    return outcomes, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=int, help="how many inputs of each format")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS), help="these formats")
    asked = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only:
            begin = time.perf_counter()
            outcomes, broken = run(name, range(asked.first, asked.first + asked.inputs), Path(folder))
            rate = asked.inputs / (time.perf_counter() - begin)
            counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
            print(f"{name}: {asked.inputs:,} inputs, {rate:,.0f} a second; {counts}; {len(broken)} broke a rule")
            print(*broken, sep="\n", end="\n" if broken else "", flush=True)
            failures += len(broken)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
