"""Preparing a corpus larger than memory: cleaned text, joint subwords, memory-mapped token shards, in stages that resume.

A folder goes through three stages: *clean* (``text-*.arrow``, the pairs that pass the filters on words), *vocabulary*
(``vocabulary.json``, trained on every k-th pair) and *tokens* (``train-*.arrow``, the pairs that pass the filters on subwords).
A file is written whole or not at all and never twice, so after a crash, or where a file was removed, the next run makes what is
missing. ``manifest.json`` comes last; without it a folder is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.jobs.files import alone, cache_dir, need_disk, replace_file
from llmpp_core.jobs.progress import progress_bar
from llmpp_core.text.batches import Pairs
from llmpp_core.text.corpora import ParallelText, clean
from llmpp_core.text.readers import held_out, open_corpus
from llmpp_core.text.shards import read_shard, stored_tokens, write_shard
from llmpp_core.text.vocabulary import Vocabulary

#: Sizes of the joint vocabularies, as in the paper's records.
SUBWORDS = {"wmt14.en-de": 32_768, "wmt14.en-fr": 44_512, "wmt19.en-de": 49_600}
# Where the text of each side is; of the training side, a sample of so many pairs.
_TEXT, _EXAMPLES = {"train": "examples.arrow", "valid": "valid.arrow", "test": "test.arrow"}, 10_000
# Sentences encoded at once.
_AT_ONCE = 10_000


@dataclass(frozen=True)
class Settings:
    """What decides the result.

    Parameters
    ----------
    subwords : int
        Most tokens of the vocabulary; at most 65,536, since tokens are stored in two bytes.
    words, word_ratio : int, float
        Most words of a sentence, and most times that one side may have the words of the other; see `llmpp_core.text.corpora.clean`.
    longest, ratio : int, float
        The same of subwords: the limits of HAT, whose script is that of fairseq (``clean-corpus-n.perl -ratio 1.5 corpus 1 250``).
    sample : int
        Pairs that the vocabulary is trained on, evenly spaced.
    shard : int
        Pairs read for each shard.
    """

    subwords: int
    words: int = 250
    word_ratio: float = 2.0
    longest: int = 250
    ratio: float = 1.5
    sample: int = 1_000_000
    shard: int = 250_000

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
    """Prepare a WMT task, or go on where an earlier run stopped, or check every byte of what is finished.

    Parameters
    ----------
    name : str
        Such as "wmt14.en-de".
    folder : path
        Where the files go. One process at a time prepares a folder; a second is refused.
    settings : Settings
        Filters and sizes.
    corpus : path, optional
        The folder of the raw corpus; see `llmpp_core.text.readers.open_corpus`.
    executor : concurrent.futures.Executor, optional
        Works on several token shards at once. That of a cluster needs `folder` to be one that all its machines share, under one path.
    progress : bool
        Show a progress bar per stage.

    Returns
    -------
    dict
        The manifest: settings, source, pairs left out by each filter, size and sha256 of every file, versions.

    Raises
    ------
    ValueError
        If the folder was prepared from something else or with other settings, a file is damaged, the disk too small, or no pair
        passes the filters.
    """
    reader = open_corpus(name, "train", corpus)
    identity = {"task": name, "source": reader.identity(), "settings": asdict(settings)}
    # What is finished is only checked, which several may do, and where nothing can be written.
    with nullcontext() if (folder / "manifest.json").exists() else alone(folder):
        _same(folder, identity)
        for left in folder.glob(".*.partial"):
            left.unlink()
        clean_text(reader, folder, settings, progress)
        for side in ("valid", "test"):
            if not (path := folder / _TEXT[side]).exists():
                text = held_out(name, side, corpus)
                write_shard(path, {"src": text.src, "tgt": text.tgt}, {})
        train_vocabulary(folder, settings)
        tokenise(folder, settings, executor, progress)
        return _finish(folder, identity)


def clean_text(reader: Any, folder: Path, settings: Settings, progress: bool = False) -> None:
    """Write the shards of text, those that are not there yet, each from where the one before it ends."""
    k, position, last, blocks = 0, None, False, None
    with progress_bar(desc="clean", unit=" pairs", unit_scale=True, disable=not progress) as bar:
        while not last:
            path = folder / f"text-{k:05}.arrow"
            if path.exists():
                # What follows a gap stays, and so do tokens without text: settings and corpus decide what is in the shard of a number.
                record, blocks = read_shard(path)[1], None
                position, last = record["position"], record["last"]
            else:
                if blocks is None:
                    done = sum(shard.stat().st_size for shard in _shards(folder, "text"))
                    need_disk(folder, max(0, reader.size - done) * 11 // 10, "the cleaned text")
                    # Kept until the next shard that is there, since in packed files going to a position means reading up to it.
                    blocks = reader.blocks(position, settings.shard)
                src, tgt, position, last = next(blocks)
                rows, report = clean(src, tgt, longest=settings.words, ratio=settings.word_ratio)
                columns = {"src": [src[i] for i in rows], "tgt": [tgt[i] for i in rows]}
                write_shard(path, columns, {**asdict(report), "position": position, "last": last})
                bar.update(report.pairs)
            k += 1


def train_vocabulary(folder: Path, settings: Settings) -> None:
    """Write the vocabulary, trained on evenly spaced pairs, and fewer such pairs as a sample of the text, if they are not there yet."""
    path, examples = folder / "vocabulary.json", folder / _TEXT["train"]
    if path.exists() and examples.exists():
        return
    need_disk(folder, 2**24, "the vocabulary")
    pairs = sum(read_shard(shard)[1]["rows"] for shard in _shards(folder, "text"))
    if pairs == 0:
        raise ValueError(f"{folder}: no pair of the corpus passes the filters")
    src, tgt = (list(chain.from_iterable(side)) for side in zip(*_spaced(folder, -(-pairs // _EXAMPLES)), strict=True))
    write_shard(examples, {"src": src, "tgt": tgt}, {})
    texts = chain.from_iterable(chain(src, tgt) for src, tgt in _spaced(folder, -(-pairs // settings.sample)))
    replace_file(path, Vocabulary.subwords(texts, settings.subwords).to_json().encode())


def tokenise(folder: Path, settings: Settings, executor: Executor | None = None, progress: bool = False) -> None:
    """Write the shards of tokens, those that are not there yet."""
    shards = _shards(folder, "text")
    missing = [shard for shard in shards if not _tokens_of(shard).exists()]
    # Two bytes per token and eight per pair: about half of the text, for words of any European language.
    need_disk(folder, sum(shard.stat().st_size for shard in missing) * 7 // 10, "the tokens")
    arguments = missing, [settings] * len(missing)
    done = executor.map(_tokenise, *arguments) if executor else map(_tokenise, *arguments)
    with progress_bar(desc="tokens", unit=" pairs", unit_scale=True, disable=not progress) as bar:
        for pairs in done:
            bar.update(pairs)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder; raises ValueError if it is damaged or a file is not as long as it says."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: {'damaged; remove it and' if path.exists() else 'missing;'} prepare the corpus again") from None
    for name, size in sizes.items():
        file = folder / name
        # The text has had its use.
        if not name.startswith("text-") and (not file.exists() or file.stat().st_size != size):
            raise ValueError(f"{file}: {'damaged' if file.exists() else 'missing'}; remove what is left of it and prepare the corpus again")
    return manifest


def load_prepared(folder: Path) -> tuple[dict[str, Any], Vocabulary, dict[str, ParallelText], Pairs]:
    """Return manifest, vocabulary, text and training pairs of a prepared folder.

    Of the training text only 10,000 pairs are loaded, evenly spaced; the tokens of all stay on disk.
    """
    manifest = read_manifest(folder)
    vocabulary = Vocabulary.from_json((folder / "vocabulary.json").read_text(encoding="utf-8"))
    text = {}
    for side, name in _TEXT.items():
        table, _ = read_shard(folder / name)
        src, tgt = (table.column(column).to_pylist() for column in ("src", "tgt"))
        text[side] = ParallelText(src, tgt, f"{manifest['task']} {side}")
    pairs = Pairs.from_stored(
        *stored_tokens([folder / name for name in manifest["files"] if name.startswith("train-")], manifest["digest"])
    )
    return manifest, vocabulary, text, pairs


def _same(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note what a folder is prepared from, or refuse if that was something else."""
    path = folder / "settings.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(identity, indent=1).encode())
        return
    try:
        there = json.loads(path.read_bytes())
        flat = [{"task": x["task"], "source": x["source"], **x["settings"]} for x in (there, identity)]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: damaged; choose another folder") from None
    different = [f"{key} is {flat[0].get(key)} there and {flat[1][key]} here" for key in flat[1] if flat[0].get(key) != flat[1][key]]
    if different:
        raise ValueError(f"{folder} was prepared otherwise: {'; '.join(different)}; choose another folder")


def _shards(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}-*.arrow"))


def _tokens_of(shard: Path) -> Path:
    return shard.with_name(shard.name.replace("text-", "train-"))


def _spaced(folder: Path, step: int) -> Iterator[tuple[list[str], list[str]]]:
    """Yield source and target of every `step`-th pair of the text, some at a time."""
    first = 0
    for shard in _shards(folder, "text"):
        table, record = read_shard(shard)
        for start in range(-first % step, record["rows"], step * _AT_ONCE):
            rows = np.arange(start, min(start + step * _AT_ONCE, record["rows"]), step)
            src, tgt = (table.column(column).take(rows).to_pylist() for column in ("src", "tgt"))
            yield src, tgt
        first += record["rows"]


def _tokenise(shard: Path, settings: Settings) -> int:
    """Write the tokens of a shard of text and return how many pairs it has."""
    import pyarrow as pa  # type: ignore[import-untyped]

    vocabulary = Vocabulary.from_json((shard.parent / "vocabulary.json").read_text(encoding="utf-8"))
    table, record = read_shard(shard)
    left_out = Counter(long_subwords=0, unequal_subwords=0)
    kept: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {"src": ([], []), "tgt": ([], [])}
    for start in range(0, record["rows"], _AT_ONCE):
        sides = {column: vocabulary.encode(table.column(column).slice(start, _AT_ONCE).to_pylist()) for column in kept}
        a, b = (np.fromiter(map(len, side), dtype=np.int64, count=len(side)) for side in sides.values())
        few, many = np.minimum(a, b), np.maximum(a, b)
        long = many > settings.longest
        # Spaces of odd kinds may have been all there was.
        unequal = ~long & ((many > settings.ratio * few) | (few == 0))
        left_out.update(long_subwords=int(long.sum()), unequal_subwords=int(unequal.sum()))
        rows = np.flatnonzero(~long & ~unequal)
        for (lengths, values), tokens, length in zip(kept.values(), sides.values(), (a, b), strict=True):
            lengths.append(length[rows])
            values.append(np.fromiter(chain.from_iterable(tokens[i] for i in rows), dtype=np.uint16, count=int(length[rows].sum())))
    columns = {}
    for column, (lengths, values) in kept.items():
        offsets = np.concatenate([[0], *lengths]).cumsum().astype(np.int32)
        columns[column] = pa.ListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.uint16), *values]))
    write_shard(_tokens_of(shard), columns, left_out)
    return int(record["rows"])


def _finish(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Check all files and return the manifest, which is written if it is not there yet."""
    text, train = _shards(folder, "text"), _shards(folder, "train")
    files: dict[str, dict[str, Any]] = {}
    records = {}
    for path in [*text, *train, *(folder / name for name in (*_TEXT.values(), "vocabulary.json"))]:
        with open(path, "rb") as file:
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if path.suffix == ".arrow":
            records[path] = read_shard(path)[1]
    path = folder / "manifest.json"
    if path.exists():
        manifest = read_manifest(folder)
        for name, found in files.items():
            if manifest["files"].get(name) != found:
                raise ValueError(
                    f"{folder / name}: damaged, its checksum is not that of the manifest; remove it and prepare the corpus again"
                )
        return manifest
    counts = {key: sum(records[shard][key] for shard in text) for key in ("pairs", "empty", "long", "unequal")}
    counts |= {key: sum(records[shard][key] for shard in train) for key in ("long_subwords", "unequal_subwords")}
    counts |= {"kept": sum(records[shard]["rows"] for shard in train)}
    if counts["kept"] == 0:
        raise ValueError(f"{folder}: no pair of the corpus passes the filters on subwords")
    counts |= {side: records[folder / f"{side}.arrow"]["rows"] for side in ("valid", "test")}
    tokens = hashlib.sha256("".join(files[shard.name]["sha256"] for shard in train).encode()).hexdigest()
    manifest = {
        **identity,
        "counts": counts,
        "vocabulary": len(Vocabulary.from_json((folder / "vocabulary.json").read_text(encoding="utf-8"))),
        "digest": tokens,
        "files": files,
        "versions": {name: version(name) for name in ("datasets", "pyarrow", "tokenizers")},
    }
    replace_file(path, json.dumps(manifest, indent=1).encode())
    return manifest
