"""What answers are worth: agreement with the truth, averages with other predictions, and differences beside the noise of an answer.

Answers are frames of `llmpp_book.studies.answers.tidy`; predictions have the form of `llmpp_core.metrics.evaluate`, into which
`as_predictions` puts answers. Intervals are of 95 %, over architectures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from llmpp_book.studies.answers import LIVE, RECORDED
from llmpp_core.metrics import Interval, bootstrap, summarise

#: Counts of invalid answers by reading of the replies, and the columns that hold what is predicted under it.
INVALID = {"invalid, as asked": "predicted_as_asked", "invalid, tolerant": "predicted"}
_MEASURES = ("MAE", "tau", "tau within depth")
_IN_WORDS = {1: "one", 5: "five", 10: "ten", 20: "twenty"}
_KEYS = ["task", "split", "architecture"]


def is_complete(frame: pd.DataFrame) -> bool:
    """Return whether a model answered every question, validly or not."""
    return bool(frame["status"].isin(["answered", "invalid"]).all())


def as_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Return valid answers to one kind of prompt in the form of `llmpp_core.metrics.evaluate`; several samples count as their median."""
    one = frame.dropna(subset="predicted").groupby(_KEYS, sort=False)
    return one.agg({"decoder_layers": "first", "true": "first", "predicted": "median"}).reset_index()


def score(frame: pd.DataFrame) -> dict[str, float]:
    """Return MAE, tau and tau within depth by the paper's protocol, of the valid answers.

    Where answers are missing all three are nan, since a part of the test sets compares with nothing.
    """
    valid = as_predictions(frame)
    if not is_complete(frame) or len(valid[["task", "split"]].drop_duplicates()) < len(frame[["task", "split"]].drop_duplicates()):
        return dict.fromkeys(_MEASURES, math.nan)
    table = summarise(valid)
    return {measure: float(table[measure, "mean"]["mean"]) for measure in _MEASURES}


def count_invalid(frame: pd.DataFrame) -> dict[str, str]:
    """Return how many of the numbers asked for are invalid under either reading of the replies, and how many are missing."""
    missing = int((~frame["status"].isin(["answered", "invalid"])).sum())
    counts = {name: int(frame[column].isna().sum()) - missing for name, column in INVALID.items()}
    return {name: f"{count} of {len(frame)}" + (f", {missing} missing" if missing else "") for name, count in counts.items()}


def by_form(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the answers of each model to each form of prompt that it was asked in, which the names tell where there are several."""
    found: dict[str, pd.DataFrame] = {}
    for name, frame in frames.items():
        parts = [part for _, part in frame.groupby("form", sort=False)]
        found |= {name if len(parts) == 1 else f"{name}, {_form(part)}": part for part in parts}
    return found


def _form(frame: pd.DataFrame) -> str:
    """Return how many architectures the requests of a frame's one form asked about: "one per request", "ten per request"."""
    n = int(frame["per_request"].max())
    return f"{_IN_WORDS.get(n, n)} per request" + (", JSON" if frame["form"].iloc[0] == "json" else "")


def select(frame: pd.DataFrame, labels: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a frame with the given labels."""
    for column, value in labels.items():
        frame = frame[frame[column] == value]
    return frame


def best_llm(frames: Mapping[str, pd.DataFrame]) -> str | None:
    """Return the language model with the least MAE among those that answered everything, nine in ten validly; or None."""
    scores = {}
    for name, frame in frames.items():
        # A model that answers few questions validly is scored on those alone, which may be the easy ones.
        if frame["kind"].iloc[0] in (RECORDED, LIVE) and frame["predicted"].notna().mean() >= 0.9:
            scores[name] = score(frame)["MAE"]
    known = {name: value for name, value in scores.items() if not math.isnan(value)}
    return min(known, key=known.__getitem__) if known else None


def average(*predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the plain mean of several predictors; raises ValueError unless all are of the same architectures of the same splits."""
    first = predictions[0].set_index(_KEYS)
    columns = [frame.set_index(_KEYS)["predicted"] for frame in predictions]
    for number, column in enumerate(columns[1:], 2):
        if set(column.index) != set(first.index):
            got = f"got {len(column)}, some of them others"
            raise ValueError(f"predictions {number}: expected the {len(first)} architectures of the first, {got}")
    return first.assign(predicted=sum(column.reindex(first.index) for column in columns) / len(columns)).reset_index()


def error_ratio(ours: pd.DataFrame, theirs: pd.DataFrame, rng: np.random.Generator, resamples: int = 2000) -> Interval:
    """Return the MAE of one predictor over that of another on the same architectures, paired as in `llmpp_core.metrics.compare`."""
    maes = bootstrap([ours, theirs], rng, resamples)[:, :, 0]
    whole = [float(summarise(frame)["MAE", "mean"]["mean"]) for frame in (ours, theirs)]
    return _interval(whole[0] / whole[1], maes[0] / maes[1])


def tau_behind(ours: pd.DataFrame, rivals: list[pd.DataFrame], rng: np.random.Generator, resamples: int = 2000) -> Interval:
    """Return the best tau among rivals minus ours; in every resample the best one there, since which is best is uncertain too.

    The best of several that are alike is above them by chance, so the difference is too large then: with five independent rivals that are
    as good as ours, the interval lies above 0 in a fifth of cases.
    """
    taus = bootstrap([ours, *rivals], rng, resamples)[:, :, 1]
    whole = [float(summarise(frame)["tau", "mean"]["mean"]) for frame in (ours, *rivals)]
    return _interval(max(whole[1:]) - whole[0], taus[1:].max(axis=0) - taus[0])


def _interval(value: float, drawn: np.ndarray) -> Interval:
    return Interval(value, *map(float, np.quantile(drawn, [0.025, 0.975])))


def answer_deviation(answers: pd.DataFrame, rng: np.random.Generator, resamples: int = 2000) -> Interval:
    """Return the standard deviation of one answer to one prompt, in the unit of the scores, from at least two samples of every prompt.

    Pooled over prompts: the root of the mean variance, since the mean of standard deviations of two would be a fifth too small. Invalid
    answers are left out; architectures are drawn with all their prompts.
    """
    variances = answers.dropna(subset="predicted").groupby(_KEYS, sort=False)["predicted"].var().dropna()
    per_arch = variances.groupby("architecture", sort=False).agg(["sum", "count"])
    counts = rng.multinomial(len(per_arch), np.full(len(per_arch), 1 / len(per_arch)), size=resamples)
    drawn = np.sqrt((counts @ per_arch["sum"].to_numpy()) / (counts @ per_arch["count"].to_numpy()))
    return _interval(math.sqrt(variances.mean()), drawn)


def round_deviation(answers: pd.DataFrame, requests: int) -> float:
    """Return the standard deviation of the difference in MAE between two rounds of answers to the very same prompts.

    A difference between two prompts that is not larger than twice this may be that of one prompt with itself. The answers of one request
    are taken as one, since a model may be off in all of them at once; `requests` is how many the MAE is a mean over. Raises ValueError
    unless there are two samples of every prompt, and as many architectures in each request.
    """
    errors = (answers["predicted"] - answers["true"]).abs()
    by_request = errors.groupby([answers[name] for name in ("task", "split", "first", "sample")]).mean().unstack("sample")
    if by_request.shape[1] != 2 or answers["per_request"].nunique() != 1:
        sizes = ", ".join(map(str, sorted(answers["per_request"].unique())))
        raise ValueError(f"answers: expected two samples of requests of one size, got {by_request.shape[1]} samples, and sizes {sizes}")
    return math.sqrt(((by_request.iloc[:, 0] - by_request.iloc[:, 1]) ** 2).mean() / requests)
