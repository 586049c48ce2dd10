"""Latency predictors: exact where latency is a sum of costs, tolerant of slow spells, quick to learn a new device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from llmpp_book.studies import latency as latency_benchmark
from llmpp_core import upstream as sources
from llmpp_core.latency.hat_mlp import LatencyMLP
from llmpp_core.latency.predictor import (
    LatencyPredictor,
    LatencyPrior,
    choose_measurements,
    feature_rows,
    latency_errors,
    latency_terms,
    split_rows,
)
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
from llmpp_core.space.search_space import HAT_WMT

ARCHS = HAT_WMT.sample(300, np.random.default_rng(0))
TERMS = latency_terms(ARCHS)
# A layer costs most, then the products of widths; every kind of work costs something.
COSTS = np.array([2, 3, 1, 1, 20, 150, 30, 25, 5, 8, 8, 6, 4, 10], dtype=float)


def latencies(costs: np.ndarray = COSTS, archs: list[Architecture] = ARCHS) -> np.ndarray:
    return 5 + latency_terms(archs) @ costs


def devices(rng: np.random.Generator, n: int = 6) -> list[np.ndarray]:
    """Return latencies of devices whose costs differ by factors, each on a scale of its own, with a constant of its own."""
    return [
        rng.uniform(0.3, 3) * (latencies(COSTS * rng.uniform(0.7, 1.4, len(COSTS))) + rng.uniform(0, 30)) * rng.normal(1, 0.01, len(ARCHS))
        for _ in range(n)
    ]


def rmse(predictor: Any, true: np.ndarray, rows: slice = slice(None)) -> float:
    return latency_errors(true[rows], predictor.predict(ARCHS[rows]))["rmse"]


# --- scikit-learn's contract --------------------------------------------------------------------------------------

PREDICTORS = {
    "latency": LatencyPredictor(),
    "latency with prior": LatencyPredictor(LatencyPrior.learn([(ARCHS, latencies())]), "typical"),
    "mlp": LatencyMLP(steps=20),
}


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_get_params_invariance",
        "check_set_params",
        "check_mixin_order",
        "check_estimators_unfitted",
    ],
)
@pytest.mark.parametrize("name", PREDICTORS)
def test_scikit_learns_checks_that_fit_nothing(name: str, check: str) -> None:
    """The others fit on arrays with other than ten columns."""
    getattr(estimator_checks, check)(type(PREDICTORS[name]).__name__, PREDICTORS[name])


@pytest.mark.parametrize("name", PREDICTORS)
def test_architectures_and_their_features_are_the_same_to_a_predictor(name: str) -> None:
    rows = HATFeatures().transform(ARCHS)
    # Columns of a frame go by name: order and others do not matter.
    frame = pd.DataFrame(rows, columns=list(HAT_FEATURE_NAMES)).assign(latency_ms=0)[["latency_ms", *HAT_FEATURE_NAMES[::-1]]]
    fitted = [clone(PREDICTORS[name]).fit(X, latencies()) for X in (ARCHS, rows, frame)]
    expected = fitted[0].predict(ARCHS)
    assert expected.shape == (300,)
    for predictor in fitted:
        for X in (ARCHS, tuple(ARCHS), rows, frame):
            np.testing.assert_array_equal(predictor.predict(X), expected, err_msg="the same input twice must give the same bits")
        assert predictor.n_features_in_ == 10
    assert fitted[0].predict(ARCHS[7:8]) == pytest.approx(expected[7:8]), "a prediction must not depend on its company"


@pytest.mark.parametrize("name", ["latency", "latency with prior"])
def test_cross_validation_and_pipelines(name: str) -> None:
    assert cross_val_score(PREDICTORS[name], ARCHS, latencies(), cv=3).min() > 0.999
    piped = make_pipeline(FunctionTransformer(feature_rows), clone(PREDICTORS[name])).fit(ARCHS, latencies())
    np.testing.assert_array_equal(piped.predict(ARCHS), clone(PREDICTORS[name]).fit(ARCHS, latencies()).predict(ARCHS))


# --- fitting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", ["mean", "typical"])
def test_a_sum_of_costs_is_recovered_exactly(statistic: str) -> None:
    predictor = LatencyPredictor(statistic=statistic).fit(ARCHS[:100], latencies()[:100])
    assert predictor.predict(ARCHS) == pytest.approx(latencies(), rel=1e-4)
    mean, std = predictor.predict(ARCHS, return_std=True)
    assert mean == pytest.approx(predictor.intercept_ + TERMS @ predictor.coef_)
    assert (std < 0.01 * mean).all()


def test_terms_tell_all_choices_apart_that_the_averages_tell_apart() -> None:
    base = HAT_WMT.smallest()
    changed = {
        "encoder_embed_dim": 640,
        "decoder_embed_dim": 640,
        "encoder_ffn_dims": (2048, *base.encoder_ffn_dims[1:]),
        "encoder_heads": (8, *base.encoder_heads[1:]),
        "decoder_ffn_dims": (2048,),
        "decoder_self_heads": (8,),
        "decoder_cross_heads": (8,),
        "decoder_cross_spans": (2,),
    }
    kwargs = {name: getattr(base, name) for name in changed}
    for name, value in changed.items():
        more = Architecture(**{**kwargs, name: value})
        assert (latency_terms([more]) >= latency_terms([base])).all(), name
        assert (latency_terms([more]) > latency_terms([base])).any(), name


@pytest.mark.parametrize("name", ["latency", "latency with prior"])
def test_the_unit_of_time_does_not_matter(name: str, rng: np.random.Generator) -> None:
    measured = latencies() * rng.normal(1, 0.05, 300)
    milliseconds, seconds = (clone(PREDICTORS[name]).fit(ARCHS[:30], measured[:30] * unit) for unit in (1, 1e-3))
    for a, b in zip(milliseconds.predict(ARCHS, return_std=True), seconds.predict(ARCHS, return_std=True), strict=True):
        assert b == pytest.approx(a / 1000)


def test_a_slow_spell_moves_the_mean_but_not_the_typical_latency(rng: np.random.Generator) -> None:
    measured = latencies() * rng.normal(1, 0.01, 300)
    slow = np.arange(300) % 8 == 0
    measured[slow] *= 1.4
    typical = LatencyPredictor(statistic="typical").fit(ARCHS, measured)
    mean = LatencyPredictor(statistic="mean").fit(ARCHS, measured)
    assert typical.predict(ARCHS) == pytest.approx(latencies(), rel=0.02)
    assert mean.predict(ARCHS).mean() == pytest.approx(measured.mean())
    assert rmse(mean, measured) < rmse(typical, measured), "the mean has the least squared error"
    assert mean.noise_ > 0.12 > 0.04 > typical.noise_


def test_the_standard_deviation_covers_new_measurements(rng: np.random.Generator) -> None:
    measured = latencies() * rng.normal(1, 0.05, 300)
    few, many = (LatencyPredictor().fit(ARCHS[:n], measured[:n]).predict(ARCHS[200:], return_std=True) for n in (15, 200))
    for mean, std in (few, many):
        assert 0.5 < (np.abs(mean - measured[200:]) < std).mean() < 0.95
    assert few[1].mean() > many[1].mean(), "fewer measurements, less certainty"


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_handful_of_measurements_gives_sane_predictions(n: int, rng: np.random.Generator) -> None:
    measured = latencies()
    mean, std = LatencyPredictor().fit(ARCHS[:n], measured[:n]).predict(ARCHS, return_std=True)
    assert np.isfinite(mean).all()
    assert np.isfinite(std).all()
    assert np.abs(mean - measured).max() < 3 * np.ptp(measured)


# --- other devices ------------------------------------------------------------------------------------------------


def test_other_devices_help_where_measurements_are_few(rng: np.random.Generator) -> None:
    ratios = []
    for _ in range(8):
        *others, new = devices(rng)
        prior = LatencyPrior.learn([(ARCHS, other) for other in others])
        few = rng.permutation(200)[:10]
        chosen = [ARCHS[i] for i in few]
        scratch, transfer = (LatencyPredictor(p).fit(chosen, new[few]) for p in (None, prior))
        ratios.append(rmse(transfer, new, slice(200, None)) / rmse(scratch, new, slice(200, None)))
    assert np.median(ratios) < 0.6
    assert max(ratios) < 1.1


def test_a_device_that_is_a_multiple_of_another_needs_two_measurements(rng: np.random.Generator) -> None:
    prior = LatencyPrior.learn([(ARCHS, latencies())])
    predictor = LatencyPredictor(prior).fit(ARCHS[:2], 7 * latencies()[:2])
    assert predictor.predict(ARCHS) == pytest.approx(7 * latencies(), rel=0.02)


def test_other_devices_are_forgotten_where_measurements_are_many(rng: np.random.Generator) -> None:
    other = LatencyPrior.learn([(ARCHS, latencies(COSTS[::-1])), (ARCHS, latencies(np.roll(COSTS, 3)))])
    misled = LatencyPredictor(other).fit(ARCHS[:200], latencies()[:200])
    assert misled.predict(ARCHS[200:]) == pytest.approx(latencies()[200:], rel=0.01)


def test_measurements_are_chosen_where_they_say_most(rng: np.random.Generator) -> None:
    others = devices(rng)
    prior = LatencyPrior.learn([(ARCHS, other) for other in others])
    chosen = choose_measurements(ARCHS, 12, prior)
    assert chosen == choose_measurements(feature_rows(ARCHS), 12, prior)
    assert len(set(chosen)) == 12
    assert choose_measurements(ARCHS, 5, prior) == chosen[:5]

    def left_uncertain(rows: list[int]) -> float:
        """Return the mean relative variance of all predictions after measuring some with a relative error of 0.03."""
        expected = prior.design(TERMS) @ prior.mean
        root = prior.design(TERMS) @ prior.roots()[1] / expected[:, None]
        information = np.eye(root.shape[1]) + root[rows].T @ root[rows] / 0.03**2
        return float((root * np.linalg.solve(information, root.T).T).sum(axis=1).mean())

    assert left_uncertain(chosen) < min(left_uncertain(rng.permutation(300)[:12].tolist()) for _ in range(20))
    with pytest.raises(ValueError, match="n: expected 1 to 300, the number of candidates, got 301"):
        choose_measurements(ARCHS, 301, prior)


# --- bad input ----------------------------------------------------------------------------------------------------

ROWS = HATFeatures().transform(ARCHS[:3])
GOOD = [10.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("X", "y", "reason"),
    [
        (ROWS[:, :9], GOOD, r"expected a sequence of Architecture or an \(n, 10\) array, got shape \(3, 9\)"),
        (pd.DataFrame(ROWS, columns=list(HAT_FEATURE_NAMES)).drop(columns="decoder_layers"), GOOD, "X: column decoder_layers is missing"),
        (np.where(np.eye(3, 10) == 1, np.nan, ROWS), GOOD, "X: row 0 holds nan or infinity"),
        (ROWS, [10.0, np.nan, 30.0], r"y\[1\]: expected a finite number, got nan"),
        (ROWS, [10.0, 20.0, 0.0], r"y\[2\]: expected a positive latency in ms, got 0.0"),
        (ROWS, [-1.0, 20.0, 30.0], r"y\[0\]: expected a positive latency in ms, got -1.0"),
        (ROWS, GOOD[:2], r"y: expected 3 numbers, one per architecture, got shape \(2,\)"),
        (ROWS[:1], GOOD[:1], "X: a fit needs at least 2 measurements, got 1"),
        ([], [], "X: a fit needs at least 2 measurements, got 0"),
    ],
)
@pytest.mark.parametrize("predictor", [LatencyPredictor(), LatencyMLP(steps=1)], ids=["latency", "mlp"])
def test_bad_input_is_refused(predictor: Any, X: Any, y: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        clone(predictor).fit(X, y)
    assert "\n" not in str(error.value)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="statistic: expected 'mean' or 'typical', got 'median'"):
        LatencyPredictor(statistic="median").fit(ROWS, GOOD)
    with pytest.raises(ValueError, match="tables: expected at least one table of another device, got none"):
        LatencyPrior.learn([])


# --- HAT's MLP ----------------------------------------------------------------------------------------------------


def test_the_mlp_learns_and_leaves_the_global_random_state_alone() -> None:
    import torch

    state = torch.get_rng_state()
    short, longer = (LatencyMLP(steps=steps, learning_rate=1e-3).fit(ARCHS, latencies()) for steps in (1, 60))
    assert torch.equal(torch.get_rng_state(), state)
    assert rmse(longer, latencies()) < 0.3 * rmse(short, latencies())
    again, other = (LatencyMLP(steps=60, learning_rate=1e-3, random_state=s).fit(ARCHS, latencies()) for s in (0, 1))
    np.testing.assert_array_equal(again.predict(ARCHS), longer.predict(ARCHS))
    assert not np.array_equal(other.predict(ARCHS), longer.predict(ARCHS))


# --- HAT's tables -------------------------------------------------------------------------------------------------


def test_a_split_holds_every_row_once(rng: np.random.Generator) -> None:
    train, valid, test = split_rows(2000, rng)
    assert (len(train), len(valid), len(test)) == (1600, 200, 200)
    assert sorted([*train, *valid, *test]) == list(range(2000))


def test_errors() -> None:
    assert latency_errors([10, 20], [11, 18]) == pytest.approx({"rmse": np.sqrt(2.5), "mape": 10})


def test_the_record_holds_every_comparison_and_where_it_is_from() -> None:
    recorded = latency_benchmark.recorded()
    methods = set(latency_benchmark.predictors("wmt14ende_gpu_titanxp"))
    full = recorded[recorded["measurements"] == 1600]
    assert full.groupby(["table", "seed"])["method"].agg(set).map(lambda found: found == methods).all()
    assert set(full["table"]) == set(sources.LATENCY_TABLES)
    assert not recorded.duplicated(["table", "method", "seed", "measurements"]).any()
    assert recorded.notna().all(axis=None)
    assert (recorded[["rmse", "mape", "seconds"]] > 0).all(axis=None)


@pytest.mark.needs_data("latency")
@pytest.mark.parametrize("name", sources.LATENCY_TABLES)
def test_no_worse_than_hats_mlp_on_the_same_splits(name: str) -> None:
    frame = sources.latency_table(name, download=False)
    recorded = latency_benchmark.recorded().query("table == @name and measurements == 1600").pivot(index="seed", columns="method")
    own = [latency_benchmark.compare(frame, LatencyPredictor(), seed) for seed in recorded.index]
    assert [row["rmse"] for row in own] == pytest.approx(recorded["rmse", latency_benchmark.OWN].tolist(), rel=1e-3), "as recorded"
    assert np.mean([row["rmse"] for row in own]) <= recorded["rmse", latency_benchmark.MLP].mean()
    assert (recorded["seconds", latency_benchmark.MLP] > 50 * np.median([row["seconds"] for row in own])).all()


@pytest.mark.needs_data("latency")
@pytest.mark.parametrize("name", sources.LATENCY_TABLES)
def test_twenty_measurements_and_the_other_tables_do_for_a_new_one(name: str) -> None:
    frames = {table: sources.latency_table(table, download=False) for table in sources.LATENCY_TABLES}
    predictor = LatencyPredictor(latency_benchmark.prior_without(frames, name))
    seeds = range(10)
    few = np.median([latency_benchmark.compare(frames[name], predictor, seed, 20)["rmse"] for seed in seeds])
    all_rows = np.median([latency_benchmark.compare(frames[name], LatencyPredictor(), seed)["rmse"] for seed in seeds])
    assert few < 1.5 * all_rows
