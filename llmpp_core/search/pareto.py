"""Search for quality and low costs at once: NSGA-II, whose one run serves all limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from llmpp_core.search.evolution import Search, is_integer
from llmpp_core.search.feasible import Feasible
from llmpp_core.search.limits import Limit
from llmpp_core.search.records import Population, Previous, Record
from llmpp_core.search.scores import Ask, to_ten_digits
from llmpp_core.space.choice import Space
from llmpp_core.space.genes import Genes


class ParetoSearch(Search):
    """NSGA-II (Deb et al. 2002) over the genes of a space: the score is to be high, and the cost of every limit low.

    Parents win binary tournaments, and survivors are chosen, by front and crowding; each child is a uniform crossover of two parents,
    mutated. The population of a record holds the survivors so far and their children, its parents are those that survive.

    Parameters
    ----------
    space : Space
        Where to search.
    predictor : regressor over Architecture
        Scores candidates, higher is better.
    costs : sequence of Limit
        The other objectives; a limit that is not infinity also has to be kept.
    population : int
        Number of survivors, and of children in an iteration.
    iterations : int
        Number of iterations, the first of random candidates included.
    mutation_probability : float
        Probability of each gene of a child to be resampled.
    seed : int
        Decides the search.
    names : sequence of one str, optional
        Name of the predictor in the records; its class by default.
    """

    def __init__(
        self,
        space: Space,
        predictor: Any,
        costs: Sequence[Limit],
        population: int = 100,
        iterations: int = 30,
        mutation_probability: float = 0.05,
        seed: int = 0,
        names: Sequence[str] | None = None,
    ):
        super().__init__(space, [(predictor, iterations)], costs, seed, names)
        if not self.limits or not is_integer(population) or population < 2:
            raise ValueError(f"expected at least one cost and a population of at least 2, got {len(self.limits)} and {population}")
        if not 0 <= mutation_probability <= 1:
            raise ValueError(f"mutation_probability: expected 0 to 1, got {mutation_probability}")
        self.population, self.mutation_probability = population, mutation_probability

    def settings(self) -> dict[str, Any]:
        """Return what the records' "search" holds."""
        return {**super().settings(), "population": self.population, "mutation_probability": self.mutation_probability}

    def propose(self, rng: np.random.Generator, previous: Previous | None, feasible: Feasible, ask: Ask) -> Population:
        """Return random candidates, or survivors and children."""
        if previous is None:
            return Population(*feasible.initial(self.population, rng), {"acceptance": [1.0]})
        kept = previous.record.parents
        rows, costs = previous.rows[kept], previous.costs[kept]
        best_first = rows[_best_first(objectives(ask(rows), costs))]

        def children(n: int) -> np.ndarray:
            # Binary tournaments: of two, the one that comes first.
            winners = rng.integers(len(rows), size=(2, n, 2)).min(axis=2)
            crossed = self.genes.crossover(best_first[winners[0]], best_first[winners[1]], rng)
            return self.genes.mutate(crossed, rng, self.mutation_probability)

        rate = previous.record.state["acceptance"][0]
        new, new_costs, rates = feasible.children([(children, self.population, rate)], rows, rng)
        return Population(np.vstack([rows, new]), np.vstack([costs, new_costs]), {"acceptance": rates})

    def select(self, order: np.ndarray, scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Return the positions of the survivors, best score first."""
        return order[np.isin(order, _best_first(objectives(scores, costs))[: self.population])]


def objectives(scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return what is to be low, shape (n, 1 + limits): minus the score, then the costs; nan counts as worse than all others."""
    worst = np.nanmin(scores) - 1
    values = np.column_stack([-np.where(np.isnan(scores), worst, scores), costs])
    return np.column_stack([to_ten_digits(column) for column in values.T])


def pareto_front(records: Sequence[Record], space: Space) -> pd.DataFrame:
    """Return the architectures of a search that none other of it beats in score or a cost without being worse in another.

    Parameters
    ----------
    records : sequence of Record
        Of any search with limits; of a schedule of several predictors, only what the last one scored counts.
    space : Space
        The space searched.

    Returns
    -------
    pandas.DataFrame
        Columns "architecture", "score" and one per cost, best score first; so ``front[front["latency"] <= 100].iloc[0]`` is the best
        within a limit.
    """
    used = [record for record in records if record.predictor == records[-1].predictor]
    names = list(used[-1].costs)
    rows: dict[str, list[float]] = {}
    for record in used:
        columns = zip(record.scores, *(record.costs[name] for name in names), strict=True)
        rows.update((genome, list(values)) for genome, values in zip(record.population, columns, strict=True) if values[0] is not None)
    values = np.array(list(rows.values()), dtype=float)
    front = np.flatnonzero(~_dominates(objectives(values[:, 0], values[:, 1:])).any(axis=0))
    genes, genomes = Genes(space), list(rows)
    table = pd.DataFrame(values[front], columns=["score", *names])
    table.insert(0, "architecture", list(genes.table(genes.from_text([genomes[i] for i in front]))))
    return table.sort_values(["score", *names], ascending=[False, *[True] * len(names)], kind="stable", ignore_index=True)


def _dominates(values: np.ndarray) -> np.ndarray:
    """Return whether i is nowhere higher than j and somewhere lower, shape (n, n), for values of shape (n, objectives)."""
    first, second = values[:, None], values[None]
    return np.logical_and((first <= second).all(axis=2), (first < second).any(axis=2))


def _best_first(values: np.ndarray) -> np.ndarray:
    """Return positions as NSGA-II orders them (Deb et al. 2002): by front, within a front the least crowded first."""
    dominates, fronts = _dominates(values), np.full(len(values), -1)
    while (left := fronts < 0).any():
        fronts[left & ~dominates[left].any(axis=0)] = fronts.max() + 1
    distance = np.zeros(len(values))
    for front in range(fronts.max() + 1):
        members = np.flatnonzero(fronts == front)
        for column in values[members].T:
            order = np.argsort(column, kind="stable")
            at, width = column[order], np.ptp(column) or 1.0
            distance[members[order]] += np.concatenate([[np.inf], (at[2:] - at[:-2]) / width, [np.inf]])[: len(at)]
    return np.lexsort([-distance, fronts])
