"""Genomes of a space as rows of integers, so that sampling, variation, costs and features work on many at once.

A row holds, for every gene of the space, the position of its value among the allowed ones, and -1 where the network does not make
that choice, as in a layer that it lacks. So equal rows are equal networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, overload

import numpy as np

from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.choice import Space

# A genome is written as one character per gene: a dot for -1.
_ALPHABET = ".0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_TEXT = np.array(list(_ALPHABET)).view(np.uint32)
_FROM_TEXT = np.full(_TO_TEXT.max() + 2, -2, dtype=np.int8)
_FROM_TEXT[_TO_TEXT] = np.arange(-1, len(_ALPHABET) - 1)
#: Most networks that are listed.
MOST_LISTED = 1_000_000
# How many more to draw at once where rules are kept by few.
_DRAWN = 1000


class Genes:
    """Operations on (n, genes) arrays of the genomes of one space.

    Parameters
    ----------
    space : Space
        Any that keeps the contract of `llmpp_core.space.choice`.

    Attributes
    ----------
    cardinalities : numpy.ndarray of shape (genes,)
        Number of allowed values of each gene.
    columns : dict of str to slice
        The genes of each choice, in their order.
    """

    def __init__(self, space: Space):
        self.space = space
        self.choices = {choice.name: choice for choice in space.choices}
        names = [name for name, _ in space.genes]
        self.cardinalities = np.array([len(self.choices[name].values) for name in names])
        starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
        self.columns = {names[start]: slice(start, stop) for start, stop in pairwise([*starts, len(names)])}
        self._starts = np.array([self.columns[name].start for name in names])
        # Numbers by gene and position, the last of them 0 for -1; those of a category are not looked at.
        numbers = [self.choices[name].numbers or (0,) for name in names]
        whole = all(isinstance(number, int) and abs(number) < 2**53 for row in numbers for number in row)
        self._numbers = np.zeros((len(names), self.cardinalities.max() + 1), dtype=int if whole else float)
        for i, row in enumerate(numbers):
            self._numbers[i, : len(row)] = row
        changes = [(gene, value) for gene, count in enumerate(self.cardinalities) for value in range(count)]
        self._changes = np.array(changes).T

    def __len__(self) -> int:
        return len(self.cardinalities)

    def canonical(self, rows: np.ndarray) -> np.ndarray:
        """Return rows with -1 in the genes that do not count."""
        return np.where(self.space.active(rows), rows, np.int8(-1))

    def complete(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in which absent layers have the values of the last one before them, and other absent choices the first value."""
        last = np.maximum.accumulate(np.where(rows >= 0, np.arange(len(self)), -1), axis=1)
        filled = np.take_along_axis(rows, np.maximum(last, 0), axis=1)
        return np.where(last >= self._starts, filled, np.int8(0))

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw rows by drawing every gene uniformly; again where rules of the space are broken."""
        rows = self.canonical(self.random(n, rng))
        kept = self.space.allowed(rows)
        if kept is None:
            return rows
        rows = rows[kept]
        while len(rows) < n:
            more = self.canonical(self.random(n + _DRAWN, rng))
            rows = np.vstack([rows, more[self.space.allowed(more)]])
        return rows[:n]

    def mutate(self, rows: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
        """Resample each gene with the given probability; what a row lacked starts at random values. Rows that would break rules stay."""
        resampled = (rng.random(rows.shape, dtype=np.float32) < probability) | (rows < 0)
        return self._kept(self.canonical(np.where(resampled, self.random(len(rows), rng), rows)), rows)

    def crossover(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Take each gene from either row with equal chance; what only one of them has comes from it. Where rules are broken, return `a`."""
        first = rng.integers(2, size=a.shape, dtype=bool)
        child = np.where(first, a, b)
        child = np.where(child < 0, np.where(first, b, a), child)
        active = self.space.active(child)
        # A condition on two choices may hold in a child of parents in neither of which it does.
        while (lost := active & (child < 0)).any():
            child = np.where(lost, self.random(len(child), rng), child)
            active = self.space.active(child)
        return self._kept(np.where(active, child, np.int8(-1)), a)

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
        changed, genes = self.canonical(changed), gene[changes]
        keeps = self.space.allowed(changed)
        return (changed, origins, genes) if keeps is None else (changed[keeps], origins[keeps], genes[keeps])

    def patterns(self, gates: Iterable[str], most: int = MOST_LISTED) -> np.ndarray:
        """Return rows with every combination of some choices, parents before what depends on them; all other genes are -1.

        Raises ValueError if there are more than `most`.
        """
        rows = np.full((1, len(self)), -1, dtype=np.int8)
        for name in gates:
            for gene in range(self.columns[name].start, self.columns[name].stop):
                rows = self.branched(rows, gene)
                if len(rows) > most:
                    raise ValueError(f"{self.space.name} holds more than {most:,} networks, too many to list")
        return rows

    def branched(self, rows: np.ndarray, gene: int) -> np.ndarray:
        """Return rows with every value of a gene, where it counts."""
        makes = self.space.active(rows)[:, gene]
        return np.vstack([rows[~makes], self._times(rows[makes], gene)])

    def everything(self, most: int = MOST_LISTED) -> np.ndarray:
        """Return the rows of all networks; raises ValueError if there are more than `most`, before rules are asked."""
        rows = self.patterns(self.space.gates, most)
        free = self.space.active(rows) & (rows < 0)
        if sum(math.prod(self.cardinalities[genes].tolist()) for genes in free) > most:
            raise ValueError(f"{self.space.name} holds more than {most:,} networks, too many to list")
        parts = []
        for row, genes in zip(rows, free, strict=True):
            part = row[None]
            for gene in np.flatnonzero(genes).tolist():
                part = self._times(part, gene)
            parts.append(part)
        rows = np.vstack(parts)
        kept = self.space.allowed(rows)
        return rows if kept is None else rows[kept]

    def encode(self, archs: Sequence[Any]) -> np.ndarray:
        """Return the rows of networks; raises ValueError for one outside the space."""
        if isinstance(archs, ArchitectureTable) and archs.space == self.space:
            return archs.rows
        rows = [self.space.row(arch) for arch in archs]
        return np.array(rows, dtype=np.int8).reshape(len(rows), len(self))

    def table(self, rows: np.ndarray) -> ArchitectureTable:
        """Return rows as a sequence of networks."""
        return ArchitectureTable(self, rows)

    def to_text(self, rows: np.ndarray) -> list[str]:
        """Return each row as a string of one character per gene, a dot where there is none."""
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
        fits = known & ((rows >= 0) == self.space.active(np.where(known[:, None], rows, 0))).all(axis=1)
        if not fits.all():
            raise ValueError(f"genome {listed[int(np.argmin(fits))]!r} is not one of {self.space.name}")
        return rows

    def random(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw every gene uniformly, those included that do not count."""
        return (rng.random((n, len(self)), dtype=np.float32) * self.cardinalities).astype(np.int8)

    def _kept(self, children: np.ndarray, parents: np.ndarray) -> np.ndarray:
        kept = self.space.allowed(children)
        return children if kept is None else np.where(kept[:, None], children, parents)

    def _times(self, rows: np.ndarray, gene: int) -> np.ndarray:
        """Return rows with every value of a gene."""
        count = self.cardinalities[gene]
        repeated = np.repeat(rows, count, axis=0)
        repeated[:, gene] = np.tile(np.arange(count), len(rows))
        return repeated


class ArchitectureTable(Sequence[Any]):
    """Networks of one space, built only when looked at; features and costs read the columns instead.

    Parameters
    ----------
    genes : Genes
    rows : numpy.ndarray of shape (n, genes)
    """

    def __init__(self, genes: Genes, rows: np.ndarray):
        self.genes = genes
        self.rows = rows
        self._built: list[Any] | None = None

    @property
    def space(self) -> Space:
        """The space of the networks."""
        return self.genes.space

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> ArchitectureTable: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ArchitectureTable(self.genes, self.rows[index])
        if self._built is None:
            return self.space.build(self.rows[index][None])[0]
        return self._built[index]

    def __iter__(self) -> Iterator[Any]:
        if self._built is None:
            self._built = self.space.build(self.rows)
        return iter(self._built)

    def positions(self, name: str) -> np.ndarray:
        """Return the positions of a choice among its values, -1 where it is not made, shape (n, layers); (n, 1) if made once."""
        return self.rows[:, self.genes.columns[name]]

    def values(self, name: str) -> np.ndarray:
        """Return the numbers of a choice: shape (n,), or (n, layers) where it is made per layer, and 0 where it is not made.

        Of HAT's spans these are the numbers of encoder layers attended to.
        """
        columns = self.genes.columns[name]
        found = self._matrix[:, columns]
        return found[:, 0] if self.space.genes[columns.start][1] is None else found

    @cached_property
    def _matrix(self) -> np.ndarray:
        return self.genes._numbers[np.arange(len(self.genes)), self.rows]


class _Listed:
    """Columns of HAT's architectures of any spaces, as `ArchitectureTable` has those of one."""

    def __init__(self, archs: Sequence[Architecture]):
        self.archs = archs

    def values(self, name: str) -> np.ndarray:
        if name.endswith(("embed_dim", "coder_layers")):
            return np.array([getattr(arch, name) for arch in self.archs], dtype=int)
        rows = [getattr(arch, name) for arch in self.archs]
        found = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=int)
        for i, row in enumerate(rows):
            found[i, : len(row)] = [SPAN_LAYERS[span] for span in row] if name == "decoder_cross_spans" else row
        return found


def columns_of(archs: Sequence[Architecture]) -> ArchitectureTable | _Listed:
    """Return what has the columns of HAT's architectures, see `ArchitectureTable.values`."""
    return archs if isinstance(archs, ArchitectureTable) else _Listed(archs)
