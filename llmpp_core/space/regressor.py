"""What all predictors over architectures have in common: scikit-learn regressors whose samples are `Architecture` objects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags

from llmpp_core.space.architecture import Architecture
from llmpp_core.space.inputs import as_list


class ArchitectureRegressor(RegressorMixin, BaseEstimator):
    """A regressor over sequences of architectures instead of matrices; subclasses have ``fit(archs, scores)`` and ``predict(archs)``."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags


class ArchitectureScorer(ArchitectureRegressor):
    """A regressor that needs no fitting and remembers its scores, so that each architecture is scored once.

    Attributes
    ----------
    scores_ : dict of Architecture to float
        Every score so far.
    """

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags

    def fit(self, archs: Sequence[Architecture], scores: ArrayLike | None = None) -> Self:
        """Forget all scores; there is nothing to learn."""
        self.__dict__.pop("scores_", None)
        return self

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n,); raises ValueError for what is no architecture or cannot be scored."""
        asked = as_list(archs)
        self._check(asked)
        known: dict[Architecture, float] = self.__dict__.setdefault("scores_", {})
        new = [arch for arch in dict.fromkeys(asked) if arch not in known]
        if new:
            known |= zip(new, self._scores(new), strict=True)
        return np.array([known[arch] for arch in asked], dtype=float)

    def _check(self, archs: Sequence[Architecture]) -> Any:
        """Raise ValueError for wrong parameters, or architectures that cannot be scored."""

    @abstractmethod
    def _scores(self, archs: Sequence[Architecture]) -> Iterable[float]:
        """Score architectures, all different."""
