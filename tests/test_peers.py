"""Random search, local search and Bayesian optimisation: as many evaluations as asked for, resumed exactly, sensibly good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searches import MINI, Additive, everything

from llmpp_core.search.alternatives import BatchSearch, BayesianSearch, LocalSearch, RandomSearch
from llmpp_core.search.limits import parameter_limit
from llmpp_core.search.records import read_records
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import TINY

LIMIT = parameter_limit(TINY, 250e3)
METHODS = [RandomSearch, LocalSearch, BayesianSearch]


def told(records: Any) -> list[dict[str, Any]]:
    return [record.without_times() for record in records]


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


@pytest.mark.parametrize("method", METHODS)
def test_resumed_at_any_iteration_each_is_the_same(method: type[BatchSearch], tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    expected = method(TINY, Additive(), LIMIT, evaluations=200, batch=40, seed=2).run(whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    for done in range(len(lines) + 1):
        part = tmp_path / f"{done}.jsonl"
        part.write_bytes(b"".join(lines[:done]))
        score = Additive()
        result = method(TINY, score, LIMIT, evaluations=200, batch=40, seed=2).run(part)
        assert told(result.records) == told(expected.records)
        assert told(read_records(part, Genes(TINY))) == told(expected.records)


@pytest.mark.parametrize("method", [LocalSearch, BayesianSearch])
def test_each_beats_random_search(method: type[BatchSearch]) -> None:
    for seed in range(3):
        score = Additive(TINY, seed)
        found = method(TINY, score, LIMIT, evaluations=400, batch=50, seed=seed).run().score
        assert found > RandomSearch(TINY, score, LIMIT, evaluations=400, seed=seed).run().score


def test_local_search_ends_on_local_optima_and_starts_again() -> None:
    score = Additive(TINY)
    result = LocalSearch(TINY, score, evaluations=1500, batch=500, climbers=2).run()
    # Without interactions every climb ends at the optimum.
    assert result.score == pytest.approx(score.best_score())
    assert len(result.records) == 3


@pytest.mark.parametrize("method", METHODS)
def test_each_ends_with_the_whole_of_a_space_that_has_no_more(method: type[BatchSearch]) -> None:
    score = Additive(MINI, noise=0.5)
    result = method(MINI, score, parameter_limit(MINI, 1500), evaluations=1000, batch=100).run()
    table = score.genes.table(everything(MINI))
    feasible = parameter_limit(MINI, 1500).costs(table) <= 1500
    assert len(score.asked) == feasible.sum() < 1000
    assert result.score == pytest.approx(score.predict(table)[feasible].max())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluations": 0}, "expected positive integers"),
        ({"batch": 2.5}, "expected positive integers"),
        ({"climbers": 200}, "climbers: expected 1 to 100"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalSearch(TINY, Additive(), **settings)
