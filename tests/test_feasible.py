"""Random architectures within limits: all are, all differ, and what little there is is found."""

from __future__ import annotations

import numpy as np
import pytest
from hat_costs import parameter_counts
from searches import MINI

from llmpp_core.search.feasible import Feasible
from llmpp_core.search.limits import Limit, flops_limit, parameter_limit
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import HAT_WMT, TINY


def of(limit: float) -> Feasible:
    return Feasible(Genes(MINI), [parameter_limit(MINI, limit)])


@pytest.mark.parametrize("part", [0.002, 0.02, 0.5, 1.0])
def test_what_is_drawn_is_feasible_and_different_or_all_there_is(part: float, rng: np.random.Generator) -> None:
    genes = Genes(MINI)
    costs = np.sort(parameter_counts(genes.table(genes.everything()), qkv_dim=MINI.qkv_dim))
    limit = costs[int(part * (len(costs) - 1))]
    held = int((costs <= limit).sum())
    for n in (5, 100):
        rows, drawn = of(limit).initial(n, rng)
        assert len(set(genes.to_text(rows))) == len(rows) == min(n, held)
        assert (drawn[:, 0] <= limit).all()
        assert drawn[:, 0].tolist() == parameter_counts(genes.table(rows), qkv_dim=MINI.qkv_dim).tolist()


def test_what_is_taken_is_not_drawn_again(rng: np.random.Generator) -> None:
    genes = Genes(MINI)
    feasible = Feasible(genes, [])
    taken: set[str] = set()
    for _ in range(4):
        rows, _ = feasible.initial(400, rng, taken)
        texts = set(genes.to_text(rows))
        assert not texts & taken
        taken |= texts
    assert len(taken) == MINI.size()


def test_independent_draws_where_most_is_feasible(rng: np.random.Generator) -> None:
    genes = Genes(HAT_WMT)
    rows, _ = Feasible(genes, [parameter_limit(HAT_WMT, 50e6)]).initial(2000, rng)
    plain = genes.table(genes.sample(20000, rng))
    kept = plain.values("decoder_layers")[parameter_counts(plain) <= 50e6]
    assert genes.table(rows).values("decoder_layers").mean() == pytest.approx(kept.mean(), abs=0.1)


def test_rare_architectures_are_found_by_few_questions(rng: np.random.Generator) -> None:
    genes, asked = Genes(HAT_WMT), []
    least = parameter_counts([HAT_WMT.smallest()])[0]

    def counted(archs):  # type: ignore[no-untyped-def]
        asked.append(len(archs))
        return parameter_counts(archs)

    feasible = Feasible(genes, [Limit(counted, 1.1 * least, "parameters"), flops_limit(HAT_WMT, 2e9)])
    rows, costs = feasible.initial(125, rng)
    assert len(set(genes.to_text(rows))) == 125
    assert (costs <= [1.1 * least, 2e9]).all()
    assert sum(asked) < 150_000


def test_a_slow_limit_is_asked_only_about_what_passes_the_ones_before(rng: np.random.Generator) -> None:
    asked = []

    def slow(archs):  # type: ignore[no-untyped-def]
        asked.extend(archs)
        return np.zeros(len(archs))

    quick = parameter_limit(TINY, 150e3)
    rows, _ = Feasible(Genes(TINY), [quick, Limit(slow, 1, "slow")]).initial(50, rng)
    assert (parameter_counts(asked, qkv_dim=TINY.qkv_dim) <= 150e3).all()
    # One more to see that the limits can be kept, and a few to spare in the last batch.
    assert len(rows) == 50 <= len(asked) <= 90


def test_children_differ_from_their_parents_and_fill_up_with_neighbours(rng: np.random.Generator) -> None:
    genes = Genes(TINY)
    feasible = Feasible(genes, [parameter_limit(TINY, 150e3)])
    parents, _ = feasible.initial(5, rng)
    rows, costs, rates = feasible.children([(lambda n: np.repeat(parents, n, axis=0)[:n], 10, 1.0)], parents, rng)
    assert rates == [0.0]
    assert len(set(genes.to_text(np.vstack([parents, rows])))) == 15
    assert (costs <= 150e3).all()


def test_limits_need_names_of_their_own_and_numbers() -> None:
    with pytest.raises(ValueError, match="a name of its own, got FLOPs, FLOPs"):
        Feasible(Genes(TINY), [flops_limit(TINY, 1e6), flops_limit(TINY, 2e6)])
    with pytest.raises(ValueError, match="got nan"):
        flops_limit(TINY, np.nan)
