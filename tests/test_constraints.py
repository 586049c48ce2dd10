"""Limits: what is infeasible is found out at once, and explained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from searches import MINI, Additive

from llmpp_core.latency.predictor import LatencyPredictor
from llmpp_core.pipeline.report import _digits
from llmpp_core.search.limits import InfeasibleError, Limit, cheapest_row, feasible_row, flops_limit, parameter_limit, violation
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import HAT_WMT, SPACES, TINY, SearchSpace


@pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)
def test_the_cheapest_value_is_the_exact_one(space: SearchSpace) -> None:
    genes, smallest = Genes(space), space.smallest()
    for limit, least in (
        (parameter_limit(space, 1), count_parameters(smallest, space.qkv_dim)),
        (flops_limit(space, 1, vocab_size=100), count_flops(smallest, 100, qkv_dim=space.qkv_dim)),
    ):
        with pytest.raises(InfeasibleError) as error:
            feasible_row(genes, [limit])
        assert error.value.cost == least
        assert error.value.limit is limit


def test_the_cheapest_is_exact_for_sums_over_layers_even_where_more_layers_cost_less() -> None:
    for seed in range(20):
        small = Additive(MINI, seed, noise=1.0)
        every = small.predict(small.genes.table(small.genes.everything()))
        with pytest.raises(InfeasibleError) as error:
            feasible_row(small.genes, [Limit(small, -100.0)])
        assert error.value.cost == pytest.approx(every.min())


def test_descent_finds_the_least_of_a_sum_at_once() -> None:
    score = Additive(TINY)
    deepest = score.genes.encode([TINY.smallest()])
    deepest[0, 3] = TINY.decoder_layers.index(6)
    start = score.genes.canonical(np.where(deepest < 0, 0, deepest))
    _, value = cheapest_row(score.genes, lambda rows: -score.predict(score.genes.table(rows)), start)
    assert value == pytest.approx(-score.best_score())


def latency(space: SearchSpace) -> LatencyPredictor:
    archs = space.sample(100, np.random.default_rng(1))
    return LatencyPredictor().fit(archs, [20 + 15 * arch.decoder_layers + sum(arch.decoder_ffn_dims) / 1000 for arch in archs])


def test_an_infeasible_latency_is_explained_by_few_questions() -> None:
    predictor, asked = latency(HAT_WMT), []

    def counted(archs: Any) -> np.ndarray:
        asked.append(len(archs))
        return predictor.predict(archs)

    with pytest.raises(InfeasibleError) as error:
        feasible_row(Genes(HAT_WMT), [Limit(counted, 10, "latency", "ms")])
    assert sum(asked) < 5000
    text = str(error.value)
    assert "\n" not in text
    for part in ("latency: HAT_WMT", "within 10 ms", "costs 36", "decoder_layers 1", "decoder_layers 2 +1"):
        assert part in text
    extras = [step.extra for step in error.value.steps]
    assert extras == sorted(extras)
    deeper = next(step for step in error.value.steps if (step.choice, step.value) == ("decoder_layers", 2))
    assert deeper.extra == pytest.approx(16, rel=0.1)
    assert predictor.predict([error.value.cheapest])[0] == pytest.approx(error.value.cost)


def test_a_cost_is_written_with_four_digits_or_whole() -> None:
    written = [Limit(len, 1, unit="ms").text(cost) for cost in (0.0123456, 1234.56, 9999.4, 9999.7, 12345.6)]
    assert written == ["0.01235 ms", "1,235 ms", "9,999 ms", "10,000 ms", "12,346 ms"]
    assert [_digits(cost) for cost in (0.0123456, 9999.7)] == ["0.01235", "10,000"], "in reports too"


def test_limits_that_exclude_each_other_are_found_out() -> None:
    small = parameter_limit(TINY, 120e3)
    deep = Limit(lambda archs: [-arch.decoder_layers for arch in archs], -6, "depth")
    feasible_row(Genes(TINY), [small])
    feasible_row(Genes(TINY), [deep])
    with pytest.raises(InfeasibleError, match="at once, though each can be kept alone"):
        feasible_row(Genes(TINY), [small, deep])


def test_a_feasible_row_is_found_where_the_smallest_architecture_is_none() -> None:
    limits = [parameter_limit(TINY, 300e3), Limit(lambda archs: [-arch.decoder_layers for arch in archs], -6, "depth")]
    genes = Genes(TINY)
    arch = genes.table(feasible_row(genes, limits))[0]
    assert arch.decoder_layers == 6
    assert count_parameters(arch, TINY.qkv_dim) <= 300e3


def test_violation_is_zero_within_and_infinite_for_nan() -> None:
    limits = [Limit(len, 10.0, "a"), Limit(len, np.inf, "b")]
    costs = np.array([[10.0, 1e9], [15.0, 1.0], [np.nan, 1.0], [1.0, np.nan]])
    assert violation(limits, costs).tolist() == [0.0, 0.5, np.inf, np.inf]


def test_a_slow_cost_is_asked_about_little_where_a_quick_one_before_it_can_be_kept() -> None:
    asked: list[int] = []

    def slow(archs: Any) -> np.ndarray:
        asked.append(len(archs))
        return np.array([arch.decoder_layers + 1.0 for arch in archs])

    # The smallest architecture is not deep enough.
    deep = Limit(lambda archs: np.array([-float(arch.decoder_layers) for arch in archs]), -3, "depth")
    row = feasible_row(Genes(TINY), [deep, Limit(slow, 7.5, "measured")])
    assert Genes(TINY).table(row)[0].decoder_layers >= 3
    assert sum(asked) <= 4


@pytest.mark.parametrize(
    ("limit", "cost", "message"), [(None, len, "got None"), ("9", len, "got '9'"), (1.0, 3, "or with a method predict, got 3")]
)
def test_a_limit_that_is_none_is_refused(limit: Any, cost: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"price: .*{message}"):
        Limit(cost, limit, "price")


def test_a_cost_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parts: expected one cost per architecture, shape \(1,\), got shape \(1, 2\)"):
        Limit(lambda archs: [[1, 2]], 3, "parts").costs([TINY.smallest()])
