"""The evolutionary search with cheap predictors against scoring candidate by candidate: same result, and how many times faster.

``OMP_NUM_THREADS=1 python benchmarks/search.py`` takes about a minute. It needs no data: the predictors are fitted to made-up
scores and latencies, since only their speed matters. Both sides draw the same random numbers and so propose the same candidates; the
straightforward one builds candidates, checks their latency and scores them one at a time, and remembers no score, as the paper's code does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from llmpp_core.latency.predictor import LatencyPredictor
from llmpp_core.predictors.baselines import baselines
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.search import evolution as search
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import Limit
from llmpp_core.search.records import SearchResult
from llmpp_core.search.scores import Scores
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import HAT_WMT

FOREST = "HAT + costs, random forest"


class OneByOne:
    """A regressor that asks another one about one architecture at a time."""

    def __init__(self, predictor: Any):
        self.predictor = predictor

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        return np.array([self.predictor.predict([arch])[0] for arch in archs])


class ByOneScores(Scores):
    """Scores that are asked for again every time."""

    def ask(self, name: str, predictor: Any, rows: np.ndarray) -> np.ndarray:
        self.evaluations[name] += len(rows)
        return self.predict(name, predictor, rows)


class ByOneGenes(Genes):
    """Variation that builds one architecture after the other, from the same draws."""

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return self._build(self.random(n, rng))

    def mutate(self, rows: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
        draws, random = rng.random(rows.shape, dtype=np.float32), self.random(len(rows), rng)
        return self._build(np.where((draw < probability) | (row < 0), new, row) for row, draw, new in zip(rows, draws, random, strict=True))

    def crossover(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        children = []
        for first, second, pick in zip(a, b, rng.integers(2, size=a.shape, dtype=bool), strict=True):
            child = np.where(pick, first, second)
            children.append(np.where(child < 0, np.where(pick, second, first), child))
        return self._build(children)

    def _build(self, rows: Iterable[np.ndarray]) -> np.ndarray:
        return self.encode([self.space.build(np.array(row)[None])[0] for row in rows])


@contextmanager
def by_one() -> Iterator[None]:
    """Let searches work one candidate at a time."""
    search.Scores, search.Genes = ByOneScores, ByOneGenes
    try:
        yield
    finally:
        search.Scores, search.Genes = Scores, Genes


def seconds_and_result(method: EvolutionarySearch, repeats: int) -> tuple[float, SearchResult]:
    """Return the least time of some runs, and what the search found."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = method.run()
        times.append(time.perf_counter() - start)
    return min(times), result


def same(a: SearchResult, b: SearchResult) -> bool:
    """Return whether populations and best architectures agree in every iteration, and scores but for rounding."""
    return a.best == b.best and all(
        x.population == y.population and x.best == y.best and np.allclose(np.array(x.scores), np.array(y.scores), rtol=1e-6, atol=0)
        for x, y in zip(a.records, b.records, strict=True)
    )


def compare(name: str, predictor: Any, latency: LatencyPredictor, limit: float, seed: int) -> dict[str, Any]:
    """Return one row of the table."""
    fast = EvolutionarySearch(HAT_WMT, [(predictor, 30)], Limit(latency, limit, "latency", "ms"), seed=seed)
    fast_seconds, found = seconds_and_result(fast, repeats=3)
    with by_one():
        slow = EvolutionarySearch(HAT_WMT, [(OneByOne(predictor), 30)], Limit(OneByOne(latency), limit, "latency", "ms"), seed=seed)
        slow_seconds, expected = seconds_and_result(slow, repeats=1 if name == FOREST else 3)
    return {
        "predictor": name,
        "limit (ms)": limit,
        "seed": seed,
        "scored": sum(found.evaluations.values()),
        "scored one by one": sum(expected.evaluations.values()),
        "seconds": fast_seconds,
        "seconds one by one": slow_seconds,
        "times faster": slow_seconds / fast_seconds,
        "same result": same(found, expected),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    archs = HAT_WMT.sample(500, rng)
    millions = np.array([count_parameters(arch, HAT_WMT.qkv_dim) for arch in archs]) / 1e6
    depth = np.array([arch.decoder_layers for arch in archs])
    scores = 15 + np.log(depth) + 2.5 * np.log(millions) + rng.normal(0, 0.1, len(archs))
    giga = np.array([count_flops(arch, qkv_dim=HAT_WMT.qkv_dim) for arch in archs]) / 1e9
    latency = LatencyPredictor().fit(archs, (20 + 15 * depth + 5 * giga) * rng.lognormal(0, 0.02, len(archs)))
    known = baselines(HAT_WMT.qkv_dim)
    predictors = {
        name: known[name] for name in ("depth + parameters, ridge", "HAT + costs, ridge", "HAT + costs, Gaussian process", FOREST)
    }
    predictors["distilled"] = DistilledPredictor(space=HAT_WMT)
    for predictor in predictors.values():
        predictor.fit(archs, scores)
    rows = [
        compare(name, predictor, latency, limit, seed)
        for name, predictor in predictors.items()
        for limit in (60.0, 100.0)
        for seed in range(arguments.seeds)
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))


if __name__ == "__main__":
    main()
