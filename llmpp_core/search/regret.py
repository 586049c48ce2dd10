"""What it costs to let a predictor choose: how far the candidate that it scores highest falls short of the best allowed.

Chapter 11 asks this over many draws of the demonstrations and many limits at once; all arrays here end in an axis of
architectures, and the axes before it broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from llmpp_core.space.architecture import Architecture


def choose(true: ArrayLike, scores: ArrayLike, allowed: ArrayLike) -> np.ndarray:
    """Return the true score of the allowed architecture that is scored highest.

    Parameters
    ----------
    true : array-like of shape (..., n)
        True scores, higher is better.
    scores : array-like of shape (..., n)
        What the choice goes by; where several are highest, the mean of their true scores counts, since either may be chosen. nan
        only where not allowed.
    allowed : array-like of bool, shape (..., n)
        Which architectures can be chosen.

    Returns
    -------
    numpy.ndarray
        Shape (...); nan where none is allowed.
    """
    y, mask = np.asarray(true, dtype=float), np.asarray(allowed, dtype=bool)
    ranked = np.where(mask, scores, -np.inf)
    if np.isnan(ranked).any():
        raise ValueError("scores: expected a score of every allowed architecture, got nan")
    highest = mask & (ranked == ranked.max(axis=-1, keepdims=True))
    total = np.where(highest, y, 0.0).sum(axis=-1)
    return np.divide(total, highest.sum(axis=-1), out=np.full(total.shape, np.nan), where=highest.any(axis=-1))


def by_split(predictions: pd.DataFrame, archs: Sequence[Architecture]) -> np.ndarray:
    """Return what `llmpp_core.metrics.evaluate` predicted for one task, shape (splits, len(archs)); nan where nothing was."""
    parts = predictions.set_index("architecture").groupby("split", sort=True)["predicted"]
    return np.stack([part.reindex(list(archs)).to_numpy(dtype=float) for _, part in parts])
