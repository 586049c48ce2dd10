"""Performance predictors that no LLM and no training of ours is needed for: cost baselines, few-shot regressors, supernets.

Each is a scikit-learn regressor whose X is a sequence of `Architecture` and whose scores are better when higher, so
`clone`, `cross_val_score`, pipelines and searches take any of them. Most are plain pipelines of `llmpp_core.space.features` and
scikit-learn estimators, collected in `baselines` and `supernet_predictors`; the two classes are what scikit-learn lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import RandomForestRegressor, StackingRegressor, VotingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV
from sklearn.model_selection import BaseCrossValidator, GridSearchCV, LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags, get_tags
from sklearn.utils.validation import check_is_fitted, column_or_1d

from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import CostFeatures, DepthFeatures, HATFeatures, ScoreFeatures
from llmpp_core.space.inputs import as_list, as_scores, warn_if_weak
from llmpp_core.space.regressor import ArchitectureScorer
from llmpp_core.upstream import SUPERNETS


class TablePredictor(ArchitectureScorer):
    """Scores recorded elsewhere, looked up by architecture, such as the BLEU that a trained supernet gives.

    Parameters
    ----------
    scores : mapping of Architecture to float
        One score per known architecture, higher is better.
    """

    def __init__(self, scores: Mapping[Architecture, float]):
        self.scores = scores

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n,); raises ValueError if an architecture has no recorded score."""
        archs = as_list(archs, kind=object)
        missing = [arch for arch in archs if arch not in self.scores]
        if missing:
            raise ValueError(f"{len(missing)} of {len(archs)} architectures have no recorded score, the first: {missing[0]}")
        return np.array([self.scores[arch] for arch in archs], dtype=float)


class CalibratedPredictor(RegressorMixin, BaseEstimator):
    """Another predictor's output mapped to the scale of the scores by a rising line or a saturating curve.

    Calibration keeps the order: it repairs the error of a predictor that ranks well, such as a supernet whose BLEU is too low.

    Parameters
    ----------
    base : regressor over Architecture
        The predictor to calibrate. If it learns from the scores, the curve is fitted on its out-of-fold predictions, since those
        on its own training data look better than it is.
    kind : {"linear", "saturating"}
        The curve: a + b u, or a + b (1 - exp(-c u)) / c, with b >= 0 and 0 <= c <= 10, where u is the base's output scaled to
        [0, 1] over the demonstrations. Below them (u < 0) the second is continued by its tangent.
    cv : cross-validator or int, optional
        How the out-of-fold predictions are made; leave-one-out by default.

    Attributes
    ----------
    base_ : regressor
        The base fitted on all demonstrations.
    offset_, scale_ : float
        `u = (output - offset_) / scale_`.
    rate_ : float
        c, the curvature; 0 where the curve is a line.
    line_ : sklearn.linear_model.LinearRegression
        a and b.
    n_labels_, n_dropped_ : int
        Demonstrations that the curve is fitted on, and those left out because the base's output is nan.
    """

    def __init__(self, base: Any, kind: str = "linear", cv: BaseCrossValidator | int | None = None):
        self.base = base
        self.kind = kind
        self.cv = cv

    def fit(self, archs: Sequence[Architecture], scores: ArrayLike) -> Self:
        """Fit the base, then the curve; raises ValueError for an unknown kind, and where every output of the base is nan."""
        if self.kind not in ("linear", "saturating"):
            raise ValueError(f"kind: expected 'linear' or 'saturating', got {self.kind!r}")
        archs = _read_twice(archs)
        y = column_or_1d(_read_twice(scores), dtype=np.float64, warn=True)
        self.base_ = clone(self.base).fit(archs, y)
        if hasattr(self.base_, "n_features_in_"):
            self.n_features_in_ = self.base_.n_features_in_
        if get_tags(self.base).requires_fit:
            outputs = cross_val_predict(self.base, archs, y, cv=LeaveOneOut() if self.cv is None else self.cv)
        else:
            outputs = self.base_.predict(archs)
        y, known = as_scores(y, len(outputs)), np.isfinite(outputs)
        if not known.any():
            raise ValueError(f"base: none of its {len(outputs)} outputs is a number")
        self.n_labels_, self.n_dropped_ = int(known.sum()), int((~known).sum())
        outputs, y = outputs[known], y[known]
        # By what the base says of them, since that is all that the curve sees.
        warn_if_weak(outputs.tolist(), y)
        self.offset_, self.scale_ = float(outputs.min()), float(np.ptp(outputs)) or 1.0
        u = (outputs - self.offset_) / self.scale_
        self.rate_ = _best_rate(u, y) if self.kind == "saturating" else 0.0
        self.line_ = _fit_line(u, y, self.rate_)
        return self

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n,); nan where the base's output is."""
        check_is_fitted(self)
        u = (self.base_.predict(_read_twice(archs)) - self.offset_) / self.scale_
        predicted, known = np.full(len(u), np.nan), np.isfinite(u)
        if known.any():
            predicted[known] = self.line_.predict(_bend(u[known], self.rate_)[:, None])
        return predicted

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.base).input_tags
        return tags


def _read_twice(values: Any) -> Any:
    """Return what can be read only once, or by no position, as a list, and anything else, also a matrix for another base, as it is."""
    return list(values) if isinstance(values, (Iterator, KeysView, ValuesView)) else values


def _bend(u: np.ndarray, rate: float) -> np.ndarray:
    """Return (1 - exp(-rate u)) / rate for u >= 0 and its tangent u below, where the exponential would explode."""
    return u if rate == 0 else np.where(u > 0, -np.expm1(-rate * np.maximum(u, 0)) / rate, u)


def _fit_line(u: np.ndarray, y: np.ndarray, rate: float) -> LinearRegression:
    return LinearRegression(positive=True).fit(_bend(u, rate)[:, None], y)


def _best_rate(u: np.ndarray, y: np.ndarray) -> float:
    """Return the curvature with the least squared error; 0 where bending does not help."""

    def loss(rate: float) -> float:
        return float(np.sum((y - _fit_line(u, y, rate).predict(_bend(u, rate)[:, None])) ** 2))

    best = minimize_scalar(loss, bounds=(0, 10), method="bounded")
    return float(best.x) if best.fun < loss(0.0) else 0.0


def baselines(qkv_dim: int) -> dict[str, Any]:
    """Return unfitted predictors that see architectures and demonstrations only; `qkv_dim` is that of their space.

    Costs and depth enter as logarithms, since quality saturates. The four named "HAT + costs" read the same twelve features and
    differ in the learner alone; the Gaussian process gives an uncertainty: ``predict(archs, return_std=True)``.

    Returns
    -------
    dict of str to regressor over Architecture
    """
    features = (HATFeatures(), CostFeatures(qkv_dim=qkv_dim))
    return {
        "mean of the demonstrations": DummyRegressor(),
        "parameters": make_pipeline(CostFeatures(flops=False, qkv_dim=qkv_dim), LinearRegression()),
        "FLOPs": make_pipeline(CostFeatures(parameters=False, qkv_dim=qkv_dim), LinearRegression()),
        "depth": make_pipeline(DepthFeatures(log=True), LinearRegression()),
        "depth + parameters, ridge": _standardised(*_depth_and_parameters(qkv_dim), learner=Ridge()),
        "HAT + costs, ridge": _standardised(*features, learner=RidgeCV(np.logspace(-3, 3, 13))),
        "HAT + costs, Gaussian process": _standardised(*features, learner=_gaussian_process(12)),
        "HAT + costs, random forest": _standardised(*features, learner=RandomForestRegressor(random_state=0)),
        "HAT + costs, 3 nearest": _standardised(*features, learner=KNeighborsRegressor(3)),
    }


def supernet_family(records: pd.DataFrame, qkv_dim: int) -> dict[str, Pipeline]:
    """Return twelve unfitted ridge regressions on supernet scores: four ways to read them, with and without depth and size.

    Parameters
    ----------
    records : pandas.DataFrame
        Columns "architecture" and those of `llmpp_core.upstream.SUPERNETS`, as in `llmpp_core.upstream.tfs_records`. Only these
        architectures can be predicted. Other columns are not read.
    qkv_dim : int
        Inner width of attention in their space.

    Returns
    -------
    dict of str to regressor over Architecture
    """
    scores = records[list(SUPERNETS)].to_numpy(dtype=float)
    readings = {
        # One supernet now and then misjudges an architecture by more than a BLEU point; the median does not notice.
        "median of supernets": np.median(scores, axis=1, keepdims=True),
        "mean of supernets": np.mean(scores, axis=1, keepdims=True),
        "four supernets": scores,
        SUPERNETS[-1]: scores[:, -1:],
    }
    extras = {"": (), " + depth": (DepthFeatures(log=True),), " + depth + parameters": _depth_and_parameters(qkv_dim)}
    return {
        f"{reading}{extra}, ridge": _standardised(
            ScoreFeatures(dict(zip(records["architecture"], rows.tolist(), strict=True))), *features, learner=Ridge()
        )
        for reading, rows in readings.items()
        for extra, features in extras.items()
    }


#: Name in `supernet_predictors` of the one this project puts forward; chapter 3 gives the reasons.
OWN_CHOICE = "supernet ensemble + depth"


def supernet_predictors(records: pd.DataFrame, qkv_dim: int) -> dict[str, Any]:
    """Return unfitted predictors that read the scores which trained supernets give, of these architectures alone.

    Parameters
    ----------
    records : pandas.DataFrame
    qkv_dim : int
        Both as in `supernet_family`.

    Returns
    -------
    dict of str to regressor over Architecture
        The supernets under their own names, each calibrated, and what combines them: `supernet_family`, its member with the
        least leave-one-out error, a stack with weights >= 0, a Gaussian process, and `OWN_CHOICE`, the family's plain average.
    """
    plain: dict[str, Any] = {name: TablePredictor(dict(zip(records["architecture"], records[name], strict=True))) for name in SUPERNETS}
    family = supernet_family(records, qkv_dim)
    layer = [*plain.items(), ("depth + parameters", baselines(qkv_dim)["depth + parameters, ridge"])]
    choice = Pipeline([("member", "passthrough")])
    return {
        **plain,
        **{f"{name}, calibrated": CalibratedPredictor(predictor) for name, predictor in plain.items()},
        f"{SUPERNETS[-1]}, saturating": CalibratedPredictor(plain[SUPERNETS[-1]], kind="saturating"),
        **family,
        "chosen by leave-one-out": GridSearchCV(
            choice, {"member": list(family.values())}, scoring="neg_mean_absolute_error", cv=LeaveOneOut()
        ),
        "stack": StackingRegressor(layer, final_estimator=LinearRegression(positive=True), cv=LeaveOneOut()),
        "median of supernets + depth, Gaussian process": Pipeline(
            [*family["median of supernets + depth, ridge"].steps[:-1], ("gaussianprocessregressor", _gaussian_process(2))]
        ),
        OWN_CHOICE: VotingRegressor(list(family.items())),
    }


def _depth_and_parameters(qkv_dim: int) -> tuple[Any, ...]:
    return DepthFeatures(log=True), CostFeatures(flops=False, qkv_dim=qkv_dim)


def _standardised(*features: Any, learner: Any) -> Pipeline:
    return make_pipeline(make_union(*features), StandardScaler(), learner)


def _gaussian_process(n_features: int) -> GaussianProcessRegressor:
    """Return a process over standardised features with a fixed, smooth prior: ten points do not determine a kernel."""
    kernel = 10.0 * RBF(4.0 * n_features**0.5) + WhiteKernel(0.1)
    return GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
