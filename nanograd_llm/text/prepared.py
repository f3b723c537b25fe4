"""A prepared folder: texts as files of token ids. A batch reads only its windows, so a text may be larger than memory.

train.bin, val.bin           the ids, little-endian uint16 or uint32, one after the other, as nanoGPT has them
nanograd_tokenizer.json      the tokenizer; a folder of nanoGPT has a meta.pkl, or else ids of GPT-2's tokenizer
prepared.toml                what was prepared: counts, bytes, the split, a SHA-256 of each file
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nanograd_llm.errors import BadFileError, ConfigError, StorageError
from nanograd_llm.files.atomic import TEMPORARY, regular_file, storage_errors, written_together
from nanograd_llm.files.toml import read_toml, write_toml
from nanograd_llm.settings import counted, require_choice, require_number, require_seed
from nanograd_llm.text.bpe import Report
from nanograd_llm.text.corpora import well_formed
from nanograd_llm.text.sources import DESCRIPTION, PARTS, documents, files_of, require_plain
from nanograd_llm.text.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

TOKENIZER = "nanograd_tokenizer.json"
ENDINGS = (".bin", ".json", ".toml", ".pkl", "merges.txt", "vocab.bpe")  # of the files that a prepared folder may have
KINDS = ("bpe", "bytes", "characters")  # of tokenizers that are made of the texts
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
LONGEST, SHORTEST = 2**18, 2**9  # characters of a part of a long text
LEARNED = 2**26  # characters that a tokenizer learns from at most, spread evenly over the text
AT_ONCE = 2**20  # bytes that are read at once for a hash


class TokenFiles:
    """The ids of token files, one after the other, as one row (N,). A slice is read from the disk: a copy, int32.

    files: each a path and its dtype, "uint16" or "uint32". vocab_size: every id must be below it.
    Nothing is mapped: the system ends a process whose mapped file is cut short. Raises StorageError if a file cannot
    be read, BadFileError if it is empty, has half an id, an id outside the vocabulary, or was cut short since.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, files: Iterable[tuple[str | os.PathLike[str], str]], vocab_size: int):
        self.vocab_size, self.parts, end = vocab_size, [], 0
        for path, name in files:
            dtype = np.dtype(DTYPES[name])
            with regular_file(path) as file:
                size = os.fstat(file.fileno()).st_size
                kept = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
            if size == 0 or size % dtype.itemsize:
                fault = "is empty" if size == 0 else f"has {size:,} bytes, the last of which is half an id"
                raise BadFileError(f"{path}: {fault}; expected ids of {dtype.itemsize} bytes each ({name})")
            begin, end = end, end + size // dtype.itemsize
            self.parts.append((os.fspath(path), kept, dtype, begin, end))

    def __len__(self) -> int:
        return int(self.parts[-1][-1])

    def __getitem__(self, places: slice) -> NDArray[np.int32]:
        first, last, _ = places.indices(len(self))
        rows = [
            self._read(part, max(first, part[3]), min(last, part[4]))
            for part in self.parts
            if max(first, part[3]) < min(last, part[4])
        ]
        return np.concatenate(rows) if rows else np.zeros(0, np.int32)

    def _read(self, part: tuple[str, BinaryIO, np.dtype[Any], int, int], first: int, last: int) -> NDArray[np.int32]:
        path, file, dtype, begin, _ = part
        size, offset = (last - first) * dtype.itemsize, (first - begin) * dtype.itemsize
        with storage_errors(f"{path}: cannot read", "check the disk"):
            if hasattr(os, "pread"):
                data = os.pread(file.fileno(), size, offset)
            else:  # Windows
                file.seek(offset)
                data = file.read(size)
        if len(data) < size:
            raise BadFileError(f"{path}: was cut short since it was opened; prepare it again")
        ids = np.frombuffer(data, dtype)
        if ids.max() >= self.vocab_size:
            place = int(ids.argmax())
            raise BadFileError(
                f"{path}: id {ids[place]} at place {first - begin + place:,} is outside the vocabulary of "
                f"{self.vocab_size:,} tokens; give the tokenizer that made the ids"
            )
        return ids.astype(np.int32)


def open_prepared(folders: Sequence[str | os.PathLike[str]], vocab_size: int) -> tuple[TokenFiles, TokenFiles]:
    """The ids to train on and those held out, of prepared folders together: a warning names other files there.

    Raises as `TokenFiles` and `described`.
    """
    dtypes = [described(folder).get("prepared", {}).get("dtype", "uint16") for folder in folders]
    train, val = (
        TokenFiles([(Path(folder, f"{part}.bin"), dtype) for folder, dtype in zip(folders, dtypes)], vocab_size)
        for part in PARTS
    )
    for folder in folders:
        if others := [path for path in files_of(os.fspath(folder)) if not path.endswith(ENDINGS)]:
            count = counted(len(others), "other file")
            warnings.warn(
                f"{folder}: is a prepared folder: its train.bin and val.bin are taken, and not {count} in it, such as "
                f"{others[0]}; to learn from those, move them to another folder",
                stacklevel=2,
            )
    return train, val


def described(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The tables of a prepared folder's description; {} for a folder of nanoGPT. Raises BadFileError."""
    path = Path(folder, DESCRIPTION)
    if not path.exists():
        return {}
    content = read_toml(path)
    if content.get("prepared", {}).get("dtype") not in DTYPES:
        raise BadFileError(f"{path}: [prepared] has no dtype of {' or '.join(DTYPES)}; prepare the text again")
    return content


def prepared_hash(folder: str | os.PathLike[str], report: Report = lambda doing, share: None) -> str:
    """The SHA-256 of train.bin and val.bin together. Raises BadFileError where one is not what was prepared."""
    import hashlib

    whole, description = hashlib.sha256(), described(folder)
    for part in PARTS:
        path, digest = Path(folder, f"{part}.bin"), hashlib.sha256()
        with regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            for block in iter(lambda: file.read(AT_ONCE), b""):
                digest.update(block)
                whole.update(block)
                report(f"reading {path}", file.tell() / size)
        if description and description.get(part, {}).get("sha256") != digest.hexdigest():
            raise BadFileError(f"{path}: is not what {DESCRIPTION} says: it was changed or damaged; prepare it again")
    return whole.hexdigest()


def prepare(
    sources: Sequence[str],
    out: str | os.PathLike[str],
    tokenizer: Tokenizer | str = "bpe",
    *,
    vocab_size: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    report: Report = lambda doing, share: None,
) -> dict[str, dict[str, Any]]:
    """Turn the texts of `sources` into a prepared folder `out`, and return its description.

    tokenizer: one that exists, or one of KINDS, which is made of the texts. vocab_size: of bpe; 1024 if not given.
    held_out: the share of the texts for val.bin: one, chosen by `seed`, of every 1 / held_out. Of a file that is long
        for the whole, its parts are texts, cut between lines. A text ends with the end-of-text token, if there is one.

    Texts are read one after the other, twice if a tokenizer is made of them. `out`, which must be new or
    empty, appears as a whole, or not at all.
    Raises ConfigError for a share that leaves nothing to train on or to score, and as `require_plain`; StorageError,
    BadFileError for a source.
    """
    if isinstance(tokenizer, str):
        require_choice("tokenizer", tokenizer, KINDS)
    if vocab_size is not None and tokenizer != "bpe":
        raise ConfigError(f"vocab_size applies to the tokenizer bpe, not to {tokenizer}; leave it out")
    require_number("held_out", held_out, 1e-6, 0.9)
    require_seed(seed)
    if not sources:
        raise ConfigError("prepare needs at least one source; give files or folders")
    require_plain(sources)
    writing = storage_errors(f"{out}: cannot write", "nothing was written; free some space")
    with written_together(out) as folder, writing, contextlib.ExitStack() as stack:
        if held := {path.name for path in Path(out).glob("*") if not TEMPORARY.fullmatch(path.name)}:
            what = "already holds a prepared text" if DESCRIPTION in held else f"is not empty (it has {min(held)})"
            raise StorageError(f"{out}: {what}; choose another folder")
        names, sources = list(sources), list(sources)
        if "-" in sources:  # kept, since it may be read twice
            spooled = folder / "stdin"
            with open(spooled, "wb") as file:
                file.writelines(iter(lambda: sys.stdin.buffer.read(AT_ONCE), b""))
            stack.callback(os.unlink, spooled)
            sources[sources.index("-")] = os.fspath(spooled)
        total = sum(os.path.getsize(path) for source in sources for path in files_of(source) if os.path.exists(path))
        size = int(min(max(total * held_out / 2, SHORTEST), LONGEST))

        def texts(doing: str) -> Iterator[str]:
            done = 0
            for text in itertools.chain.from_iterable(documents(source, size=size) for source in sources):
                report(doing, min(1.0, done / max(1, total)))
                done += len(text)
                yield text

        if isinstance(tokenizer, str):
            every = max(1, -(-total // LEARNED)) if tokenizer == "bpe" else 1
            learned = itertools.islice(texts("reading for the tokenizer"), None, None, every)
            tokenizer = make_tokenizer(tokenizer, learned, vocab_size or 1024, report)
        name = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        files = [_Writing(folder, part, DTYPES[name], stack) for part in PARTS]
        for i, (text, ids) in enumerate(_encoded(texts("encoding"), tokenizer)):
            files[_is_held_out(i, held_out, seed)].add(text, ids)
        for part in files:
            if not part.counts["tokens"]:
                use = "train on" if part is files[0] else "score"
                least = f"a share of at least {1.06 / (i + 1):.2g}, or "  # 1 / texts, and what rounding may take off
                remedy = f"{least}more texts" if i else "more texts, or a longer one"
                raise ConfigError(
                    f"held_out={held_out:g} of {counted(i + 1, 'text')} leaves none to {use}; give {remedy}"
                )
        tables = {
            "prepared": {
                "sources": " ".join(names),
                "tokenizer": repr(tokenizer),
                "vocab_size": tokenizer.vocab_size,
                "dtype": name,
                "held_out": held_out,
                "seed": seed,
            },
            **{part.name: part.table() for part in files},
        }
        tokenizer.save(folder / TOKENIZER)
        write_toml(folder / DESCRIPTION, tables)
        stack.close()
    return tables


def make_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int, report: Report = lambda doing, share: None
) -> Tokenizer:
    """The tokenizer of a kind; bpe and characters are made of the texts, which are read once."""
    if kind == "bytes":
        return ByteTokenizer()
    return CharTokenizer.train(texts) if kind == "characters" else BPETokenizer.train(texts, vocab_size, report)


class _Writing:
    """The token file of a part that is written; its counts."""

    def __init__(self, folder: Path, name: str, dtype: str, stack: contextlib.ExitStack):
        import hashlib

        self.name, self.dtype, self.digest = name, dtype, hashlib.sha256()
        self.counts = {"texts": 0, "tokens": 0, "bytes": 0, "nuls": 0}
        self.file = stack.enter_context(open(folder / f"{name}.bin", "wb"))

    def add(self, text: str, ids: NDArray[np.integer]) -> None:
        data = ids.astype(self.dtype).tobytes()
        more = 1, len(ids), len(well_formed(text).encode()), text.count("\0")
        self.counts = {name: count + further for (name, count), further in zip(self.counts.items(), more)}
        self.digest.update(data)
        self.file.write(data)

    def table(self) -> dict[str, Any]:
        """The counts and the hash; all is on the disk then."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return {**self.counts, "sha256": self.digest.hexdigest()}


def _is_held_out(number: int, held_out: float, seed: int) -> bool:
    """Is the text of this number held out? So is one, at random, of each 1 / held_out texts in a row."""
    group = int(number * held_out)
    first, last = -int(-group // held_out), -int(-(group + 1) // held_out)
    return bool(number == first + np.random.default_rng((seed, group)).integers(last - first))


def _encoded(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[tuple[str, NDArray[np.integer]]]:
    """Each text with its ids, and end-of-text; as many at once as there are cores."""
    from concurrent.futures import ThreadPoolExecutor

    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        while group := list(itertools.islice(texts, 2 * cores)):
            for text, ids in zip(group, pool.map(tokenizer.encode, group)):
                yield text, np.append(ids, np.array(end, ids.dtype))
