"""The evolutionary search: what its records promise, that every method resumes exactly, and that it finds what there is to find."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import run_killed
from searches import Additive, told

from llmpp_core.search.alternatives import BayesianSearch, LocalSearch, RandomSearch
from llmpp_core.search.evolution import EvolutionarySearch, Search
from llmpp_core.search.limits import Limit, flops_limit, parameter_limit
from llmpp_core.search.pareto import ParetoSearch
from llmpp_core.search.records import SearchResult, read_records
from llmpp_core.search.schedule import Adaptive, Candidates, Disagreement, Uncertainty, predictors_of, schedule
from llmpp_core.search.scores import ranking
from llmpp_core.space.cost import count_parameters
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import TINY, SearchSpace

LIMIT = parameter_limit(TINY, 250e3)
SMALL: dict[str, Any] = {"population": 20, "parents": 6, "mutants": 8, "crossovers": 8}


def two() -> tuple[Additive, Additive]:
    """Return a cheap predictor and the costly one that it resembles."""
    return Additive(noise=0.3), Additive()


def adaptive(space: SearchSpace = TINY, seed: int = 0) -> EvolutionarySearch:
    cheap, costly = two()
    schedule = [(costly, 2), Adaptive(cheap, costly, 6, Disagreement(3, 0.2, 2), 1), (cheap, 2)]
    return EvolutionarySearch(space, schedule, LIMIT, seed=seed, names=["costly", "cheap"], **SMALL)


# --- what the records promise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cheap", "HS-NAS", "reversed", "switch 3", "adaptive"])
def test_records_hold_what_they_promise(name: str) -> None:
    cheap, costly = two()
    search = EvolutionarySearch(TINY, schedule(name, cheap, costly, 10, Disagreement()), LIMIT, seed=1)
    result = search.run()
    genes, byname = Genes(TINY), dict(zip(search.names, [cheap, costly] if name != "reversed" else [costly, cheap], strict=False))
    # Nobody is asked twice about an architecture.
    assert result.evaluations == {asked: predictor.asked.total() for asked, predictor in byname.items() if predictor.asked}
    assert {count for predictor in (cheap, costly) for count in predictor.asked.values()} == {1}
    assert [record.iteration for record in result.records] == list(range(10))
    for record, previous in zip(result.records, [None, *result.records], strict=False):
        archs = genes.table(genes.from_text(record.population))
        assert len(set(record.population)) == len(record.population) == 125
        assert record.costs["parameters"] == [count_parameters(arch, TINY.qkv_dim) for arch in archs]
        assert max(record.costs["parameters"]) <= LIMIT.limit
        assert record.scores == byname[record.predictor].predict(archs).tolist()
        assert len(record.parents) == 25
        chosen = [record.scores[i] for i in record.parents]
        assert chosen == sorted(record.scores, reverse=True)[:25]
        assert record.score == max(record.scores) == record.spread["max"]
        assert record.best_costs["parameters"] == count_parameters(record.best, TINY.qkv_dim)
        assert byname[record.predictor].predict([record.best])[0] == record.score
        assert sorted(record.seconds) == ["constraints", "propose", "rule", "score"]
        assert min(record.seconds.values()) >= 0
        if previous is not None:
            assert [previous.population[i] for i in previous.parents] == record.population[:25]
            if previous.predictor == record.predictor:
                assert record.score >= previous.score
    assert (result.best, result.score, result.costs) == (record.best, record.score, record.best_costs)
    assert result.total_seconds == pytest.approx(sum(result.seconds.values()))


# --- schedules ----------------------------------------------------------------------------------------------------


def test_equal_schedules_give_equal_searches() -> None:
    def run(entries: Any) -> list[dict[str, Any]]:
        return told(EvolutionarySearch(TINY, entries, LIMIT, seed=3).run().records)

    cheap, costly = two()
    plain = run([(cheap, 10)])
    assert run([(cheap, 4), (cheap, 6)]) == plain
    assert run([(cheap, 10), (costly, 0)]) == plain
    assert run(schedule("switch 10", cheap, costly, 10)) == plain
    hsnas = run(schedule("HS-NAS", cheap, costly, 10))
    assert hsnas[:5] == plain[:5]
    assert hsnas[5]["population"] == plain[5]["population"]
    assert told(adaptive(seed=1).run().records) != told(adaptive().run().records)


def test_a_rule_decides_when_the_costly_predictor_takes_over() -> None:
    def predictors(cheap: Any, costly: Any, rule: Any) -> list[str]:
        entry = Adaptive(cheap, costly, 8, rule, 1)
        records = EvolutionarySearch(TINY, [entry], names=["cheap", "costly"], **SMALL).run().records
        for record in records:
            assert len(record.probe) == record.evaluations.get("costly", 0) or record.predictor == "costly"
        return [record.predictor for record in records]

    same, other = Additive(), Additive(seed=9)
    # Whoever agrees to the end leaves the last word to the costly one.
    assert predictors(same, Additive(), Disagreement(6)) == ["cheap"] * 7 + ["costly"]
    assert predictors(same, other, Disagreement(6, 0.99, 1)) == ["cheap"] + ["costly"] * 7
    assert predictors(same, other, Uncertainty(1e9)) == ["cheap"] + ["costly"] * 7
    cheap = Additive()
    assert predictors(cheap, other, lambda parents: (len(cheap.asked) > 50, {})).index("costly") == 3

    for last in (1, 3, 7):
        entry = Adaptive(same, Additive(), 8, lambda candidates: (False, {}), last)
        records = EvolutionarySearch(TINY, [entry], names=["cheap", "costly"], **SMALL).run().records
        assert [record.predictor for record in records] == ["cheap"] * (8 - last) + ["costly"] * last


def test_a_rule_sees_all_candidates_the_parents_first() -> None:
    cheap, costly = two()
    seen: list[Candidates] = []

    def rule(candidates: Candidates) -> tuple[bool, dict[str, float]]:
        candidates.ask([0, len(candidates.archs) - 1])
        seen.append(candidates)
        return False, {}

    records = EvolutionarySearch(TINY, [Adaptive(cheap, costly, 6, rule, 1)], names=["cheap", "costly"], **SMALL).run().records
    assert len(seen) == 4
    genes = Genes(TINY)
    for candidates, record in zip(seen, records, strict=False):
        archs = genes.table(genes.from_text(record.population))
        assert [candidates.archs[i] for i in range(candidates.parents)] == [archs[i] for i in record.parents]
        assert set(candidates.archs) == set(archs)
        assert candidates.scores.tolist() == sorted(record.scores, reverse=True)
        np.testing.assert_allclose(candidates.costly[[0, -1]], costly.predict([candidates.archs[0], candidates.archs[-1]]))


# --- resume -------------------------------------------------------------------------------------------------------


def peer(method: Any, **settings: Any) -> Search:
    sizes = {"population": 20, "iterations": 5} if method is ParetoSearch else {"evaluations": 200, "batch": 40}
    return method(TINY, Additive(), [flops_limit(TINY, np.inf), LIMIT], **sizes, **settings, seed=2)


PEERS = [partial(peer, method) for method in (RandomSearch, LocalSearch, BayesianSearch, ParetoSearch)]


@pytest.mark.parametrize("make", [adaptive, *PEERS, partial(peer, LocalSearch, start=[TINY.smallest(), TINY.largest()])])
def test_resumed_at_any_iteration_a_search_is_the_same_and_asks_nothing_twice(make: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    expected = make().run(whole)
    assert told(read_records(whole, Genes(TINY), make().settings())) == told(expected.records)
    lines = whole.read_bytes().splitlines(keepends=True)
    for done in range(len(lines) + 1):
        part = tmp_path / f"{done}.jsonl"
        part.write_bytes(b"".join(lines[:done]) + b'{"cut off')
        search = make()
        result = search.run(part)
        assert told(result.records) == told(expected.records)
        assert told(read_records(part, Genes(TINY))) == told(expected.records)
        evaluated = sum(sum(record.evaluations.values()) for record in expected.records[done:])
        # One is asked again, to see whether the predictor is the same.
        assert sum(len(predictor.asked) for predictor in predictors_of(search.schedule)) == evaluated + (done > 0)
    assert part.read_bytes().startswith(whole.read_bytes())


class Slow(Additive):
    def predict(self, archs: Any, return_std: bool = False) -> Any:
        time.sleep(0.01)
        return super().predict(archs, return_std)


def slow_search(path: Path | None) -> SearchResult:
    cheap, costly = Slow(noise=0.3), Slow()
    return EvolutionarySearch(TINY, [Adaptive(cheap, costly, 30, Disagreement(3, 0.2, 2), 1)], LIMIT, **SMALL).run(path)


def test_killed_at_random_moments_a_search_is_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    run_killed(slow_search, (tmp_path / "search.jsonl",), tmp_path, kills=10, rng=rng, method="fork")
    assert told(slow_search(tmp_path / "search.jsonl").records) == told(slow_search(None).records)


def test_files_of_other_searches_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    adaptive().run(path)
    with pytest.raises(ValueError, match=r"search.jsonl:1: of another search, whose seed is 0 and not 1"):
        adaptive(seed=1).run(path)
    other = replace(TINY, decoder_ffn_dims=(*TINY.decoder_ffn_dims, 8))
    with pytest.raises(ValueError, match=r"search.jsonl:1: of another search, whose choices_sha256 is"):
        adaptive(other).run(path)
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[2])
    for spoiled in (
        {**row, "population": ["0"]},
        {**row, "population": [3]},
        {**row, "iteration": 7},
        {**row, "extra": 1},
        {name: value for name, value in row.items() if name != "scores"},
        {**row, "best": {}},
        {**row, "search": None},
    ):
        path.write_text("".join(lines[:2]) + json.dumps(spoiled) + "\n" + "".join(lines[3:]))
        with pytest.raises(ValueError, match=r"search.jsonl:3: "):
            adaptive().run(path)


def test_a_search_does_not_go_on_with_another_predictor_or_cost_of_the_same_name(tmp_path: Path) -> None:
    path, limit = tmp_path / "search.jsonl", Limit(Additive(seed=5), 5.0, "price")
    EvolutionarySearch(TINY, [(Additive(), 3)], limit).run(path)
    begun = path.read_bytes()
    for entries, constraint, name in (
        ([(Additive(seed=1), 3)], limit, "Additive"),
        ([(Additive(), 3)], Limit(Additive(seed=6), 5.0, "price"), "price"),
    ):
        with pytest.raises(ValueError, match=rf"search.jsonl: of another search: {name} of iteration 2 was \S+ there and is \S+ here"):
            EvolutionarySearch(TINY, entries, constraint).run(path)
        assert path.read_bytes() == begun


@pytest.mark.parametrize("penalty", [-np.inf, -1e30, -1e12])
def test_a_penalty_leaves_the_order_of_the_others_alone(penalty: float) -> None:
    assert ranking(np.array([-1.3, penalty, -1.1, -1.2, np.nan])).tolist() == [2, 3, 0, 1, 4]
    # Rounding does not decide, nor what is left of a difference that is zero.
    assert ranking(np.array([1.0 - 1e-15, 1.0, 1.0 + 1e-15])).tolist() == [0, 1, 2]
    assert ranking(np.array([5.0, 1e-17, 0.0, -1e-17, -5.0, 4.0, 3.0])).tolist() == [0, 5, 6, 1, 2, 3, 4]


# --- errors -------------------------------------------------------------------------------------------------------


class Silent(Additive):
    """Answers nothing about shallow architectures."""

    def predict(self, archs: Any, return_std: bool = False) -> Any:
        return np.where([arch.decoder_layers < 4 for arch in archs], np.nan, super().predict(archs))


def test_scores_that_are_nan_come_last_and_are_not_asked_for_again(tmp_path: Path) -> None:
    score = Silent()
    result = EvolutionarySearch(TINY, [(score, 4)]).run(tmp_path / "search.jsonl")
    assert result.best.decoder_layers >= 4
    assert None in result.records[0].scores
    assert None not in [result.records[0].scores[i] for i in result.records[0].parents]
    assert set(score.asked.values()) == {1}
    assert told(EvolutionarySearch(TINY, [(Silent(), 4)]).run(tmp_path / "search.jsonl").records) == told(result.records)
    limit = parameter_limit(TINY, count_parameters(TINY.smallest(), TINY.qkv_dim))
    with pytest.raises(ValueError, match="Silent: every one of the"):
        EvolutionarySearch(TINY, [(score, 4)], limit).run()


class Short(Additive):
    def predict(self, archs: Any, return_std: bool = False) -> Any:
        return super().predict(archs)[1:]


def test_one_score_per_architecture_is_expected() -> None:
    with pytest.raises(ValueError, match=r"Short: expected one score per architecture, shape \(125,\), got shape \(124,\)"):
        EvolutionarySearch(TINY, [(Short(), 3)]).run()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": []}, "schedule: expected entries"),
        ({"seed": -1}, "seed: expected an integer from 0, got -1"),
        ({"parents": 200}, "2 <= parents <= population"),
        ({"mutants": 0, "crossovers": 0}, "at least one mutant"),
        ({"mutation_probability": 0.0}, "mutation_probability"),
        ({"names": ["a", "b"]}, "names: expected 1 different ones"),
        ({"constraints": [LIMIT, LIMIT]}, "a name of its own"),
        ({"schedule": [Additive()]}, "schedule: expected pairs of predictor and number of iterations, or Adaptive, got <"),
        ({"schedule": (Additive(), 3)}, "schedule: expected pairs of predictor and number of iterations"),
        ({"schedule": [(Additive(), 3.5)]}, "schedule: expected pairs of predictor and number of iterations"),
        ({"schedule": [(None, 3)]}, "schedule: expected predictors with a method predict, got None"),
        ({"constraints": 100.0}, r"constraints: expected a Limit, or several, got 100\.0"),
        ({"constraints": ["a"]}, r"constraints: expected a Limit, or several, got \['a'\]"),
        ({"seed": None}, "seed: expected an integer from 0, got None"),
        ({"seed": 1.5}, "seed: expected an integer from 0, got 1.5"),
        ({"population": 20.0}, "expected whole numbers, got population=20.0"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        EvolutionarySearch(TINY, **{"schedule": [(Additive(), 3)], **settings})
    assert "\n" not in str(error.value)
