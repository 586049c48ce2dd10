"""Measures of agreement: equal to scipy's or to brute force, and the protocol sees only the demonstrations."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hat_costs import count_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn.base import BaseEstimator, RegressorMixin

from llmpp_core import metrics
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.upstream import TFSSplit

quick = settings(max_examples=100)
few_values = st.integers(-3, 3).map(float)  # few, so that ties are common


@st.composite
def pairs(draw: st.DrawFn, values: st.SearchStrategy[float] = few_values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = draw(st.integers(2, 25))
    vector = st.lists(values, min_size=n, max_size=n)
    return np.array(draw(vector)), np.array(draw(vector)), np.array(draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)))


# --- measures -----------------------------------------------------------------------------------------------------


@quick
@given(pairs() | pairs(st.floats(-1e6, 1e6)))
def test_tau_equals_scipys_with_ties(data: tuple[np.ndarray, ...]) -> None:
    y, p, _ = data
    expected = kendalltau(y, p).statistic
    assert metrics.kendall_tau(y, p) == pytest.approx(expected, nan_ok=True)


@quick
@given(pairs())
def test_tau_within_groups_equals_brute_force(data: tuple[np.ndarray, ...]) -> None:
    y, p, groups = data
    both = [(y[i] - y[j], p[i] - p[j]) for i, j in itertools.combinations(range(len(y)), 2) if groups[i] == groups[j]]
    agreement = sum(np.sign(a) * np.sign(b) for a, b in both)
    scale = np.sqrt(sum(a != 0 for a, _ in both) * sum(b != 0 for _, b in both))
    expected = agreement / scale if scale else np.nan
    assert metrics.kendall_tau(y, p, groups) == pytest.approx(expected, nan_ok=True)


def test_absolute_error() -> None:
    assert metrics.mean_absolute_error([25.0, 26.0], [25.5, 25.0]) == 0.75


def test_regret_of_the_best_of_the_k_highest_predicted() -> None:
    true, predicted = [1.0, 4.0, 3.0, 2.0], [9.0, 6.0, 7.0, 8.0]
    assert [metrics.top_k_regret(true, predicted, k) for k in (1, 2, 3, 4)] == [3.0, 2.0, 1.0, 0.0]
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k: expected 1 to 4, got {k}"):
            metrics.top_k_regret(true, predicted, k)


@pytest.mark.parametrize("measure", [metrics.mean_absolute_error, metrics.kendall_tau, metrics.top_k_regret])
@pytest.mark.parametrize(
    ("true", "predicted", "text"),
    [
        ([1.0, 2.0], [1.0], r"predicted: expected 2 numbers, one per architecture, got shape \(1,\)"),
        ([[1.0], [2.0]], [[1.0], [2.0]], r"true: expected a vector, got shape \(2, 1\)"),
        ([1.0, 2.0], [1.0, np.nan], r"predicted\[1\]: expected a finite number, got nan"),
        ([1.0, np.inf], [1.0, 2.0], r"true\[1\]: expected a finite number, got inf"),
    ],
)
def test_bad_scores_are_refused(measure: Any, true: Any, predicted: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        measure(true, predicted)


# --- protocol -----------------------------------------------------------------------------------------------------


def made_up_splits() -> list[TFSSplit]:
    """Three splits each of two tasks over the same architectures, with scores that grow with size and noise."""
    rng = np.random.default_rng(0)
    archs, splits = HAT_WMT.sample(20, rng), []
    for task, level in (("a", 20.0), ("b", 40.0)):
        records = pd.DataFrame({"architecture": archs, "bleu": level + np.log([count_parameters(a) for a in archs]) + rng.normal(size=20)})
        for seed in (1, 2, 3):
            order = rng.permutation(20)
            splits.append(TFSSplit(task, seed, records.iloc[order[:4]], records.iloc[order[4:]].reset_index(drop=True)))
    return splits


class SizePlusMean(RegressorMixin, BaseEstimator):
    """Log parameters, shifted to the demonstrations' mean; records what it was shown in the list `seen`."""

    seen: list[tuple[str, list, list]] = []  # noqa: RUF012

    def fit(self, archs: Any, scores: Any) -> SizePlusMean:
        self.seen.append(("fit", list(archs), list(scores)))
        self.shift_ = np.mean(scores) - np.mean(np.log([count_parameters(arch) for arch in archs]))
        return self

    def predict(self, archs: Any) -> np.ndarray:
        self.seen.append(("predict", list(archs), []))
        return np.log([count_parameters(arch) for arch in archs]) + self.shift_


@pytest.fixture
def predictions() -> pd.DataFrame:
    return metrics.evaluate(lambda split: SizePlusMean(), made_up_splits())


def test_a_predictor_sees_the_demonstrations_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    monkeypatch.setattr(SizePlusMean, "seen", seen)
    splits, one = made_up_splits(), SizePlusMean()
    asked: list[TFSSplit] = []
    predictions = metrics.evaluate(lambda split: asked.append(split) or one, splits)  # type: ignore[func-returns-value]
    assert not hasattr(one, "shift_"), "the predictor passed in must be cloned, so that no split sees another's fit"
    assert asked == splits
    assert [call for call, *_ in seen] == ["fit", "predict"] * len(splits)
    for split, (_, archs, scores), (_, tested, _) in zip(splits, seen[::2], seen[1::2], strict=True):
        assert archs == list(split.demonstrations["architecture"])
        assert scores == list(split.demonstrations["bleu"])
        assert tested == list(split.test["architecture"])
    assert predictions["true"].tolist() == [b for split in splits for b in split.test["bleu"]]
    assert predictions["decoder_layers"].tolist() == [arch.decoder_layers for arch in predictions["architecture"]]
    assert predictions.columns.tolist() == ["task", "split", "architecture", "decoder_layers", "true", "predicted"]


def test_random_splits_are_partitions_of_the_records() -> None:
    records = {split.task: pd.concat([split.demonstrations, split.test]) for split in made_up_splits()}
    splits = metrics.random_splits(records, np.random.default_rng(0), 5, demonstrations=3)
    assert [(split.task, split.seed) for split in splits] == [(task, seed) for task in ("a", "b") for seed in range(5)]
    for split in splits:
        both = pd.concat([split.demonstrations, split.test])
        assert len(split.demonstrations) == 3
        assert dict(zip(both["architecture"], both["bleu"], strict=True)) == dict(records[split.task].to_numpy())
    assert len({frozenset(split.demonstrations["architecture"]) for split in splits}) == 10


def test_scores_by_split_equal_the_measures(predictions: pd.DataFrame) -> None:
    scores = metrics.score_splits(predictions)
    assert len(scores) == 6
    part = predictions[(predictions["task"] == "b") & (predictions["split"] == 2)]
    y, p = part["true"], part["predicted"]
    row = scores.loc[("b", 2)]
    assert row["MAE"] == metrics.mean_absolute_error(y, p)
    assert row["tau"] == pytest.approx(kendalltau(y, p).statistic)
    assert row["tau within depth"] == pytest.approx(metrics.kendall_tau(y, p, part["decoder_layers"]), nan_ok=True)
    assert (row["top-1 regret"], row["top-3 regret"]) == (metrics.top_k_regret(y, p, 1), metrics.top_k_regret(y, p, 3))


def test_the_summary_is_mean_and_population_deviation_over_splits_then_the_mean_over_tasks(predictions: pd.DataFrame) -> None:
    scores, table = metrics.score_splits(predictions), metrics.summarise(predictions)
    assert table.index.tolist() == ["a", "b", "mean"]
    for measure in ("MAE", "tau"):
        for task in ("a", "b"):
            assert table.loc[task, (measure, "mean")] == pytest.approx(np.mean(scores.loc[task, measure]))
            assert table.loc[task, (measure, "std")] == pytest.approx(np.std(scores.loc[task, measure]))
        assert table.loc["mean", (measure, "mean")] == pytest.approx(table.loc[["a", "b"], (measure, "mean")].mean())


def test_a_measure_that_one_split_leaves_undefined_is_undefined_in_the_mean(predictions: pd.DataFrame) -> None:
    """Else a predictor would be averaged over those splits only on which it says something."""
    constant = predictions.copy()
    constant.loc[(constant["task"] == "a") & (constant["split"] == 1), "predicted"] = 30.0
    table = metrics.summarise(constant)
    assert table[("tau", "mean")].isna().tolist() == [True, False, True]
    assert table[("MAE", "mean")].notna().all()


def test_bootstrap_counts_an_architecture_as_often_as_it_is_drawn(predictions: pd.DataFrame, rng: np.random.Generator) -> None:
    class Given(np.random.Generator):
        def multinomial(self, n: int, pvals: np.ndarray, size: int) -> np.ndarray:  # type: ignore[override]
            return drawn

    archs = list(dict.fromkeys(predictions["architecture"]))
    drawn = np.vstack([np.ones(len(archs), dtype=int), rng.integers(1, 4, size=(3, len(archs)))])
    values = metrics.bootstrap([predictions], Given(np.random.PCG64(0)), resamples=4)
    for counts, found in zip(drawn, values[0], strict=True):
        times = predictions["architecture"].map(dict(zip(archs, counts.tolist(), strict=True)))
        table = metrics.summarise(predictions.loc[predictions.index.repeat(times)])
        assert found == pytest.approx([table.loc["mean", (measure, "mean")] for measure in ("MAE", "tau")])


def test_bootstrap_covers_the_estimate_pairs_predictors_and_is_deterministic(predictions: pd.DataFrame) -> None:
    worse = predictions.assign(predicted=predictions["predicted"] + 2)
    values = metrics.bootstrap([predictions, predictions, worse], np.random.default_rng(5), resamples=400)
    assert values.shape == (3, 400, 2)
    assert np.isfinite(values).all()
    assert values[0] == pytest.approx(values[1], rel=1e-9), "the same draw must be used for all predictors"
    assert values[0, :, 1] == pytest.approx(values[2, :, 1]), "a shift changes no rank"
    low, high = np.quantile(values[0], [0.025, 0.975], axis=0)
    estimate = metrics.summarise(predictions).loc["mean"][[("MAE", "mean"), ("tau", "mean")]].to_numpy()
    assert (low < estimate).all()
    assert (estimate < high).all()
    again = metrics.bootstrap([predictions, predictions, worse], np.random.default_rng(5), resamples=400)
    assert values == pytest.approx(again, rel=1e-9)


def test_compare_pairs_architectures(predictions: pd.DataFrame) -> None:
    worse = predictions.assign(predicted=predictions["true"] + 2 + 0.1 * (predictions["predicted"] > predictions["true"]))
    found = metrics.compare(worse, predictions, np.random.default_rng(5), resamples=300)
    means = [metrics.summarise(frame).loc["mean"].xs("mean", level=1) for frame in (worse, predictions)]
    for measure, interval in found.items():
        assert interval.value == pytest.approx(means[0][measure] - means[1][measure])
        assert interval.low < interval.value < interval.high
    same = metrics.compare(predictions, predictions, np.random.default_rng(5), resamples=50)
    assert set(same.values()) == {metrics.Interval(0.0, 0.0, 0.0)}, "what both share must not widen the interval"
    with pytest.raises(ValueError, match="predictions: expected frames over the same splits"):
        metrics.compare(predictions, predictions[predictions["task"] == "a"], np.random.default_rng(5), resamples=50)
    few = pd.concat(part[:3] for _, part in predictions.groupby(["task", "split"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.compare(few, few, np.random.default_rng(5), resamples=300)
    assert found["MAE"].value == 0
    assert np.isnan([found["MAE"].low, found["MAE"].high]).all(), "a draw can miss all of a split"


def test_an_interval_is_written_with_its_ends() -> None:
    found = metrics.Interval(0.0012, -0.0003, 0.0027)
    assert f"{found.times(1000):+.1f}" == "+1.2 [-0.3,\N{NO-BREAK SPACE}+2.7]"
    assert f"{metrics.Interval(np.nan, np.nan, np.nan):+.1f}" == "–"


def test_seed_noise_finds_what_went_in() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 3, 200)
    scores = truth[:, None] + rng.normal(0, 1, (200, 3))
    scores[::3, 2] = np.nan
    found = metrics.seed_noise(scores, rng, 200)
    assert found.noise == pytest.approx(1, abs=0.08)
    assert found.spread == pytest.approx(3.05, abs=0.4)
    # The ceiling is what the truth has with the recorded means, and one training has less with another.
    assert found.tau_ceiling == pytest.approx(metrics.kendall_tau(np.nanmean(scores, axis=1), truth), abs=0.03)
    assert found.tau_between_seeds < found.tau_ceiling


def test_seed_noise_needs_two_trainings_of_each() -> None:
    with pytest.raises(ValueError, match="two scores of each"):
        metrics.seed_noise([[1.0, np.nan], [1.0, 2.0]], np.random.default_rng(0))
