"""Latency predictors: exact where latency is a sum of costs, tolerant of slow spells, quick to learn a new device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from llmpp_book.studies import latency as study
from llmpp_core import upstream
from llmpp_core.latency.hat_mlp import LatencyMLP
from llmpp_core.latency.predictor import (
    LatencyPredictor,
    LatencyPrior,
    choose_measurements,
    feature_rows,
    latency_errors,
    latency_terms,
    split_rows,
    spread_measurements,
)
from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
from llmpp_core.space.search_space import HAT_WMT

ARCHS = HAT_WMT.sample(300, np.random.default_rng(0))
TERMS = latency_terms(ARCHS)
ROWS, GOOD = HATFeatures().transform(ARCHS[:3]), [10.0, 20.0, 30.0]
# A layer costs most, then the products of widths; every kind of work costs something.
COSTS = np.array([2, 3, 1, 1, 20, 150, 30, 25, 5, 8, 8, 6, 4, 10], dtype=float)
LATENCY = 5 + TERMS @ COSTS


def devices(rng: np.random.Generator) -> list[np.ndarray]:
    """Return latencies of devices whose costs differ by factors, each on a scale of its own, with a constant of its own."""
    costs = [COSTS * rng.uniform(0.7, 1.4, len(COSTS)) for _ in range(6)]
    return [rng.uniform(0.3, 3) * (5 + TERMS @ cost + rng.uniform(0, 30)) * rng.normal(1, 0.01, len(ARCHS)) for cost in costs]


def rmse(predictor: Any, true: np.ndarray, rows: slice = slice(None)) -> float:
    return latency_errors(true[rows], predictor.predict(ARCHS[rows]))["rmse"]


PREDICTORS = {
    "latency": LatencyPredictor(),
    "latency with prior": LatencyPredictor(LatencyPrior.learn([(ARCHS, LATENCY)]), "typical"),
    "mlp": LatencyMLP(steps=20),
}
# The others fit on arrays with other than ten columns.
CHECKS = (
    "estimator_cloneable",
    "estimator_repr",
    "no_attributes_set_in_init",
    "get_params_invariance",
    "set_params",
    "estimators_unfitted",
)


@pytest.mark.parametrize("name", PREDICTORS)
def test_architectures_and_their_features_are_the_same_to_a_predictor(name: str) -> None:
    for check in CHECKS:
        getattr(estimator_checks, f"check_{check}")(type(PREDICTORS[name]).__name__, PREDICTORS[name])
    rows = HATFeatures().transform(ARCHS)
    # Columns of a frame go by name: order and others do not matter.
    frame = pd.DataFrame(rows, columns=list(HAT_FEATURE_NAMES)).assign(latency_ms=0)[["latency_ms", *HAT_FEATURE_NAMES[::-1]]]
    fitted = [clone(PREDICTORS[name]).fit(X, LATENCY) for X in (ARCHS, rows, frame)]
    expected = fitted[0].predict(ARCHS)
    for predictor, X in zip(fitted, (frame, tuple(ARCHS), rows), strict=True):
        np.testing.assert_array_equal(predictor.predict(X), expected, err_msg="the same input twice must give the same bits")
    assert fitted[0].predict(ARCHS[7:8]) == pytest.approx(expected[7:8]), "a prediction must not depend on its company"


# --- fitting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", ["mean", "typical"])
def test_a_sum_of_costs_is_recovered_exactly(statistic: str) -> None:
    predictor = LatencyPredictor(statistic=statistic).fit(ARCHS[:100], LATENCY[:100])
    mean, std = predictor.predict(ARCHS, return_std=True)
    assert mean == pytest.approx(LATENCY, rel=1e-4)
    assert mean == pytest.approx(predictor.intercept_ + TERMS @ predictor.coef_)
    assert (std < 0.01 * mean).all()


def test_terms_tell_all_choices_apart_that_the_averages_tell_apart() -> None:
    less, *more = latency_terms(np.tile(ROWS[0], (11, 1)) + np.vstack([np.zeros(10), np.eye(10)]))
    assert all((terms >= less).all() and (terms > less).any() for terms in more)


def test_the_unit_of_time_does_not_matter_and_cross_validation_takes_it(rng: np.random.Generator) -> None:
    measured = LATENCY * rng.normal(1, 0.05, 300)
    predictor = PREDICTORS["latency with prior"]
    milliseconds, seconds = (clone(predictor).fit(ARCHS[:30], measured[:30] * unit) for unit in (1, 1e-3))
    for a, b in zip(milliseconds.predict(ARCHS, return_std=True), seconds.predict(ARCHS, return_std=True), strict=True):
        assert b == pytest.approx(a / 1000)
    piped = make_pipeline(FunctionTransformer(feature_rows), predictor)
    assert cross_val_score(piped, ARCHS, LATENCY, cv=3).min() > 0.999


def test_a_slow_spell_moves_the_mean_but_not_the_typical_latency(rng: np.random.Generator) -> None:
    measured = LATENCY * rng.normal(1, 0.01, 300)
    measured[::8] *= 1.4
    typical, mean = (LatencyPredictor(statistic=statistic).fit(ARCHS, measured) for statistic in ("typical", "mean"))
    assert typical.predict(ARCHS) == pytest.approx(LATENCY, rel=0.02)
    assert mean.predict(ARCHS).mean() == pytest.approx(measured.mean())
    assert rmse(mean, measured) < rmse(typical, measured), "the mean has the least squared error"
    assert mean.noise_ > 0.12 > 0.04 > typical.noise_


def test_the_standard_deviation_covers_new_measurements(rng: np.random.Generator) -> None:
    measured = LATENCY * rng.normal(1, 0.05, 300)
    few, many = (LatencyPredictor().fit(ARCHS[:n], measured[:n]).predict(ARCHS[200:], return_std=True) for n in (15, 200))
    for mean, std in (few, many):
        assert 0.5 < (np.abs(mean - measured[200:]) < std).mean() < 0.95
    assert few[1].mean() > many[1].mean(), "fewer measurements, less certainty"
    mean, std = LatencyPredictor().fit(ARCHS[:3], measured[:3]).predict(ARCHS, return_std=True)
    assert np.isfinite(std).all()
    assert np.abs(mean - measured).max() < 3 * np.ptp(measured)


# --- other devices ------------------------------------------------------------------------------------------------


def test_other_devices_help_where_measurements_are_few(rng: np.random.Generator) -> None:
    ratios = []
    for _ in range(4):
        *others, new = devices(rng)
        prior = LatencyPrior.learn([(ARCHS, other) for other in others])
        few = rng.permutation(200)[:10]
        scratch, transfer = (LatencyPredictor(p).fit([ARCHS[i] for i in few], new[few]) for p in (None, prior))
        ratios.append(rmse(transfer, new, slice(200, None)) / rmse(scratch, new, slice(200, None)))
    assert np.median(ratios) < 0.6
    assert max(ratios) < 1.1


def test_a_multiple_of_another_device_needs_two_measurements_and_with_many_others_are_forgotten() -> None:
    predictor = LatencyPredictor(LatencyPrior.learn([(ARCHS, LATENCY)])).fit(ARCHS[:2], 7 * LATENCY[:2])
    assert predictor.predict(ARCHS) == pytest.approx(7 * LATENCY, rel=0.02)
    other = LatencyPrior.learn([(ARCHS, 5 + TERMS @ costs) for costs in (COSTS[::-1], np.roll(COSTS, 3))])
    misled = LatencyPredictor(other).fit(ARCHS[:200], LATENCY[:200])
    assert misled.predict(ARCHS[200:]) == pytest.approx(LATENCY[200:], rel=0.01)


def test_a_known_device_leaves_level_layers_and_scale_to_the_measurements(rng: np.random.Generator) -> None:
    """Three numbers are new on the new device; four measurements tell them, with or without a table that has the layers wrong."""
    layers = TERMS[:, 5]
    new = 40 + 90 * layers + 0.3 * LATENCY
    few = spread_measurements(LATENCY, 5, rng)
    measured = [ARCHS[i] for i in few]
    alone, known, level = (
        LatencyPredictor(prior).fit(measured, new[few])
        for prior in (None, LatencyPrior.from_device(ARCHS, LATENCY), LatencyPrior.learn([(ARCHS, LATENCY)]))
    )
    assert known.predict(ARCHS) == pytest.approx(new, rel=0.01)
    assert rmse(known, new) < 0.2 * min(rmse(alone, new), rmse(level, new))


def test_measurements_are_spread_over_what_is_expected(rng: np.random.Generator) -> None:
    ranks = LATENCY.argsort().argsort()
    assert [int(ranks[i]) // 30 for i in spread_measurements(LATENCY, 10, rng)] == list(range(10))
    for n, expected, reason in (
        (0, LATENCY, "n: expected 1 to 300, the number of candidates, got 0"),
        (301, LATENCY, "n: expected 1 to 300, the number of candidates, got 301"),
        (1, [1.0, np.inf], "expected.1.: expected a finite number, got inf"),
    ):
        with pytest.raises(ValueError, match=reason):
            spread_measurements(expected, n, rng)


def test_the_comparison_of_devices_tells_a_better_one() -> None:
    """Of a table that is three times another, one scale tells all; each number of measurements has its own paired interval."""
    frame = pd.DataFrame(HATFeatures().transform(ARCHS), columns=list(HAT_FEATURE_NAMES)).assign(latency_ms=LATENCY)
    frames = {"wmt14ende_cpu_xeon": frame, "wmt14ende_gpu_titanxp": frame.assign(latency_ms=3 * LATENCY)}
    rows = study.transfer(frames, "wmt14ende_gpu_titanxp", "wmt14ende_cpu_xeon", few=(3,), draws=3)
    summary = study.transfer_summary(rows).set_index(["choice", "method"])
    assert rows[rows["measurements"] == 0]["within"].eq(100).all(), "all measurements tell all"
    for choice in study.CHOICES:
        assert (summary.loc[choice].loc[[study.SCALED, study.TRANSFER], "within"] == 100).all()
        alone = summary.loc[choice, study.ALONE]
        assert (alone[["gain", "gain_low", "gain_high"]] == 0).all()
        assert summary.loc[(choice, study.TRANSFER), "gain"] == pytest.approx(100 - alone["within"])
    assert study.other_devices("wmt14enfr_cpu_xeon") == ["wmt14enfr_gpu_titanxp", "wmt14enfr_cpu_raspberrypi"]
    assert study.other_devices("wmt19ende_gpu_titanxp")[0] == "wmt14ende_cpu_xeon"


def test_measurements_are_chosen_where_they_say_most(rng: np.random.Generator) -> None:
    prior = LatencyPrior.learn([(ARCHS, other) for other in devices(rng)])
    chosen = choose_measurements(ARCHS, 12, prior)
    assert len(set(chosen)) == 12
    assert choose_measurements(feature_rows(ARCHS), 5, prior) == chosen[:5]

    def left_uncertain(rows: list[int]) -> float:
        """Return the mean relative variance of all predictions after measuring some with a relative error of 0.03."""
        expected = prior.design(TERMS) @ prior.mean
        root = prior.design(TERMS) @ prior.roots()[1] / expected[:, None]
        information = np.eye(root.shape[1]) + root[rows].T @ root[rows] / 0.03**2
        return float((root * np.linalg.solve(information, root.T).T).sum(axis=1).mean())

    assert left_uncertain(chosen) < min(left_uncertain(rng.permutation(300)[:12].tolist()) for _ in range(20))
    with pytest.raises(ValueError, match="n: expected 1 to 300, the number of candidates, got 301"):
        choose_measurements(ARCHS, 301, prior)


@pytest.mark.parametrize(
    ("X", "y", "reason"),
    [
        (ROWS[:, :9], GOOD, r"expected a sequence of Architecture or an \(n, 10\) array, got shape \(3, 9\)"),
        (np.where(np.eye(3, 10) == 1, np.nan, ROWS), GOOD, "X: row 0 holds nan or infinity"),
        (ROWS, [10.0, np.nan, 30.0], r"y\[1\]: expected a finite number, got nan"),
        (ROWS, [10.0, 20.0, 0.0], r"y\[2\]: expected a positive latency in ms, got 0.0"),
        (ROWS, GOOD[:2], r"y: expected 3 numbers, one per architecture, got shape \(2,\)"),
        (ROWS[:1], GOOD[:1], "X: a fit needs at least 2 measurements, got 1"),
    ],
)
@pytest.mark.parametrize("predictor", [LatencyPredictor(), LatencyMLP(steps=1)], ids=["latency", "mlp"])
def test_bad_input_is_refused(predictor: Any, X: Any, y: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        clone(predictor).fit(X, y)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="statistic: expected 'mean' or 'typical', got 'median'"):
        LatencyPredictor(statistic="median").fit(ROWS, GOOD)
    with pytest.raises(ValueError, match="tables: expected at least one table of another device, got none"):
        LatencyPrior.learn([])


def test_the_mlp_learns_and_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    short, longer, again, other = (
        LatencyMLP(steps=steps, learning_rate=1e-3, random_state=seed).fit(ARCHS, LATENCY).predict(ARCHS)
        for steps, seed in ((1, 0), (60, 0), (60, 0), (60, 1))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert latency_errors(LATENCY, longer)["rmse"] < 0.3 * latency_errors(LATENCY, short)["rmse"]
    np.testing.assert_array_equal(again, longer)
    assert not np.array_equal(other, longer)


# --- HAT's tables -------------------------------------------------------------------------------------------------


def test_splits_errors_and_trials_by_hand(rng: np.random.Generator) -> None:
    parts = split_rows(2000, rng)
    assert [len(part) for part in parts] == [1600, 200, 200]
    assert sorted(np.concatenate(parts)) == list(range(2000))
    assert latency_errors([10, 20], [11, 18]) == pytest.approx({"rmse": np.sqrt(2.5), "mape": 10})
    frame = pd.DataFrame(feature_rows(ARCHS), columns=list(HAT_FEATURE_NAMES)).assign(latency_ms=LATENCY * rng.normal(1, 0.1, 300))
    train, _, test = split_rows(300, np.random.default_rng(3))
    for measurements, rows in ((None, train), (20, train[:20]), ([5, 2, 9, 7], train[[5, 2, 9, 7]])):
        found = study.trial(frame, LatencyPredictor(), 3, measurements)
        fitted = LatencyPredictor().fit(frame.iloc[rows], frame["latency_ms"].iloc[rows])
        assert found.measurements == len(rows)
        np.testing.assert_array_equal(found.true, frame["latency_ms"].iloc[test])
        np.testing.assert_array_equal(found.predicted, fitted.predict(frame.iloc[test]))


def test_the_record_holds_every_comparison_and_where_it_is_from() -> None:
    recorded = study.recorded()
    methods = set(study.predictors("wmt14ende_gpu_titanxp"))
    full = recorded[recorded["measurements"] == 1600]
    assert full.groupby(["table", "seed"])["method"].agg(set).map(lambda found: found == methods).all()
    assert set(full["table"]) == set(upstream.LATENCY_TABLES)
    assert not recorded.duplicated(["table", "method", "seed", "measurements"]).any()
    assert recorded.notna().all(axis=None)
    assert (recorded[["rmse", "mape", "seconds"]] > 0).all(axis=None)


# One table of each kind of device; the chapter compares all of them.
@pytest.mark.needs_data("latency")
@pytest.mark.parametrize("name", ["iwslt14deen_gpu_titanxp", "wmt14ende_cpu_xeon", "wmt14enfr_cpu_raspberrypi"])
def test_no_worse_than_hats_mlp_on_the_same_splits_and_quick_to_learn_a_new_table(name: str) -> None:
    frames = {table: upstream.latency_table(table, download=False) for table in upstream.LATENCY_TABLES}
    recorded = study.recorded().query("table == @name and measurements == 1600").pivot(index="seed", columns="method", values="rmse")
    own = [study.compare(frames[name], LatencyPredictor(), seed)["rmse"] for seed in recorded.index]
    assert own == pytest.approx(recorded[study.OWN].tolist(), rel=1e-3), "as recorded"
    assert np.mean(own) <= recorded[study.MLP].mean()
    # Twenty measurements and the other tables do for a new one.
    predictor = LatencyPredictor(study.prior_without(frames, name))
    few = [study.compare(frames[name], predictor, seed, 20)["rmse"] for seed in recorded.index]
    assert np.median(few) < 1.5 * np.median(own)
