"""Predictors: scikit-learn's own checks, what calibration promises, and the paper's rows on its records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hat_costs import count_parameters
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict, cross_val_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from llmpp_core import metrics, upstream
from llmpp_core.predictors.baselines import OWN_CHOICE, CalibratedPredictor, TablePredictor, baselines, supernet_family, supernet_predictors
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import HATFeatures
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.upstream import SUPERNETS, TFS_TASKS


def made_up_records(n: int = 30, seed: int = 0) -> pd.DataFrame:
    """Scores that saturate with depth and size; supernets see them one BLEU too low and more or less blurred."""
    rng = np.random.default_rng(seed)
    archs = HAT_WMT.sample(n, rng)
    bleu = 20 + np.log([arch.decoder_layers for arch in archs]) + 0.5 * np.log([count_parameters(arch) / 1e7 for arch in archs])
    supernets = {name: 0.8 * bleu + 4 + rng.normal(0, noise, n) for name, noise in zip(SUPERNETS, (0.5, 0.4, 0.3, 0.2), strict=True)}
    return pd.DataFrame({"architecture": archs, "bleu": bleu + rng.normal(0, 0.1, n), **supernets})


RECORDS = made_up_records()
ARCHS, BLEU = list(RECORDS["architecture"]), RECORDS["bleu"].to_numpy()
ZOO: dict[str, Any] = {**baselines(HAT_WMT.qkv_dim), **supernet_predictors(RECORDS, HAT_WMT.qkv_dim)}


def table(values: np.ndarray, archs: list[Architecture] = ARCHS) -> TablePredictor:
    return TablePredictor(dict(zip(archs, values.tolist(), strict=True)))


# --- scikit-learn's contract --------------------------------------------------------------------------------------


@estimator_checks.parametrize_with_checks(
    [CalibratedPredictor(Ridge(), "linear"), CalibratedPredictor(Ridge(), "saturating")],
    expected_failed_checks=lambda _: {"check_fit_score_takes_y": "every predictor here calls its arguments archs and scores"},
)
def test_scikit_learns_checks_of_calibration_over_plain_arrays(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


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
    ],
)
@pytest.mark.parametrize("predictor", [table(BLEU), CalibratedPredictor(table(BLEU))], ids=["table", "calibrated table"])
def test_scikit_learns_checks_that_need_no_plain_array(predictor: Any, check: str) -> None:
    getattr(estimator_checks, check)(type(predictor).__name__, predictor)


@pytest.mark.parametrize("name", ZOO)
def test_every_predictor_takes_a_list_of_architectures(name: str) -> None:
    predictor = clone(ZOO[name])
    before = repr(predictor.get_params())
    predicted = predictor.fit(ARCHS[:10], BLEU[:10]).predict(ARCHS[10:])
    assert predicted.shape == (20,)
    assert np.isfinite(predicted).all()
    assert repr(predictor.get_params()) == before, "fitting must not change parameters"
    again = clone(predictor).fit(tuple(ARCHS[:10]), BLEU[:10].tolist()).predict(ARCHS[10:])
    assert again == pytest.approx(predicted)
    assert predictor.predict(ARCHS[15:16]) == pytest.approx(predicted[5:6]), "a prediction must not depend on its company"


@pytest.mark.parametrize("name", [n for n in ZOO if n not in SUPERNETS and "forest" not in n])
def test_a_shifted_and_stretched_score_is_predicted_shifted_and_stretched(name: str) -> None:
    predicted = clone(ZOO[name]).fit(ARCHS[:10], BLEU[:10]).predict(ARCHS[10:])
    other = clone(ZOO[name]).fit(ARCHS[:10], 2 * BLEU[:10] + 7).predict(ARCHS[10:])
    # A forest is left out: rounding decides which of two equal splits a tree takes.
    assert other == pytest.approx(2 * predicted + 7, abs=1e-3)


@pytest.mark.parametrize("name", ["parameters", "HAT + costs, ridge", "Neuron-wise MoS, calibrated", "stack", OWN_CHOICE])
def test_cross_validation_and_pipelines_take_every_kind(name: str) -> None:
    scores = cross_val_score(ZOO[name], ARCHS, BLEU, cv=5, scoring="neg_mean_absolute_error")
    assert scores.shape == (5,)
    assert -scores.mean() < np.abs(BLEU - BLEU.mean()).mean(), "better than the mean of the demonstrations"
    nested = CalibratedPredictor(make_pipeline("passthrough", ZOO[name]), cv=3).fit(ARCHS[:10], BLEU[:10])
    assert nested.predict(ARCHS[10:]).shape == (20,)


# --- recorded scores ----------------------------------------------------------------------------------------------


def test_a_table_returns_what_was_recorded_and_nothing_else() -> None:
    predictor = table(BLEU[:5], ARCHS[:5])
    assert predictor.fit([], []).predict(ARCHS[3:5]).tolist() == BLEU[3:5].tolist()
    with pytest.raises(ValueError, match=r"2 of 4 architectures have no recorded score, the first: Architecture\("):
        predictor.predict(ARCHS[3:7])


def test_supernet_predictors_do_not_see_the_scores_to_predict() -> None:
    blind = supernet_predictors(RECORDS.drop(columns="bleu"), HAT_WMT.qkv_dim)
    for name, predictor in blind.items():
        predicted = predictor.fit(ARCHS[:10], BLEU[:10]).predict(ARCHS[10:])
        assert predicted == pytest.approx(clone(ZOO[name]).fit(ARCHS[:10], BLEU[:10]).predict(ARCHS[10:]))


# --- calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "saturating"])
def test_calibration_of_an_exactly_linear_score_is_exact_everywhere(kind: str) -> None:
    predictor = CalibratedPredictor(table(0.3 * BLEU - 2), kind).fit(ARCHS[:10], BLEU[:10])
    assert predictor.predict(ARCHS) == pytest.approx(BLEU, abs=1e-3)


@pytest.mark.parametrize("kind", ["linear", "saturating"])
def test_calibration_keeps_the_order_and_does_not_depend_on_the_scale(kind: str, rng: np.random.Generator) -> None:
    scores = BLEU + rng.normal(0, 0.3, 30)
    predicted = CalibratedPredictor(table(scores), kind).fit(ARCHS[:10], BLEU[:10]).predict(ARCHS)
    assert (np.diff(predicted[np.argsort(scores)]) >= 0).all()
    other = CalibratedPredictor(table(100 * scores - 5), kind).fit(ARCHS[:10], BLEU[:10]).predict(ARCHS)
    assert other == pytest.approx(predicted, abs=1e-4)


@pytest.mark.parametrize("kind", ["linear", "saturating"])
def test_a_score_that_ranks_backwards_is_ignored_rather_than_reversed(kind: str) -> None:
    predicted = CalibratedPredictor(table(-BLEU), kind).fit(ARCHS[:10], BLEU[:10]).predict(ARCHS)
    assert predicted == pytest.approx(BLEU[:10].mean())


def test_a_saturating_curve_is_recovered_and_continued_tamely() -> None:
    u = np.linspace(-1, 3, 30)
    inside = (u >= 0) & (u <= 1)
    truth = 20 + 4 * (1 - np.exp(-3 * u)) / 3
    archs = [arch for arch, i in zip(ARCHS, inside, strict=True) if i]
    predictor = CalibratedPredictor(table(u), "saturating").fit(archs, truth[inside])
    predicted = predictor.predict(ARCHS)
    assert predicted[inside] == pytest.approx(truth[inside], abs=1e-3)
    assert predicted[u > 1] == pytest.approx(truth[u > 1], abs=0.01), "above the demonstrations it levels off as the curve does"
    below = predicted[u < 0]
    assert np.diff(below) == pytest.approx(np.diff(below)[0]), "below them it is a line, not an exponential"
    line = CalibratedPredictor(table(u), "linear").fit(archs, truth[inside])
    inside_error = [np.abs(p.predict(archs) - truth[inside]).max() for p in (predictor, line)]
    assert inside_error[0] < inside_error[1] / 50


def test_a_saturating_curve_stays_within_a_bounded_band(rng: np.random.Generator) -> None:
    """Whatever ten noisy demonstrations say, one range beyond them the prediction stays within ten ranges of the scores."""
    for _ in range(20):
        u = np.concatenate([rng.random(10), np.linspace(-1, 2, 20)])
        scores = 20 + u[:10] + rng.normal(0, 0.5, 10)
        predicted = CalibratedPredictor(table(u), "saturating").fit(ARCHS[:10], scores).predict(ARCHS)
        assert np.abs(predicted - scores.mean()).max() < 10 * np.ptp(scores)


def test_a_base_that_learns_is_calibrated_on_predictions_out_of_fold(rng: np.random.Generator) -> None:
    """One nearest neighbour repeats pure noise without error; calibration must not be taken in."""
    noise = rng.normal(size=30)
    memory = make_pipeline(HATFeatures(), KNeighborsRegressor(1))
    honest = CalibratedPredictor(memory).fit(ARCHS, noise)
    deceived = CalibratedPredictor(FrozenEstimator(clone(memory).fit(ARCHS, noise))).fit(ARCHS, noise)
    assert deceived.predict(ARCHS) == pytest.approx(noise)
    assert np.std(honest.predict(ARCHS)) < 0.5 * np.std(noise)
    outputs = cross_val_predict(memory, ARCHS, noise, cv=LeaveOneOut())
    line = LinearRegression(positive=True).fit(outputs[:, None], noise)
    assert honest.predict(ARCHS) == pytest.approx(line.predict(honest.base_.predict(ARCHS)[:, None]))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected 'linear' or 'saturating', got 'cubic'"):
        CalibratedPredictor(table(BLEU), "cubic").fit(ARCHS, BLEU)


# --- learners and combinations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in ZOO if "Gaussian process" in n])
def test_the_gaussian_process_is_less_sure_away_from_the_demonstrations(name: str) -> None:
    shallow = [i for i, arch in enumerate(ARCHS) if arch.decoder_layers <= 2]
    deep = [i for i, arch in enumerate(ARCHS) if arch.decoder_layers >= 5]
    predictor = ZOO[name].fit([ARCHS[i] for i in shallow], BLEU[shallow])
    _, near = predictor.predict([ARCHS[i] for i in shallow], return_std=True)
    _, far = predictor.predict([ARCHS[i] for i in deep], return_std=True)
    assert (near > 0).all()
    assert far.min() > near.max()


def test_cost_baselines_rank_by_their_cost() -> None:
    size = [count_parameters(arch) for arch in ARCHS]
    predicted = clone(ZOO["parameters"]).fit(ARCHS[:10], BLEU[:10]).predict(ARCHS)
    assert metrics.kendall_tau(size, predicted) == pytest.approx(1)


def test_the_median_does_not_notice_one_supernet_gone_astray() -> None:
    astray = RECORDS.copy()
    astray.loc[15, SUPERNETS[0]] -= 10
    low, high = np.sort(RECORDS.loc[15, list(SUPERNETS)].to_numpy(dtype=float))[[1, 2]]
    for name, tolerance in (("median of supernets, ridge", high - low + 0.5), ("mean of supernets, ridge", np.inf)):
        change = abs(
            supernet_family(astray, HAT_WMT.qkv_dim)[name].fit(ARCHS[:10], BLEU[:10]).predict(ARCHS[15:16])
            - supernet_family(RECORDS, HAT_WMT.qkv_dim)[name].fit(ARCHS[:10], BLEU[:10]).predict(ARCHS[15:16])
        )[0]
        assert change < tolerance
    assert change > 1, "the mean does notice"


def test_stacking_beats_its_worst_base_and_weighs_none_negatively() -> None:
    errors = {name: [] for name in ("stack", f"{SUPERNETS[0]}, calibrated")}
    for seed in range(5):
        records = made_up_records(40, seed)
        archs, scores = list(records["architecture"]), records["bleu"].to_numpy()
        for name, found in errors.items():
            predictor = supernet_predictors(records, HAT_WMT.qkv_dim)[name].fit(archs[:10], scores[:10])
            found.append(metrics.mean_absolute_error(scores[10:], predictor.predict(archs[10:])))
            if name == "stack":
                assert (predictor.final_estimator_.coef_ >= 0).all()
    assert np.mean(errors["stack"]) < np.mean(errors[f"{SUPERNETS[0]}, calibrated"])


def test_the_own_choice_is_the_plain_average_of_the_family() -> None:
    family = supernet_family(RECORDS, HAT_WMT.qkv_dim)
    assert len(family) == 12
    members = [member.fit(ARCHS[:10], BLEU[:10]).predict(ARCHS[10:]) for member in family.values()]
    assert ZOO[OWN_CHOICE].fit(ARCHS[:10], BLEU[:10]).predict(ARCHS[10:]) == pytest.approx(np.mean(members, axis=0))


def test_choosing_by_leave_one_out_takes_the_member_with_the_least_error_on_the_demonstrations() -> None:
    chosen = clone(ZOO["chosen by leave-one-out"]).fit(ARCHS[:10], BLEU[:10])
    errors = [
        -cross_val_score(member, ARCHS[:10], BLEU[:10], cv=LeaveOneOut(), scoring="neg_mean_absolute_error").mean()
        for member in supernet_family(RECORDS, HAT_WMT.qkv_dim).values()
    ]
    assert -chosen.best_score_ == pytest.approx(min(errors))


# --- the paper's records ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records() -> dict[str, pd.DataFrame]:
    return {task: upstream.tfs_records(task, download=False) for task in TFS_TASKS}


@pytest.fixture(scope="module")
def summary(records: dict[str, pd.DataFrame]) -> Callable[[str], pd.DataFrame]:
    splits = list(upstream.tfs_splits(download=False))
    zoo: dict[str, Any] = {
        task: {**baselines(HAT_WMT.qkv_dim), **supernet_predictors(frame, HAT_WMT.qkv_dim)} for task, frame in records.items()
    }
    return lambda name: metrics.summarise(metrics.evaluate(lambda split: zoo[split.task][name], splits))


@pytest.mark.needs_data("tfs")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("HAT", [(1.14, 0.71), (1.59, 0.79), (0.91, 0.72), (1.22, 0.74)]),
        ("Supernet (Sandwich)", [(1.05, 0.81), (1.27, 0.78), (0.91, 0.72), (1.08, 0.77)]),
        ("Layer-wise MoS", [(0.97, 0.56), (1.16, 0.79), (0.96, 0.74), (1.03, 0.70)]),
        ("Neuron-wise MoS", [(0.87, 0.79), (1.18, 0.87), (0.87, 0.67), (0.98, 0.78)]),
    ],
)
def test_the_papers_supernet_rows(summary: Callable[[str], pd.DataFrame], name: str, rows: list[tuple[float, float]]) -> None:
    found = summary(name)[[("MAE", "mean"), ("tau", "mean")]].to_numpy()
    assert found.round(2) == pytest.approx(np.array(rows))


@pytest.mark.needs_data("tfs")
@pytest.mark.parametrize(
    ("name", "mae", "tau"),
    [("mean of the demonstrations", 0.62, None), ("HAT + costs, ridge", 0.25, 0.75), ("Neuron-wise MoS, calibrated", 0.16, 0.78)],
)
def test_what_the_paper_left_out(summary: Callable[[str], pd.DataFrame], name: str, mae: float, tau: float | None) -> None:
    mean = summary(name).loc["mean"]
    assert mean[("MAE", "mean")] == pytest.approx(mae, abs=0.0051)
    if tau is not None:
        assert mean[("tau", "mean")] == pytest.approx(tau, abs=0.006)


@pytest.mark.needs_data("tfs")
def test_the_own_choice_is_good_on_the_papers_splits_and_on_fresh_ones(
    summary: Callable[[str], pd.DataFrame], records: dict[str, pd.DataFrame]
) -> None:
    mean = summary(OWN_CHOICE).loc["mean"]
    assert mean[("MAE", "mean")] <= 0.135
    assert mean[("tau", "mean")] >= 0.80
    own = {task: supernet_predictors(frame, HAT_WMT.qkv_dim)[OWN_CHOICE] for task, frame in records.items()}
    fresh = metrics.random_splits(records, np.random.default_rng(0), 20)
    mean = metrics.summarise(metrics.evaluate(lambda split: own[split.task], fresh)).loc["mean"]
    assert mean[("MAE", "mean")] <= 0.15, "the paper's three splits were not lucky"
    assert mean[("tau", "mean")] >= 0.80


def test_a_base_that_is_fitted_is_calibrated_on_what_it_says_of_each_left_out() -> None:
    base, ways = ZOO["depth + parameters, ridge"], (None, LeaveOneOut(), 2)
    usual, one_by_one, halves = (CalibratedPredictor(base, cv=cv).fit(ARCHS[:10], BLEU[:10]).predict(ARCHS).tolist() for cv in ways)
    assert usual == one_by_one != halves
