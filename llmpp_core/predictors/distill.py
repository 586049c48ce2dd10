"""LLM-Distill-PP: a small network trained on the labels of a teacher that is too slow or too dear to ask often.

The teacher is any predictor over architectures; in the paper it is an LLM, asked once about 3,000 architectures. `OFFICIAL`
is the paper's recipe. The defaults of `DistilledPredictor` are ours: they were settled on held-out labels, and what they
leave open, the feature set and when to stop, every fit decides on held-out labels of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from llmpp_core.jobs.files import load_tensors, save_tensors, understood
from llmpp_core.predictors.student import StudentNetwork, StudentRecipe, train
from llmpp_core.space.choice import Space
from llmpp_core.space.grammar import space_from_record
from llmpp_core.space.inputs import as_list, as_scores, warn_if_weak
from llmpp_core.space.regressor import ArchitectureRegressor


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine several wait for each other at every small product, up to a minute in all."""
    threads = torch.get_num_threads()
    # PyTorch's own setting is not reached by threadpoolctl in worker processes.
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


#: Shares of labels that may be nan: up to the first without a word, as of any teacher; above the second not at all.
WARN_UNREADABLE, MOST_UNREADABLE = 0.05, 0.5

#: The paper's recipe, from its official code: ``DistilledPredictor(**OFFICIAL)``.
OFFICIAL: dict[str, Any] = {
    "features": "official",
    "hidden": (400, 400, 400, 400),
    "activation": "relu",
    "ridge": False,
    "ensemble": 1,
    "steps": 5000,
    "batch_size": 128,
    "learning_rate": 1e-5,
    "one_cycle": False,
    "weight_decay": 0.0,
}
#: The settings of a student whose predictions never fall with size: ``DistilledPredictor(**MONOTONE)``.
MONOTONE: dict[str, Any] = {"monotone": True, "activation": "tanh", "steps": 600}


class DistilledPredictor(ArchitectureRegressor):
    """An ensemble of small networks over features of architectures, trained on a teacher's labels.

    Ridge regressions are fitted first, in closed form, and the networks learn what they leave; so a plain teacher is learned
    exactly and a noisy one is not chased. Each member holds out another part of the labels. On the held-out labels every fit
    chooses the number of steps and, where several are given, the feature set.

    Parameters
    ----------
    features : str or sequence of str
        Names that `feature_set` of the space takes, of which one is chosen: "costs", "averages", "layers", "all".
    space : Space
        Of the networks; needed to fit. Tells the features what choices and costs there are.
    hidden : sequence of int
        Widths of the hidden layers.
    activation : {"silu", "relu", "tanh"}
        Activation of the hidden layers.
    ridge : bool
        Standardise and fit ridge regressions first. False: the network gets features and labels as they are.
    ensemble : int
        Number of members, and of parts of the labels. A single member learns from all labels, for all steps.
    steps, batch_size, learning_rate, weight_decay
        Settings of AdamW, which without weight decay is Adam.
    one_cycle : bool
        Let the learning rate rise to `learning_rate` and fall to almost zero. False: keep it constant.
    monotone : bool
        Let no prediction fall when a feature grows of which more means a larger network; of HAT's, all but numbers of heads.
        Takes the place of the ridge regressions; not with "silu". When a layer is added, average features may fall, so the promise
        holds for stacks of equal depth.
    random_state : int or None
        Seed; None draws another one for every fit.

    Attributes
    ----------
    features_ : str
        The feature set in use.
    held_out_rmse_ : dict of str to float
        Error on held-out labels with each feature set that was tried, in the unit of the labels; empty for a single member.
    stopped_at_ : int
        Number of steps taken; 0 says that the ridge regressions alone did best.
    n_labels_, n_dropped_ : int
        Labels learned from, and labels left out because they are nan.
    teacher_ : str
        What gave the labels.
    """

    def __init__(
        self,
        features: str | Sequence[str] = ("averages", "all"),
        space: Space | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        ridge: bool = True,
        ensemble: int = 5,
        steps: int = 300,
        batch_size: int = 128,
        learning_rate: float = 1e-2,
        one_cycle: bool = True,
        weight_decay: float = 0.3,
        monotone: bool = False,
        random_state: int | None = 0,
    ):
        self.features = features
        self.space = space
        self.hidden = hidden
        self.activation = activation
        self.ridge = ridge
        self.ensemble = ensemble
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.one_cycle = one_cycle
        self.weight_decay = weight_decay
        self.monotone = monotone
        self.random_state = random_state

    def fit(self, archs: Sequence[Any], labels: ArrayLike, *, teacher: str = "unknown") -> Self:
        """Train on labelled architectures.

        Parameters
        ----------
        archs : sequence of n Architecture
        labels : array-like of shape (n,)
            Scores, higher is better. Those that are nan, such as invalid answers of an LLM, are left out and counted; more than
            `WARN_UNREADABLE` of them give a warning, more than `MOST_UNREADABLE` an error, since what is left may be the easy part.
        teacher : str
            What gave the labels; kept with the checkpoint.

        Raises
        ------
        ValueError
            If a setting is not allowed, lengths differ, a label is infinite, or too few labels remain.

        Warns
        -----
        UserWarning
            If many labels are nan.
        """
        recipe = StudentRecipe(**{field.name: getattr(self, field.name) for field in fields(StudentRecipe)})
        names = self._feature_sets()
        archs = as_list(archs)
        y = as_scores(labels, len(archs), "labels", missing=True)
        known = ~np.isnan(y)
        least = max(2, self.ensemble)
        if known.sum() < least:
            raise ValueError(f"labels: expected at least {least} that are not nan, got {known.sum()} of {len(y)}")
        if (lost := int((~known).sum())) > WARN_UNREADABLE * len(y):
            what = f"labels: {lost} of {len(y)} were unreadable (nan)"
            if lost > MOST_UNREADABLE * len(y):
                raise ValueError(f"{what}, and at most {MOST_UNREADABLE:.0%} may be: ask the teacher in a form that it keeps to")
            warnings.warn(f"{what}; the student learns from the other {len(y) - lost}", stacklevel=2)
        labelled = [arch for arch, has_label in zip(archs, known, strict=True) if has_label]
        warn_if_weak(labelled, y[known])
        results = {}
        with _one_thread():
            for name in names:
                rising = np.concatenate([part.rising for part in self._parts(name)])
                results[name] = train(self._rows(name, labelled), y[known], recipe, rising, np.random.default_rng(self.random_state))
        self.features_ = min(results, key=lambda name: results[name][2])
        self.network_, self.stopped_at_, _ = results[self.features_]
        self.held_out_rmse_ = {name: rmse for name, (_, _, rmse) in results.items() if self.ensemble > 1}
        self.n_labels_, self.n_dropped_ = len(labelled), len(y) - len(labelled)
        self.teacher_ = teacher
        return self

    def predict(self, archs: Sequence[Any], return_std: bool = False) -> Any:
        """Predict the teacher's scores.

        Returns
        -------
        numpy.ndarray of shape (n,), or a pair of them with `return_std`
            The mean over the members, and their standard deviation.
        """
        check_is_fitted(self)
        with _one_thread():
            members = self.network_.predict(self._rows(self.features_, archs))
        mean = members.mean(axis=0)
        if return_std and len(members) < 2:
            raise ValueError(f"return_std needs an ensemble of at least 2, got {len(members)}")
        return (mean, members.std(axis=0, ddof=1)) if return_std else mean

    def _feature_sets(self) -> list[str]:
        names = [self.features] if isinstance(self.features, str) else list(self.features)
        if self.space is None:
            raise ValueError("space: expected the space of the architectures, such as HAT_WMT, got None")
        if not names:
            raise ValueError("features: expected names of feature sets, at least one; got none")
        for name in names:
            self.space.feature_set(name)
        if len(names) > 1 and self.ensemble < 2:
            raise ValueError("features: a choice among several needs held-out labels, so an ensemble of at least 2")
        return names

    def _parts(self, name: str) -> list[Any]:
        assert self.space is not None
        return self.space.feature_set(name)

    def _rows(self, name: str, archs: Sequence[Any]) -> np.ndarray:
        archs = as_list(archs)
        return np.hstack([part.transform(archs) for part in self._parts(name)])

    def save(self, path: str | Path) -> None:
        """Write a safetensors checkpoint that also records settings, feature set, space and teacher; all or nothing."""
        check_is_fitted(self)
        assert self.space is not None
        network = self.network_
        arrays = {name: getattr(network, name) for name in _ARRAYS}
        arrays |= {f"weights.{i:02d}": weight.numpy() for i, weight in enumerate(network.weights)}
        settings = self.get_params(deep=False)
        record = {"format": _FORMAT, "settings": {**settings, "space": self.space.to_record()}, "activation": network.activation}
        record |= {name: getattr(self, name) for name in _RECORDED}
        save_tensors(path, "distill", arrays, record)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a checkpoint; raises ValueError naming the file if it is damaged or something else."""
        arrays, record = load_tensors(path, "distill")
        if record.get("format") != _FORMAT:
            raise ValueError(f"{path}: checkpoint format {record.get('format')!r}, this version reads {_FORMAT}")
        with understood(path):
            settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()}
            predictor = cls(**{**settings, "space": space_from_record(settings["space"])})
            for name in _RECORDED:
                setattr(predictor, name, record[name])
            weights = [torch.from_numpy(arrays[name]) for name in sorted(arrays) if name.startswith("weights.")]
            fixed = {name: arrays[name] for name in _ARRAYS}
            predictor.network_ = StudentNetwork(**fixed, weights=weights, activation=record["activation"])
        return predictor


_FORMAT = 1
_ARRAYS = ("mean", "std", "coef", "intercept", "scale")
_RECORDED = ("features_", "held_out_rmse_", "stopped_at_", "n_labels_", "n_dropped_", "teacher_")


def distill(
    teacher: Any,
    space: Space,
    n: int,
    rng: np.random.Generator,
    *,
    student: DistilledPredictor | None = None,
    balanced: bool = True,
    name: str | None = None,
) -> DistilledPredictor:
    """Let a teacher label random architectures, and train a student on the labels.

    Parameters
    ----------
    teacher : fitted regressor over networks
        Asked once, for all architectures; its nan are left out, with a warning or an error where they are many (see
        `DistilledPredictor.fit`).
    space : Space
        Where architectures are drawn.
    n : int
        Number of labels to ask for.
    rng : numpy.random.Generator
        Draws the architectures.
    student : DistilledPredictor, optional
        Settings of the student, which is cloned; the defaults otherwise. Its space is set to `space`.
    balanced : bool
        Draw as many architectures of each value of the space's stratum, such as of each depth; False: as the space samples.
    name : str, optional
        The teacher's name in the student's record; its class by default.

    Returns
    -------
    DistilledPredictor
        The fitted student; `n_labels_` and `n_dropped_` tell how many labels it was given.
    """
    archs = space.sample_balanced(n, rng) if balanced else space.sample(n, rng)
    fresh = clone(student or DistilledPredictor()).set_params(space=space)
    return fresh.fit(archs, teacher.predict(archs), teacher=name or type(teacher).__name__)
