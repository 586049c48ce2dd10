"""Latency predictors side by side on HAT's tables: the same rows to train on, the same rows to test on, errors and time.

``benchmarks/latency.py`` runs all comparisons and keeps them in `RESULTS`; the chapter on latency reads them or runs its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from llmpp_book import repository
from llmpp_book.studies.paired import by_student
from llmpp_core.latency.hat_mlp import LATENCY_UNITS, LatencyMLP
from llmpp_core.latency.predictor import LatencyPredictor, LatencyPrior, latency_errors, split_rows, spread_measurements
from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
from llmpp_core.upstream import TFS_TASKS

RESULTS = repository.RESULTS / "latency_predictors.csv"
TRANSFER_RESULTS = repository.RESULTS / "latency_transfer.csv"

#: The comparisons of the record, pairs of a split's seed and a number of measurements: five splits, the first also with fewer.
JOBS = [*((seed, 1600) for seed in range(5)), *((0, measurements) for measurements in (20, 100, 400))]

#: Names of the two predictors that are compared, and of two simpler ones.
OWN, MLP, POLYNOMIAL, DEPTH = "LatencyPredictor", "HAT's MLP", "polynomial ridge", "mean per decoder depth"

#: What is compared on few measurements of a new device, and what the last two know of it beside: the table of another device.
ALONE, LINE, SCALED, TRANSFER = "measurements alone", "line over decoder depth", "other device, scaled", "other device as prior"
#: How the measured architectures are chosen, and how many.
CHOICES, FEW = ("random", "spread"), (5, 10, 20)
#: Draws of the measured and of the test architectures.
DRAWS = 20
# The other device is the first of these that is not the new one itself; a second is kept for comparison.
_KNOWN = ("cpu_xeon", "gpu_titanxp", "cpu_raspberrypi")

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


def other_devices(table: str) -> list[str]:
    """Return the tables that may tell of a table's device, the first by rule: WMT'14's of other devices, of the same task if they can."""
    task = table.partition("_")[0] if table.startswith("wmt14") else "wmt14ende"
    return [f"{task}_{known}" for known in _KNOWN if known != device(table)]


def transfer(frames: Mapping[str, pd.DataFrame], table: str, source: str, few: Iterable[int] = FEW, draws: int = DRAWS) -> pd.DataFrame:
    """Return how well few measurements of a new device tell its latencies, with the table of another device as `source` or alone.

    Returns
    -------
    pandas.DataFrame
        A row per number of measurements (0 for all 1,600 of the split), choice, method and draw, the seed of the split; and within,
        the share of the test architectures whose prediction is within 10 % of the measured latency, in percent.
    """
    frame, known = frames[table], frames[source]
    pair = known[list(HAT_FEATURE_NAMES)], known["latency_ms"]
    expected = LatencyPredictor(statistic="typical").fit(*pair)
    alone = LatencyPredictor(statistic="typical")
    scale_only = replace(LatencyPrior.learn([pair]), unexplained=(1e-4,))
    predictors = {
        ALONE: alone,
        LINE: make_pipeline(HATFeatures(), FunctionTransformer(_depth), LinearRegression()),
        SCALED: LatencyPredictor(scale_only, "typical"),
        TRANSFER: LatencyPredictor(LatencyPrior.from_device(*pair), "typical"),
    }
    rows = []
    for draw in range(draws):
        candidates = split_rows(len(frame), np.random.default_rng(draw))[0]
        latency = expected.predict(frame.iloc[candidates][list(HAT_FEATURE_NAMES)])
        jobs: list[tuple[int, str, str, Any, Any]] = [(0, CHOICES[0], ALONE, alone, None)]
        for n in few:
            spread = spread_measurements(latency, n, np.random.default_rng([draw, n]))
            for choice, which in zip(CHOICES, (list(range(n)), spread), strict=True):
                jobs += [(n, choice, method, predictor, which) for method, predictor in predictors.items()]
        for n, choice, method, predictor, which in jobs:
            result = trial(frame, predictor, draw, which)
            within = 100 * float(np.mean(np.abs(result.predicted / result.true - 1) <= 0.1))
            rows.append({"measurements": n, "choice": choice, "method": method, "draw": draw, "within": within})
    return pd.DataFrame(rows)


def transfer_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of `transfer` over draws, and what it gains on the measurements alone, with a 95 % interval of the paired difference.

    One row per number of measurements, choice and method: within, gain, gain_low, gain_high, and the same of the gain on the line,
    over_line; in percent and percentage points.
    """
    summary = []
    for (n, choice), part in rows[rows["measurements"] > 0].groupby(["measurements", "choice"]):
        wide = part.pivot(index="draw", columns="method", values="within")
        for method in (ALONE, LINE, SCALED, TRANSFER):
            row = {"measurements": n, "choice": choice, "method": method, "within": wide[method].mean()}
            for name, rival in (("gain", ALONE), ("over_line", LINE)):
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), by_student(wide[method], wide[rival]), strict=True))
            summary.append(row)
    return pd.DataFrame(summary)


def all_transfers(frames: Mapping[str, pd.DataFrame], second: bool = False, draws: int = DRAWS) -> pd.DataFrame:
    """Return `transfer_summary` of every table from the other device that the rule names first, or `second`.

    Columns table and source come first, then full, the share that all 1,600 measurements reach.
    """
    summaries = {}
    for table in frames:
        source = other_devices(table)[int(second)]
        rows = transfer(frames, table, source, draws=draws)
        full = rows.loc[rows["measurements"] == 0, "within"].mean()
        summaries[table, source, full] = transfer_summary(rows)
    return pd.concat(summaries, names=["table", "source", "full"]).droplevel(-1).reset_index()


def recorded(path: Path = RESULTS) -> pd.DataFrame:
    """Return what ``benchmarks/latency.py`` measured, `RESULTS` or `TRANSFER_RESULTS`, and where each row is from."""
    return pd.read_csv(path)
