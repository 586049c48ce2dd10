"""The price of letting a predictor choose: by definition on small cases, and equal to the regret of whole test sets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llmpp_core.metrics import top_k_regret
from llmpp_core.search.regret import by_split, choose
from llmpp_core.space.search_space import HAT_WMT

TRUE = np.array([3.0, 1.0, 2.0, 9.0])


@pytest.mark.parametrize(
    ("scores", "allowed", "chosen"),
    [
        ([1, 2, 3, 4], [1, 1, 1, 1], 9.0),
        ([1, 2, 3, 4], [1, 1, 1, 0], 2.0),
        ([1, 2, 3, np.nan], [1, 1, 1, 0], 2.0),
        ([5, 5, 5, 9], [1, 1, 1, 0], 2.0),
        ([-np.inf, -np.inf, -5, 0], [1, 1, 0, 0], 2.0),
        ([1, 2, 3, 4], [0, 0, 0, 0], np.nan),
    ],
    ids=["highest", "within the limit", "not predicted, not allowed", "ties count as their mean", "scored lowest", "nothing allowed"],
)
def test_the_allowed_architecture_with_the_highest_score_is_chosen(scores: list[float], allowed: list[int], chosen: float) -> None:
    assert choose(TRUE, scores, allowed) == pytest.approx(chosen, nan_ok=True)


def test_regret_over_draws_and_limits_is_that_of_each(rng: np.random.Generator) -> None:
    scores, allowed = rng.normal(size=(3, 1, 4)), rng.random((3, 5, 4)) < 0.7
    allowed[..., 1] = True
    found = choose(TRUE, TRUE, allowed) - choose(TRUE, scores, allowed)
    assert found.shape == (3, 5)
    for draw, limit in np.ndindex(3, 5):
        mask = allowed[draw, limit]
        assert found[draw, limit] == pytest.approx(top_k_regret(TRUE[mask], scores[draw, 0][mask]))


def test_what_is_allowed_must_be_scored() -> None:
    with pytest.raises(ValueError, match="a score of every allowed architecture"):
        choose(TRUE, [1, np.nan, 2, 3], [1, 1, 1, 1])


def test_predictions_by_split_are_in_the_order_of_the_architectures() -> None:
    archs = HAT_WMT.sample(4, np.random.default_rng(0))
    rows = [(1, archs[3], 0.5), (0, archs[2], 1.5), (0, archs[0], 2.5)]
    found = by_split(pd.DataFrame(rows, columns=["split", "architecture", "predicted"]), archs)
    assert found == pytest.approx(np.array([[2.5, np.nan, 1.5, np.nan], [np.nan, np.nan, np.nan, 0.5]]), nan_ok=True)
