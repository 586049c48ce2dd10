"""Parallel text: sentences and their translations, from lists, files, Multi30k and WMT.

What is damaged is an error that names file and line. Only `clean` leaves pairs out, and it says how many and why.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpp_core.jobs.files import SourceError, cache_dir
from llmpp_core.upstream import GROUPS, fetch, places

#: The three sides of a corpus.
SIDES = ("train", "valid", "test")
#: Names of languages.
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "cs": "Czech"}
# Test is the Flickr set of 2016, the one that papers report and all three languages have.
_MULTI30K = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
#: Data set, configuration and split on the Hugging Face Hub of each side of the WMT tasks. As in HAT's table of data: newstest2013 and
#: newstest2014 for WMT'14 (HAT adds newstest2012 to the validation side of En-Fr), newstest2017 and newstest2018 for WMT'19.
WMT = {
    name: {side: (f"wmt/{year}", f"{other}-en", split) for side, year, split in splits}
    for name, other, splits in (
        ("wmt14.en-de", "de", [("train", "wmt14", "train"), ("valid", "wmt14", "validation"), ("test", "wmt14", "test")]),
        ("wmt14.en-fr", "fr", [("train", "wmt14", "train"), ("valid", "wmt14", "validation"), ("test", "wmt14", "test")]),
        ("wmt19.en-de", "de", [("train", "wmt19", "train"), ("valid", "wmt17", "test"), ("test", "wmt19", "validation")]),
    )
}
#: Names of the sides in files of Hugging Face's form.
SPLITS = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Cleaning:
    """How many training pairs `clean` saw and left out, each for the first reason that holds.

    Parameters
    ----------
    pairs : int
        Pairs before.
    empty, long, unequal : int
        Pairs with an empty side, with a side of too many words, and with one side too many times as long as the other.
    """

    pairs: int
    empty: int
    long: int
    unequal: int

    @property
    def kept(self) -> int:
        """Pairs after."""
        return self.pairs - self.empty - self.long - self.unequal

    def __str__(self) -> str:
        left_out = f"{self.empty:,} empty, {self.long:,} too long, {self.unequal:,} of too unequal length"
        return f"{self.kept:,} of {self.pairs:,} pairs kept; left out: {left_out}"


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations, in the same order.

    Parameters
    ----------
    src, tgt : sequence of str
        Lists, or columns of a data set that stays on disk.
    name : str
        For messages.
    cleaning : Cleaning, optional
        What was left out.

    Raises
    ------
    ValueError
        If the sides differ in length or a sentence is empty.
    """

    src: Sequence[str]
    tgt: Sequence[str]
    name: str = "text"
    cleaning: Cleaning | None = None

    def __post_init__(self) -> None:
        for side, sentences in (("source", self.src), ("target", self.tgt)):
            if isinstance(sentences, (str, Path)):
                raise ValueError(f"{self.name}: the {side} is {str(sentences)!r}; expected a sequence of sentences, or files on both sides")
            if not isinstance(sentences, Sequence):
                # Such as a Series, whose labels are no positions, or a generator.
                object.__setattr__(self, {"source": "src", "target": "tgt"}[side], list(sentences))
        if len(self.src) != len(self.tgt):
            raise ValueError(
                f"{self.name}: {len(self.src):,} source and {len(self.tgt):,} target sentences; every line needs its translation"
            )
        for side, sentences in (("source", self.src), ("target", self.tgt)):
            try:
                empty = _first_empty(stream(sentences))
            except AttributeError:
                raise ValueError(f"{self.name}: the {side} has a sentence that is no text") from None
            if empty is not None:
                raise ValueError(f"{self.name}: the {side} of pair {empty:,} is empty; remove the pair")

    def __len__(self) -> int:
        return len(self.src)

    def shorter(self, words: int, at_most: int | None = None) -> ParallelText:
        """Return the pairs with no more than so many words on either side, the first `at_most` of them."""
        kept = [(a, b) for a, b in zip(stream(self.src), stream(self.tgt), strict=True) if max(len(a.split()), len(b.split())) <= words]
        src, tgt = ([pair[i] for pair in kept[:at_most]] for i in (0, 1))
        return ParallelText(src, tgt, f"{self.name}, at most {words} words", self.cleaning)


def stream(sentences: Sequence[str]) -> Iterator[str]:
    """Yield sentences in order; columns on disk are read by the ten thousand, which is far faster than one by one."""
    for start in range(0, len(sentences), 10_000):
        yield from sentences[start : start + 10_000]


def read_lines(path: str | Path) -> list[str]:
    """Read a file of one sentence per line, plain or ``.gz``.

    Raises
    ------
    ValueError
        If it is no gzip file though named so, or a line is not UTF-8; names the file and the line.
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged, or not a gzip file: {error}") from None
    # Not splitlines, which also parts at characters that sentences of web text hold.
    lines = data.removeprefix(codecs.BOM_UTF8).removesuffix(b"\n").split(b"\n") if data else []
    sentences = []
    for number, line in enumerate(lines, 1):
        try:
            sentences.append(line.decode().removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number:,}: not UTF-8 at byte {error.start + 1}") from None
    return sentences


def read_parallel(src: str | Path, tgt: str | Path, name: str | None = None, *, cleaned: bool = False) -> ParallelText:
    """Read two files whose lines are translations of each other.

    Parameters
    ----------
    src, tgt : path
        Plain text or ``.gz``, one sentence per line.
    name : str, optional
        For messages; the name of the source file by default.
    cleaned : bool
        Leave out the pairs that `clean` does, as suits training text.

    Returns
    -------
    ParallelText

    Raises
    ------
    ValueError
        If the numbers of lines differ, a line is empty (unless `cleaned`) or is not UTF-8; names the file and the line.
    """
    sides = [read_lines(src), read_lines(tgt)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"{src} has {len(sides[0]):,} lines, {tgt} has {len(sides[1]):,}; every line needs its translation")
    report = None
    if cleaned:
        rows, report = clean(*sides)
        sides = [[lines[i] for i in rows] for lines in sides]
    for path, lines in zip((src, tgt), sides, strict=True):
        empty = _first_empty(lines)
        if empty is not None:
            raise ValueError(f"{path}, line {empty:,}: empty; remove the line from both files")
    return ParallelText(sides[0], sides[1], name or Path(src).name, report)


def as_parallel(text: ParallelText | tuple[Any, Any], name: str) -> ParallelText:
    """Return parallel text from a pair of files or of sequences of sentences."""
    if isinstance(text, ParallelText):
        return text
    src, tgt = text
    if isinstance(src, (str, Path)) and isinstance(tgt, (str, Path)):
        return read_parallel(src, tgt, name)
    return ParallelText(src, tgt, name)


def clean(src: Sequence[str], tgt: Sequence[str], *, longest: int = 250, ratio: float = 2.0) -> tuple[list[int], Cleaning]:
    """Choose the training pairs to keep.

    Parameters
    ----------
    src, tgt : sequence of str
        Sentences; None counts as empty.
    longest : int
        Most words on a side; HAT's limit, which counts subwords.
    ratio : float
        Most times that one side may have the words of the other. HAT takes 1.5 of subwords; of words, that would leave out a fifth
        of the English-Czech captions of Multi30k, and 2 leaves out 1.3 % of them and 0.1 % of the English-German ones.

    Returns
    -------
    rows : list of int
        Positions of the pairs to keep.
    cleaning : Cleaning
        How many were left out, and why.
    """
    rows: list[int] = []
    left_out: Counter[str] = Counter()
    for row, (a, b) in enumerate(zip(stream(src), stream(tgt), strict=True)):
        few, many = sorted((len((a or "").split()), len((b or "").split())))
        if few == 0:
            left_out["empty"] += 1
        elif many > longest:
            left_out["long"] += 1
        elif many > ratio * few:
            left_out["unequal"] += 1
        else:
            rows.append(row)
    return rows, Cleaning(len(src), left_out["empty"], left_out["long"], left_out["unequal"])


def multi30k(target: str, side: str) -> ParallelText:
    """Return a side of Multi30k (Elliott et al., 2016), English and "de", "fr" or "cs".

    Raises
    ------
    SourceError
        If the files can be had neither locally nor from the network.
    """
    stem = f"{GROUPS['multi30k']}{_MULTI30K[side]}"
    return read_parallel(fetch(f"{stem}.en.gz"), fetch(f"{stem}.{target}.gz"), f"multi30k.en-{target} {side}")


def wmt(name: str, side: str) -> ParallelText:
    """Return a side of a WMT task, from local files or else from the Hugging Face Hub; training pairs are cleaned.

    Local files are those of a folder called `name` in `LLMPP_DATA_DIR` or in the user's cache: ``train``, ``validation`` and ``test``, as
    ``.jsonl`` (also ``.gz``) or ``.parquet``, in one piece or in shards (``train-00000-of-00003.parquet``), with a column
    "translation" that holds the sentence in each language, such as ``{"translation": {"de": "Guten Tag", "en": "Good day"}}``.
    The sentences stay on disk.

    Raises
    ------
    SourceError
        If there are no such files and the Hub cannot be reached.
    ValueError
        If the files are damaged or of another form.
    """
    data, report = wmt_columns(name, side), None
    src, tgt = data.column_names
    if side == "train":
        rows, report = clean(data[src], data[tgt])
        data = data.select(rows)
    return ParallelText(data[src], data[tgt], f"{name} {side}", report)


def wmt_columns(name: str, side: str, folder: Path | None = None) -> Any:
    """Return what `wmt` does as it is, nothing left out: a `datasets.Dataset` with a column of source and one of target sentences.

    Where a `folder` is given, its files are taken, and nothing else.
    """
    target = name.rpartition("-")[2]
    title, data = f"{name} {side}", _hub_data(name, side, folder)
    feature = data.features.get("translation")
    # A `datasets.Translation`, or a dict where the files do not name the type.
    if not {"en", target} <= set(getattr(feature, "languages", feature if isinstance(feature, dict) else ())):
        raise ValueError(f'{title}: expected a column "translation" with "en" and "{target}"; the columns are {data.features}')
    return data.flatten().select_columns(["translation.en", f"translation.{target}"])


def _hub_data(name: str, side: str, folder: Path | None) -> Any:
    """Return a `datasets.Dataset` with the column "translation"."""
    import datasets  # type: ignore[import-untyped]  # takes a second to load

    looked: list[Path] = []
    for place in [folder] if folder else (place / name for place in places()):
        looked.append(place)
        if found := sorted(place.glob(f"{SPLITS[side]}[.-]*")):
            break
    files = [str(path) for path in found]
    if folder and not files:
        raise ValueError(f"{folder}: no {SPLITS[side]} files; expected one per language, or jsonl or parquet")
    if not files:
        dataset, configuration, split = WMT[name][side]
        try:
            return datasets.load_dataset(dataset, configuration, split=split)
        except Exception as error:  # each version of the library has its own errors for an address that does not answer
            where = " or ".join(map(str, looked))
            raise SourceError(
                f"{name}: no {SPLITS[side]} files in {where}, and {dataset} is not to be had ({type(error).__name__})"
            ) from None
    kinds = {"parquet" if file.endswith(".parquet") else "json" for file in files}
    if len(kinds) > 1:
        raise ValueError(f"{found[0].parent}: {SPLITS[side]} is there both as parquet and as jsonl; keep one")
    try:
        reader = datasets.Dataset.from_parquet if kinds == {"parquet"} else datasets.Dataset.from_json
        return reader(files, cache_dir=str(cache_dir() / "datasets"))
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{', '.join(files)}: damaged or of another form: {' '.join(str(error.__cause__).split())}") from None


def _first_empty(sentences: Iterable[str]) -> int | None:
    """Return the position, counted from 1, of the first sentence without a word."""
    return next((i for i, sentence in enumerate(sentences, 1) if not (sentence or "").strip()), None)
