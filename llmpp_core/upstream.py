"""Upstream files: where they are, whether they are whole, and what they hold.

Files come from `LLMPP_DATA_DIR` where that is set, else from the user's cache, else from their public addresses. Each is
checked against the sha256 in `registry.tsv` every time it is read; a damaged one is set aside and never used.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llmpp_core.jobs.files import SourceError, cache_dir, read_row
from llmpp_core.space.architecture import Architecture

#: Groups of files by the name that notebooks and ``llmpp fetch`` use.
GROUPS = {
    "tfs": "llmas/data/train-test_seedarchs/",
    "unlabelled": "llmas/data/bleu_predictor_data/",
    "latency": "hat/latency_dataset/",
    "multi30k": "multi30k/data/task1/raw/",
}
# Repository and commit that each top folder mirrors.
_MIRRORS = {
    "llmas": "https://raw.githubusercontent.com/UBC-NLP/llmas/35980b8faf884c51d25fa45a644b47729f152e03/",
    "hat": "https://raw.githubusercontent.com/mit-han-lab/hardware-aware-transformers/70e5a279d080670208249fdd98ed731fa9bcc466/",
    "multi30k": "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/",
}


class PaperTask(NamedTuple):
    """A task of the paper: its name in the records, its title, the language English is translated to, and the records' joint subwords."""

    records: str
    title: str
    target: str
    subwords: int


#: The paper's tasks by the names of their corpora.
PAPER_TASKS = {
    "wmt14.en-de": PaperTask("wmt14ende", "WMT'14 En-De", "German", 32_768),
    "wmt14.en-fr": PaperTask("wmt14enfr", "WMT'14 En-Fr", "French", 44_512),
    "wmt19.en-de": PaperTask("wmt19ende", "WMT'19 En-De", "German", 49_600),
}
#: Their titles by the names in the records, and the seeds of the paper's three splits.
TFS_TASKS = {task.records: task.title for task in PAPER_TASKS.values()}
TFS_SPLITS = (123, 456, 789)
#: The supernets whose BLEU the records hold, by their names upstream.
SUPERNETS = ("HAT", "Supernet (Sandwich)", "Layer-wise MoS", "Neuron-wise MoS")


class DamagedFileError(SourceError):
    """A file on this machine does not have the checksum of the registry."""


class TFSSplit(NamedTuple):
    """Ten demonstrations and twenty test architectures of one task, with the scores of training from scratch; see `read_tfs`."""

    task: str
    seed: int
    demonstrations: pd.DataFrame
    test: pd.DataFrame


@cache
def registry() -> dict[str, tuple[str, int]]:
    """Return sha256 and size in bytes of every upstream file, by its path below the data folder."""
    with open(Path(__file__).with_name("registry.tsv"), newline="") as file:
        return {row["path"]: (row["sha256"], int(row["bytes"])) for row in csv.DictReader(file, delimiter="\t")}


def names(group: str) -> list[str]:
    """Return the files of a group of `GROUPS`, or the file itself if `group` names one."""
    if group in registry():
        return [group]
    if group not in GROUPS:
        raise ValueError(f"unknown data {group!r}; allowed are {', '.join(GROUPS)} or a path of registry.tsv")
    return [name for name in registry() if name.startswith(GROUPS[group])]


def places() -> Iterator[Path]:
    """Yield where files may be, best first: ``LLMPP_DATA_DIR``, then the cache, which is asked for only if somebody wants to know."""
    if os.environ.get("LLMPP_DATA_DIR"):
        yield Path(os.environ["LLMPP_DATA_DIR"])
    yield cache_dir()


def fetch(name: str, *, download: bool = True, progress: bool = False) -> Path:
    """Return the local path of one upstream file, downloading it where needed and allowed.

    Raises DamagedFileError if the file here is damaged, which is renamed to end in ``.damaged``; SourceError if it is not to be had.
    """
    if name not in registry():
        raise ValueError(f"unknown data {name!r}; registry.tsv lists the upstream files")
    sha256, _ = registry()[name]
    for folder in places():
        path = folder / name
        if path.is_file():
            _check(path, sha256)
            return path
    if not download:
        raise SourceError(f"{name} is not here; set LLMPP_DATA_DIR or run: llmpp fetch")
    top, _, rest = name.partition("/")
    with warnings.catch_warnings():
        # Loading it, which those whose files are here need not have, loads tqdm: a warning about missing widgets, and a path, in notebooks.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import pooch
    # Not with env="LLMPP_DATA_DIR": pooch would write there, and over files that are damaged.
    source = pooch.create(cache_dir() / top, _MIRRORS[top], registry={rest: f"sha256:{sha256}"})
    try:
        return Path(source.fetch(rest, downloader=pooch.HTTPDownloader(progressbar=progress, timeout=20)))
    except OSError as error:  # which those of requests are
        where = f"LLMPP_DATA_DIR or {cache_dir()}"
        raise SourceError(f"{name} could not be downloaded ({type(error).__name__}) and is not in {where}") from None
    except ValueError:
        raise SourceError(f"{name}: the download does not have the expected sha256 {sha256}; it was discarded") from None


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == sha256:
        return
    aside = path.with_name(path.name + ".damaged")
    try:
        path.replace(aside)
        what = f"set aside as {aside.name}"
    except OSError:
        what = "left in place, the folder cannot be written"
    raise DamagedFileError(f"{path} is damaged: sha256 is {found[:12]}…, expected {sha256[:12]}…; not used, {what}")


def online(seconds: float = 5) -> bool:
    """Return whether the public addresses answer within so many seconds; any answer will do."""
    answers = []

    def ask() -> None:
        import requests

        with contextlib.suppress(requests.RequestException):
            answers.append(requests.head(next(iter(_MIRRORS.values())), timeout=seconds))

    # A name server that is out of reach keeps the caller waiting whatever its timeout, so the caller is a thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def missing(groups: Iterable[str], *, download: bool = True) -> str | None:
    """Return why the first file of `groups` that cannot be had cannot, or None if all are at hand; DamagedFileError if one is damaged."""
    try:
        for name in (name for group in groups for name in names(group)):
            fetch(name, download=download)
    except DamagedFileError:
        raise
    except SourceError as error:
        return str(error)
    return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; raises ValueError naming file and line if one is damaged."""
    rows = []
    # Read as bytes, so that a byte that is no UTF-8 is found in its line too.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if (row := read_row(line)) is None:
                text = line.decode(errors="replace").strip()
                raise ValueError(f"{path}, line {number}: expected one JSON object, got {text[:60]!r}")
            rows.append(row)
    return rows


# What our columns are called in the records.
_TFS_COLUMNS = {
    "bleu": "valid_BLEU",
    "test_bleu": "test_BLEU",
    "parameters": "num_parameters_without_embedding_weights",
    "embedding_parameters": "num_embedding_parameters",
    "flops": "total_flops_without_last_layer",
    "flops_total": "total_flops",
    "latency_ms": "overall_latency",
}


def read_tfs(path: Path) -> pd.DataFrame:
    """Read a file of train-from-scratch records; raises ValueError naming file and line if one is damaged.

    Returns
    -------
    pandas.DataFrame
        architecture; bleu (validation, the quantity to predict) and test_bleu after training from scratch; parameters
        and flops without embeddings and output projection, flops_total with it; embedding_parameters; latency_ms; and
        one column per name in `SUPERNETS`, the validation BLEU with that supernet's weights.
    """
    rows = []
    for number, record in enumerate(read_jsonl(path), 1):
        try:
            scratch = record["scratch"]
            row = {"architecture": Architecture.from_prompt_lines(scratch["arch_info"])}
            row |= {ours: scratch[theirs] for ours, theirs in _TFS_COLUMNS.items()}
            rows.append(row | {supernet: record[supernet]["valid_BLEU"] for supernet in SUPERNETS})
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: the record has no {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return pd.DataFrame(rows)


def _read_split(task: str, seed: int, download: bool) -> TFSSplit:
    folder = f"{GROUPS['tfs']}{seed}/{task}/"
    return TFSSplit(task, seed, *(read_tfs(fetch(f"{folder}{part}.jsonl", download=download)) for part in ("train", "test")))


def tfs_splits(*, download: bool = True) -> Iterator[TFSSplit]:
    """Yield the paper's nine splits: three tasks, three seeds each."""
    for task in TFS_TASKS:
        for seed in TFS_SPLITS:
            yield _read_split(task, seed, download)


def tfs_records(task: str, *, download: bool = True) -> pd.DataFrame:
    """Return the 30 architectures of one task of `TFS_TASKS`, in a fixed order."""
    if task not in TFS_TASKS:
        raise ValueError(f"unknown task {task!r}; allowed are {', '.join(TFS_TASKS)}")
    split = _read_split(task, TFS_SPLITS[0], download)
    return pd.concat([split.demonstrations, split.test]).sort_values(["flops", "bleu"], ignore_index=True)


#: HAT's latency tables: "task device" as in their file names.
LATENCY_TABLES = {Path(name).stem.removesuffix("_all"): name for name in names("latency")}
# HAT's names of our columns.
_HAT_COLUMNS = {
    "encoder_embed_dim": "encoder_embed_dim",
    "encoder_layer_num": "encoder_layers",
    "encoder_ffn_embed_dim_avg": "encoder_ffn_dim_mean",
    "encoder_self_attention_heads_avg": "encoder_heads_mean",
    "decoder_embed_dim": "decoder_embed_dim",
    "decoder_layer_num": "decoder_layers",
    "decoder_ffn_embed_dim_avg": "decoder_ffn_dim_mean",
    "decoder_self_attention_heads_avg": "decoder_self_heads_mean",
    "decoder_ende_attention_heads_avg": "decoder_cross_heads_mean",
    "decoder_arbitrary_ende_attn_avg": "decoder_cross_layers_mean",
    "latency_mean_encoder": "encoder_ms",
    "latency_mean_decoder": "decoder_ms",
    "latency_std_encoder": "encoder_std_ms",
    "latency_std_decoder": "decoder_std_ms",
}


def read_latency(path: Path) -> pd.DataFrame:
    """Read one of HAT's latency tables; raises ValueError naming file and column or line if it is damaged.

    Returns
    -------
    pandas.DataFrame
        The ten columns of `llmpp_core.space.features.HAT_FEATURE_NAMES`; encoder_ms and decoder_ms, means over runs; their standard
        deviations, encoder_std_ms and decoder_std_ms; and latency_ms, the sum of the means. Rows stay in the order of the file.
    """
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV table: {' '.join(str(error).split())}") from None
    absent = [column for column in _HAT_COLUMNS if column not in table]
    if absent:
        raise ValueError(f"{path}: column {', '.join(absent)} is missing; found {', '.join(map(str, table.columns))}")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the fields that have no column name for an index
        raise ValueError(f"{path}, line 2: expected {table.shape[1]} fields as in the header, found more")
    table = table[list(_HAT_COLUMNS)].rename(columns=_HAT_COLUMNS).apply(pd.to_numeric, errors="coerce").astype(float)
    bad = table.index[~np.isfinite(table).all(axis=1)]
    if len(bad):
        raise ValueError(f"{path}, line {bad[0] + 2}: expected numbers only")
    return table.assign(latency_ms=table["encoder_ms"] + table["decoder_ms"])


def latency_table(name: str, *, download: bool = True) -> pd.DataFrame:
    """Return one of the eight tables of `LATENCY_TABLES`; see `read_latency`."""
    if name not in LATENCY_TABLES:
        raise ValueError(f"unknown latency table {name!r}; allowed are {', '.join(LATENCY_TABLES)}")
    return read_latency(fetch(LATENCY_TABLES[name], download=download))
