"""What users hand over as architectures and scores: any series of them, always taken in its order, never by its labels."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from llmpp_core.space.architecture import Architecture
from llmpp_core.space.genes import ArchitectureTable
from llmpp_core.space.network import Network


def as_list(values: Any, name: str = "archs", kind: Any = (Architecture, Network)) -> Sequence[Any]:
    """Return what a user gives as a sequence that is read by position, and more than once.

    Parameters
    ----------
    values : iterable
        Such as a list, a pandas Series or Index with any labels, a NumPy array of objects, or a generator.
    name : str
        For errors.
    kind : type or tuple of types
        What each item must be.

    Returns
    -------
    list, or `llmpp_core.space.genes.ArchitectureTable` if it is one

    Raises
    ------
    ValueError
        If it is no series, or has no order; or an item is something else, whose row, counted from 0, is named.
    """
    if isinstance(values, ArchitectureTable):
        return values
    if isinstance(values, (str, bytes, Mapping, set, frozenset, Architecture)) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: expected a sequence, got {type(values).__name__}")
    items = list(values)
    for row, item in enumerate(items):
        if not isinstance(item, kind):
            raise ValueError(f"{name}[{row}]: expected an Architecture, got {type(item).__name__}")
    return items


def readable_again(archs: Any, kind: Any = Architecture) -> Sequence[Any]:
    """Return `as_list`, but refuse what can be read only once, since pipelines hand the same object to several transformers."""
    if isinstance(archs, Iterator):
        raise ValueError(f"archs: a {type(archs).__name__} can be read only once, and a pipeline reads several times; give a list")
    return as_list(archs, kind=kind)


def as_scores(values: Any, n: int | None = None, name: str = "scores", *, missing: bool = False) -> np.ndarray:
    """Return what a user gives as scores as floats, shape (n,), in the given order.

    Parameters
    ----------
    values : array-like or iterable of n numbers
    n : int, optional
        How many there must be.
    name : str
        For errors.
    missing : bool
        Whether nan is allowed.

    Raises
    ------
    ValueError
        If it is no vector of n numbers, or one of them is not finite; names the row, counted from 0.
    """
    if isinstance(values, (str, bytes, Mapping, AbstractSet)) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: expected a sequence of numbers, got {type(values).__name__}")
    values = values if hasattr(values, "shape") else list(values)
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        for row, value in enumerate(values):
            try:
                float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{name}[{row}]: expected a number, got {str(value)[:80]!r}") from None
        raise
    if found.ndim != 1 or (n is not None and len(found) != n):
        raise ValueError(f"{name}: expected {'a vector' if n is None else f'{n} numbers, one per architecture'}, got shape {found.shape}")
    bad = np.flatnonzero(np.isinf(found) if missing else ~np.isfinite(found))
    if len(bad):
        raise ValueError(f"{name}[{bad[0]}]: expected a finite number{', or nan' if missing else ''}, got {found[bad[0]]}")
    return found


def warn_if_weak(archs: Iterable[Hashable], scores: np.ndarray, stacklevel: int = 3) -> None:
    """Warn where scores cannot tell architectures apart, so that what is learned from them is no more than a guess.

    Parameters
    ----------
    archs : iterable of n architectures, or other things that are equal where these are
    scores : numpy.ndarray of shape (n,)
        Finite.
    stacklevel : int
        As of `warnings.warn`; 3 names the caller of the caller.
    """
    groups: dict[Hashable, list[float]] = {}
    for arch, score in zip(archs, scores.tolist(), strict=True):
        groups.setdefault(arch, []).append(score)
    means = [sum(group) / len(group) for group in groups.values()]
    within, between = max(map(np.ptp, groups.values()), default=0.0), np.ptp(means) if means else 0.0
    reason = None
    if len(groups) < 3:
        reason = f"they are of {len(groups)} different architectures, which show no trend"
    elif not np.ptp(scores):
        reason = f"all {len(scores)} scores are {scores[0]:g}"
    elif within and within >= between:
        reason = f"an architecture is given with scores that lie {within:g} apart, and different architectures only {between:g}"
    if reason:
        warnings.warn(f"predictions from these scores are little more than guesses: {reason}", UserWarning, stacklevel=stacklevel)
