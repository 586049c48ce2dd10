"""What distillation keeps of a teacher: students beside their teacher and the truth, with intervals over architectures.

Labels are frames as `llmpp_book.studies.answers.answers` returns them: task, split, architecture, decoder_layers, and predicted,
the label. What students say of them goes through the measures of `llmpp_core.metrics`, with the teacher in the place of the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.base import clone

from llmpp_core import metrics
from llmpp_core.metrics import Interval


def hold_out(labels: pd.DataFrame, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide labels into those to learn from and the last `n` of every task.

    Returns
    -------
    learned : pandas.DataFrame
        The labels before the last `n`.
    held_out : pandas.DataFrame
        The others, with the label as "true", where the teacher gave one.

    Raises
    ------
    ValueError
        If a task has no more than `n` labels.
    """
    fewest = labels.groupby("task").size().min()
    if not 0 < n < fewest:
        raise ValueError(f"n: expected 1 to {fewest - 1}, since a task has {fewest} labels; got {n}")
    last = labels.groupby("task", sort=False).cumcount(ascending=False) < n
    return labels[~last], labels[last].assign(true=labels["predicted"]).dropna(subset="true")


def teach(recipes: Mapping[Any, tuple[Any, pd.DataFrame]], n_jobs: int = 2) -> dict[Any, dict[str, Any]]:
    """Train one student per recipe and task.

    Parameters
    ----------
    recipes : mapping of name to (student, labels)
        An unfitted regressor over architectures, which is cloned, and the labels that it learns from.
    n_jobs : int
        Processes; a student computes on one thread.

    Returns
    -------
    dict of name to dict of task to fitted student
    """
    jobs = [(name, task, student, part) for name, (student, labels) in recipes.items() for task, part in _by_task(labels)]
    fitted = Parallel(n_jobs=n_jobs)(delayed(_fit)(student, part) for *_, student, part in jobs)
    students: dict[Any, dict[str, Any]] = {name: {} for name in recipes}
    for (name, task, *_), student in zip(jobs, fitted, strict=True):
        students[name][task] = student
    return students


def _fit(student: Any, labels: pd.DataFrame) -> Any:
    return clone(student).fit(list(labels["architecture"]), labels["predicted"].to_numpy())


def _by_task(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(task), part) for task, part in frame.groupby("task", sort=False)]


def ask(students: Mapping[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a frame whose task has a student, with the student's scores as "predicted"."""
    parts = [(task, part) for task, part in _by_task(frame) if task in students]
    return pd.concat([part.assign(predicted=students[task].predict(list(part["architecture"]))) for task, part in parts])


def doubt(students: Mapping[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """Return `ask`'s rows with "spread", the standard deviation of the student's members, and "error", the distance to "true"."""
    parts = []
    for task, part in _by_task(frame):
        mean, std = students[task].predict(list(part["architecture"]), return_std=True)
        parts.append(part.assign(predicted=mean, spread=std, error=np.abs(mean - part["true"])))
    return pd.concat(parts)


def measure(frame: pd.DataFrame, rng: np.random.Generator, resamples: int = 2000) -> dict[str, Interval]:
    """Return "MAE" and "tau" of predictions with 95 % intervals over architectures (see `llmpp_core.metrics.bootstrap`)."""
    measures, whole = ("MAE", "tau"), metrics.summarise(frame).loc["mean"]
    ends = np.quantile(metrics.bootstrap([frame], rng, resamples)[0], [0.025, 0.975], axis=0)
    values = np.vstack([np.array([whole[name, "mean"] for name in measures], dtype=float), ends])
    return {name: Interval(*map(float, three)) for name, three in zip(measures, values.T, strict=True)}


def mae_range(frames: Sequence[pd.DataFrame], rng: np.random.Generator, resamples: int = 2000) -> Interval:
    """Return how far the best and the worst of several predictors are apart in MAE on the same architectures, in the score's unit.

    The best and the worst are found anew in every resample. A range of noisy numbers is wider than that of what they stand for, so
    the interval leans to large ranges.
    """
    ranges = np.ptp(metrics.bootstrap(frames, rng, resamples)[:, :, 0], axis=0)
    whole = [metrics.summarise(frame).loc["mean"]["MAE", "mean"] for frame in frames]
    return Interval(float(np.ptp(whole)), *map(float, np.quantile(ranges, [0.025, 0.975])))
