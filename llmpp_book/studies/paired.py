"""The difference between what pairs of searches found, how uncertain it is, and what would make it less so.

Two things make it uncertain: other seeds would have found something else, and other trainings would have scored otherwise, the same for
all searches that found the same architecture. The second is known from repeated trainings, by decoder depth, since shallow networks
are noisier; of the variance over pairs, what it does not explain is counted as the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as student

from llmpp_core.metrics import Interval
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.inputs import as_list

# Degrees of freedom with which the noise of a depth is drawn towards that of all depths: it then is defined for a depth without repeated
# trainings, and hardly moves one that has a dozen.
_PRIOR = 2.0


def training_noise(trained: pd.DataFrame, score: str = "valid_bleu") -> pd.DataFrame:
    """Return what the scores of one training scatter, one row per decoder depth.

    Parameters
    ----------
    trained : pandas.DataFrame
        Trainings, with columns architecture and `score`; some architectures with several.

    Returns
    -------
    pandas.DataFrame
        Index depth; columns variance, in the squared unit of the score, and freedom, its degrees of freedom. Each variance is pooled over
        the architectures of its depth and drawn a little towards that of all (a moderated variance).
    """
    groups = trained.groupby("architecture", sort=False)[score]
    parts = pd.DataFrame({"squares": groups.var(ddof=1) * (groups.count() - 1), "freedom": (groups.count() - 1).clip(lower=0)}).fillna(0.0)
    if not parts["freedom"].any():
        raise ValueError("trained: expected several trainings of an architecture or more, which tell their noise")
    sums = parts.groupby([arch.decoder_layers for arch in parts.index]).sum()
    pooled, freedom = sums["squares"].sum() / max(sums["freedom"].sum(), 1), sums["freedom"] + _PRIOR
    return pd.DataFrame({"variance": (sums["squares"] + _PRIOR * pooled) / freedom, "freedom": freedom}).rename_axis("depth")


@dataclass(frozen=True)
class Paired:
    """A mean difference, theirs taken from ours, with the parts of its variance."""

    #: In units of the score.
    value: float
    #: By architecture: its net weight in the difference, the variance of one training's score, and how many trainings it has.
    weights: pd.DataFrame
    #: Variance of the difference from which seeds were searched with, and the number of pairs.
    seeds: float
    pairs: int
    #: Degrees of freedom of the whole variance.
    freedom: float

    @property
    def variance(self) -> float:
        """Of the difference."""
        return float(self.seeds + self.trainings.sum())

    @property
    def trainings(self) -> pd.Series:
        """What the trainings of each architecture add to the variance."""
        return self.weights["weight"] ** 2 * self.weights["variance"] / self.weights["number"]

    def interval(self, level: float = 0.95) -> Interval:
        """Return the difference and its interval, of Student's t with the degrees of freedom of Welch and Satterthwaite."""
        half = float(student.ppf((1 + level) / 2, self.freedom) * self.variance**0.5)
        return Interval(self.value, self.value - half, self.value + half)


def paired(
    ours: Sequence[Architecture],
    theirs: Sequence[Architecture],
    trained: pd.DataFrame,
    score: str = "valid_bleu",
    groups: Sequence[Any] | None = None,
) -> Paired:
    """Return the mean difference in score between what pairs of searches found.

    Parameters
    ----------
    ours, theirs : sequence of Architecture
        What the searches found, in pairs, such as those of equal limits and seeds.
    trained : pandas.DataFrame
        Trainings of all of these, one row each, as many of each architecture as there are, with a column `score`.
    groups : sequence, optional
        Such as the limit of each pair: the result is the mean over groups of the means over their pairs. The interval has no ends where
        no group has two pairs, which says nothing of how other seeds would have ended.

    Raises
    ------
    ValueError
        If these are no pairs, or something that was found has no training.
    """
    ours, theirs = as_list(ours, "ours"), as_list(theirs, "theirs")
    groups = [0] * len(ours) if groups is None else list(groups)
    if not len(ours) == len(theirs) == len(groups) > 0:
        raise ValueError(f"expected pairs of architectures, got {len(ours)} and {len(theirs)}, and a group of each, got {len(groups)}")
    # Without trainings that diverged, which have no score.
    scores = trained.groupby("architecture", sort=False)[score].agg(["mean", "count"])
    noise = training_noise(trained, score)
    archs = list(dict.fromkeys([*ours, *theirs]))
    if missing := next((arch for arch in archs if not scores["count"].get(arch, 0)), None):
        raise ValueError(f"trained: no training of {missing}, which a search found")
    means, numbers = (scores[column].reindex(pd.Index(archs)).to_numpy() for column in ("mean", "count"))
    depths = [arch.decoder_layers for arch in archs]
    single, place = noise["variance"].loc[depths].to_numpy(), {arch: i for i, arch in enumerate(archs)}
    # signs[pair, architecture]
    signs = np.zeros((len(ours), len(archs)))
    for row, first, second in zip(signs, ours, theirs, strict=True):
        row[place[first]] += 1
        row[place[second]] -= 1
    difference, uncertain = signs @ means, single / numbers
    members = [np.flatnonzero([group == name for group in groups]) for name in dict.fromkeys(groups)]
    pair_weights, excess = np.zeros(len(ours)), list[tuple[float, int]]()
    for rows in members:
        pair_weights[rows] = 1 / (len(members) * len(rows))
        if len(rows) > 1:
            centred = signs[rows] - signs[rows].mean(axis=0)
            found = difference[rows].var(ddof=1) - (uncertain * centred**2).sum() / (len(rows) - 1)
            excess.append((max(0.0, found), len(rows)))
    parts: list[tuple[float, float]] = [(value / (len(members) ** 2 * n), n - 1) for value, n in excess]
    if alone := len(members) - len(excess):
        # How much pairs of a group differ is not known from one; it is taken to be as in the groups that have several.
        within = sum(n - 1 for _, n in excess)
        pooled = sum(value * (n - 1) for value, n in excess) / within if within else np.nan
        parts.append((pooled * alone / len(members) ** 2, within or 1))
    seeds = sum(value for value, _ in parts)
    net = pair_weights @ signs
    by_depth = pd.Series(uncertain * net**2).groupby(depths).sum()
    parts += zip(by_depth.tolist(), noise["freedom"].reindex(by_depth.index).tolist(), strict=True)
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / n for part, n in parts) if variance else 1.0
    weights = pd.DataFrame({"weight": net, "variance": single, "number": numbers}, index=pd.Index(archs, name="architecture"))
    return Paired(float(pair_weights @ difference), weights, seeds, len(ours), float(freedom))


def by_student(ours: ArrayLike, theirs: ArrayLike) -> Interval:
    """Return the mean difference with its 95 % interval of Student's t; a difference from itself is 0."""
    gaps = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    half = float(student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5) if gaps.any() else 0.0
    return Interval(float(gaps.mean()), float(gaps.mean()) - half, float(gaps.mean()) + half)
