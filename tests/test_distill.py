"""The distilled student: what it learns, what it refuses, and what its checkpoint keeps."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from llmpp_core.metrics import kendall_tau, mean_absolute_error
from llmpp_core.predictors.baselines import baselines
from llmpp_core.predictors.distill import MONOTONE, OFFICIAL, DistilledPredictor, distill
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_parameters
from llmpp_core.space.features import HAT_FEATURE_NAMES, HAT_FEATURE_SETS, HATFeatures, OfficialFeatures
from llmpp_core.space.search_space import HAT_WMT, SMALL, SPACES, TINY, SearchSpace
from llmpp_core.upstream import tfs_splits

# Enough for most tests, in a tenth of a second.
QUICK = {"features": "averages", "space": HAT_WMT, "steps": 60}


class Linear:
    """A teacher that is linear in the official features."""

    slopes = np.array([1.0, 0.0, 2.0, -0.5, -1.0, 3.0, 0.7, 0.2, 0.0, 0.4])

    def predict(self, archs: list[Architecture]) -> np.ndarray:
        return 25 + OfficialFeatures().transform(archs) @ self.slopes


class Saturating:
    """A teacher whose score levels off with the sum of all feed-forward widths, and looks at single layers."""

    def predict(self, archs: list[Architecture]) -> np.ndarray:
        width = np.array([sum(arch.decoder_ffn_dims) for arch in archs]) / 3072
        first = np.array([arch.encoder_ffn_dims[0] for arch in archs]) / 3072
        return 24 + 3 * (1 - np.exp(-width / 2)) + 0.3 * first


class Forgetful:
    """A teacher that gives no answer to every tenth question."""

    def predict(self, archs: list[Architecture]) -> np.ndarray:
        return np.where(np.arange(len(archs)) % 10 == 0, np.nan, Linear().predict(archs))


@pytest.fixture(scope="module")
def archs() -> list[Architecture]:
    return HAT_WMT.sample_balanced(600, np.random.default_rng(1))


@pytest.fixture(scope="module")
def unseen() -> list[Architecture]:
    return HAT_WMT.sample(300, np.random.default_rng(2))


@pytest.fixture(scope="module")
def student(archs: list[Architecture]) -> DistilledPredictor:
    return DistilledPredictor(**QUICK).fit(archs, Saturating().predict(archs), teacher="a formula")


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_learns_a_linear_teacher_almost_exactly(archs: list[Architecture], unseen: list[Architecture]) -> None:
    student = DistilledPredictor(space=HAT_WMT, features="official").fit(archs, Linear().predict(archs))
    assert mean_absolute_error(Linear().predict(unseen), student.predict(unseen)) < 1e-3


def test_learns_a_saturating_teacher_and_chooses_the_features_that_it_needs(archs: list[Architecture], unseen: list[Architecture]) -> None:
    y = Saturating().predict(archs)
    student = DistilledPredictor(space=HAT_WMT).fit(archs, y)
    true = Saturating().predict(unseen)
    assert student.features_ == "all" == min(student.held_out_rmse_, key=student.held_out_rmse_.get)
    assert mean_absolute_error(true, student.predict(unseen)) < 0.04 * true.std()
    assert kendall_tau(true, student.predict(unseen)) > 0.95


def test_held_out_error_foretells_the_error_on_new_architectures(archs: list[Architecture], unseen: list[Architecture]) -> None:
    student = DistilledPredictor(space=HAT_WMT, features=tuple(HAT_FEATURE_SETS), steps=100).fit(archs, Saturating().predict(archs))
    for name, foretold in student.held_out_rmse_.items():
        single = DistilledPredictor(space=HAT_WMT, features=name, steps=100).fit(archs, Saturating().predict(archs))
        found = np.sqrt(np.mean((single.predict(unseen) - Saturating().predict(unseen)) ** 2))
        # The ensemble averages members that were judged one by one.
        assert 0.3 * foretold < found < 1.4 * foretold


def test_networks_add_to_ridge_regression_on_the_same_features(archs: list[Architecture], unseen: list[Architecture]) -> None:
    y, true = Saturating().predict(archs), Saturating().predict(unseen)
    features = make_union(*HAT_WMT.feature_set("all"))
    plain = make_pipeline(features, StandardScaler(), RidgeCV(np.logspace(-4, 3, 8))).fit(archs, y)
    student = DistilledPredictor(space=HAT_WMT, features="all").fit(archs, y)
    assert mean_absolute_error(true, student.predict(unseen)) < 0.7 * mean_absolute_error(true, plain.predict(unseen))


def test_pure_noise_is_not_learned(archs: list[Architecture], unseen: list[Architecture], rng: np.random.Generator) -> None:
    student = DistilledPredictor(space=HAT_WMT).fit(archs, 25 + rng.standard_normal(len(archs)))
    assert student.predict(unseen).std() < 0.3


@pytest.mark.needs_data("tfs")
def test_agrees_with_a_few_shot_teacher_from_500_labels(archs: list[Architecture], unseen: list[Architecture]) -> None:
    split = next(tfs_splits(download=False))
    teacher = baselines(HAT_WMT.qkv_dim)["HAT + costs, Gaussian process"].fit(
        list(split.demonstrations["architecture"]), split.demonstrations["bleu"]
    )
    student = distill(teacher, HAT_WMT, 500, np.random.default_rng(0))
    assert kendall_tau(teacher.predict(unseen), student.predict(unseen)) > 0.95
    # Demonstrations and their relatives: the protocol of chapter 3, with the student in the teacher's place.
    true = split.test["bleu"].to_numpy()
    errors = [mean_absolute_error(true, p.predict(list(split.test["architecture"]))) for p in (teacher, student)]
    assert errors[1] == pytest.approx(errors[0], abs=0.03)


def test_the_official_recipe_is_the_published_one_and_learns(archs: list[Architecture], unseen: list[Architecture]) -> None:
    assert OFFICIAL["steps"] * OFFICIAL["batch_size"] == 640_000
    settings = {**OFFICIAL, "steps": 200, "learning_rate": 1e-3}
    student = DistilledPredictor(space=HAT_WMT, **settings).fit(archs, Linear().predict(archs))
    assert [tuple(w.shape) for w in student.network_.weights[::2]] == [(1, 10, 400), *[(1, 400, 400)] * 3, (1, 400, 1)]
    assert student.stopped_at_ == 200
    assert student.held_out_rmse_ == {}
    true = Linear().predict(unseen)
    assert mean_absolute_error(true, student.predict(unseen)) < mean_absolute_error(true, np.full(300, true.mean()))


def test_monotone_predictions_never_fall_when_something_grows(archs: list[Architecture], rng: np.random.Generator) -> None:
    # A teacher that dislikes wide decoders: the constraint must win over the labels.
    student = DistilledPredictor(**{**MONOTONE, **QUICK, "features": "all"}).fit(archs, Linear().predict(archs) + rng.standard_normal(600))
    sample = archs[:50]
    before = student.predict(sample)
    for name, largest in (("encoder_embed_dim", 640), ("decoder_embed_dim", 640), ("encoder_ffn_dims", 3072), ("decoder_ffn_dims", 3072)):
        values = [getattr(arch, name) for arch in sample]
        grown = [
            replace(arch, **{name: largest if isinstance(v, int) else (*v[:-1], largest)}) for arch, v in zip(sample, values, strict=True)
        ]
        assert (student.predict(grown) - before).min() > -1e-6
    assert np.ptp(before) > 0.5


def test_members_disagree_more_where_there_were_no_labels(archs: list[Architecture]) -> None:
    shallow = [arch for arch in archs if arch.decoder_layers <= 2]
    student = DistilledPredictor(space=HAT_WMT, features="all").fit(shallow, Saturating().predict(shallow))
    mean, near = student.predict(shallow, return_std=True)
    far = student.predict([arch for arch in archs if arch.decoder_layers == 6], return_std=True)[1]
    np.testing.assert_array_equal(mean, student.predict(shallow))
    assert near.min() >= 0
    assert np.median(far) > 2 * np.median(near)


# --- the contract of scikit-learn -------------------------------------------------------------------------------------


def test_scikit_learn_takes_it(archs: list[Architecture]) -> None:
    # The checks that need no matrix as X.
    for check in (
        "no_attributes_set_in_init",
        "get_params_invariance",
        "set_params",
        "mixin_order",
        "estimator_repr",
        "estimator_cloneable",
    ):
        getattr(estimator_checks, f"check_{check}")("DistilledPredictor", DistilledPredictor())
    y = Linear().predict(archs)
    student = DistilledPredictor(**QUICK, random_state=3)
    assert clone(student).get_params() == student.get_params()
    assert cross_val_score(student, archs, y, cv=3).min() > 0.99
    search = GridSearchCV(DistilledPredictor(space=HAT_WMT, steps=20), {"features": ["costs", "official"]}, cv=2).fit(archs, y)
    assert search.best_params_ == {"features": "official"}
    assert clone(student).set_params(steps=20).fit(archs, y).score(archs, y) > 0.99


def test_predictions_do_not_depend_on_company(student: DistilledPredictor, unseen: list[Architecture]) -> None:
    alone = [student.predict([arch])[0] for arch in unseen[:20]]
    np.testing.assert_allclose(alone, student.predict(unseen)[:20], rtol=1e-6)
    assert student.predict([]).shape == (0,)


def test_same_seed_same_student_and_torch_is_left_alone(archs: list[Architecture], unseen: list[Architecture]) -> None:
    y = Saturating().predict(archs)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first = DistilledPredictor(**QUICK, random_state=5).fit(archs, y).predict(unseen)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    again = DistilledPredictor(**QUICK, random_state=5).fit(archs, y).predict(unseen)
    other = DistilledPredictor(**QUICK, random_state=6).fit(archs, y).predict(unseen)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32


# --- labels from a teacher --------------------------------------------------------------------------------------------


def test_missing_labels_are_left_out_and_counted(archs: list[Architecture], unseen: list[Architecture]) -> None:
    y = Forgetful().predict(archs)
    with pytest.warns(UserWarning, match=r"^labels: 60 of 600 were unreadable \(nan\); the student learns from the other 540$"):
        student = DistilledPredictor(**QUICK).fit(archs, y)
    kept = np.flatnonzero(~np.isnan(y))
    same = DistilledPredictor(**QUICK).fit([archs[i] for i in kept], y[kept])
    assert (student.n_labels_, student.n_dropped_) == (540, 60)
    np.testing.assert_array_equal(student.predict(unseen), same.predict(unseen))


@pytest.mark.parametrize(("lost", "outcome"), [(5, ""), (6, "warning"), (50, "warning"), (51, "error"), (90, "error")])
def test_a_student_is_not_trained_on_a_part_of_its_labels_without_a_word(archs: list[Architecture], lost: int, outcome: str) -> None:
    y = np.where(np.arange(100) < lost, np.nan, Linear().predict(archs[:100]))
    student = DistilledPredictor(**QUICK)
    if outcome == "error":
        with pytest.raises(ValueError, match=rf"labels: {lost} of 100 were unreadable \(nan\), and at most 50% may be"):
            student.fit(archs[:100], y)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        student.fit(archs[:100], y)
    assert [f"labels: {lost} of 100 were unreadable" in str(warning.message) for warning in caught] == [True] * (outcome == "warning")
    assert student.n_dropped_ == lost


@pytest.mark.filterwarnings("ignore:labels")
def test_distill_asks_once_and_records_the_teacher(rng: np.random.Generator) -> None:
    student = distill(Forgetful(), SMALL, 120, rng, student=DistilledPredictor(**QUICK), name="forgetful")
    assert (student.n_labels_, student.n_dropped_, student.teacher_) == (108, 12, "forgetful")
    assert student.space == SMALL
    assert distill(Linear(), HAT_WMT, 60, rng, student=DistilledPredictor(**QUICK), balanced=False).teacher_ == "Linear"


# --- features ---------------------------------------------------------------------------------------------------------


def test_official_features_lie_in_the_unit_interval_and_use_the_spans_of_the_genome() -> None:
    rows = OfficialFeatures().transform([HAT_WMT.smallest(), HAT_WMT.largest(), *HAT_WMT.sample(50, np.random.default_rng(0))])
    assert rows.shape == (52, 10)
    assert rows.min() >= 0
    np.testing.assert_array_equal(rows[1], 1)
    one = replace(HAT_WMT.largest(), decoder_cross_spans=(-1, -1, -1, 1, 2, 2))
    assert OfficialFeatures().transform([one])[0, -1] == pytest.approx((1 + 2 / 6) / 3)
    # Otherwise they are HAT's, scaled.
    ratio = OfficialFeatures().transform([one])[0, :-1] / HATFeatures().transform([one])[0, :-1]
    np.testing.assert_allclose(1 / ratio, [640, 6, 3072, 8, 640, 6, 3072, 8, 8])
    assert len(OfficialFeatures().get_feature_names_out()) == len(HAT_FEATURE_NAMES)


@pytest.mark.parametrize("name", HAT_FEATURE_SETS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_feature_set_serves_every_space(name: str, space: SearchSpace, rng: np.random.Generator) -> None:
    archs = space.sample(30, rng)
    y = np.log([count_parameters(arch, space.qkv_dim) for arch in archs])
    student = DistilledPredictor(features=name, space=space, steps=20).fit(archs, y)
    assert np.isfinite(student.predict(space.sample(5, rng))).all()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "hat"}, "features: expected names out of official, costs, averages, layers, all, surrogate, got 'hat'"),
        ({"features": ()}, "features: expected names"),
        ({"ensemble": 1}, "features: a choice among several needs held-out labels"),
        ({"ensemble": 0}, "ensemble: expected a positive integer, got 0"),
        ({"steps": 0}, "steps: expected a positive integer, got 0"),
        ({"batch_size": 2.5}, "batch_size: expected a positive integer, got 2.5"),
        ({"learning_rate": -1.0}, "learning_rate: expected a positive number, got -1.0"),
        ({"learning_rate": "0.01"}, "learning_rate: expected a positive number, got '0.01'"),
        *(({"hidden": hidden}, f"hidden: expected positive widths, got {hidden!r}") for hidden in ((64, 0), (64, 1.5), 64)),
        ({"activation": "sine"}, "activation: 'sine' is not allowed with monotone=False; use relu or silu or tanh"),
        ({"monotone": True}, "activation: 'silu' is not allowed with monotone=True; use relu or tanh"),
        ({**OFFICIAL, "learning_rate": 1e30, "steps": 5}, "learning_rate: training diverged at 1e+30; lower it"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str, archs: list[Architecture]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        DistilledPredictor(space=HAT_WMT, **settings).fit(archs, Linear().predict(archs))
    assert "\n" not in str(caught.value)


def test_labels_and_architectures_that_do_not_fit_are_refused(archs: list[Architecture], student: DistilledPredictor) -> None:
    y = Linear().predict(archs)
    with pytest.raises(ValueError, match=r"labels: expected 600 numbers, one per architecture, got shape \(599,\)"):
        DistilledPredictor(space=HAT_WMT).fit(archs, y[:-1])
    with pytest.raises(ValueError, match=r"labels\[\d+\]: expected a finite number, or nan, got "):
        DistilledPredictor(space=HAT_WMT).fit(archs, np.where(y == y[0], np.inf, y))
    with pytest.raises(ValueError, match="labels: expected at least 5 that are not nan, got 4 of 8"):
        DistilledPredictor(space=HAT_WMT).fit(archs[:8], [1.0, 2.0, 3.0, 4.0] + [np.nan] * 4)
    with pytest.raises(ValueError, match=r"archs\[1\]: expected an Architecture, got str"):
        student.predict([archs[0], "arch"])
    deep = replace(TINY, decoder_layers=(7,)).sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="7 decoder_layers"):
        DistilledPredictor(space=HAT_WMT, features="layers").fit(archs, y).predict(deep)
    single = DistilledPredictor(**{**QUICK, "ensemble": 1}).fit(archs, y)
    with pytest.raises(ValueError, match="return_std needs an ensemble of at least 2, got 1"):
        single.predict(archs, return_std=True)


def test_constant_labels_and_features_are_no_problem(archs: list[Architecture]) -> None:
    np.testing.assert_allclose(DistilledPredictor(**QUICK).fit(archs, np.full(600, 7.0)).predict(archs), 7, atol=1e-5)
    np.testing.assert_allclose(DistilledPredictor(**QUICK).fit(archs[:1] * 6, np.arange(6.0)).predict(archs[:1]), 2.5, atol=0.5)
