"""Corpora larger than memory, read block by block from a position that can be gone back to."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from llmpp_core.text.corpora import SPLITS, ParallelText, wmt_columns
from llmpp_core.upstream import places


class Block(NamedTuple):
    """Source and target sentences, where the next block begins, and whether there is none."""

    src: list[str | None]
    tgt: list[str | None]
    position: list[int]
    last: bool


@dataclass(frozen=True)
class LineReader:
    """Two files of one sentence per line, plain or ``.gz``."""

    src: Path
    tgt: Path

    @property
    def size(self) -> int:
        """Bytes of text; of packed files an estimate."""
        return sum(path.stat().st_size * (4 if path.suffix == ".gz" else 1) for path in (self.src, self.tgt))

    def identity(self) -> dict[str, Any]:
        """Return what tells this corpus from another, short of reading it."""
        return {path.name: path.stat().st_size for path in (self.src, self.tgt)}

    def blocks(self, position: list[int] | None, n: int) -> Iterator[Block]:
        """Yield blocks of `n` pairs from `position`; raises ValueError if the numbers of lines differ or a line is damaged."""
        *offsets, line = position or [0, 0, 0]
        with _open(self.src) as a, _open(self.tgt) as b:
            try:
                a.seek(offsets[0])
                b.seek(offsets[1])
                while True:
                    src, tgt = list(islice(a, n)), list(islice(b, n))
                    if len(src) != len(tgt):
                        total = [line + len(lines) + sum(1 for _ in file) for lines, file in ((src, a), (tgt, b))]
                        raise ValueError(
                            f"{self.src} has {total[0]:,} lines, {self.tgt} has {total[1]:,}; every line needs its translation"
                        )
                    block = Block(
                        _decode(src, self.src, line), _decode(tgt, self.tgt, line), [a.tell(), b.tell(), line + len(src)], len(src) < n
                    )
                    yield block
                    if block.last:
                        return
                    line += len(src)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{self.src} or {self.tgt}: damaged, or not a gzip file: {error}") from None


@dataclass(frozen=True)
class ColumnReader:
    """The columns of a `datasets.Dataset`."""

    data: Any

    @property
    def size(self) -> int:
        """Bytes of text, about."""
        return int(self.data.data.nbytes)

    def identity(self) -> dict[str, Any]:
        """Return what tells this corpus from another, short of reading it."""
        return {"rows": len(self.data), "bytes": self.size}

    def blocks(self, position: list[int] | None, n: int) -> Iterator[Block]:
        """Yield blocks of `n` pairs from `position`."""
        (row,) = position or [0]
        while True:
            stop = min(row + n, len(self.data))
            src, tgt = self._slice(row, stop)
            yield Block(src, tgt, [stop], stop == len(self.data))
            if stop == len(self.data):
                return
            row = stop

    def _slice(self, start: int, stop: int) -> list[list[str | None]]:
        import datasets  # type: ignore[import-untyped]

        files = [file["filename"] for file in self.data.cache_files]
        # Mapped anew, since pages that were read count as this process's memory for as long as they are mapped.
        data = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files]).flatten() if files else self.data
        return [data.data.column(column).slice(start, stop - start).to_pylist() for column in self.data.column_names]


def open_corpus(name: str, side: str, folder: Path | None = None) -> LineReader | ColumnReader:
    """Open a side of a WMT task: two files of lines, or what `llmpp_core.text.corpora.wmt` reads.

    Files of lines are called as the split and the language, ``train.en`` and ``train.de``, ``validation.en`` and so on, also ``.gz``.

    Parameters
    ----------
    name : str
        Such as "wmt14.en-de".
    side : str
        train, valid or test.
    folder : path, optional
        Where the files are; by default the folder `name` in ``LLMPP_DATA_DIR`` or the user's cache, or else the Hub.

    Raises
    ------
    ValueError
        If the folder has one language without the other, or nothing.
    """
    languages = ("en", name.rpartition("-")[2])
    for place in [folder] if folder else (base / name for base in places()):
        found = [_lines(place, f"{SPLITS[side]}.{language}") for language in languages]
        if all(found):
            return LineReader(*cast(list[Path], found))
        for language, path in zip(languages, found, strict=True):
            if path is None and any(found):
                have = next(filter(None, found)).name
                raise ValueError(f"{place}: there is {have} but no {SPLITS[side]}.{language}; a corpus needs both languages")
    return ColumnReader(wmt_columns(name, side, folder))


def held_out(name: str, side: str, folder: Path | None = None) -> ParallelText:
    """Return the whole validation or test side; raises ValueError if a sentence is empty."""
    blocks = list(open_corpus(name, side, folder).blocks(None, 10_000))
    src, tgt = ([sentence or "" for side in sides for sentence in side] for sides in zip(*((b.src, b.tgt) for b in blocks), strict=True))
    return ParallelText(src, tgt, f"{name} {side}")


def _lines(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _decode(lines: list[bytes], path: Path, first: int) -> list[str | None]:
    if not first and lines:
        lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
    sentences: list[str | None] = []
    for number, line in enumerate(lines, first + 1):
        try:
            sentences.append(line.decode().rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number:,}: not UTF-8 at byte {error.start + 1}") from None
    return sentences
