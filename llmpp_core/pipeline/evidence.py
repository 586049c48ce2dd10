"""How well scores can be told from the trained networks, and by which predictor: each network left out in turn.

Errors decide, never correlations: the mean of the others falls where the score left out is high, so left-out means correlate -1 with
the truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llmpp_core.space.regressor import ArchitectureRegressor

#: The predictors that are compared; "average" is the mean of the other two.
CANDIDATES = ("model", "regression", "average")
#: Share of cases that intervals are to cover.
COVERAGE = 0.8
# A predictor replaces the average of both if its mean squared error is lower by this many standard errors of the paired difference.
_MARGIN = 0.5
#: Fewer networks support no confident answer.
FEWEST = 6
_RESAMPLES = 4000
_PENALTIES = np.logspace(-2, 3, 26)


class Regression(ArchitectureRegressor):
    """Ridge regression on averages of the choices and logarithms of the costs, its penalty chosen by leave-one-out errors of its own.

    Parameters
    ----------
    space : Space
        Gives the features.

    Attributes
    ----------
    folds_ : list
        One regression per fitted network, which it does not know.
    left_out_ : numpy.ndarray of shape (n,)
        What each of them predicts for the network that it does not know.
    """

    def __init__(self, space: Any):
        self.space = space

    def fit(self, networks: Sequence[Any], scores: ArrayLike) -> Self:
        """Fit to n different networks and their scores, higher being better; at least 3."""
        X, y = self.features(networks), np.asarray(scores, dtype=float)
        if len(y) < 3:
            raise ValueError(f"networks: expected at least 3, got {len(y)}")
        self.model_ = _ridge().fit(X, y)
        others = [np.arange(len(y)) != i for i in range(len(y))]
        self.folds_ = [_ridge().fit(X[rest], y[rest]) for rest in others]
        self.left_out_ = np.array([fold.predict(X[[i]])[0] for i, fold in enumerate(self.folds_)])
        return self

    def predict(self, networks: Sequence[Any]) -> np.ndarray:
        """Return an array of shape (n,)."""
        return self.model_.predict(self.features(networks))

    def fold_predictions(self, networks: Sequence[Any]) -> np.ndarray:
        """Return what each fold predicts, shape (folds, n)."""
        X = self.features(networks)
        return np.array([fold.predict(X) for fold in self.folds_])

    def features(self, networks: Sequence[Any]) -> np.ndarray:
        """Return what it sees of networks, shape (n, features)."""
        columns = [part.transform(networks) for part in self.space.feature_set("averages")]
        return np.hstack([np.asarray(column, dtype=float) for column in columns])


def _ridge() -> Any:
    return make_pipeline(StandardScaler(), RidgeCV(alphas=_PENALTIES))


def compare(scores: ArrayLike, left_out: Mapping[str, ArrayLike], *, noise: float | None = None, wanted: str = "auto") -> dict[str, Any]:
    """Compare predictors by their errors on networks left out, and choose one.

    Parameters
    ----------
    scores : array-like of shape (n,)
        Of different networks, higher is better.
    left_out : mapping of str to array-like of shape (n,)
        What "regression" and, if there is one, "model" predict for each network without having seen it; nan where a model gave no number.
    noise : float, optional
        Standard deviation of a score between two trainings of one network.
    wanted : str
        One of `CANDIDATES`, or "auto".

    Returns
    -------
    dict
        In JSON types: "table", one row per predictor, first "mean", the mean of the others; "left_out"; "used"; "why"; "confident";
        "doubts", reasons against confidence; "model_adds", what the model adds over regression.
    """
    y = np.asarray(scores, dtype=float)
    found = {name: np.asarray(values, dtype=float) for name, values in left_out.items()}
    doubts = []
    if "model" in found:
        answered = int(np.isfinite(found["model"]).sum())
        if answered < max(3, len(y) / 2):
            doubts.append(f"the language model gave a number for {answered} of {len(y)} networks left out, so it is not used")
            del found["model"]
        else:
            found["average"] = (found["model"] + found["regression"]) / 2
    # Compared on the same networks.
    known = np.all([np.isfinite(values) for values in found.values()], axis=0)
    n = int(known.sum())
    errors = {name: (values - y)[known] for name, values in found.items()}
    errors = {"mean": ((y.sum() - y) / (len(y) - 1) - y)[known], **errors}
    draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    resampled = {name: np.sqrt((error[draws] ** 2).mean(axis=1)) for name, error in errors.items()}
    table = list[dict[str, Any]]()
    for name, error in errors.items():
        low, high = _interval(resampled[name] / np.maximum(resampled["mean"], 1e-300))
        rmse, mean = (math.sqrt(np.mean(values**2)) for values in (error, errors["mean"]))
        row = {"predictor": name, "rmse": rmse, "relative": rmse / (mean or 1.0), "low": low, "high": high}
        table.append({**row, "mae": float(np.abs(error).mean()), "n": n})
    used, why = _choose(errors, wanted)
    chosen = next(row for row in table if row["predictor"] == used)
    if chosen["high"] >= 1:
        span = f"{chosen['low']:.2f} to {chosen['high']:.2f} times"
        doubts.append(f"the {used} is not surely better than the mean of the other networks: its error is {span} as large")
    if len(y) < FEWEST:
        doubts.append(f"{len(y)} networks are too few to tell; {FEWEST} or more are needed")
    if noise is not None and np.std(y, ddof=1) <= noise:
        doubts.append(f"the scores differ less (sd {np.std(y, ddof=1):.3g}) than two trainings of one network do (sd {noise:.3g})")
    listed = {name: [float(v) if np.isfinite(v) else None for v in values] for name, values in found.items()}
    adds = _model_adds(table, resampled, n) if "model" in found else None
    return {"table": table, "left_out": listed, "used": used, "why": why, "confident": not doubts, "doubts": doubts, "model_adds": adds}


def _choose(errors: Mapping[str, np.ndarray], wanted: str) -> tuple[str, str]:
    if wanted != "auto" and wanted in errors:
        return wanted, f"the {wanted} is used, since predictor: {wanted} asks for it"
    if "average" not in errors:
        return "regression", "the regression is used, since there is no language model's answer to compare it with"
    for name in ("model", "regression"):
        gain = errors["average"] ** 2 - errors[name] ** 2
        if gain.mean() > _MARGIN * gain.std(ddof=1) / math.sqrt(len(gain)):
            return (
                name,
                f"the {name} is used, since its errors are lower than those of the average of both by more than half a standard error",
            )
    return "average", "the average of both is used, since neither is lower in error by more than half a standard error"


def _model_adds(table: Sequence[Mapping[str, Any]], resampled: Mapping[str, np.ndarray], n: int) -> dict[str, Any]:
    rmse = {row["predictor"]: row["rmse"] for row in table}
    low, high = _interval(resampled["regression"] - resampled["model"])
    better = "the language model is better" if low > 0 else "the regression is better" if high < 0 else None
    said = better or f"not distinguishable with {n} networks, which is the normal outcome"
    return {"difference": rmse["regression"] - rmse["model"], "low": low, "high": high, "said": said}


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def jackknife_plus(folds: np.ndarray, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of jackknife+ intervals (Barber et al. 2021) that aim at `COVERAGE`, each of shape (m,).

    Parameters
    ----------
    folds : numpy.ndarray of shape (n, m)
        What the predictor fitted without network i says of m new ones.
    residuals : numpy.ndarray of shape (n,)
        Its absolute error on network i. Below 4 networks the ends are the outermost values, which cover less.
    """
    n, alpha = len(residuals), 1 - COVERAGE
    low = np.sort(folds - residuals[:, None], axis=0)[max(math.floor(alpha * (n + 1) + 1e-9), 1) - 1]
    high = np.sort(folds + residuals[:, None], axis=0)[min(math.ceil(COVERAGE * (n + 1) - 1e-9), n) - 1]
    return low, high
