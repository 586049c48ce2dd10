"""What a declared space costs beside HAT's own class: the same search, the same genes, as a ratio of times.

python benchmarks/spaces.py
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import parameter_limit
from llmpp_core.space.choice import Space
from llmpp_core.space.genes import Genes
from llmpp_core.space.grammar import read_space
from llmpp_core.space.search_space import HAT_WMT

DECLARED = read_space(Path(__file__).parents[1] / "tests" / "spaces" / "hat_like.yml")


class Additive:
    """A predictor that takes no time: a sum over genes."""

    def __init__(self, space: Space):
        self.genes = Genes(space)
        self.weights = np.random.default_rng(0).random(len(self.genes))

    def predict(self, networks: Sequence[Any]) -> np.ndarray:
        return self.genes.encode(networks) @ self.weights


def student(space: Space) -> DistilledPredictor:
    networks = space.sample(300, np.random.default_rng(0))
    return DistilledPredictor(space=space, features="averages", steps=50).fit(networks, np.log(space.costs["parameters"](networks)))


def seconds(space: Space, predictor: Any, runs: int = 5) -> float:
    times = []
    for seed in range(runs):
        search = EvolutionarySearch(space, [(predictor, 30)], parameter_limit(space, 40e6), seed=seed)
        start = time.perf_counter()
        search.run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    assert len(Genes(DECLARED)) == len(Genes(HAT_WMT))
    for name, make in (("additive predictor", Additive), ("distilled predictor", student)):
        hat, declared = (seconds(space, make(space)) for space in (HAT_WMT, DECLARED))
        print(f"30 iterations, {name}: HAT_WMT {hat:.3f} s, declared {declared:.3f} s, ratio {declared / hat:.2f}")


if __name__ == "__main__":
    main()
