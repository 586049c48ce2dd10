"""Which predictor is used, when nothing is known, and whether intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from llmpp_core.pipeline.evidence import compare, jackknife_plus

N = 10


def guesses(rng: np.random.Generator, **errors: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return scores, and guesses of them that are off by normal errors of the given sizes."""
    scores = rng.normal(25.0, 3.0, N)
    return scores, {name: scores + size * rng.normal(size=N) for name, size in errors.items()}


@pytest.mark.parametrize(
    ("errors", "used"),
    [
        ({"model": 0.1, "regression": 2.0}, "model"),
        ({"model": 2.0, "regression": 0.1}, "regression"),
        ({"model": 1.0, "regression": 1.0}, "average"),
        ({"regression": 0.5}, "regression"),
    ],
)
def test_the_average_is_left_only_for_what_is_clearly_better(errors: dict[str, float], used: str) -> None:
    counts = [compare(*guesses(np.random.default_rng(seed), **errors))["used"] for seed in range(20)]
    assert counts.count(used) >= 12
    assert compare(*guesses(np.random.default_rng(0), **errors), wanted="regression")["used"] == "regression"


def test_what_only_follows_the_mean_is_not_believed() -> None:
    """The left-out mean, and guesses that know nothing, get no confident answer; guesses that know the scores do."""
    rng = np.random.default_rng(0)
    scores, good = guesses(rng, regression=0.5)
    mean = (scores.sum() - scores) / (N - 1)
    for values, confident in ((mean, False), (rng.normal(25.0, 3.0, N), False), (good["regression"], True)):
        found = compare(scores, {"regression": values})
        assert found["confident"] == confident == (not found["doubts"])
    table = {row["predictor"]: row for row in compare(scores, {"regression": mean})["table"]}
    assert table["mean"]["relative"] == table["mean"]["low"] == table["mean"]["high"] == 1.0
    assert table["regression"]["relative"] == pytest.approx(1.0)
    assert not compare(scores, good, noise=10.0)["confident"]
    assert not compare(scores[:5], {"regression": good["regression"][:5]})["confident"]


def test_answers_that_are_missing() -> None:
    scores, values = guesses(np.random.default_rng(0), model=0.1, regression=2.0)
    values["model"][:2] = np.nan
    found = compare(scores, values)
    assert {row["n"] for row in found["table"]} == {N - 2}
    assert found["left_out"]["model"][0] is None
    values["model"][:7] = np.nan
    found = compare(scores, values)
    assert found["used"] == "regression"
    assert "gave a number for 3 of 10" in found["doubts"][0]


def test_intervals_hold_new_scores_as_often_as_they_promise() -> None:
    rng, inside = np.random.default_rng(0), []
    for _ in range(500):
        x = rng.normal(size=(N + 1, 2))
        x[:, 1] = 1
        y = 2 * x[:, 0] + rng.normal(size=N + 1)
        others = [np.delete(np.arange(N), i) for i in range(N)]
        lines = [np.linalg.lstsq(x[rest], y[rest], rcond=None)[0] for rest in others]
        residuals = np.abs([x[i] @ line - y[i] for i, line in enumerate(lines)])
        low, high = jackknife_plus(np.array([[x[N] @ line] for line in lines]), residuals)
        inside.append(low[0] <= y[N] <= high[0])
    assert 0.74 < np.mean(inside) < 0.9
