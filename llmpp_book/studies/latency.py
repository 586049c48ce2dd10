"""Latency predictors side by side on HAT's tables: the same rows to train on, the same rows to test on, errors and time.

``benchmarks/latency.py`` runs all comparisons and keeps them in `RESULTS`; the chapter on latency reads them or runs its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from llmpp_book import repository
from llmpp_core.latency.hat_mlp import LATENCY_UNITS, LatencyMLP
from llmpp_core.latency.predictor import LatencyPredictor, LatencyPrior, latency_errors, split_rows
from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
from llmpp_core.upstream import TFS_TASKS

RESULTS = repository.RESULTS / "latency_predictors.csv"

#: The comparisons of the record, pairs of a split's seed and a number of measurements: five splits, the first also with fewer.
JOBS = [*((seed, 1600) for seed in range(5)), *((0, measurements) for measurements in (20, 100, 400))]

#: Names of the two predictors that are compared, and of two simpler ones.
OWN, MLP, POLYNOMIAL, DEPTH = "LatencyPredictor", "HAT's MLP", "polynomial ridge", "mean per decoder depth"

_TASKS = {"iwslt14deen": "IWSLT'14 De-En", **TFS_TASKS}
_DEVICES = {"gpu_titanxp": "TITAN Xp", "cpu_xeon": "Xeon", "cpu_raspberrypi": "Raspberry Pi"}


def title(table: str) -> str:
    """Return a table's name for readers: "wmt14ende_cpu_xeon" -> "WMT'14 En-De, Xeon"."""
    return f"{_TASKS[table.partition('_')[0]]}, {_DEVICES[device(table)]}"


def device(table: str) -> str:
    """Return the device part of a table's name: "wmt14ende_cpu_xeon" -> "cpu_xeon"."""
    return table.partition("_")[2]


def _depth(rows: np.ndarray) -> np.ndarray:
    return rows[:, [HAT_FEATURE_NAMES.index("decoder_layers")]]


def predictors(table: str) -> dict[str, Any]:
    """Return the unfitted predictors for one of the tables of `llmpp_core.upstream.LATENCY_TABLES`."""
    unit = next(unit for kind, unit in LATENCY_UNITS.items() if device(table).startswith(kind))
    scale, square = StandardScaler(), PolynomialFeatures(2, include_bias=False)
    return {
        OWN: LatencyPredictor(),
        POLYNOMIAL: make_pipeline(HATFeatures(), scale, square, StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))),
        DEPTH: make_pipeline(HATFeatures(), FunctionTransformer(_depth), DecisionTreeRegressor()),
        MLP: LatencyMLP(unit),
    }


class Trial(NamedTuple):
    """Latencies of the test rows of one split in ms, measured and predicted, both of shape (200,), and what it took."""

    true: np.ndarray
    predicted: np.ndarray
    measurements: int
    seconds: float


def trial(frame: pd.DataFrame, predictor: Any, seed: int, measurements: int | Sequence[int] | None = None, repeats: int = 1) -> Trial:
    """Train a clone of a predictor on the training part of a table's random split and let it predict the test part.

    `measurements` are how many of the rows to train on are used, in the split's order, or their positions in it; all by default. The
    time is the median of `repeats` fits.
    """
    features, latency = frame[list(HAT_FEATURE_NAMES)].to_numpy(), frame["latency_ms"].to_numpy()
    train, _, test = split_rows(len(frame), np.random.default_rng(seed))
    train = train[:measurements] if measurements is None or isinstance(measurements, int) else train[list(measurements)]
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        fitted = clone(predictor).fit(features[train], latency[train])
        times.append(time.perf_counter() - started)
    return Trial(latency[test], fitted.predict(features[test]), len(train), float(np.median(times)))


def compare(frame: pd.DataFrame, predictor: Any, seed: int, measurements: int | None = None, repeats: int = 1) -> dict[str, Any]:
    """Return one row of a comparison, a `trial` in numbers: seed, measurements, rmse (ms), mape (%), seconds."""
    result = trial(frame, predictor, seed, measurements, repeats)
    errors = latency_errors(result.true, result.predicted)
    return {"seed": seed, "measurements": result.measurements, **errors, "seconds": result.seconds}


def prior_without(frames: dict[str, pd.DataFrame], table: str, *, new_device: bool = False) -> LatencyPrior:
    """Learn a prior for one table of `frames` from the others; for a `new_device`, from those of other devices."""
    others = [name for name in frames if name != table and not (new_device and device(name) == device(table))]
    return LatencyPrior.learn((frames[name], frames[name]["latency_ms"]) for name in others)


def recorded() -> pd.DataFrame:
    """Return what ``benchmarks/latency.py`` measured: the columns of `compare`, table, method, and where each row is from."""
    return pd.read_csv(RESULTS)
