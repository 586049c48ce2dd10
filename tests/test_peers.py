"""Random search, local search and Bayesian optimisation: as many evaluations as asked for, sensibly good."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from searches import MINI, Additive

from llmpp_core.search.alternatives import BatchSearch, BayesianSearch, LocalSearch, RandomSearch
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.finalists import finalists
from llmpp_core.search.limits import parameter_limit
from llmpp_core.search.pareto import ParetoSearch
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import TINY

LIMIT = parameter_limit(TINY, 250e3)
METHODS = [RandomSearch, LocalSearch, BayesianSearch]


@pytest.mark.parametrize("method", METHODS)
def test_each_asks_as_often_as_told_about_different_feasible_architectures(method: type[BatchSearch]) -> None:
    score = Additive()
    result = method(TINY, score, LIMIT, evaluations=130, batch=40).run()
    assert [sum(record.evaluations.values()) for record in result.records] == [40, 40, 40, 10]
    assert len(score.asked) == 130
    assert set(score.asked.values()) == {1}
    seen = [genome for record in result.records for genome in record.population]
    assert len(set(seen)) == 130
    assert max(cost for record in result.records for cost in record.costs["parameters"]) <= LIMIT.limit
    assert result.score == max(record_score for record in result.records for record_score in record.scores)
    assert score.predict([result.best])[0] == result.score
    assert np.diff([record.score for record in result.records]).min() >= 0


def test_local_search_ends_on_local_optima_and_starts_again() -> None:
    score = Additive(TINY)
    result = LocalSearch(TINY, score, evaluations=1500, batch=500, climbers=2).run()
    # Without interactions every climb ends at the optimum.
    assert result.score == pytest.approx(score.best_score())
    assert len(result.records) == 3


def test_local_search_climbs_from_the_finalists_of_a_cheaper_predictor() -> None:
    genes, costly = Genes(TINY), Additive(TINY, noise=0.2)
    first = EvolutionarySearch(TINY, [(Additive(TINY), 30)], LIMIT).run()
    start = finalists(first, genes)
    assert len(set(start)) == 51
    # The best of three depths, as many of each, best first.
    depths = [arch.decoder_layers for arch in start]
    assert [depths.count(depth) for depth in dict.fromkeys(depths)] == [17, 17, 17]
    seen = {genome: score for record in first.records for genome, score in zip(record.population, record.scores, strict=True)}
    said = [seen[genome] for genome in genes.to_text(genes.encode(start))]
    assert said[0] == max(seen.values())
    for first_of_depth in (0, 17, 34):
        group = said[first_of_depth : first_of_depth + 17]
        scored = zip(genes.table(genes.from_text(seen)), seen.values(), strict=True)
        same = [score for arch, score in scored if arch.decoder_layers == depths[first_of_depth]]
        assert group == sorted(same, reverse=True)[:17]
    climb = LocalSearch(TINY, costly, LIMIT, evaluations=153, batch=51, start=start).run()
    assert set(climb.records[0].population) == set(genes.to_text(genes.encode(start)))
    assert climb.records[0].score == max(costly.predict(start)) <= climb.score
    # What is not within the limits is left out, and climbers that lack a start are random.
    alone = LocalSearch(TINY, costly, LIMIT, evaluations=40, batch=20, start=[start[0], TINY.largest()]).run()
    assert genes.to_text(genes.encode([start[0]]))[0] in alone.records[0].population
    assert max(cost for record in alone.records for cost in record.costs["parameters"]) <= LIMIT.limit


@pytest.mark.parametrize("method", METHODS)
def test_each_ends_with_the_whole_of_a_space_that_has_no_more(method: type[BatchSearch]) -> None:
    score = Additive(MINI, noise=0.5)
    result = method(MINI, score, parameter_limit(MINI, 1500), evaluations=1000, batch=100).run()
    table = score.genes.table(score.genes.everything())
    feasible = parameter_limit(MINI, 1500).costs(table) <= 1500
    assert len(score.asked) == feasible.sum() < 1000
    assert result.score == pytest.approx(score.predict(table)[feasible].max())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (LocalSearch, {"evaluations": 0}, "expected positive integers"),
        (LocalSearch, {"batch": 2.5}, "expected positive integers"),
        (LocalSearch, {"climbers": 200}, "climbers: expected 1 to 100"),
        (
            LocalSearch,
            {"start": TINY.sample(51, np.random.default_rng(0)), "batch": 20},
            "start: expected at most 20, .* got 51",
        ),
        (ParetoSearch, {"costs": []}, "at least one cost"),
        (ParetoSearch, {"costs": [LIMIT], "population": 2.5}, r"a population of at least 2, got 1 and 2\.5"),
        (ParetoSearch, {"costs": [LIMIT], "mutation_probability": 7}, "mutation_probability: expected 0 to 1, got 7"),
    ],
)
def test_bad_settings_are_refused(method: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(TINY, Additive(), **settings)
