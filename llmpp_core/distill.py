"""LLM-Distill-PP: a small network trained on the labels of a teacher that is too slow or too dear to ask often.

The teacher is any predictor over architectures, in the paper an LLM asked once for 3,000 architectures. `OFFICIAL` holds
the paper's recipe; the defaults of `DistilledPredictor` are ours. They were chosen on held-out labels alone, and what
they leave open, the feature set and when to stop, is chosen on held-out labels by every fit.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, numpy as safetensors
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.linear_model import RidgeCV
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from llmpp_core.features import CostFeatures, DepthFeatures, HATFeatures, LayerFeatures
from llmpp_core.space import HAT_WMT, Architecture, SearchSpace

# Divisors of the paper's ten features: HAT's for the latency predictor, with the largest values of the WMT space.
_OFFICIAL_DIVISORS = np.array([640, 6, 3072, 8, 640, 6, 3072, 8, 8, 3], dtype=float)


class OfficialFeatures(HATFeatures):
    """The paper's ten features: HAT's, scaled, and (1 + mean span) / 3, where a span is -1, 1 or 2 as in the genome."""

    def transform(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n, 10)."""
        rows = super().transform(archs)
        rows[:, -1] = [1 + sum(arch.decoder_cross_spans) / arch.decoder_layers for arch in archs]
        return rows / _OFFICIAL_DIVISORS


def _averages(space: SearchSpace) -> list[Any]:
    return [HATFeatures(), *_costs(space)]


def _layers(space: SearchSpace) -> list[Any]:
    return [LayerFeatures(max(space.encoder_layers), max(space.decoder_layers))]


def _costs(space: SearchSpace) -> list[Any]:
    return [CostFeatures(qkv_dim=space.qkv_dim), DepthFeatures(log=True)]


#: Feature sets by name, each a function from the search space to transformers whose columns are joined: the paper's ten;
#: logarithms of parameters, FLOPs and decoder depth; those and HAT's averages; every choice of every layer; all of them.
FEATURE_SETS: dict[str, Callable[[SearchSpace], list[Any]]] = {
    "official": lambda space: [OfficialFeatures()],
    "costs": _costs,
    "averages": _averages,
    "layers": _layers,
    "all": lambda space: _layers(space) + _averages(space),
}

_ACTIVATIONS = {"relu": torch.relu, "silu": torch.nn.functional.silu, "tanh": torch.tanh}

#: The paper's recipe (LLM-Distill-PP, official code): ``DistilledPredictor(**OFFICIAL)``. Meant for 3,000 labels.
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
#: The default recipe, but no prediction falls when anything but a number of heads grows; see `DistilledPredictor`.
MONOTONE: dict[str, Any] = {"monotone": True, "activation": "tanh"}


@dataclass(frozen=True)
class _Network:
    """A trained ensemble of E members over d standardised features: ``linear + scale * mlp``."""

    features: str
    mean: np.ndarray  # (d,)
    std: np.ndarray  # (d,)
    coef: np.ndarray  # (E, d), the ridge part
    intercept: np.ndarray  # (E,)
    scale: np.ndarray  # (E,), unit of the network's output
    weights: list[torch.Tensor]  # (E, in, out) and (E, 1, out) per layer, float32
    activation: str
    stopped_at: int
    held_out_rmse: float

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return the members' predictions, shape (E, n)."""
        x = (rows - self.mean) / self.std
        with torch.inference_mode():
            out = _forward(self.weights, torch.from_numpy(x).float().expand(len(self.scale), -1, -1), self.activation)
        return self.coef @ x.T + self.intercept[:, None] + self.scale[:, None] * out.numpy()


def _forward(weights: list[torch.Tensor], x: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply E networks to their E batches at once: x has shape (E, n, d), the result (E, n)."""
    for i in range(0, len(weights), 2):
        x = torch.baddbmm(weights[i + 1], x, weights[i])
        if i < len(weights) - 2:
            x = _ACTIVATIONS[activation](x)
    return x.squeeze(-1)


class DistilledPredictor(RegressorMixin, BaseEstimator):
    """An ensemble of small networks over features of architectures, trained on a teacher's labels.

    A ridge regression is fitted first, in closed form; the networks learn what it leaves, so that a simple teacher costs
    nothing and a noisy one is not overfitted. Each member leaves out another part of the labels. On these held-out labels
    the number of steps and, given several, the feature set are chosen.

    Parameters
    ----------
    features : str or sequence of str
        Names of `FEATURE_SETS`; of several, the one with the least error on held-out labels is used.
    space : SearchSpace
        Sets the number of layers and the attention width that the features assume.
    hidden : sequence of int
        Widths of the hidden layers.
    activation : {"relu", "silu", "tanh"}
        Activation of the hidden layers.
    ridge : bool
        Standardise the features and fit the ridge regression first. False: features and labels go in as they are.
    ensemble : int
        Number of members, and of parts of the labels. 1: one network learns from all labels for all steps.
    steps, batch_size, learning_rate, one_cycle, weight_decay
        Settings of AdamW. With `one_cycle` the rate rises to `learning_rate` and falls to nearly zero, else it is constant.
    monotone : bool
        Let no prediction fall when a feature other than a number of heads grows, a means to use what is known about size
        when labels are few and noisy. Replaces the ridge regression by a constant; needs the activation "relu" or "tanh".
    random_state : int or None
        Seed. None: other weights in every fit.

    Attributes
    ----------
    features_ : str
        The feature set used.
    held_out_rmse_ : dict of str to float
        Error on held-out labels of each feature set tried, in the unit of the labels; empty for one member.
    stopped_at_ : int
        Number of steps that was best on held-out labels; 0 leaves the ridge regression alone.
    n_labels_, n_dropped_ : int
        Labels used, and labels left out because they were nan.
    teacher_ : str
        What gave the labels.
    """

    def __init__(
        self,
        features: str | Sequence[str] = ("averages", "all"),
        space: SearchSpace = HAT_WMT,
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        ridge: bool = True,
        ensemble: int = 5,
        steps: int = 300,
        batch_size: int = 256,
        learning_rate: float = 1e-2,
        one_cycle: bool = True,
        weight_decay: float = 0.1,
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

    def fit(self, archs: Sequence[Architecture], labels: ArrayLike, *, teacher: str = "unknown") -> Self:
        """Train on labelled architectures.

        Parameters
        ----------
        archs : sequence of n Architecture
            The labelled architectures.
        labels : array-like of shape (n,)
            The teacher's scores, higher is better. Those that are nan, unanswered, are left out and counted.
        teacher : str
            What gave the labels, for the record in the checkpoint.

        Raises
        ------
        ValueError
            If a setting is not allowed, lengths differ, labels are infinite, or too few are left.
        """
        self._check_settings()
        y = np.asarray(labels, dtype=float)
        if y.ndim != 1 or len(y) != len(archs):
            raise ValueError(f"labels: expected one per architecture, shape ({len(archs)},), got shape {y.shape}")
        if np.isinf(y).any():
            raise ValueError("labels: expected finite numbers, or nan where the teacher gave none; got infinity")
        known = np.flatnonzero(~np.isnan(y))
        if len(known) < max(2, self.ensemble):
            raise ValueError(f"labels: expected at least {max(2, self.ensemble)}, got {len(known)} and {len(y) - len(known)} nan")
        networks = [self._train(name, [archs[i] for i in known], y[known]) for name in self._candidates()]
        self.network_ = min(networks, key=lambda network: network.held_out_rmse)
        self.features_ = self.network_.features
        self.stopped_at_ = self.network_.stopped_at
        self.held_out_rmse_ = {network.features: network.held_out_rmse for network in networks if self.ensemble > 1}
        self.n_labels_, self.n_dropped_ = len(known), len(y) - len(known)
        self.teacher_ = teacher
        return self

    def predict(self, archs: Sequence[Architecture], return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict the teacher's scores.

        Returns
        -------
        numpy.ndarray of shape (n,), or a pair of them
            Mean over the members and, if `return_std`, their standard deviation.
        """
        check_is_fitted(self)
        if return_std and self.ensemble < 2:
            raise ValueError("return_std: needs an ensemble of at least 2, this predictor has one member")
        members = self.network_.predict(self._rows(self.features_, archs))
        mean = members.mean(axis=0)
        return (mean, members.std(axis=0, ddof=1)) if return_std else mean

    def _candidates(self) -> tuple[str, ...]:
        return (self.features,) if isinstance(self.features, str) else tuple(self.features)

    def _check_settings(self) -> None:
        for name in self._candidates():
            if name not in FEATURE_SETS:
                raise ValueError(f"features: {name!r} is unknown; allowed are {', '.join(FEATURE_SETS)}")
        if self.ensemble < 2 and len(self._candidates()) != 1:
            raise ValueError(f"features: choosing among {', '.join(self._candidates())} needs held-out labels, an ensemble of at least 2")
        allowed = [name for name in _ACTIVATIONS if not (self.monotone and name == "silu")]
        if self.activation not in allowed:
            raise ValueError(f"activation: {self.activation!r} is not allowed with monotone={self.monotone}; allowed are {', '.join(allowed)}")
        for name in ("ensemble", "steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")

    def _transformers(self, name: str) -> list[Any]:
        return FEATURE_SETS[name](self.space)

    def _rows(self, name: str, archs: Sequence[Architecture]) -> np.ndarray:
        for i, arch in enumerate(archs):
            if not isinstance(arch, Architecture):
                raise ValueError(f"archs[{i}]: expected an Architecture, got {type(arch).__name__}")
        return np.hstack([transformer.transform(archs) for transformer in self._transformers(name)])

    def _train(self, name: str, archs: Sequence[Architecture], y: np.ndarray) -> _Network:
        rng = np.random.default_rng(self.random_state)
        rows, members = self._rows(name, archs), self.ensemble
        n, d = rows.shape
        # Member e leaves out part e of the labels, so almost every label is held out once.
        part = n // members if members > 1 else 0
        order = rng.permutation(n)
        order = np.stack([np.roll(order, -e * part) for e in range(members)])
        held_out, train = order[:, :part], order[:, part:]

        mean, std, scale = np.zeros(d), np.ones(d), np.ones(members)
        coef, intercept = np.zeros((members, d)), np.zeros(members)
        if self.ridge:
            mean, std = rows.mean(axis=0), rows.std(axis=0)
            std[std < 1e-9 * (1 + np.abs(mean))] = 1
        x = (rows - mean) / std
        if self.ridge:
            for e in range(members):
                if self.monotone:
                    intercept[e] = y[train[e]].mean()
                else:
                    linear = RidgeCV(np.logspace(-4, 3, 8)).fit(x[train[e]], y[train[e]])
                    coef[e], intercept[e] = linear.coef_, linear.intercept_
        target = y - coef @ x.T - intercept[:, None]
        if self.ridge:
            scale = np.maximum(np.take_along_axis(target, train, axis=1).std(axis=1), 1e-12)
        xt, yt = torch.from_numpy(x).float(), torch.from_numpy(target / scale[:, None]).float()

        weights = []
        sizes = (d, *self.hidden, 1)
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            bound = 1 / math.sqrt(fan_in)
            for shape in ((members, fan_in, fan_out), (members, 1, fan_out)):
                weights.append(torch.from_numpy(rng.uniform(-bound, bound, shape)).float())
        if self.ridge:
            for w in weights[-2:]:
                w.zero_()
        free = torch.tensor(["heads" in c for t in self._transformers(name) for c in t.get_feature_names_out()])

        def project() -> None:
            if self.monotone:
                with torch.no_grad():
                    weights[0][:, ~free] = weights[0][:, ~free].clamp(min=0)
                    for w in weights[2::2]:
                        w.clamp_(min=0)

        project()
        for w in weights:
            w.requires_grad_()
        optimiser = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.learning_rate, self.steps, cycle_momentum=False) if self.one_cycle else None
        batch = min(self.batch_size, n - part)
        member = torch.arange(members)[:, None]
        best, kept, stopped = math.inf, weights, self.steps
        hx = xt[torch.from_numpy(held_out)]
        hy = yt[member, torch.from_numpy(held_out)]
        for step in range(self.steps + 1):
            if part and (step % 20 == 0 or step == self.steps):
                with torch.no_grad():
                    mse = ((_forward(weights, hx, self.activation) - hy) ** 2).mean(dim=1).numpy()
                loss = float((mse * scale**2).mean())
                if loss < best:
                    best, stopped, kept = loss, step, [w.detach().clone() for w in weights]
            if step == self.steps:
                break
            ix = torch.from_numpy(train if batch == n - part else rng.permuted(train, axis=1)[:, :batch])
            loss_t = ((_forward(weights, xt[ix], self.activation) - yt[member, ix]) ** 2).mean(dim=1).sum()
            optimiser.zero_grad()
            loss_t.backward()
            optimiser.step()
            if schedule:
                schedule.step()
            project()
        return _Network(name, mean, std, coef, intercept, scale, [w.detach() for w in kept], self.activation, stopped, math.sqrt(best))
