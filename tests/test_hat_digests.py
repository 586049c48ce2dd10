"""HAT's spaces keep, byte for byte, what recordings, search files and stored samples were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from searches import Additive

from llmpp_core.search.alternatives import LocalSearch
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import InfeasibleError, flops_limit, parameter_limit
from llmpp_core.search.pareto import ParetoSearch
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import HAT_WMT, SPACES, TINY


def digest(*values: Any) -> str:
    whole = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            value = [value.shape, (np.round(value, 6) + 0.0 if value.dtype == float else value).tolist()]
        whole.update(repr(value).encode())
    return whole.hexdigest()[:16]


def moves() -> list[Any]:
    genes, rng = Genes(HAT_WMT), np.random.default_rng(0)
    a, b = genes.sample(1000, rng), genes.sample(1000, rng)
    return [a, b, genes.mutate(a, rng, 0.3), genes.crossover(a, b, rng), genes.complete(a), *genes.neighbours(a[:50]), genes.to_text(a)]


def features() -> list[Any]:
    archs = HAT_WMT.sample(50, np.random.default_rng(0))
    parts = [part for name in ("official", "costs", "averages", "layers", "all") for part in HAT_WMT.feature_set(name)]
    return [x for part in parts for x in (part.transform(archs), list(part.get_feature_names_out()))]


def shallow_samples() -> list[Any]:
    rng = np.random.default_rng(0)
    return [HAT_WMT.sample(20, rng, decoder_layers=3)]


def found(search: Any) -> list[Any]:
    # Not the scores, whose last digits may be another processor's.
    return [search.settings(), [(r.best, r.population, r.parents, r.costs, r.evaluations, list(r.state)) for r in search.iterate()]]


def infeasible() -> str:
    with pytest.raises(InfeasibleError) as error:
        EvolutionarySearch(TINY, [(Additive(TINY), 1)], [parameter_limit(TINY, 1e5), flops_limit(TINY, 1e3)]).run()
    return str(error.value)


LIMITS = [parameter_limit(TINY, 3e5), flops_limit(TINY, 2e7)]
STORED: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "reprs": (lambda: [hashlib.sha256(repr(space).encode()).hexdigest() for space in SPACES.values()], "eade3884d9445f9b"),
    "sizes": (lambda: [(s.size(), s.smallest(), s.largest()) for s in SPACES.values()], "60435458e105f59e"),
    "samples": (lambda: [HAT_WMT.sample(1000, np.random.default_rng(0))], "4349c2f59b039fa4"),
    "balanced samples": (lambda: [HAT_WMT.sample_balanced(100, np.random.default_rng(0))], "77608aa37a907411"),
    "shallow samples": (shallow_samples, "1868b4d0470292e0"),
    "moves of many": (moves, "7be52b800ea821d2"),
    "features": (features, "ef87c19ce678d64f"),
    "evolution": (lambda: found(EvolutionarySearch(TINY, [(Additive(), 4), (Additive(seed=1), 2)], LIMITS)), "067cfda842630aa3"),
    "local search": (lambda: found(LocalSearch(TINY, Additive(), LIMITS[:1], evaluations=200, batch=50)), "b4d3cae1be8c8ba0"),
    "Pareto search": (lambda: found(ParetoSearch(TINY, Additive(), LIMITS, population=20, iterations=5)), "06ae9407455e97c6"),
    "infeasible": (lambda: [infeasible()], "43581126230a2c72"),
}


@pytest.mark.parametrize("name", STORED)
def test_nothing_of_hats_spaces_has_changed(name: str) -> None:
    compute, stored = STORED[name]
    assert digest(*compute()) == stored
