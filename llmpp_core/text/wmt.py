"""Preparing a WMT task, whose corpus is larger than memory: cleaned text, joint subwords, memory-mapped tokens.

`prepare` makes in turn ``text-*.arrow``, the pairs that pass the filters on words; ``vocabulary.json``, trained on every k-th of them;
and ``train-*.arrow``, the tokens of those that pass the filters on subwords: files of the library `datasets`. Each is written whole or
not at all and never twice, so after a crash, or where one was removed, the next run makes what is missing. ``manifest.json`` comes
last; without it a folder is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.jobs.files import alone, cache_dir, need_disk, need_writable, replace_file
from llmpp_core.jobs.progress import progress_bar
from llmpp_core.text.batches import Pairs, StoredTokens
from llmpp_core.text.corpora import SIDES, ParallelText, find_wmt, read_wmt
from llmpp_core.text.vocabulary import SPACE_MARK, Vocabulary

#: Most tokens of a sentence that a task takes.
LONGEST = 250
# Training pairs of which the text is at hand, and where in the metadata of a shard its counts are.
_EXAMPLES, _COUNTS = 10_000, b"llmpp"


@dataclass(frozen=True)
class Settings:
    """What decides the result."""

    #: Most tokens of the vocabulary; at most 65,536, since tokens are stored in two bytes.
    subwords: int
    #: Most words of a sentence, and most times that one side may have the words of the other. HAT takes 1.5 of subwords; of words, that
    #: would leave out a fifth of the English-Czech captions of Multi30k, and 2 leaves out 1.3 % of them.
    words: int = 250
    word_ratio: float = 2.0
    #: The same of subwords: the limits of HAT, whose script is that of fairseq (``clean-corpus-n.perl -ratio 1.5 corpus 1 250``).
    longest: int = LONGEST
    ratio: float = 1.5
    #: Pairs that the vocabulary is trained on, evenly spaced.
    sample: int = 1_000_000
    #: Pairs that are read, cleaned and encoded at once, and go to one file.
    shard: int = 100_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        if self.subwords > 2**16:
            raise ValueError(f"subwords: at most 65,536, got {self.subwords:,}")


def prepared_folder(name: str) -> Path:
    """Return where the task looks for its prepared corpus: ``prepared/NAME`` in ``LLMPP_DATA_DIR`` if it is there, else in the cache."""
    given = os.environ.get("LLMPP_DATA_DIR")
    here = Path(given) / "prepared" / name if given else None
    return here if here and (here / "manifest.json").exists() else cache_dir() / "prepared" / name


def prepare(
    name: str,
    folder: Path,
    settings: Settings,
    *,
    corpus: Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Prepare a WMT task such as "wmt14.en-de", or go on where an earlier run stopped, or check every byte of what is finished.

    Parameters
    ----------
    folder : path
        Where the files go. One process at a time prepares a folder; a second is refused.
    corpus : path, optional
        The folder of the raw corpus; see `llmpp_core.text.corpora.find_wmt`.
    executor : concurrent.futures.Executor, optional
        Encodes several shards at once. That of a cluster needs `folder` to be one that all its machines share, under one path.

    Returns
    -------
    dict
        The manifest: settings, source, pairs left out by each filter, sha256 of every file, versions.

    Raises
    ------
    ValueError
        If the folder was prepared otherwise, a file is damaged, the disk too small, or no pair passes the filters.
    """
    files = {side: find_wmt(name, side, corpus) for side in SIDES}
    sizes = {path.name: path.stat().st_size for side in SIDES for path in files[side]}
    identity = {"task": name, "source": sizes, **asdict(settings)}
    finished = (folder / "manifest.json").exists()
    if not finished:
        need_writable(folder / "manifest.json")
    # What is finished is only checked, which several may do, and where nothing can be written.
    with nullcontext() if finished else alone(folder):
        _refuse_others(folder, identity)
        for partial in folder.glob(".*.partial"):
            partial.unlink()
        if not finished or not all((folder / file).exists() for file in read_manifest(folder)["files"]):
            others = held_out(name, files, folder, settings)
            clean_text(name, files["train"], folder, settings, progress)
            train_vocabulary(others, folder, settings)
            tokenise(folder, settings, executor, progress)
            shutil.rmtree(folder / "rows", ignore_errors=True)
        return _finish(folder, identity)


def clean_text(name: str, files: Sequence[Path], folder: Path, settings: Settings, progress: bool = False) -> None:
    """Write the shards of text, those that are not there yet."""
    raw = sum(path.stat().st_size * (4 if path.suffix in (".gz", ".parquet") else 1) for path in files)
    # Two bytes per token and eight per pair: about half of the text, for words of any European language.
    need_disk(folder, raw * 17 // 10 - sum(path.stat().st_size for path in folder.glob("*.arrow")), "cleaned text and tokens")
    with progress_bar(desc="clean", unit=" pairs", unit_scale=True, disable=not progress) as bar:
        for k, sides in enumerate(read_wmt(name, "train", files, settings.shard, folder / "rows")):
            if not (path := folder / f"text-{k:05}.arrow").exists():
                a, b = (np.array([len(sentence.split()) for sentence in side]) for side in sides)
                rows, counts = clean(a, b, settings.words, settings.word_ratio)
                src, tgt = ([side[row] for row in rows] for side in sides)
                _write_shard(path, src, tgt, {"pairs": len(sides[0]), **counts})
            bar.update(len(sides[0]))


def held_out(name: str, files: Mapping[str, Sequence[Path]], folder: Path, settings: Settings) -> dict[str, dict[str, list[str]]]:
    """Return the text of the validation and test side; ValueError, before hours of work, for a sentence that no task would take."""
    text = {}
    for side in ("valid", "test"):
        text[side] = {"src": list[str](), "tgt": list[str]()}
        for src, tgt in read_wmt(name, side, files[side], settings.shard, folder / "rows"):
            text[side]["src"] += src
            text[side]["tgt"] += tgt
        ParallelText(**text[side], name=f"{name} {side}")  # refuses empty sentences
        for sentences in text[side].values():
            for number, sentence in enumerate(sentences, 1):
                # Every word is a token or more.
                if (words := len(sentence.split())) > LONGEST:
                    what = f"has {words} words, more than {LONGEST}; shorten it or leave it out"
                    raise ValueError(f"{name} {side}: pair {number:,} {what}")
                if SPACE_MARK in sentence:
                    raise ValueError(f"{name} {side}: pair {number:,} holds {SPACE_MARK}, which stands for spaces; replace it")
    return text


def train_vocabulary(others: Mapping[str, Any], folder: Path, settings: Settings) -> None:
    """Write the text of the validation and test side and of some training pairs, and the joint subwords, if they are not there yet."""
    import datasets  # type: ignore[import-untyped]  # takes a second to load

    if (folder / "text.json").exists() and (folder / "vocabulary.json").exists():
        return
    shards = [datasets.Dataset(_read_shard(shard)[0]) for shard in _shards(folder, "text")]
    if not any(map(len, shards)):
        raise ValueError(f"{folder}: no pair of the corpus passes the filters")
    pairs = datasets.concatenate_datasets(shards)
    examples, sample = (pairs.select(range(0, len(pairs), -(-len(pairs) // n))) for n in (_EXAMPLES, settings.sample))
    text = {"train": examples[:], **others}
    replace_file(folder / "text.json", json.dumps(text, ensure_ascii=False).encode())
    sentences = chain.from_iterable(chain(batch["src"], batch["tgt"]) for batch in sample.iter(10_000))
    replace_file(folder / "vocabulary.json", Vocabulary.subwords(sentences, settings.subwords).to_json().encode())


def tokenise(folder: Path, settings: Settings, executor: Executor | None = None, progress: bool = False) -> None:
    """Write the shards of tokens, those that are not there yet."""
    missing = [shard for shard in _shards(folder, "text") if not _tokens_of(shard).exists()]
    arguments = missing, [settings] * len(missing)
    with progress_bar(desc="tokens", unit=" pairs", unit_scale=True, disable=not progress) as bar:
        for pairs in executor.map(_tokenise, *arguments) if executor else map(_tokenise, *arguments):
            bar.update(pairs)


def clean(src: np.ndarray, tgt: np.ndarray, longest: int, ratio: float) -> tuple[np.ndarray, dict[str, int]]:
    """Choose training pairs by the lengths of their sides.

    Returns
    -------
    rows : numpy.ndarray of int
        The pairs to keep.
    counts : dict of str to int
        How many are left out for the first reason that holds: a side is empty, longer than `longest`, or unequal, more than `ratio` times
        as long as the other.
    """
    few, many = np.minimum(src, tgt), np.maximum(src, tgt)
    why = np.select([few == 0, many > longest, many > ratio * few], [1, 2, 3], 0)
    _, *counts = np.bincount(why, minlength=4).tolist()
    return np.flatnonzero(why == 0), dict(zip(("empty", "long", "unequal"), counts, strict=True))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder; raises ValueError if it is missing or damaged."""
    with _whole(folder / "manifest.json") as path:
        manifest = json.loads(path.read_bytes())
        return {**manifest, "files": dict(manifest["files"])}


def load_prepared(folder: Path) -> tuple[dict[str, Any], Vocabulary, dict[str, ParallelText], Pairs]:
    """Return manifest, vocabulary, text and training pairs of a prepared folder; raises ValueError if a file is missing or damaged.

    Of the training text only 10,000 pairs are loaded, evenly spaced; the tokens of all stay on disk.
    """
    manifest = read_manifest(folder)
    with _whole(folder / "text.json") as path:
        text = json.loads(path.read_bytes())
        texts = {side: ParallelText(**text[side], name=f"{manifest['task']} {side}") for side in SIDES}
    shards = [folder / name for name in manifest["files"] if name.startswith("train-")]
    return manifest, _vocabulary(folder), texts, Pairs.from_stored(*stored_tokens(shards, manifest["digest"]))


def stored_tokens(shards: Sequence[Path], digest: str) -> tuple[StoredTokens, StoredTokens]:
    """Return source and target tokens of shards with list columns "src" and "tgt"."""
    # Empty shards have nothing to map.
    tables = [table for table, _ in map(_read_shard, shards) if table.num_rows]
    sides = []
    for column in ("src", "tgt"):
        lists = [table.column(column).chunk(0) for table in tables]
        offsets, values = [a.offsets.to_numpy() for a in lists], [a.values.to_numpy() for a in lists]
        sides.append(StoredTokens(offsets, values, column == "tgt", digest, sum(map(len, lists))))
    return sides[0], sides[1]


def _tokenise(shard: Path, settings: Settings) -> int:
    """Write the tokens of a shard of text and return how many pairs it has."""
    import pyarrow as pa  # type: ignore[import-untyped]

    vocabulary, (text, counts) = _vocabulary(shard.parent), _read_shard(shard)
    src, tgt = (pa.array(vocabulary.encode(text.column(side).to_pylist()), pa.list_(pa.uint16())) for side in ("src", "tgt"))
    a, b = (side.value_lengths().to_numpy() for side in (src, tgt))
    rows, left_out = clean(a, b, settings.longest, settings.ratio)
    # Spaces of odd kinds may have been all there was.
    by_reason = {"long_subwords": left_out["long"], "unequal_subwords": left_out["unequal"] + left_out["empty"]}
    _write_shard(_tokens_of(shard), src.take(rows), tgt.take(rows), by_reason)
    return counts["rows"]


def _write_shard(path: Path, src: Any, tgt: Any, counts: Mapping[str, int]) -> None:
    """Write columns and counts as one Arrow file, all or nothing; in one piece, so that offsets and values are one array each."""
    import pyarrow as pa

    table = pa.table({"src": src, "tgt": tgt})
    table = table.replace_schema_metadata({_COUNTS: json.dumps({**counts, "rows": len(table)})})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    replace_file(path, sink.getvalue())


def _read_shard(path: Path) -> tuple[Any, dict[str, int]]:
    """Return a shard's memory-mapped table and its counts."""
    from datasets.table import MemoryMappedTable  # type: ignore[import-untyped]

    with _whole(path):
        table = MemoryMappedTable.from_file(str(path))
        counts = json.loads(table.schema.metadata[_COUNTS])
        if len(table) != counts["rows"]:
            raise ValueError
    return table, counts


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Say of whatever goes wrong with a file that was written whole that it is damaged or missing."""
    try:
        yield path
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError):
        reason = "damaged" if path.exists() else "missing"
        raise ValueError(f"{path}: {reason}; remove what is left of it and prepare the corpus again") from None


def _shards(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}-*.arrow"))


def _tokens_of(shard: Path) -> Path:
    return shard.with_name(shard.name.replace("text-", "train-"))


def _vocabulary(folder: Path) -> Vocabulary:
    with _whole(folder / "vocabulary.json") as path:
        return Vocabulary.from_json(path.read_text(encoding="utf-8"))


def _refuse_others(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note what a folder is prepared from, or refuse if something was made of something else."""
    path = folder / "settings.json"
    if not path.exists() or {there.name for there in folder.glob("*")} <= {path.name, "rows"}:
        replace_file(path, json.dumps(identity, indent=1).encode())
    try:
        there = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise ValueError(f"{path}: damaged; choose another folder") from None
    different = [f"{key} is {there.get(key)} there and {value} here" for key, value in identity.items() if there.get(key) != value]
    if different:
        raise ValueError(f"{folder} was prepared otherwise: {'; '.join(different)}; choose another folder")


def _finish(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Check all files and return the manifest, which is written if it is not there yet."""
    text, train = _shards(folder, "text"), _shards(folder, "train")
    sha256 = {}
    for path in (*text, *train, folder / "text.json", folder / "vocabulary.json"):
        with open(path, "rb") as file:
            sha256[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    if (folder / "manifest.json").exists():
        manifest = read_manifest(folder)
        for name, expected in manifest["files"].items():
            with _whole(folder / name):
                if sha256.get(name) != expected:
                    raise ValueError
        return manifest
    counts, texts = Counter[str](), json.loads((folder / "text.json").read_bytes())
    for shard in text:
        counts.update(_read_shard(shard)[1])
    del counts["rows"]
    for shard in train:
        counts.update(_read_shard(shard)[1])
    counts["kept"] = counts.pop("rows")
    if not counts["kept"]:
        raise ValueError(f"{folder}: no pair of the corpus passes the filters on subwords")
    manifest = {
        **identity,
        "counts": {**counts, **{side: len(texts[side]["src"]) for side in ("valid", "test")}},
        "vocabulary": len(_vocabulary(folder)),
        "digest": hashlib.sha256("".join(sha256[shard.name] for shard in train).encode()).hexdigest(),
        "files": sha256,
        "versions": {name: version(name) for name in ("datasets", "pyarrow", "tokenizers")},
    }
    replace_file(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest
