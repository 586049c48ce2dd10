"""What evolution is to be compared with at the same number of evaluations: random search, local search, Bayesian optimisation.

Each asks one predictor about ``batch`` new architectures per iteration, and leaves the same records as `llmpp_core.search.evolution`; the
population of a record is what was scored in that iteration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from llmpp_core.search.evolution import Search, is_integer
from llmpp_core.search.feasible import Feasible
from llmpp_core.search.limits import Limit
from llmpp_core.search.records import Population, Previous
from llmpp_core.search.scores import Ask, ranking
from llmpp_core.space.choice import Space

# Bayesian optimisation: largest number of scores to fit on and of candidates to choose from, parents of mutants among these, their
# probability of mutation, and the lengths of the kernel to choose from, in units of the root of the number of features.
_FITTED, _POOL, _PARENTS, _MUTATION, _LENGTHS = 500, 1000, 25, 0.1, (0.5, 1.0, 2.0, 4.0)


class BatchSearch(Search):
    """What the peers share.

    Parameters
    ----------
    space : Space
        Where to search.
    predictor : regressor over Architecture
        Scores candidates, higher is better.
    constraints : Limit or sequence of Limit
        What candidates may cost.
    evaluations : int
        How many architectures are scored in all; fewer where there are no more. 3,025 is what 30 iterations of
        `llmpp_core.search.evolution.EvolutionarySearch` ask for at most.
    batch : int
        How many of them in an iteration.
    seed : int
        Decides the search.
    names : sequence of one str, optional
        Name of the predictor in the records; its class by default.
    """

    def __init__(
        self,
        space: Space,
        predictor: Any,
        constraints: Limit | Sequence[Limit] = (),
        evaluations: int = 3025,
        batch: int = 100,
        seed: int = 0,
        names: Sequence[str] | None = None,
    ):
        if not (is_integer(evaluations) and is_integer(batch)) or evaluations < 1 or batch < 1:
            raise ValueError(f"evaluations and batch: expected positive integers, got {evaluations} and {batch}")
        super().__init__(space, [(predictor, math.ceil(evaluations / batch))], constraints, seed, names)
        self.evaluations, self.batch = evaluations, batch

    def settings(self) -> dict[str, Any]:
        """Return what the records' "search" holds."""
        return {**super().settings(), "evaluations": self.evaluations, "batch": self.batch}

    def wanted(self, previous: Previous | None) -> int:
        """Return how many architectures the next iteration has to score."""
        return min(self.batch, self.evaluations - self.batch * (0 if previous is None else previous.record.iteration + 1))


class RandomSearch(BatchSearch):
    """Score random architectures."""

    def propose(self, rng: np.random.Generator, previous: Previous | None, feasible: Feasible, ask: Ask) -> Population:
        """Return random candidates never scored before; the last ones again if there are no more."""
        rows, costs = feasible.initial(self.wanted(previous), rng, ask.known)
        return _or_previous(Population(rows, costs), previous)


class LocalSearch(BatchSearch):
    """Climb from random architectures, or from the best of some, by changing one choice at a time.

    Each climber tries the neighbours that nobody has tried, in random order, and moves to the first that is better. Where none is
    left, it stands on a local optimum, and starts again from a random architecture.

    Parameters
    ----------
    climbers : int
        Number of climbers side by side.
    start : sequence of networks
        Where to climb from, such as what a cheap predictor thinks best (see `llmpp_core.search.finalists`): those within the limits are
        scored first, and the climbers begin at the best of them.
    space, predictor, constraints, evaluations, batch, seed, names
        As in `BatchSearch`.
    """

    def __init__(self, *arguments: Any, climbers: int = 3, start: Sequence[Any] = (), **settings: Any):
        super().__init__(*arguments, **settings)
        self.start = np.unique(self.genes.encode(start), axis=0)
        most = min(self.batch, self.evaluations)
        if len(self.start) > most:
            raise ValueError(f"start: expected at most {most}, the first evaluations, got {len(self.start)}")
        if not is_integer(climbers) or not 1 <= climbers <= most:
            raise ValueError(f"climbers: expected 1 to {most}, the evaluations of an iteration, got {climbers}")
        self.climbers = climbers

    def settings(self) -> dict[str, Any]:
        """Return what the records' "search" holds."""
        start = {"start": self.genes.to_text(self.start)} if len(self.start) else {}
        return {**super().settings(), "climbers": self.climbers, **start}

    def propose(self, rng: np.random.Generator, previous: Previous | None, feasible: Feasible, ask: Ask) -> Population:
        """Climb; return what was scored on the way."""
        wanted = self.wanted(previous)
        if previous is None:
            rows, costs = self._first(feasible, rng)
            heights = _heights(ask(rows))
            highest = ranking(heights)[: self.climbers] if len(rows) > self.climbers else np.arange(len(rows))
            climbers, heights, tried = rows[highest], heights[highest], [(rows, costs)]
        else:
            state = previous.record.state
            climbers, heights, tried = self.genes.from_text(state["climbers"]), _heights(np.array(state["scores"], dtype=float)), []
        near: list[list[tuple[np.ndarray, np.ndarray]] | None] = [None] * len(climbers)
        left = wanted - sum(len(rows) for rows, _ in tried)
        while left:
            movers, rows, costs, fresh = self._next(climbers, near, left, feasible, ask.known, rng)
            if not len(movers):
                break
            found = _heights(ask(rows))
            for i, row, height, restart in zip(movers, rows, found, fresh, strict=True):
                if restart or height > heights[i]:
                    climbers[i], heights[i], near[i] = row, height, None
            tried.append((rows, costs))
            left -= len(rows)
        state = {"climbers": self.genes.to_text(climbers), "scores": [height if height > -np.inf else None for height in heights.tolist()]}
        if not tried:
            assert previous is not None
            return Population(previous.rows, previous.costs, state)
        scored, costs = (np.vstack(parts) for parts in zip(*tried, strict=True))
        return Population(scored, costs, state)

    def _first(self, feasible: Feasible, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return where to climb from, with random architectures where there are fewer than climbers, and what they cost."""
        if not len(self.start):
            return feasible.initial(self.climbers, rng)
        inside, costs = feasible.check(self.start)
        rows, costs = self.start[inside], costs[inside]
        known = dict.fromkeys(self.genes.to_text(rows), 0.0)
        more, more_costs = feasible.initial(max(0, self.climbers - len(rows)), rng, known)
        return np.vstack([rows, more]), np.vstack([costs, more_costs])

    def _next(
        self, climbers: np.ndarray, near: list[Any], most: int, feasible: Feasible, known: dict[str, float], rng: np.random.Generator
    ) -> tuple[list[int], np.ndarray, np.ndarray, list[bool]]:
        """Return which climbers go on, what each of them tries next, what that costs, and whether it starts again."""
        movers, rows, costs, fresh, taken = [], [], [], [], set(known)
        for i in range(min(len(climbers), most)):
            if near[i] is None:
                around = self.genes.neighbours(climbers[[i]])[0]
                inside, cost = feasible.check(around)
                near[i] = [(around[j], cost[j]) for j in rng.permutation(np.flatnonzero(inside))]
            candidate, restart = None, False
            while near[i] and candidate is None:
                row, cost = near[i].pop()
                candidate = (row, cost) if self.genes.to_text(row[None])[0] not in taken else None
            if candidate is None:
                restart = True
                row, cost = feasible.initial(1, rng, taken)
                if not len(row):
                    continue
                candidate = row[0], cost[0]
            taken.update(self.genes.to_text(candidate[0][None]))
            movers.append(i)
            rows.append(candidate[0])
            costs.append(candidate[1])
            fresh.append(restart)
        return movers, np.array(rows), np.array(costs), fresh


class BayesianSearch(BatchSearch):
    """Bayesian optimisation: fit a Gaussian process to the scores so far, and ask for those with the most expected improvement.

    The process sees every choice, their averages and the logarithms of costs, all standardised. Candidates are random
    architectures and mutants of the best. From 500 scores on, it is fitted to the best 250 and as many of the others.
    """

    def propose(self, rng: np.random.Generator, previous: Previous | None, feasible: Feasible, ask: Ask) -> Population:
        """Return random candidates, or those of the most expected improvement."""
        wanted, known = self.wanted(previous), ask.known
        if previous is None:
            return Population(*feasible.initial(wanted, rng))
        genomes, scores = np.array(list(known)), np.array(list(known.values()))
        # A process takes neither nan nor a penalty of infinity.
        genomes, scores = genomes[np.isfinite(scores)], scores[np.isfinite(scores)]
        order = ranking(scores)
        best = self.genes.from_text(genomes[order[:_PARENTS]].tolist())
        rows, costs = feasible.initial(max(_POOL // 2, wanted), rng, known)
        mutants = (lambda n: self.genes.mutate(best[rng.integers(len(best), size=n)], rng, _MUTATION)), _POOL // 2, 0.5
        changed, changed_costs, _ = feasible.children([mutants], np.vstack([best, rows]), rng)
        new = np.array([genome not in known for genome in self.genes.to_text(changed)], dtype=bool)
        rows, costs = np.vstack([rows, changed[new]]), np.vstack([costs, changed_costs[new]])
        if len(rows):
            if len(order) > _FITTED:
                order = np.append(order[: _FITTED // 2], rng.choice(order[_FITTED // 2 :], _FITTED // 2, replace=False))
            surrogate = self._fit(self.genes.from_text(genomes[order].tolist()), scores[order])
            mean, std = surrogate.predict(self.genes.table(rows), return_std=True)
            chosen = ranking(_expected_improvement(mean, std, float(scores.max())))[:wanted]
            rows, costs = rows[chosen], costs[chosen]
        return _or_previous(Population(rows, costs), previous)

    def _fit(self, rows: np.ndarray, scores: np.ndarray) -> Pipeline:
        """Return the process under which the scores are the most likely."""
        table = self.genes.table(rows)
        features = make_union(*self.space.feature_set("surrogate"))
        scaled = make_pipeline(features, StandardScaler()).fit(table)
        inputs = scaled.transform(table)
        processes = []
        for length in _LENGTHS:
            kernel = 10.0 * RBF(length * inputs.shape[1] ** 0.5) + WhiteKernel(0.01)
            processes.append(GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(inputs, scores))
        return make_pipeline(
            *(step for _, step in scaled.steps), max(processes, key=lambda process: process.log_marginal_likelihood_value_)
        )


def _expected_improvement(mean: np.ndarray, std: np.ndarray, best: float) -> np.ndarray:
    z = (mean - best) / np.maximum(std, 1e-12)
    return (mean - best) * norm.cdf(z) + std * norm.pdf(z)


def _heights(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scores), -np.inf, scores)


def _or_previous(population: Population, previous: Previous | None) -> Population:
    """Return the population or, if there is nothing left to score, the one before."""
    return population if len(population.rows) or previous is None else Population(previous.rows, previous.costs, population.state)
