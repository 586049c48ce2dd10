"""The batched network equals what PyTorch's own modules compute."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from llmpp_core.predictors.distill import OFFICIAL
from llmpp_core.predictors.student import StudentRecipe, train

ROWS, LABELS = np.random.default_rng(1).random((50, 10)), 25 + np.random.default_rng(2).random(50)
PLAIN = {**{name: value for name, value in OFFICIAL.items() if name != "features"}, "monotone": False}


@pytest.mark.parametrize("steps", [1, 20])
def test_a_single_member_equals_plain_adam_on_plain_layers(steps: int) -> None:
    recipe = StudentRecipe(**{**PLAIN, "hidden": (16, 8), "steps": steps, "learning_rate": 1e-3})
    network, stopped_at, held_out_rmse = train(ROWS, LABELS, recipe, np.ones(10, dtype=bool), np.random.default_rng(0))
    assert (stopped_at, held_out_rmse) == (steps, np.inf)

    # The same initial weights: uniform within 1 / sqrt(inputs), layer by layer, after the order of the labels was drawn.
    rng = np.random.default_rng(0)
    rng.permutation(50)
    layers = [torch.nn.Linear(inputs, outputs) for inputs, outputs in pairwise((10, 16, 8, 1))]
    for layer in layers:
        bound = 1 / np.sqrt(layer.in_features)
        layer.weight.data = torch.from_numpy(bound * rng.uniform(-1, 1, (layer.in_features, layer.out_features)).T).float()
        layer.bias.data = torch.from_numpy(bound * rng.uniform(-1, 1, layer.out_features)).float()
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    x, y = torch.from_numpy(ROWS).float(), torch.from_numpy(LABELS).float()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        adam.zero_grad()
        torch.nn.functional.mse_loss(net(x).squeeze(), y).backward()
        adam.step()
    np.testing.assert_allclose(network.predict(ROWS)[0], net(x).squeeze().detach(), rtol=1e-4)


def test_a_member_does_not_see_the_labels_that_it_holds_out() -> None:
    recipe = StudentRecipe(**{**PLAIN, "hidden": (16,), "steps": 1, "ridge": True, "ensemble": 5})
    held_out = np.random.default_rng(0).permutation(50)[:10]
    spoiled = LABELS.copy()
    spoiled[held_out] += 5
    whole, other = (train(ROWS, y, recipe, np.ones(10, dtype=bool), np.random.default_rng(0))[0] for y in (LABELS, spoiled))
    same = [np.array_equal(a, b) for a, b in zip(whole.predict(ROWS), other.predict(ROWS), strict=True)]
    assert same == [True, False, False, False, False]
