"""Random architectures within limits: by rejection and, where that hardly ever succeeds, by a random walk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np

from llmpp_core.search.limits import InfeasibleError, Limit, all_costs, feasible_row, violation
from llmpp_core.space.genes import Genes

# Rejection ends after this many draws of which less than this part is feasible and new.
_BATCH, _RARE = 1000, 0.005
# Steps of the random walk, per gene.
_STEPS = 5

Propose = Callable[[int], np.ndarray]


class Feasible:
    """The part of a space within all limits.

    Parameters
    ----------
    genes : Genes
    limits : sequence of Limit
        Checked in this order, and only for what passed those before; so a slow one comes last.

    Attributes
    ----------
    seconds : float
        Time spent on costs so far.
    """

    def __init__(self, genes: Genes, limits: Sequence[Limit]):
        names = [limit.name for limit in limits]
        if len(set(names)) < len(names):
            raise ValueError(f"constraints: every limit needs a name of its own, got {', '.join(names)}")
        self.genes = genes
        self.limits = tuple(limits)
        self.seconds = 0.0

    def costs(self, rows: np.ndarray) -> np.ndarray:
        """Return all costs of all rows, shape (n, limits)."""
        start, table = time.perf_counter(), self.genes.table(rows)
        costs = all_costs(self.limits, table)
        self.seconds += time.perf_counter() - start
        return costs

    def check(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows are within all limits, shape (n,), and costs, shape (n, limits), which are complete for these."""
        start = time.perf_counter()
        index, costs = np.arange(len(rows)), np.empty((len(rows), len(self.limits)))
        for j, limit in enumerate(self.limits):
            if len(index):
                costs[index, j] = limit.costs(self.genes.table(rows[index]))
                index = index[limit.kept(costs[index, j])]
        inside = np.zeros(len(rows), dtype=bool)
        inside[index] = True
        self.seconds += time.perf_counter() - start
        return inside, costs

    def initial(self, n: int, rng: np.random.Generator, taken: Collection[str] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Draw different feasible rows whose genomes are not in `taken`: independently if possible, else by a walk within the limits.

        The walk starts from random genomes, changes one gene at a time where that violates the limits no more than before, and is
        long enough to forget where it came in; as every chain it favours what is well connected. If even so there are fewer than
        `n`, the feasible set is listed by single changes of genes, and what is returned is all of it.

        Returns
        -------
        rows, costs : numpy.ndarray of shape (m, genes) and (m, limits)
            m is n, or as many as there are.

        Raises
        ------
        InfeasibleError
            If nothing is within the limits.
        """
        taken, infeasible = set(taken), None
        try:
            start = feasible_row(self.genes, self.limits)
        except InfeasibleError as error:
            # Descent changes one choice at a time, which rules may forbid; then chance is asked too.
            if self.genes.space.allowed(self.genes.encode([error.cheapest])) is None:
                raise
            infeasible = error
        rows, costs, _ = self._reject([(lambda size: self.genes.sample(size, rng), n, 1.0)], taken)
        if infeasible is not None:
            if not len(rows):
                raise infeasible
            start = rows
        taken.update(self.genes.to_text(rows))
        if len(rows) < n:
            rows, costs = _join((rows, costs), self._walk(n - len(rows), taken, rng))
        if len(rows) < n:
            rows, costs = _join((rows, costs), self._spread(np.vstack([rows, start]), n - len(rows), taken, rng))
        return rows, costs

    def children(
        self, proposals: Sequence[tuple[Propose, int, float]], parents: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """Draw rows that differ from the parents and from each other, by rejection.

        Where too few proposals are feasible and new, single changes of the parents, and of what these give, fill up.

        Parameters
        ----------
        proposals : sequence of (callable, int, float)
            What proposes a number of rows, how many feasible ones are wanted of it, and the rate of acceptance to expect.
        parents : numpy.ndarray of shape (p, genes)
        rng : numpy.random.Generator

        Returns
        -------
        rows, costs : numpy.ndarray of shape (m, genes) and (m, limits)
            m is the number wanted in all, or less if nothing new is left within reach.
        rates : list of float
            The rates of acceptance found.
        """
        taken, wanted = set(self.genes.to_text(parents)), sum(n for _, n, _ in proposals)
        rows, costs, rates = self._reject(proposals, taken)
        if len(rows) < wanted:
            taken.update(self.genes.to_text(rows))
            rows, costs = _join((rows, costs), self._spread(np.vstack([parents, rows]), wanted - len(rows), taken, rng))
        return rows, costs, rates

    def _reject(self, proposals: Sequence[tuple[Propose, int, float]], taken: set[str]) -> tuple[np.ndarray, np.ndarray, list[float]]:
        seen, parts = set(taken), [[self._nothing()] for _ in proposals]
        missing = [n for _, n, _ in proposals]
        drawn, accepted, barren = ([0] * len(proposals) for _ in range(3))
        sizes = [_enough(n, rate) for _, n, rate in proposals]
        while any(sizes):
            new = [self._unseen(proposal[0](size), seen) for proposal, size in zip(proposals, sizes, strict=True)]
            inside, costs = self.check(np.vstack(new))
            stops = np.cumsum([len(rows) for rows in new])[:-1]
            for i, (rows, kept, cost) in enumerate(zip(new, np.split(inside, stops), np.split(costs, stops), strict=True)):
                parts[i].append((rows[kept][: missing[i]], cost[kept][: missing[i]]))
                missing[i] -= len(parts[i][-1][0])
                found, size = int(kept.sum()), sizes[i]
                drawn[i], accepted[i] = drawn[i] + size, accepted[i] + found
                barren[i] = 0 if found > _RARE * size else barren[i] + size
                sizes[i] = 0 if barren[i] >= _BATCH else min(_enough(missing[i], accepted[i] / max(drawn[i], 1)), 4 * size + _BATCH)
        rows, costs = _join(*(part for kind in parts for part in kind))
        return rows, costs, [found / max(n, 1) for found, n in zip(accepted, drawn, strict=True)]

    def _walk(self, n: int, taken: set[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rows = self.genes.sample(2 * n, rng)
        over = violation(self.limits, self.costs(rows))
        for _ in range(_STEPS * len(self.genes)):
            trial, gene = self.genes.complete(rows), rng.integers(len(self.genes), size=len(rows))
            trial[np.arange(len(rows)), gene] = rng.random(len(rows)) * self.genes.cardinalities[gene]
            trial = self.genes.canonical(trial)
            violated = violation(self.limits, self.costs(trial))
            allowed = self.genes.space.allowed(trial)
            better = (violated <= over) & (True if allowed is None else allowed)
            rows[better], over[better] = trial[better], violated[better]
        rows = self._unseen(rows[over == 0], taken)[:n]
        return rows, self.costs(rows)

    def _spread(self, rows: np.ndarray, n: int, taken: set[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        seen: set[str] = set()
        parts, missing = [self._nothing()], n
        while missing and len(rows):
            near = np.vstack([rows, self.genes.neighbours(rows)[0]])
            near = self._unseen(near[rng.permutation(len(near))], seen)
            inside, costs = self.check(near)
            rows, costs = near[inside], costs[inside]
            new = np.array([genome not in taken for genome in self.genes.to_text(rows)], dtype=bool)
            parts.append((rows[new][:missing], costs[new][:missing]))
            missing -= len(parts[-1][0])
        return _join(*parts)

    def _unseen(self, rows: np.ndarray, seen: set[str]) -> np.ndarray:
        """Return rows that are not in `seen`, each once; adds them to it."""
        new = []
        for i, genome in enumerate(self.genes.to_text(rows)):
            if genome not in seen:
                seen.add(genome)
                new.append(i)
        return rows[new]

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((0, len(self.genes)), dtype=np.int8), np.empty((0, len(self.limits)))


def _enough(missing: int, rate: float) -> int:
    """Return how many draws most likely hold as many feasible ones as are missing; not more, since costs may be slow."""
    return math.ceil((missing + missing**0.5 * (rate < 1)) / max(rate, 0.01))


def _join(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    rows, costs = zip(*parts, strict=True)
    return np.vstack(rows), np.vstack(costs)
