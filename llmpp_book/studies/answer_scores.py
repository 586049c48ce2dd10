"""What answers are worth beside other predictions: averages of both, and differences beside the noise of an answer.

Everything takes predictions in the form of `llmpp_core.metrics.evaluate` (`llmpp_book.studies.answers.as_predictions` puts answers
into it), or answers as `llmpp_book.studies.questions.tidy` has them. Intervals are of 95 %, over architectures.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from llmpp_book.studies.questions import shuffle
from llmpp_core.metrics import Interval, bootstrap, summarise
from llmpp_core.upstream import TFSSplit

_KEYS = ["task", "split", "architecture"]


def average(*predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the plain mean of several predictors on the same architectures of the same splits.

    Raises
    ------
    ValueError
        If one has predictions for other architectures than the first.
    """
    first = predictions[0].set_index(_KEYS)
    columns = [frame.set_index(_KEYS)["predicted"] for frame in predictions]
    for number, column in enumerate(columns[1:], 2):
        if set(column.index) != set(first.index):
            raise ValueError(
                f"predictions {number}: expected the {len(first)} architectures of the first, got {len(column)}, some of them others"
            )
    return first.assign(predicted=sum(column.reindex(first.index) for column in columns) / len(columns)).reset_index()


def error_ratio(ours: pd.DataFrame, theirs: pd.DataFrame, rng: np.random.Generator, resamples: int = 2000) -> Interval:
    """Return the MAE of one predictor over that of another on the same architectures, paired as in `llmpp_core.metrics.compare`."""
    maes = bootstrap([ours, theirs], rng, resamples)[:, :, 0]
    whole = [float(summarise(frame)["MAE", "mean"]["mean"]) for frame in (ours, theirs)]
    low, high = np.quantile(maes[0] / maes[1], [0.025, 0.975])
    return Interval(whole[0] / whole[1], float(low), float(high))


def tau_behind(ours: pd.DataFrame, rivals: list[pd.DataFrame], rng: np.random.Generator, resamples: int = 2000) -> Interval:
    """Return the best tau among rivals minus ours; in every resample the best one there, since which is best is uncertain too."""
    taus = bootstrap([ours, *rivals], rng, resamples)[:, :, 1]
    whole = [float(summarise(frame)["tau", "mean"]["mean"]) for frame in (ours, *rivals)]
    low, high = np.quantile(taus[1:].max(axis=0) - taus[0], [0.025, 0.975])
    return Interval(max(whole[1:]) - whole[0], float(low), float(high))


def answer_deviation(answers: pd.DataFrame, rng: np.random.Generator, resamples: int = 2000) -> Interval:
    """Return the standard deviation of one answer to one prompt, in the unit of the scores.

    Parameters
    ----------
    answers : pandas.DataFrame
        At least two samples of every prompt; invalid ones are left out.
    rng : numpy.random.Generator
        Source of randomness.
    resamples : int
        Number of bootstrap samples; architectures are drawn with all their prompts.

    Returns
    -------
    Interval
        Pooled over prompts: the root of the mean variance. The mean of standard deviations of two would be a fifth too small.
    """
    variances = answers.dropna(subset="predicted").groupby(_KEYS, sort=False)["predicted"].var().dropna()
    per_arch = variances.groupby("architecture", sort=False).agg(["sum", "count"])
    counts = rng.multinomial(len(per_arch), np.full(len(per_arch), 1 / len(per_arch)), size=resamples)
    drawn = np.sqrt((counts @ per_arch["sum"].to_numpy()) / (counts @ per_arch["count"].to_numpy()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(math.sqrt(variances.mean()), float(low), float(high))


def round_deviation(answers: pd.DataFrame, requests: int) -> float:
    """Return the standard deviation of the difference in MAE between two rounds of answers to the very same prompts.

    A difference between two prompts that is not larger than twice this may be that of one prompt with itself. The answers of one
    request are taken as one, since a model may be off in all of them at once.

    Parameters
    ----------
    answers : pandas.DataFrame
        Two samples of every prompt, as many architectures in each request.
    requests : int
        Number of requests that the MAE is a mean over.
    """
    errors = (answers["predicted"] - answers["true"]).abs()
    by_request = errors.groupby([answers[name] for name in ("task", "split", "first", "sample")]).mean().unstack("sample")
    if by_request.shape[1] != 2 or answers["per_request"].nunique() != 1:
        raise ValueError(f"answers: expected two samples of requests of one size, got {by_request.shape[1]} samples")
    return math.sqrt(((by_request.iloc[:, 0] - by_request.iloc[:, 1]) ** 2).mean() / requests)


def shuffle_split(split: TFSSplit) -> TFSSplit:
    """Return a split whose demonstrations have each other's scores, permuted as in the prompts of the shuffled experiments."""
    shown = split.demonstrations
    return split._replace(demonstrations=shown.assign(bleu=shuffle(shown["bleu"].tolist(), split.seed)))
