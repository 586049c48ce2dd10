"""The network of LLM-Distill-PP: an ensemble of multilayer perceptrons on top of ridge regressions, trained together.

The members are small, so they are trained in one batched matrix product per layer. `llmpp_core.predictors.distill` wraps this as a
predictor over architectures; here are only rows of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

_ACTIVATIONS = {"relu": torch.relu, "silu": torch.nn.functional.silu, "tanh": torch.tanh}
# Steps between two looks at the held-out labels.
_LOOK_EVERY = 20


@dataclass(frozen=True)
class StudentRecipe:
    """How to train; the fields are described in `llmpp_core.predictors.distill.DistilledPredictor`."""

    hidden: Sequence[int]
    activation: str
    ridge: bool
    ensemble: int
    steps: int
    batch_size: int
    learning_rate: float
    one_cycle: bool
    weight_decay: float
    monotone: bool

    def __post_init__(self) -> None:
        for name, kind in {"ensemble": Integral, "steps": Integral, "batch_size": Integral, "learning_rate": Real}.items():
            value = getattr(self, name)
            of_kind = isinstance(value, kind)
            if not of_kind or not value > 0:
                raise ValueError(f"{name}: expected a positive {'integer' if kind is Integral else 'number'}, got {value!r}")
        if not isinstance(self.hidden, Iterable) or not all(isinstance(width, Integral) and width > 0 for width in self.hidden):
            raise ValueError(f"hidden: expected positive widths, got {self.hidden!r}")
        # The one activation that itself falls somewhere.
        allowed = [name for name in _ACTIVATIONS if not (self.monotone and name == "silu")]
        if self.activation not in allowed:
            raise ValueError(f"activation: {self.activation!r} is not allowed with monotone={self.monotone}; use {' or '.join(allowed)}")


@dataclass(frozen=True)
class StudentNetwork:
    """A trained ensemble of E members over d features: ``linear(x) + scale * perceptron(x)`` with x standardised.

    Parameters
    ----------
    mean, std : numpy.ndarray of shape (d,)
        Standardise the features.
    coef, intercept, scale : numpy.ndarray of shape (E, d), (E,) and (E,)
        The linear part, and the unit in which the perceptron learned what it leaves.
    weights : sequence of torch.Tensor
        Per layer a matrix of shape (E, inputs, outputs) and a bias of shape (E, 1, outputs), float32.
    activation : {"relu", "silu", "tanh"}
        Activation of the hidden layers.
    """

    mean: np.ndarray
    std: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    scale: np.ndarray
    weights: Sequence[torch.Tensor]
    activation: str

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return the members' predictions for rows of shape (n, d), shape (E, n)."""
        x = (rows - self.mean) / self.std
        with torch.inference_mode():
            out = _forward(self.weights, torch.from_numpy(x).float().expand(len(self.scale), -1, -1), self.activation)
        return self.coef @ x.T + self.intercept[:, None] + self.scale[:, None] * out.numpy()


def _forward(weights: Sequence[torch.Tensor], x: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply E perceptrons to E batches of shape (n, d); returns shape (E, n)."""
    for i in range(0, len(weights), 2):
        x = torch.baddbmm(weights[i + 1], x, weights[i])
        if i + 2 < len(weights):
            x = _ACTIVATIONS[activation](x)
    return x.squeeze(-1)


def train(
    rows: np.ndarray, labels: np.ndarray, recipe: StudentRecipe, rising: np.ndarray, rng: np.random.Generator
) -> tuple[StudentNetwork, int, float]:
    """Train an ensemble whose members hold out different parts of the labels, on which the number of steps is chosen.

    Parameters
    ----------
    rows : numpy.ndarray of shape (n, d)
        Features.
    labels : numpy.ndarray of shape (n,)
        Finite scores, at least as many as members.
    recipe : StudentRecipe
        How to train.
    rising : numpy.ndarray of shape (d,), bool
        Features in which a monotone recipe lets no prediction fall.
    rng : numpy.random.Generator
        Source of all randomness; torch's own is not touched.

    Returns
    -------
    network : StudentNetwork
    stopped_at : int
        The step whose weights are kept, the same for all members; 0 is the linear part alone.
    held_out_rmse : float
        Error on the held-out labels at that step; infinite with one member, which holds nothing out.

    Raises
    ------
    ValueError
        If training diverges.
    """
    members, (n, d) = recipe.ensemble, rows.shape
    part = n // members if members > 1 else 0
    order = rng.permutation(n)
    order = np.stack([np.roll(order, -member * part) for member in range(members)])
    held_out, seen = order[:, :part], order[:, part:]

    mean, std, x = np.zeros(d), np.ones(d), rows
    coef, intercept, scale = np.zeros((members, d)), np.zeros(members), np.ones(members)
    if recipe.ridge:
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        std[std <= 1e-9 * np.abs(mean)] = 1.0
        x = (rows - mean) / std
        for member, index in enumerate(seen):
            if recipe.monotone:
                # What a ridge regression leaves of a rising function need not rise, so only the mean is taken out.
                intercept[member] = labels[index].mean()
            else:
                linear = RidgeCV(np.logspace(-4, 3, 8)).fit(x[index], labels[index])
                coef[member], intercept[member] = linear.coef_, linear.intercept_
    rest = labels - coef @ x.T - intercept[:, None]
    weights = _initial_weights((d, *recipe.hidden, 1), members, rng)
    if recipe.ridge:
        scale = np.take_along_axis(rest, seen, axis=1).std(axis=1)
        scale[scale == 0] = 1.0
        # The perceptron starts at zero, so that no step at all leaves the linear part alone.
        for weight in weights[-2:]:
            weight.zero_()

    target = torch.from_numpy(rest / scale[:, None]).float()
    kept, stopped_at, mse = _descend(weights, torch.from_numpy(x).float(), target, scale, (seen, held_out), recipe, rising, rng)
    if not all(torch.isfinite(weight).all() for weight in kept):
        raise ValueError(f"learning_rate: training diverged at {recipe.learning_rate!r}; lower it")
    return StudentNetwork(mean, std, coef, intercept, scale, kept, recipe.activation), stopped_at, math.sqrt(mse)


def _initial_weights(sizes: Sequence[int], members: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Draw weights as `torch.nn.Linear` does, uniformly within 1 / sqrt(inputs)."""
    weights = []
    for inputs, outputs in pairwise(sizes):
        for shape in ((members, inputs, outputs), (members, 1, outputs)):
            weights.append(torch.from_numpy(rng.uniform(-1, 1, shape) / math.sqrt(inputs)).float())
    return weights


def _descend(
    weights: list[torch.Tensor],
    x: torch.Tensor,
    target: torch.Tensor,
    scale: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    recipe: StudentRecipe,
    rising: np.ndarray,
    rng: np.random.Generator,
) -> tuple[list[torch.Tensor], int, float]:
    """Minimise the squared error with AdamW; returns the weights that are best on held-out rows, their step and error."""
    seen, held_out = parts
    member = torch.arange(recipe.ensemble)[:, None]
    # Members count by the unit of their targets.
    units = torch.from_numpy(scale**2).float()

    def error(index: np.ndarray) -> torch.Tensor:
        chosen = torch.from_numpy(index)
        return (_forward(weights, x[chosen], recipe.activation) - target[member, chosen]).square().mean(dim=1)

    @torch.no_grad()
    def project() -> None:
        """Move weights to the nearest ones with which no output falls in a rising feature."""
        if recipe.monotone:
            weights[0][:, rising] = weights[0][:, rising].clamp(min=0)
            for weight in weights[2::2]:
                weight.clamp_(min=0)

    project()
    for weight in weights:
        weight.requires_grad_()
    optimiser = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    cycle = one_cycle(optimiser, recipe.learning_rate, recipe.steps, cycle_momentum=False) if recipe.one_cycle else None
    kept, stopped_at, least = weights, recipe.steps, math.inf
    for step in range(recipe.steps + 1):
        if held_out.size and (step % _LOOK_EVERY == 0 or step == recipe.steps):
            with torch.no_grad():
                mse = float((error(held_out) * units).mean())
            if mse < least:
                kept, stopped_at, least = [weight.detach().clone() for weight in weights], step, mse
        if step < recipe.steps:
            optimiser.zero_grad()
            full = recipe.batch_size >= seen.shape[1]
            error(seen if full else rng.permuted(seen, axis=1)[:, : recipe.batch_size]).sum().backward()
            optimiser.step()
            if cycle:
                cycle.step()
            project()
    return [weight.detach() for weight in kept], stopped_at, least
