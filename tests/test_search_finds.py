"""What an evolutionary search finds: the optimum where it is known, and more than chance."""

from __future__ import annotations

import numpy as np
import pytest
from searches import MINI, Additive

from llmpp_core.search.alternatives import RandomSearch
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import parameter_limit
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import TINY


def test_the_optimum_of_an_additive_score_is_found() -> None:
    for seed in range(3):
        score = Additive(TINY, seed)
        result = EvolutionarySearch(TINY, [(score, 60)], mutation_probability=0.1, seed=seed).run()
        assert result.score == pytest.approx(score.best_score())


def test_the_best_within_a_limit_is_found_in_a_space_that_can_be_listed() -> None:
    rows, limit = Genes(MINI).everything(), parameter_limit(MINI, 1900)
    for seed in range(3):
        score = Additive(MINI, seed, noise=0.5)
        table = score.genes.table(rows)
        best = score.predict(table)[limit.costs(table) <= limit.limit].max()
        assert EvolutionarySearch(MINI, [(score, 30)], limit, seed=seed).run().score == pytest.approx(best)


def test_it_beats_random_search_at_equal_evaluations() -> None:
    for seed in range(5):
        score, limit = Additive(TINY, seed), parameter_limit(TINY, 250e3)
        result = EvolutionarySearch(TINY, [(score, 30)], limit, seed=seed).run()
        peer = RandomSearch(TINY, score, limit, evaluations=sum(result.evaluations.values()), seed=seed).run()
        assert sum(peer.evaluations.values()) == sum(result.evaluations.values())
        assert result.score > peer.score


def test_a_limit_that_leaves_fewer_than_the_population_means_that_all_are_scored() -> None:
    rows = Genes(MINI).everything()
    costs = np.sort(parameter_limit(MINI, 1).costs(Genes(MINI).table(rows)))
    limit = parameter_limit(MINI, costs[9])
    held = int((costs <= costs[9]).sum())
    score = Additive(MINI)
    records = EvolutionarySearch(MINI, [(score, 5)], limit).run().records
    assert {len(record.population) for record in records} == {held}
    assert len(score.asked) == held < 125


def test_a_space_smaller_than_the_children_wanted_is_searched_whole() -> None:
    score = Additive(MINI, noise=0.5)
    result = EvolutionarySearch(MINI, [(score, 40)], population=600, parents=500, mutants=400, crossovers=400).run()
    assert len(score.asked) == MINI.size()
    assert result.score == pytest.approx(score.predict(score.genes.table(score.genes.everything())).max())
