"""How well predicted scores agree with true ones: absolute error, rank agreement, regret, and their uncertainty.

Higher scores are better throughout. Chapter 3 evaluates every predictor by the paper's protocol, `evaluate`, and
resamples architectures, the unit that was drawn at random, for intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import clone

from llmpp_core.space.inputs import as_scores
from llmpp_core.space.search_space import as_generator
from llmpp_core.upstream import TFSSplit


def mean_absolute_error(true: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean absolute error, in the unit of the scores."""
    y, p = _pair(true, predicted)
    return float(np.mean(np.abs(y - p)))


def kendall_tau(true: ArrayLike, predicted: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Return Kendall's tau-b, optionally over pairs of the same group only.

    Parameters
    ----------
    true, predicted : array-like of shape (n,)
        Scores; ties are handled as in tau-b.
    groups : array-like of shape (n,), optional
        Labels such as decoder depths; pairs across groups are left out.

    Returns
    -------
    float
        In [-1, 1]; nan if either side is constant over all pairs.

    Notes
    -----
    Without groups this equals `scipy.stats.kendalltau`, which has no form within groups.
    """
    y, p = _pair(true, predicted)
    labels = None if groups is None else np.asarray(groups if hasattr(groups, "shape") else list(groups))  # type: ignore[arg-type]
    if labels is not None and labels.shape != y.shape:
        raise ValueError(f"groups: expected one label per score, {len(y)} of them, got shape {labels.shape}")
    return float(_weighted_tau(y, p, labels, np.ones((1, len(y))))[0])


def top_k_regret(true: ArrayLike, predicted: ArrayLike, k: int = 1) -> float:
    """Return how far the best of the k highest predicted falls short of the best there is, in the unit of the scores."""
    y, p = _pair(true, predicted)
    if not 1 <= k <= len(y):
        raise ValueError(f"k: expected 1 to {len(y)}, got {k}")
    return float(y.max() - y[np.argsort(-p, kind="stable")[:k]].max())


def _pair(true: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y = as_scores(true, name="true")
    return y, as_scores(predicted, len(y), "predicted")


def _weighted_tau(y: np.ndarray, p: np.ndarray, groups: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    """Return tau-b of samples that hold item i `weights[b, i]` times, for all b at once; shape (len(weights),)."""
    sign_y, sign_p = (np.sign(v[:, None] - v[None, :]) for v in (y, p))
    if groups is not None:
        same = groups[:, None] == groups[None, :]
        sign_y, sign_p = sign_y * same, sign_p * same

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("bi,ij,bj->b", weights, matrix, weights, optimize=True)

    scale = np.sqrt(pairs(sign_y**2) * pairs(sign_p**2))
    return np.divide(pairs(sign_y * sign_p), scale, out=np.full(len(scale), np.nan), where=scale > 0)


def evaluate(make_predictor: Callable[[TFSSplit], Any], splits: Iterable[TFSSplit]) -> pd.DataFrame:
    """Fit on the demonstrations of each split and predict its test architectures.

    Parameters
    ----------
    make_predictor : callable
        Called with the split, so that it can look up the scores supernets gave; returns an unfitted regressor over
        `Architecture`, which is cloned and fitted on the ten demonstrations alone.
    splits : iterable of TFSSplit
        Usually the nine of `llmpp_core.upstream.tfs_splits`.

    Returns
    -------
    pandas.DataFrame
        One row per test architecture: task, split, architecture, decoder_layers, true, predicted.
    """
    frames = []
    for split in splits:
        predictor = clone(make_predictor(split))
        predictor.fit(list(split.demonstrations["architecture"]), split.demonstrations["bleu"].to_numpy())
        archs = list(split.test["architecture"])
        frames.append(
            pd.DataFrame(
                {
                    "task": split.task,
                    "split": split.seed,
                    "architecture": archs,
                    "decoder_layers": [arch.decoder_layers for arch in archs],
                    "true": split.test["bleu"].to_numpy(),
                    "predicted": predictor.predict(archs),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def random_splits(records: Mapping[str, pd.DataFrame], rng: np.random.Generator, n: int, demonstrations: int = 10) -> list[TFSSplit]:
    """Draw `n` fresh splits of each task's architectures into demonstrations and test, to see beyond the paper's three.

    Parameters
    ----------
    records : mapping of task to pandas.DataFrame
        Frames of `llmpp_core.upstream.tfs_records`.
    rng : numpy.random.Generator
        Source of randomness.
    n : int
        Number of splits per task.
    demonstrations : int
        Number of architectures to fit on; the others are the test.

    Returns
    -------
    list of TFSSplit
        Their seeds count from 0.

    Raises
    ------
    ValueError
        If a task has too few architectures; the test needs three at least, for the top-3 regret.
    """
    splits, rng = [], as_generator(rng)
    for task, frame in records.items():
        if demonstrations < 1 or len(frame) < demonstrations + 3:
            raise ValueError(f"{task}: {len(frame)} rows are too few for {demonstrations} demonstrations (from 1) and a test of at least 3")
        for seed in range(n):
            drawn = frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)
            splits.append(TFSSplit(task, seed, drawn.iloc[:demonstrations], drawn.iloc[demonstrations:]))
    return splits


#: Columns of `score_splits`, computed from (true, predicted, decoder layers) of one split.
MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "MAE": lambda y, p, depth: mean_absolute_error(y, p),
    "tau": lambda y, p, depth: kendall_tau(y, p),
    "tau within depth": lambda y, p, depth: kendall_tau(y, p, depth),
    "top-1 regret": lambda y, p, depth: top_k_regret(y, p, 1),
    "top-3 regret": lambda y, p, depth: top_k_regret(y, p, 3),
}


def score_splits(predictions: pd.DataFrame) -> pd.DataFrame:
    """Score each (task, split) of `evaluate`'s frame; returns one row per pair with the columns of `MEASURES`."""
    rows = {}
    for key, part in predictions.groupby(["task", "split"], sort=False):
        columns = (part["true"].to_numpy(), part["predicted"].to_numpy(), part["decoder_layers"].to_numpy())
        rows[key] = {name: measure(*columns) for name, measure in MEASURES.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["task", "split"])


def summarise(predictions: pd.DataFrame) -> pd.DataFrame:
    """Apply the paper's protocol: mean and population standard deviation over splits, per task, and the mean over tasks.

    Returns
    -------
    pandas.DataFrame
        Rows: the tasks and "mean"; columns: (measure, "mean") and (measure, "std"). The row "mean" averages both over tasks.
    """
    by_task = score_splits(predictions).groupby("task", sort=False)
    # A measure that one split leaves undefined stays undefined: skipping the split would compare unlike with like.
    table = pd.concat({"mean": by_task.mean(skipna=False), "std": by_task.std(ddof=0, skipna=False)}, axis=1).swaplevel(axis=1)
    table = table[[(measure, kind) for measure in MEASURES for kind in ("mean", "std")]]
    table.loc["mean"] = table.mean(skipna=False)
    return table


def bootstrap(predictions: Sequence[pd.DataFrame], rng: np.random.Generator, resamples: int = 2000) -> np.ndarray:
    """Resample architectures and recompute the protocol's mean MAE and tau for several predictors at once.

    Architectures are drawn with replacement, once for all tasks, splits and predictors: the tasks share architectures, whose
    errors agree between tasks, and differences between predictors can be read off the same row. The predictors stay as
    they were fitted, so the spread leaves out that of the demonstrations.

    Parameters
    ----------
    predictions : sequence of pandas.DataFrame
        Frames of `evaluate`; ValueError unless they are over the same splits.
    rng : numpy.random.Generator
        Source of randomness.
    resamples : int
        Number of bootstrap samples.

    Returns
    -------
    numpy.ndarray
        Shape (len(predictions), resamples, 2): MAE and tau, averaged over splits, then tasks.
    """
    rows = [set(zip(frame["task"], frame["split"], frame["architecture"], strict=True)) for frame in predictions]
    if any(other != rows[0] for other in rows):
        raise ValueError("predictions: expected frames over the same splits, whose test architectures are the same")
    result = np.zeros((len(predictions), resamples, 2))
    position = {arch: i for i, arch in enumerate(dict.fromkeys(predictions[0]["architecture"]))}
    counts = as_generator(rng).multinomial(len(position), np.full(len(position), 1 / len(position)), size=resamples).astype(float)
    splits_of = predictions[0].groupby("task")["split"].nunique().to_dict()
    for k, frame in enumerate(predictions):
        for (task, _), part in frame.groupby(["task", "split"], sort=False):
            y, p = part["true"].to_numpy(), part["predicted"].to_numpy()
            weights = counts[:, [position[arch] for arch in part["architecture"]]]
            with np.errstate(invalid="ignore"):  # A draw may miss all of a split.
                mae = weights @ np.abs(y - p) / weights.sum(axis=1)
            result[k] += np.stack([mae, _weighted_tau(y, p, None, weights)], axis=1) / (splits_of[task] * len(splits_of))
    return result


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval, nan where there are none.

    A format for numbers, such as "+.2f", writes "+0.12 [-0.03, +0.27]", without ends "+0.12", and nan as a dash.
    """

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """Return it in another unit, `factor` of which make one of this."""
        return Interval(*(factor * number for number in self))

    def __format__(self, numbers: str) -> str:
        value, low, high = (format(number, numbers) for number in self)
        ends = "" if np.isnan(self.low) else f" [{low},\N{NO-BREAK SPACE}{high}]"
        return "–" if np.isnan(self.value) else f"{value}{ends}"


def compare(ours: pd.DataFrame, theirs: pd.DataFrame, rng: np.random.Generator, resamples: int = 2000) -> dict[str, Interval]:
    """Return the difference in MAE and tau between two predictors on the same architectures, paired (see `bootstrap`).

    Parameters
    ----------
    ours, theirs : pandas.DataFrame
        Frames of `evaluate`; ValueError unless they are over the same splits.
    rng : numpy.random.Generator
        Source of randomness.
    resamples : int
        Number of bootstrap samples.

    Returns
    -------
    dict of str to Interval
        "MAE" and "tau", ours minus theirs; without ends where the architectures are so few that a resample can miss all of a split.
    """
    measures = ["MAE", "tau"]
    whole = [summarise(frame).loc["mean"].xs("mean", level=1)[measures].to_numpy(dtype=float) for frame in (ours, theirs)]
    ends = np.quantile(np.subtract(*bootstrap([ours, theirs], rng, resamples)), [0.025, 0.975], axis=0)
    return {name: Interval(*map(float, three)) for name, three in zip(measures, np.vstack([whole[0] - whole[1], ends]).T, strict=True)}


class SeedNoise(NamedTuple):
    """How much of the differences between trainings is chance.

    Parameters
    ----------
    noise : float
        Standard deviation of one training's score over seeds, pooled over architectures.
    spread : float
        Standard deviation over architectures of their mean score.
    tau_between_seeds : float
        Kendall's tau between one training of all architectures and another, mean over pairs of seeds.
    tau_ceiling : float
        Kendall's tau that the true means would have with the recorded ones: no predictor can be expected to have more.
    """

    noise: float
    spread: float
    tau_between_seeds: float
    tau_ceiling: float


def seed_noise(scores: ArrayLike, rng: np.random.Generator, resamples: int = 1000) -> SeedNoise:
    """Measure the noise of several trainings of the same architectures.

    For the ceiling, the recorded means stand for the true ones, and new means are drawn from the deviations of each architecture's own
    trainings, widened to be unbiased.

    Parameters
    ----------
    scores : array-like of shape (architectures, seeds)
        nan where a training is missing; every architecture needs at least two.
    rng : numpy.random.Generator
        Source of randomness.
    resamples : int
        Number of draws for the ceiling.

    Raises
    ------
    ValueError
        If there are fewer than two architectures, or two trainings of one.
    """
    y, rng = np.asarray(scores, dtype=float), as_generator(rng)
    if y.ndim != 2 or len(y) < 2 or np.isinf(y).any() or (~np.isnan(y)).sum(axis=1).min() < 2:
        raise ValueError(
            f"scores: expected shape (architectures, seeds) with at least two architectures and two scores of each; got shape {y.shape}"
        )
    mean, count = np.nanmean(y, axis=1), (~np.isnan(y)).sum(axis=1)
    deviations = [row[~np.isnan(row)] - m for row, m in zip(y, mean, strict=True)]
    noise = np.sqrt(sum((d**2).sum() for d in deviations) / (count - 1).sum())
    drawn = np.stack([rng.choice(d, (resamples, len(d))).mean(axis=1) * np.sqrt(len(d) / (len(d) - 1)) for d in deviations], axis=1)
    between = []
    for i, j in combinations(range(y.shape[1]), 2):
        both = ~np.isnan(y[:, [i, j]]).any(axis=1)
        if both.sum() > 1:
            between.append((both.sum(), kendall_tau(y[both, i], y[both, j])))
    ceiling = [kendall_tau(mean, mean + d) for d in drawn]
    weights, taus = zip(*(between or [(1, np.nan)]), strict=True)
    return SeedNoise(float(noise), float(mean.std(ddof=1)), float(np.average(taus, weights=weights)), float(np.mean(ceiling)))


def training_noise(records: Mapping[str, pd.DataFrame]) -> float:
    """Return a yardstick for the noise of one training where each architecture was trained once per task.

    What an architecture's score on a task has beyond the mean of its depth there, and beyond its own mean of that over tasks,
    would be noise if an architecture's effect, given its depth, were the same on all tasks. It is not quite, so this bounds the
    noise from above (chapter 2).

    Parameters
    ----------
    records : mapping of task to pandas.DataFrame
        Frames with the columns "architecture" and "bleu", the same architectures in each.

    Returns
    -------
    float
        Standard deviation, in the unit of the scores. An error of that size alone is an MAE of sqrt(2 / pi) times as much.
    """
    scores = pd.DataFrame({task: frame.set_index("architecture")["bleu"] for task, frame in records.items()})
    depth = np.array([arch.decoder_layers for arch in scores.index])
    centred = scores - scores.groupby(depth).transform("mean")
    left = centred.sub(centred.mean(axis=1), axis=0)
    degrees = (scores.shape[1] - 1) * (len(scores) - len(np.unique(depth)))
    return float(np.sqrt((left**2).to_numpy().sum() / degrees))
