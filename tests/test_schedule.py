"""Schedules by name, and rules that decide when the costly predictor takes over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from searches import Additive
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from llmpp_core.search.schedule import Adaptive, Candidates, Disagreement, Uncertainty, default_names, predictors_of, schedule
from llmpp_core.space.features import HATFeatures
from llmpp_core.space.search_space import TINY


def test_named_schedules() -> None:
    cheap, costly = Additive(), Additive()
    assert schedule("cheap", cheap, costly) == [(cheap, 30)]
    assert schedule("costly", cheap, costly) == [(costly, 30)]
    assert schedule("HS-NAS", cheap, costly) == [(cheap, 15), (costly, 15)]
    assert schedule("reversed", cheap, costly) == [(costly, 15), (cheap, 15)]
    assert schedule("switch 0", cheap, costly) == [(costly, 30)]
    assert schedule("switch 30", cheap, costly) == [(cheap, 30)]
    for k in range(1, 30):
        assert schedule(f"switch {k}", cheap, costly) == [(cheap, k), (costly, 30 - k)]
    (entry,) = schedule("adaptive", cheap, costly, 20, Disagreement(4))
    assert isinstance(entry, Adaptive)
    assert (entry.cheap, entry.costly, entry.iterations, entry.rule) == (cheap, costly, 20, Disagreement(4))


@pytest.mark.parametrize("name", ["", "hs", "switch 31", "switch -1", "switch"])
def test_unknown_schedules_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="adaptive or switch 0 to switch 30"):
        schedule(name, Additive(), Additive())


def test_names_of_predictors() -> None:
    a, b, pipeline = Additive(), Additive(), make_pipeline(HATFeatures(), Ridge())
    found = predictors_of([(a, 3), Adaptive(pipeline, b, 4, last=1), (a, 2)])
    assert [id(p) for p in found] == [id(p) for p in (a, pipeline, b)]
    assert default_names(found) == ["Additive", "Ridge", "Additive 2"]


def candidates(cheap: list[float], costly: list[float], parents: int | None = None) -> tuple[Candidates, list[int]]:
    """Return candidates whose costly scores are known once asked for, and the list of what is asked."""
    asked: list[int] = []
    archs = TINY.sample(len(cheap), np.random.default_rng(0))
    number = len(cheap) if parents is None else parents
    found = Candidates(archs, np.array(cheap), number, Additive(), np.full(len(cheap), math.nan), [], lambda positions: None)

    def ask(positions) -> None:  # type: ignore[no-untyped-def]
        asked.extend(positions)
        found.costly[positions] = np.array(costly)[positions]

    found.ask = ask
    return found, asked


def test_disagreement_compares_a_few_evenly_spaced_candidates() -> None:
    scores = [float(-i) for i in range(25)]
    for costly, tau, switch in ((scores, 1.0, False), (scores[::-1], -1.0, True)):
        seen, asked = candidates(scores, costly)
        assert Disagreement(probe=8, threshold=0.3, window=1)(seen) == (switch, {"tau": pytest.approx(tau), "known": 8})
        assert len(asked) == 8
        assert (asked[0], asked[-1]) == (0, 24)
        assert set(np.diff(asked)) <= {3, 4}


def test_disagreement_counts_what_is_known_already_and_ties_are_none() -> None:
    seen, _ = candidates([5.0, 4.0, 3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0])
    seen.costly[1] = 9.0
    _, numbers = Disagreement(probe=2)(seen)
    assert numbers["known"] == 3
    seen, _ = candidates([1.0] * 5, [5.0, 4.0, 3.0, 2.0, 1.0])
    assert Disagreement(threshold=0.1, window=1)(seen)[0]


def test_disagreement_takes_the_mean_of_its_window() -> None:
    for history, switch in (
        ([], False),
        ([0.9], False),
        ([0.9, 0.2], False),
        ([-1.0, 0.4], True),
        ([-9.0, 0.6, 0.6], False),
        ([None, 0.4], True),
    ):
        seen, _ = candidates([5.0, 4.0, 3.0], [3.0, 4.0, 5.0])
        seen.history = [{"tau": tau, "known": 3} for tau in history]
        assert Disagreement(threshold=0.0, window=3)(seen)[0] == switch, history


def test_uncertainty_switches_when_parents_cannot_be_told_apart() -> None:
    apart, asked = candidates([5.0, 4.0, 3.0], [0.0] * 3)
    assert Uncertainty()(apart) == (False, {"uncertainty": pytest.approx(0.1), "gap": 2.0})
    # The last one is no parent.
    close, _ = candidates([5.0, 4.95, -9.0], [0.0] * 3, parents=2)
    assert Uncertainty()(close) == (True, {"uncertainty": pytest.approx(0.1), "gap": pytest.approx(0.05)})
    assert not Uncertainty(factor=0.1)(close)[0]
    assert not asked


def test_uncertainty_of_a_predictor_that_tells_none_is_refused() -> None:
    seen, _ = candidates([3.0, 2.0], [0.0, 0.0])
    seen.cheap = make_pipeline(HATFeatures(), Ridge()).fit(seen.archs, [1.0, 2.0])
    with pytest.raises(ValueError, match="Uncertainty: Pipeline does not tell standard deviations"):
        Uncertainty()(seen)


@pytest.mark.parametrize(
    ("iterations", "last", "message"),
    [
        *((4, last, f"last: expected 1 to 3, for 4 iterations in all, got {last}") for last in (0, 4, 5)),
        *((n, last, f"whole numbers, the first from 2, got {n} and {last}$") for n, last in ((8.5, 2), (8, 2.5), (1, 1))),
    ],
)
def test_both_predictors_have_a_part_in_an_adaptive_entry(iterations: Any, last: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adaptive(Additive(), Additive(), iterations, last=last)
