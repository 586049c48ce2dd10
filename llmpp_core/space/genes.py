"""Genomes of a search space as rows of integers, so that sampling, variation, costs and features work on many at once.

A row holds, for every gene of `SearchSpace.genes`, the position of its value among the allowed ones, and -1 where the
architecture has no such layer. So equal rows are equal architectures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, overload

import numpy as np

from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.search_space import SearchSpace

# A genome is written as one character per gene: a dot for -1.
_ALPHABET = ".0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_TEXT = np.array(list(_ALPHABET)).view(np.uint32)
_FROM_TEXT = np.full(_TO_TEXT.max() + 2, -2, dtype=np.int8)
_FROM_TEXT[_TO_TEXT] = np.arange(-1, len(_ALPHABET) - 1)
# Span by number of encoder layers read; 0 for none.
_SPANS = np.zeros(max(SPAN_LAYERS.values()) + 1, dtype=int)
_SPANS[list(SPAN_LAYERS.values())] = list(SPAN_LAYERS)


class Genes:
    """Operations on (n, genes) arrays of the genomes of one space.

    Parameters
    ----------
    space : SearchSpace
        At most 62 allowed values per choice.

    Attributes
    ----------
    cardinalities : numpy.ndarray of shape (genes,)
        Number of allowed values of each gene.
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        names = [name for name, _ in space.genes]
        self.cardinalities = np.array([len(getattr(space, name)) for name in names])
        if self.cardinalities.max() >= len(_ALPHABET):
            raise ValueError(f"{space.name}: at most {len(_ALPHABET) - 1} allowed values per choice, got {self.cardinalities.max()}")
        # The genes of a choice lie side by side.
        starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
        self.columns = {names[start]: slice(start, stop) for start, stop in pairwise([*starts, len(names)])}
        # Values by gene and position, the last of them 0 for -1; of spans, how many encoder layers they read.
        self._values = np.zeros((len(names), self.cardinalities.max() + 1), dtype=int)
        for i, name in enumerate(names):
            allowed = getattr(space, name)
            self._values[i, : len(allowed)] = [SPAN_LAYERS[v] for v in allowed] if name == "decoder_cross_spans" else allowed
        self._encoder_depth, self._decoder_depth = self.columns["encoder_layers"].start, self.columns["decoder_layers"].start
        layer = np.array([-1 if i is None else i for _, i in space.genes])
        encoder = np.array([name.startswith("encoder") for name in names])
        # Which genes count, by the positions of the two depths.
        self._active = np.array([[layer < np.where(encoder, e, d) for d in space.decoder_layers] for e in space.encoder_layers])
        changes = [(gene, value) for gene, count in enumerate(self.cardinalities) for value in range(count)]
        self._changes = np.array(changes).T

    def __len__(self) -> int:
        return len(self.cardinalities)

    def canonical(self, rows: np.ndarray) -> np.ndarray:
        """Return rows with -1 in the genes of absent layers."""
        return np.where(self.active(rows), rows, np.int8(-1))

    def active(self, rows: np.ndarray) -> np.ndarray:
        """Return which genes count, shape (n, genes)."""
        return self._active[rows[:, self._encoder_depth], rows[:, self._decoder_depth]]

    def complete(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in which absent layers have the values of the last one present."""
        full = rows.copy()
        for columns in self.columns.values():
            values = rows[:, columns]
            last = (values >= 0).sum(axis=1, keepdims=True) - 1
            full[:, columns] = np.take_along_axis(values, np.minimum(np.arange(values.shape[1]), last), axis=1)
        return full

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw rows by drawing every gene uniformly, as `SearchSpace.sample` does."""
        return self.canonical(self._random(n, rng))

    def mutate(self, rows: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
        """Resample each gene with the given probability; layers that a row lacked start at random values."""
        resampled = (rng.random(rows.shape, dtype=np.float32) < probability) | (rows < 0)
        return self.canonical(np.where(resampled, self._random(len(rows), rng), rows))

    def crossover(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Take each gene from either row with equal chance; a layer that only one of them has comes from it."""
        first = rng.integers(2, size=a.shape, dtype=bool)
        child = np.where(first, a, b)
        return self.canonical(np.where(child < 0, np.where(first, b, a), child))

    def neighbours(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all rows that differ in one choice; a layer that is added copies the one before.

        Returns
        -------
        neighbours : numpy.ndarray of shape (m, genes)
        origins, genes : numpy.ndarray of shape (m,)
            From which row, and by which gene, each one comes.
        """
        gene, value = self._changes
        kept = (rows[:, gene] >= 0) & (rows[:, gene] != value)
        origins, changes = np.nonzero(kept)
        changed = self.complete(rows)[origins]
        changed[np.arange(len(changed)), gene[changes]] = value[changes]
        return self.canonical(changed), origins, gene[changes]

    def encode(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return the rows of architectures; raises ValueError for one outside the space."""
        if isinstance(archs, ArchitectureTable) and archs.genes.space == self.space:
            return archs.rows
        archs = list(archs)
        rows = np.full((len(archs), len(self)), -1, dtype=np.int8)
        for i, arch in enumerate(archs):
            self.space.validate(arch)
            for name, columns in self.columns.items():
                value = getattr(arch, name)
                values = value if isinstance(value, tuple) else (value,)
                rows[i, columns.start : columns.start + len(values)] = [getattr(self.space, name).index(v) for v in values]
        return rows

    def table(self, rows: np.ndarray) -> ArchitectureTable:
        """Return rows as a sequence of architectures."""
        return ArchitectureTable(self, rows)

    def to_text(self, rows: np.ndarray) -> list[str]:
        """Return each row as a string of one character per gene, a dot where a layer is absent."""
        return _TO_TEXT[rows + 1].view(f"U{len(self)}").ravel().tolist()

    def from_text(self, genomes: Iterable[str]) -> np.ndarray:
        """Read what `to_text` wrote; raises ValueError naming a genome that is not one of this space."""
        listed = list(genomes)
        for genome in listed:
            if len(genome) != len(self):
                raise ValueError(f"genome {genome[:80]!r}: expected {len(self)} characters, one per gene of {self.space.name}")
        codes = np.array(listed, dtype=f"U{len(self)}").view(np.uint32).reshape(-1, len(self))
        rows = _FROM_TEXT[np.minimum(codes, len(_FROM_TEXT) - 1)]
        known: np.ndarray = np.all((rows >= -1) & (rows < self.cardinalities), axis=1)
        # Unknown depths are looked up as some other: such rows are refused anyway.
        fits = known & ((rows >= 0) == self.active(np.where(known[:, None], rows, 0))).all(axis=1)
        if not fits.all():
            raise ValueError(f"genome {listed[int(np.argmin(fits))]!r} is not one of {self.space.name}")
        return rows

    def _random(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return (rng.random((n, len(self)), dtype=np.float32) * self.cardinalities).astype(np.int8)


class ArchitectureTable(Sequence[Architecture]):
    """Architectures of one space, built only when looked at; `llmpp_core.space.features` and `cost` read the columns instead.

    Parameters
    ----------
    genes : Genes
    rows : numpy.ndarray of shape (n, genes)
    """

    def __init__(self, genes: Genes, rows: np.ndarray):
        self.genes = genes
        self.rows = rows
        self._built: list[Architecture] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Architecture: ...
    @overload
    def __getitem__(self, index: slice) -> ArchitectureTable: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ArchitectureTable(self.genes, self.rows[index])
        if self._built is None:
            return ArchitectureTable(self.genes, self.rows[index][None])._build()[0]
        return self._built[index]

    def __iter__(self) -> Iterator[Architecture]:
        if self._built is None:
            self._built = self._build()
        return iter(self._built)

    def values(self, name: str) -> np.ndarray:
        """Return a field of all architectures: shape (n,), or (n, layers) with 0 for layers that one does not have.

        Besides the fields there is "decoder_cross_layers", how many encoder layers each decoder layer attends to.
        """
        columns = self.genes.columns["decoder_cross_spans" if name == "decoder_cross_layers" else name]
        found = self._matrix[:, columns]
        if name == "decoder_cross_spans":
            found = _SPANS[found]
        return found[:, 0] if self.genes.space.genes[columns.start][1] is None else found

    @cached_property
    def _matrix(self) -> np.ndarray:
        return self.genes._values[np.arange(len(self.genes)), self.rows]

    def _build(self) -> list[Architecture]:
        depths = {stack: self.values(f"{stack}_layers").tolist() for stack in ("encoder", "decoder")}
        fields = []
        for name in Architecture.__slots__:
            values = self.values(name).tolist()
            if not name.endswith("embed_dim"):
                values = [tuple(row[:depth]) for row, depth in zip(values, depths[name[:7]], strict=True)]
            fields.append(values)
        return [_assemble(values) for values in zip(*fields, strict=True)]


class _Listed:
    """Columns of architectures of any spaces, as `ArchitectureTable` has those of one."""

    def __init__(self, archs: Sequence[Architecture]):
        self.archs = archs

    def values(self, name: str) -> np.ndarray:
        if name.endswith(("embed_dim", "coder_layers")):
            return np.array([getattr(arch, name) for arch in self.archs], dtype=int)
        reads = name == "decoder_cross_layers"
        rows = [getattr(arch, "decoder_cross_spans" if reads else name) for arch in self.archs]
        found = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=int)
        for i, row in enumerate(rows):
            found[i, : len(row)] = [SPAN_LAYERS[span] for span in row] if reads else row
        return found


def columns_of(archs: Sequence[Architecture]) -> ArchitectureTable | _Listed:
    """Return what has the columns of architectures, see `ArchitectureTable.values`."""
    return archs if isinstance(archs, ArchitectureTable) else _Listed(archs)


def _assemble(values: Iterable[Any]) -> Architecture:
    """Make an Architecture of values that need no check, since they come out of a space; five times as fast."""
    arch = object.__new__(Architecture)
    for name, value in zip(Architecture.__slots__, values, strict=True):
        object.__setattr__(arch, name, value)
    return arch
