"""Parallel text: sentences and their translations, from lists, files, Multi30k and WMT.

What is damaged is an error that names file and line; no pair is left out in silence.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmpp_core.jobs.files import SourceError
from llmpp_core.upstream import GROUPS, fetch, places

#: The three sides of a corpus.
SIDES = ("train", "valid", "test")
#: Names of the languages of Multi30k.
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "cs": "Czech"}
# Test is the Flickr set of 2016, the one that papers report and all three languages have.
_MULTI30K = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
# The sides of the WMT tasks: their names in files, and data set and split on the Hugging Face Hub. As in HAT's table of data: newstest2013
# and newstest2014 for WMT'14 (HAT adds newstest2012 to the validation side of En-Fr), newstest2017 and newstest2018 for WMT'19.
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_HUB = {
    "wmt14": {side: ("wmt/wmt14", split) for side, split in _SPLITS.items()},
    "wmt19": {"train": ("wmt/wmt19", "train"), "valid": ("wmt/wmt17", "test"), "test": ("wmt/wmt19", "validation")},
}


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations, in the same order.

    Raises
    ------
    ValueError
        If the sides differ in length or a sentence is empty or no text.
    """

    #: Source sentences; what is no sequence, such as a Series, whose labels are no positions, becomes a list.
    src: Sequence[str]
    #: Target sentences.
    tgt: Sequence[str]
    #: For messages.
    name: str = "text"

    def __post_init__(self) -> None:
        for field, side in (("src", "source"), ("tgt", "target")):
            sentences = getattr(self, field)
            if isinstance(sentences, (str, Path)):
                raise ValueError(f"{self.name}: the {side} is {str(sentences)!r}; expected a sequence of sentences, or files on both sides")
            if not isinstance(sentences, Sequence):
                object.__setattr__(self, field, list(sentences))
        if len(self.src) != len(self.tgt):
            lengths = f"{len(self.src):,} source and {len(self.tgt):,} target sentences"
            raise ValueError(f"{self.name}: {lengths}; every line needs its translation")
        for side, sentences in (("source", self.src), ("target", self.tgt)):
            for number, sentence in enumerate(sentences, 1):
                if sentence is not None and not isinstance(sentence, str):
                    raise ValueError(f"{self.name}: the {side} of pair {number:,} is no text, but {sentence!r}")
                if not (sentence or "").strip():
                    raise ValueError(f"{self.name}: the {side} of pair {number:,} is empty; remove the pair")

    def __len__(self) -> int:
        return len(self.src)

    def shorter(self, words: int, at_most: int | None = None) -> ParallelText:
        """Return the pairs with no more than so many words on either side, the first `at_most` of them."""
        pairs = zip(self.src, self.tgt, strict=True)
        kept = [pair for pair in pairs if max(len(sentence.split()) for sentence in pair) <= words][:at_most]
        return ParallelText([a for a, _ in kept], [b for _, b in kept], f"{self.name}, at most {words} words")


def read_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a file, plain or ``.gz``; ValueError, naming file and line, if it is no gzip file or a line is not UTF-8."""
    path, number = Path(path), 0
    try:
        with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb") as file:
            # A line ends at a newline and nowhere else: web text holds other characters at which `str.splitlines` parts.
            for number, line in enumerate(file, 1):
                yield (line if number > 1 else line.removeprefix(codecs.BOM_UTF8)).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number:,}: not UTF-8 at byte {error.start + 1}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged, or not a gzip file: {error}") from None


def read_pairs(src: str | Path, tgt: str | Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs of two files whose lines are translations of each other; ValueError, as in `read_lines`, also if one is longer."""
    files = read_lines(src), read_lines(tgt)
    for number, (a, b) in enumerate(zip_longest(*files), 1):
        if a is None or b is None:
            lines = [number + sum(1 for _ in file) if line is not None else number - 1 for line, file in zip((a, b), files, strict=True)]
            raise ValueError(f"{src} has {lines[0]:,} lines, {tgt} has {lines[1]:,}; every line needs its translation")
        yield a, b


def as_parallel(text: ParallelText | tuple[Any, Any], name: str) -> ParallelText:
    """Return parallel text from two files or two sequences of sentences; ValueError for what is neither and, naming it, an empty one."""
    if isinstance(text, ParallelText):
        return text
    if not isinstance(text, Sequence) or isinstance(text, str) or len(text) != 2:
        raise ValueError(f"{name}: expected source and target, two files or two sequences of sentences, got {str(text)[:60]!r}")
    if not all(isinstance(side, (str, Path)) for side in text):
        return ParallelText(*text, name)
    pairs = list(read_pairs(*text))
    for number, pair in enumerate(pairs, 1):
        for path, line in zip(text, pair, strict=True):
            if not line.strip():
                raise ValueError(f"{path}, line {number:,}: empty; remove the line from both files")
    return ParallelText([a for a, _ in pairs], [b for _, b in pairs], name)


def multi30k(target: str, side: str) -> ParallelText:
    """Return a side of Multi30k (Elliott et al., 2016), English and "de", "fr" or "cs"; SourceError if its files are not to be had."""
    stem = f"{GROUPS['multi30k']}{_MULTI30K[side]}"
    return as_parallel((fetch(f"{stem}.en.gz"), fetch(f"{stem}.{target}.gz")), f"multi30k.en-{target} {side}")


def find_wmt(name: str, side: str, folder: Path | None = None) -> list[Path]:
    """Return the files of a side of a WMT task: two of lines, or one or several of rows, or none, where only the Hugging Face Hub has it.

    Lines are in ``train.en`` and ``train.de``, ``validation.en`` and so on, also ``.gz``. Rows are in ``train.jsonl`` (also ``.gz``) or
    ``train.parquet``, or in shards (``train-00000-of-00003.parquet``), with a column "translation" such as ``{"de": "Tag", "en": "day"}``.

    They lie in `folder`, by default the folder `name` (such as "wmt14.en-de") in ``LLMPP_DATA_DIR`` or the user's cache. Raises ValueError
    if it has nothing, one language without the other, the same packed and not, or rows in both forms.
    """
    split = _SPLITS[side]
    for place in [folder] if folder else (base / name for base in places()):
        rows = sorted(place.glob(f"{split}[.-]*"))
        if len({path.name.removesuffix(".gz") for path in rows}) < len(rows):
            raise ValueError(f"{place}: {split} is there both packed and not; keep one")
        lines = {f"{split}.{language}": sorted(place.glob(f"{split}.{language}*")) for language in ("en", name[-2:])}
        absent = [stem for stem, files in lines.items() if not files]
        if not absent:
            return [files[0] for files in lines.values()]
        if len(absent) == 1:
            have = next(files[0].name for files in lines.values() if files)
            raise ValueError(f"{place}: there is {have} but no {absent[0]}; a corpus needs both languages")
        if len({path.suffix == ".parquet" for path in rows}) > 1:
            raise ValueError(f"{place}: {split} is there both as parquet and as jsonl; keep one")
        if rows:
            return rows
    if folder:
        raise ValueError(f"{folder}: no {split} files; expected one per language, or jsonl or parquet")
    return []


def read_wmt(name: str, side: str, files: Sequence[Path], at_once: int, cache: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield source and target sentences of what `find_wmt` found, so many at once, "" where there is none; rows are cached in a folder.

    Raises SourceError if there are no files and the Hub cannot be reached, ValueError if they are damaged or of another form.
    """
    if files and files[0].name.startswith(f"{_SPLITS[side]}.en"):
        # Not by the library `datasets`, which ends a line at a lone carriage return too, and so parts what belongs together.
        pairs = read_pairs(*files)
        while block := list(islice(pairs, at_once)):
            yield [a for a, _ in block], [b for _, b in block]
        return
    data = _rows(name, side, files, cache)
    feature, wanted = data.features.get("translation"), ("en", name[-2:])
    # A `datasets.Translation`, or a dict where the files do not name the type.
    if not set(wanted) <= set(getattr(feature, "languages", feature if isinstance(feature, dict) else ())):
        expected = f'expected a column "translation" with "{wanted[0]}" and "{wanted[1]}"'
        raise ValueError(f"{name} {side}: {expected}; the columns are {data.features}")
    try:
        for batch in data.flatten().iter(at_once):
            src, tgt = ([sentence or "" for sentence in batch[f"translation.{language}"]] for language in wanted)
            yield src, tgt
    except UnicodeDecodeError as error:
        raise _damaged(files, error) from None


def _rows(name: str, side: str, files: Sequence[Path], cache: Path) -> Any:
    """Return a `datasets.Dataset` that stays on disk."""
    import datasets  # type: ignore[import-untyped]  # takes a second to load

    if not files:
        dataset, split = _HUB[name.partition(".")[0]][side]
        try:
            return datasets.load_dataset(dataset, f"{name[-2:]}-en", split=split)
        except Exception as error:  # each version of the library has its own errors for an address that does not answer
            where = " or ".join(str(base / name) for base in places())
            reason = f"{dataset} is not to be had ({type(error).__name__})"
            raise SourceError(f"{name}: no {_SPLITS[side]} files in {where}, and {reason}") from None
    read = datasets.Dataset.from_parquet if files[0].suffix == ".parquet" else datasets.Dataset.from_json
    try:
        # The library takes paths for patterns.
        return read([glob.escape(str(path)) for path in files], cache_dir=str(cache))
    except (datasets.exceptions.DatasetGenerationError, ValueError, gzip.BadGzipFile, EOFError, zlib.error, StopIteration) as error:
        raise _damaged(files, error.__cause__ or error) from None


def _damaged(files: Sequence[Path], error: BaseException) -> ValueError:
    return ValueError(f"{', '.join(map(str, files))}: damaged or of another form: {' '.join(str(error).split()) or 'nothing in it'}")
