"""NSGA-II: a front on which nothing beats anything else, as good within a limit as a search made for it."""

from __future__ import annotations

import numpy as np
import pytest
from searches import MINI, Additive

from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import Limit, flops_limit, parameter_limit
from llmpp_core.search.pareto import ParetoSearch, objectives, pareto_front
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import TINY, SearchSpace


def costs(space: SearchSpace, most: float = np.inf) -> list[Limit]:
    return [flops_limit(space, np.inf), parameter_limit(space, most)]


def dominated(values: np.ndarray) -> np.ndarray:
    """Return which rows another one is no worse than anywhere and better somewhere."""
    no_worse = (values[:, None] <= values[None]).all(axis=2)
    better = (values[:, None] < values[None]).any(axis=2)
    return (no_worse & better).any(axis=0)


def test_the_front_is_non_dominated_and_dominates_all_else() -> None:
    search = ParetoSearch(TINY, Additive(), costs(TINY, 300e3), population=40, iterations=8)
    records = search.run().records
    front = pareto_front(records, TINY)
    values = objectives(front["score"].to_numpy(), front[["FLOPs", "parameters"]].to_numpy())
    assert not dominated(values).any()
    assert front["parameters"].max() <= 300e3
    assert front["score"].is_monotonic_decreasing
    assert Additive().predict(list(front["architecture"])) == pytest.approx(front["score"])
    for record in records:
        rows = objectives(np.array(record.scores), np.array(list(record.costs.values())).T)
        joined = np.vstack([values, rows])
        assert not dominated(joined)[: len(values)].any()
        assert len(record.parents) == 40
        assert len(set(record.population)) == len(record.population)


def test_the_whole_front_of_a_small_space_is_found() -> None:
    score = Additive(MINI, noise=0.3)
    table = score.genes.table(score.genes.everything())
    values = objectives(score.predict(table), np.column_stack([limit.costs(table) for limit in costs(MINI)]))
    true = {tuple(row) for row in values[~dominated(values)].round(9)}
    found = pareto_front(ParetoSearch(MINI, score, costs(MINI), population=100, iterations=20).run().records, MINI)
    front = objectives(found["score"].to_numpy(), found[["FLOPs", "parameters"]].to_numpy())
    assert {tuple(row) for row in front.round(9)} == true


def test_one_run_serves_all_limits() -> None:
    score = Additive()
    front = pareto_front(ParetoSearch(TINY, score, [parameter_limit(TINY, np.inf)], iterations=60).run().records, TINY)
    for limit in (150e3, 250e3):
        alone = EvolutionarySearch(TINY, [(score, 30)], parameter_limit(TINY, limit)).run()
        assert front[front["parameters"] <= limit].iloc[0]["score"] > 0.95 * alone.score


def test_a_front_of_other_searches_counts_what_the_last_predictor_scored() -> None:
    first, second = Additive(), Additive(seed=4)
    records = EvolutionarySearch(TINY, [(first, 2), (second, 2)], parameter_limit(TINY, 300e3)).run().records
    front = pareto_front(records, TINY)
    assert second.predict(list(front["architecture"])) == pytest.approx(front["score"])
    assert front.iloc[0]["score"] == records[-1].score
    assert set(Genes(TINY).to_text(Genes(TINY).encode(list(front["architecture"])))) <= {g for r in records[2:] for g in r.population}
