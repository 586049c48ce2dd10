"""HAT's latency predictor, the baseline: a multilayer perceptron trained by HAT's recipe, nothing added and nothing left out.

It stands apart from the network of `llmpp_core.predictors.distill`, which changes as its recipe is improved: a baseline should not.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted
from torch import nn

from llmpp_core.latency.predictor import Rows, checked_latency, feature_rows
from llmpp_core.space.inputs import warn_if_weak
from llmpp_core.space.regressor import ArchitectureRegressor

#: What HAT divides its features by, in their order, and latencies by, in ms per kind of device.
FEATURE_UNITS = (640, 6, 2048, 6, 640, 6, 2048, 6, 6, 2)
LATENCY_UNITS = {"gpu": 200.0, "cpu_xeon": 300.0, "cpu_raspberrypi": 5000.0}
_BATCH_SIZE = 128


class LatencyMLP(ArchitectureRegressor):
    """Four hidden layers of 400 units on HAT's ten features, trained by Adam on mean squared error.

    Parameters
    ----------
    latency_unit : float
        What latencies are divided by for training, in ms; see `LATENCY_UNITS`.
    steps : int
        Number of updates, of 128 rows drawn without replacement, or all if there are fewer.
    learning_rate : float
        Adam's, constant.
    random_state : int
        Seed of weights and batches.
    """

    def __init__(self, latency_unit: float = 200.0, steps: int = 5000, learning_rate: float = 1e-5, random_state: int = 0):
        self.latency_unit = latency_unit
        self.steps = steps
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, archs: Rows, y: ArrayLike) -> Self:
        """Train on architectures or rows of HAT's features, and latencies in ms of shape (n,); raises as `LatencyPredictor.fit`."""
        rows = self._scaled(archs)
        checked = checked_latency(y, len(rows))
        warn_if_weak(map(tuple, rows.tolist()), checked)
        latency = torch.from_numpy(checked / self.latency_unit).float()
        rng = np.random.default_rng(self.random_state)
        # torch draws initial weights from its global state, which is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            widths = (len(FEATURE_UNITS), 400, 400, 400, 400)
            hidden = [layer for i in range(4) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.ReLU())]
            network = nn.Sequential(*hidden, nn.Linear(400, 1))
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate, fused=True)
        for _ in range(self.steps):
            batch = torch.from_numpy(rng.permutation(len(rows))[:_BATCH_SIZE])
            loss = nn.functional.mse_loss(network(rows[batch]).squeeze(1), latency[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.network_ = network
        self.n_features_in_ = len(FEATURE_UNITS)
        return self

    def predict(self, archs: Rows) -> np.ndarray:
        """Return latencies in ms, shape (n,)."""
        check_is_fitted(self)
        with torch.inference_mode():
            return self.network_(self._scaled(archs)).squeeze(1).double().numpy() * self.latency_unit

    def _scaled(self, archs: Rows) -> torch.Tensor:
        return torch.from_numpy(feature_rows(archs) / FEATURE_UNITS).float()
