"""Latency predictors: what an architecture takes on a device, from measurements on it and, where these are few, on others.

A pass of the network does a few kinds of work, each in proportion to a product of widths and depths. `LatencyPredictor` fits
what each kind costs on one device. `LatencyPrior` is what other tables say about these costs beforehand, so that of a new task on
a known device twenty measurements do the work of hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
from llmpp_core.space.inputs import as_scores, warn_if_weak
from llmpp_core.space.regressor import ArchitectureRegressor
from llmpp_core.space.search_space import as_generator

#: What `feature_rows` takes: a sequence of Architecture, or an array or frame of their features.
Rows = Any

# Standard deviations, relative to a typical latency, that the evidence may choose from: of the noise, of a cost about
# which nothing is known (per standard deviation of its term), and of what other devices do not explain of a cost.
_NOISES = np.logspace(-4, 0, 81)
_UNKNOWN = (0.01, 0.03, 0.1, 0.3, 1.0)
_UNEXPLAINED = (0.003, 0.01, 0.03, 0.1)
# Degrees of freedom of the noise (Student's t): a device that is slow for a while makes far outliers.
_FREEDOM = 4
_ROUNDS = 20
# Where the design of a prior has its constant and what a decoder layer costs as such.
_CONSTANT, _LAYER = 0, 6


def feature_rows(archs: Rows) -> np.ndarray:
    """Return HAT's ten averaged features, shape (n, 10), of architectures or of an array or frame that holds them already.

    Raises
    ------
    ValueError
        If an array has not ten columns, a frame lacks one, or a value is not finite.
    """
    rows = HATFeatures().transform(list(archs) if isinstance(archs, Iterator) else archs)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ValueError(f"X: row {bad[0]} holds nan or infinity")
    return rows


def latency_terms(archs: Rows) -> np.ndarray:
    """Return how much of each kind of work an architecture does, shape (n, 14); raises ValueError as `feature_rows`.

    Widths count in units of 640 and 3072, heads of 8, depths of 6, layers read of 3. The first four columns are the encoder's
    attention, feed-forward products, activations and heads. Then come the output projection, and the decoder's layers themselves,
    attention, feed-forward products, activations, heads of self- and cross-attention, and what it reads of the encoder.
    """
    units = (640, 6, 3072, 8, 640, 6, 3072, 8, 8, 3)
    de, le, fe, he, dd, ld, fd, self_heads, cross_heads, span = (feature_rows(archs) / units).T
    encoder = (le * de, le * de * fe, le * fe, le * he)
    decoder = (ld, ld * dd, ld * dd * fd, ld * fd, ld * self_heads, ld * cross_heads, ld * span, ld * de, ld * de * span)
    return np.stack([*encoder, dd, *decoder], axis=1)


@dataclass(frozen=True, eq=False)
class LatencyPrior:
    """What is known about costs before a device is measured; costs are relative to the latency of an average architecture."""

    #: Mean and standard deviation of the terms over some architectures, shape (14,); costs are per standard deviation.
    center: np.ndarray
    scale: np.ndarray
    #: Expected latency at `center`, 1, and expected costs, shape (15,).
    mean: np.ndarray
    #: How known devices differ from the mean, shape (devices, 15); a new one is expected to differ along the same directions.
    deviations: np.ndarray
    #: Standard deviations to choose from for what a new device may differ in any other direction.
    unexplained: Sequence[float] = _UNEXPLAINED

    @classmethod
    def learn(cls, tables: Iterable[tuple[Rows, ArrayLike]]) -> Self:
        """Learn from tables of other devices, each a pair of architectures or feature rows and latencies in ms.

        Raises
        ------
        ValueError
            If there is no table, or one is refused by `LatencyPredictor.fit`.
        """
        tables = [(feature_rows(archs), latency) for archs, latency in tables]
        if not tables:
            raise ValueError("tables: expected at least one table of another device, got none")
        terms = np.concatenate([latency_terms(rows) for rows, _ in tables])
        center, scale = _center_and_scale(terms)
        costs = []
        for rows, latency in tables:
            model = LatencyPredictor(statistic="typical").fit(rows, latency)
            average = model.intercept_ + center @ model.coef_
            costs.append(np.append(1.0, model.coef_ * scale / average))
        return cls(center, scale, np.mean(costs, axis=0), np.array(costs) - np.mean(costs, axis=0))

    @classmethod
    def from_device(cls, archs: Rows, latency: ArrayLike) -> Self:
        """Learn from the table of one other device, latencies in ms; raises ValueError as `LatencyPredictor.fit`.

        What a new device takes at no depth, what a decoder layer costs it as such, and the scale of all other costs are left to the
        measurements. The proportions of these other costs are expected to be those of the known device.
        """
        prior = cls.learn([(archs, latency)])
        return replace(prior, deviations=np.eye(len(prior.mean))[[_CONSTANT, _LAYER]])

    @classmethod
    def ignorant(cls, terms: np.ndarray) -> Self:
        """Return a prior that knows no device: all costs are expected to be zero, give or take any amount."""
        mean = np.append(1.0, np.zeros(terms.shape[1]))
        return cls(*_center_and_scale(terms), mean, np.zeros((0, len(mean))), _UNKNOWN)

    def design(self, terms: np.ndarray) -> np.ndarray:
        """Return the rows that costs multiply, a one and the standardised terms, shape (n, 15)."""
        return np.column_stack([np.ones(len(terms)), (terms - self.center) / self.scale])

    def roots(self) -> list[np.ndarray]:
        """Return a Cholesky factor of the covariance of the costs for each of `unexplained`."""
        # The level is never known beforehand, so the direction of the mean itself is left free.
        known = np.outer(self.mean, self.mean) + self.deviations.T @ self.deviations / max(len(self.deviations) - 1, 1)
        return [np.linalg.cholesky(known + step**2 * np.eye(len(known))) for step in self.unexplained]


def _center_and_scale(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = terms.std(axis=0)
    # A term that never varies, such as encoder depth in HAT's tables, is left alone.
    return terms.mean(axis=0), np.where(scale > 1e-9, scale, 1.0)


class LatencyPredictor(ArchitectureRegressor):
    """Latency as a sum of costs, one per kind of work, fitted by Bayesian regression that tolerates outliers.

    Encoder and decoder have costs of their own, and since the model is linear, a fit to their sum is the sum of a fit to each.
    Errors are taken as relative and as Student-t distributed. How noisy the device is and how far its costs may be from the prior
    is decided by the evidence of the measurements, so there is nothing to tune. A fit takes milliseconds.

    All of HAT's tables have six encoder layers, so what follows for other encoder depths is theory that they cannot check.

    Parameters
    ----------
    prior : LatencyPrior, optional
        What other devices say; without it nothing is known beforehand.
    statistic : {"mean", "typical"}
        What to predict: the mean, slow spells of the device included, which has the least squared error; or the latency of the
        device undisturbed.

    Attributes
    ----------
    intercept_, coef_ : float and numpy.ndarray of shape (14,)
        Latency in ms is ``intercept_ + latency_terms(archs) @ coef_``.
    noise_ : float
        Standard deviation of one measurement, relative to the prediction.
    """

    def __init__(self, prior: LatencyPrior | None = None, statistic: str = "mean"):
        self.prior = prior
        self.statistic = statistic

    def fit(self, archs: Rows, y: ArrayLike) -> Self:
        """Fit to latencies in ms, shape (n,), of at least two architectures or rows of HAT's ten features (see `feature_rows`).

        Raises
        ------
        ValueError
            If `archs` is refused by `feature_rows`, or `y` does not hold one positive number per architecture.
        """
        if self.statistic not in ("mean", "typical"):
            raise ValueError(f"statistic: expected 'mean' or 'typical', got {self.statistic!r}")
        rows = feature_rows(archs)
        terms = latency_terms(rows)
        latency = checked_latency(y, len(terms))
        if self.prior is None:
            warn_if_weak(map(tuple, rows.tolist()), latency)
        self.prior_ = LatencyPrior.ignorant(terms) if self.prior is None else self.prior
        design = self.prior_.design(terms)
        # All that follows is relative to the prior's guess of the level.
        level = float(np.median(latency / (design @ self.prior_.mean)))
        costs, root, scale = _posterior(design, latency / level, self.prior_)
        self.noise_ = scale * math.sqrt(_FREEDOM / (_FREEDOM - 2))
        if self.statistic == "mean":
            predicted = design @ costs
            level = float(latency.mean() / predicted.mean())
            # A slow spell counts as an outlier above and as a part of the mean here.
            self.noise_ = max(self.noise_, float(np.std(latency / np.maximum(level * predicted, 0.05 * level))))
        self.coef_ = level * costs[1:] / self.prior_.scale
        self.intercept_ = level * float(costs[0]) - float(self.prior_.center @ self.coef_)
        self._root = level * root
        self.n_features_in_ = len(HAT_FEATURE_NAMES)
        return self

    def predict(self, archs: Rows, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return latencies in ms, shape (n,), and with `return_std` the standard deviation of a new measurement of each."""
        check_is_fitted(self)
        terms = latency_terms(archs)
        latency = self.intercept_ + terms @ self.coef_
        if not return_std:
            return latency
        uncertainty = np.square(self.prior_.design(terms) @ self._root).sum(axis=1)
        return latency, np.sqrt(uncertainty + (self.noise_ * latency) ** 2)


def checked_latency(y: ArrayLike, n: int) -> np.ndarray:
    """Return latencies as floats; raises ValueError unless they are one positive number for each of n architectures, two or more."""
    if n < 2:
        raise ValueError(f"X: a fit needs at least 2 measurements, got {n}")
    latency = as_scores(y, n, "y")
    bad = np.flatnonzero(latency <= 0)
    if len(bad):
        raise ValueError(f"y[{bad[0]}]: expected a positive latency in ms, got {latency[bad[0]]}")
    return latency


def _posterior(design: np.ndarray, latency: np.ndarray, prior: LatencyPrior) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the costs, a root of their covariance, and the scale of the relative noise that the evidence favours."""
    guess = design @ prior.mean
    rest = latency - guess
    roots = prior.roots()
    # Errors are relative to the prediction, which must stay away from zero for that.
    predicted, weight = np.maximum(guess, 0.05), np.ones(len(latency))
    for _ in range(_ROUNDS):
        # One round of expectation-maximisation of the t distribution: a Gaussian regression, in which outliers weigh less.
        precision = weight / predicted**2
        gram, moment, square = (design.T * precision) @ design, design.T @ (precision * rest), float(precision @ rest**2)
        best, costs, root, noise = -math.inf, prior.mean, roots[0], 1.0
        for candidate in roots:
            # In the basis where both prior and data are diagonal, all noise levels are compared at once.
            values, vectors = np.linalg.eigh(candidate.T @ gram @ candidate)
            gain = np.maximum(values, 0)[:, None] / _NOISES**2
            projected = (vectors.T @ (candidate.T @ moment))[:, None] / _NOISES**2
            fit = square / _NOISES**2 - (projected**2 / (1 + gain)).sum(axis=0)
            evidence = -0.5 * (fit + np.log1p(gain).sum(axis=0)) - len(latency) * np.log(_NOISES)
            k = int(np.argmax(evidence))
            if evidence[k] > best:
                best, noise = float(evidence[k]), float(_NOISES[k])
                root = candidate @ vectors / np.sqrt(1 + gain[:, k])
                costs = prior.mean + candidate @ vectors @ (projected[:, k] / (1 + gain[:, k]))
        predicted, before = np.maximum(design @ costs, 0.05), weight
        weight = (_FREEDOM + 1) / (_FREEDOM + ((latency / predicted - 1) / noise) ** 2)
        if np.abs(weight - before).max() < 1e-3:
            break
    return costs, root, noise


def choose_measurements(archs: Rows, n: int, prior: LatencyPrior) -> list[int]:
    """Choose n of the candidates `archs` to measure on a new device: one after another the one that is least certain so far.

    What is uncertain is decided by what other devices say; no measurement is looked at. Returns positions in `archs`, in the order of
    choice; raises ValueError unless 1 <= n <= len(archs).
    """
    design = prior.design(latency_terms(archs))
    if not 1 <= n <= len(design):
        raise ValueError(f"n: expected 1 to {len(design)}, the number of candidates, got {n}")
    # Relative uncertainty, of the second smallest unexplained part and three percent of noise: a pivoted Cholesky decomposition.
    root = design @ prior.roots()[1] / np.maximum(design @ prior.mean, 0.05)[:, None]
    covariance = root @ root.T + 0.03**2 * np.eye(len(root))
    chosen: list[int] = []
    for _ in range(n):
        best = int(np.argmax(covariance.diagonal()))
        chosen.append(best)
        covariance = covariance - np.outer(covariance[:, best], covariance[best]) / covariance[best, best]
    return chosen


def spread_measurements(expected: ArrayLike, n: int, rng: np.random.Generator) -> list[int]:
    """Choose n candidates to measure on a new device, spread over what is expected of them: one at random from each n-th, fast to slow.

    Parameters
    ----------
    expected : array_like of shape (candidates,)
        Latencies in any unit, such as another device's.
    n : int
        How many to choose.
    rng : numpy.random.Generator
        Draws within each n-th.

    Returns
    -------
    list of int
        Positions in `expected`, fast to slow.

    Raises
    ------
    ValueError
        If a latency is not finite, or n is not from 1 to the number of candidates.
    """
    latency = as_scores(expected, name="expected")
    if not 1 <= n <= len(latency):
        raise ValueError(f"n: expected 1 to {len(latency)}, the number of candidates, got {n}")
    return [int(as_generator(rng).choice(part)) for part in np.array_split(np.argsort(latency, kind="stable"), n)]


def split_rows(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row numbers of HAT's random split into 80 % to train on, 10 % to validate and 10 % to test."""
    return tuple(np.split(as_generator(rng).permutation(n), [int(0.8 * n), int(0.8 * n) + int(0.1 * n)]))  # type: ignore[return-value]


def latency_errors(true: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Return the root of the mean squared error, "rmse" in ms, and the mean absolute relative error, "mape" in percent."""
    y = as_scores(true, name="true")
    p = as_scores(predicted, len(y), "predicted")
    return {"rmse": float(np.sqrt(np.mean((p - y) ** 2))), "mape": float(100 * np.mean(np.abs(p / y - 1)))}
