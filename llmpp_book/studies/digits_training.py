"""Small convolutional networks on scikit-learn's handwritten digits: all folds and seeds of an architecture trained as one network."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from llmpp_book import repository
from llmpp_core.jobs.files import to_json
from llmpp_core.jobs.progress import progress_bar
from llmpp_core.jobs.provenance import commit, processor
from llmpp_core.jobs.table import Table

CLASSES = 10
#: Trainings of a network.
SEEDS = 3
#: What a network is made of: the choices of the space in digits.yml.
CHOICES = ("blocks", "channels", "kernel", "norm", "activation")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam, and a learning rate that rises and falls once."""

    epochs: int = 5
    batch: int = 32
    learning_rate: float = 0.02
    folds: int = 5


class Digits(NamedTuple):
    """The images, scaled to -1 to 1, (n, 1, 8, 8), and their labels, (n,)."""

    images: Tensor
    labels: Tensor


class Result(NamedTuple):
    """Accuracy on each fold left out, (seeds, folds), in percent, and the seconds of processor time that one seed took."""

    accuracies: np.ndarray
    seconds: float


@cache
def digits() -> Digits:
    """Return the 1,797 images of 8 x 8 pixels that come with scikit-learn, so nothing is downloaded."""
    images, labels = load_digits(return_X_y=True)
    return Digits(torch.tensor(images / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels))


def data_sha256() -> str:
    """Return a digest of all images and labels."""
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in digits())).hexdigest()


@cache
def _folds(n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the images to learn from and those left out, of each fold: the same for all networks and seeds, stratified by digit."""
    images, labels = digits()
    splits = StratifiedKFold(n, shuffle=True, random_state=0).split(images, labels)
    return [(torch.from_numpy(learn), torch.from_numpy(left)) for learn, left in splits]


class _Batched:
    """The networks of one architecture side by side: network m has channels m * c to (m + 1) * c of every layer, by grouped convolutions.

    Parameters
    ----------
    network : mapping
        The choices of the space in digits.yml.
    generators : sequence of torch.Generator
        One a network, which draws its weights.
    """

    def __init__(self, network: Mapping[str, Any], generators: Sequence[torch.Generator]):
        self.network, self.n = network, len(generators)
        self.parameters: list[Tensor] = []
        self.layers: list[tuple[Tensor, ...]] = []
        before = 1
        for channels, kernel in zip(network["channels"], network["kernel"], strict=True):
            weights = self._draw(generators, (channels, before, kernel, kernel), (2 / (before * kernel**2)) ** 0.5).flatten(0, 1)
            scale, shift = torch.ones(self.n * channels), torch.zeros(self.n * channels)
            self.layers.append((weights, shift, scale, shift.clone(), scale.clone()))
            self.parameters += [weights, shift] + [scale] * (network["norm"] == "batch")
            before = channels
        self.head, self.bias = self._draw(generators, (before, CLASSES), before**-0.5), torch.zeros(self.n, 1, CLASSES)
        self.parameters += [self.head, self.bias]
        for parameter in self.parameters:
            parameter.requires_grad_()

    @staticmethod
    def _draw(generators: Sequence[torch.Generator], shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.stack([scale * torch.randn(shape, generator=generator) for generator in generators])

    def __call__(self, images: Tensor, learning: bool = False) -> Tensor:
        """Return what the networks say, (networks, n, classes), of their own images, (networks, n, 1, 8, 8)."""
        x = images.squeeze(2).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        normalise, activation = self.network["norm"] == "batch", ACTIVATIONS[self.network["activation"]]
        for number, (weights, shift, scale, mean, variance) in enumerate(self.layers):
            x = F.conv2d(x, weights, None if normalise else shift, padding=weights.shape[-1] // 2, groups=self.n)
            x = F.batch_norm(x, mean, variance, scale, shift, learning) if normalise else x
            # Pooling before a rising activation gives the same as after it, and leaves it a quarter of the work.
            x = activation(F.max_pool2d(x, 2) if number == 0 else x)
        means = x.mean((2, 3)).unflatten(1, (self.n, -1)).transpose(0, 1)
        return torch.baddbmm(self.bias, means, self.head)


def train(network: Mapping[str, Any], seeds: Sequence[int], recipe: Recipe) -> Result:
    """Train a network once for each seed and fold, and say how well it reads the digits of the fold left out.

    What a seed gives depends on the network, the seed and the recipe alone, up to the rounding of sums.
    """
    (images, labels), folds = digits(), _folds(recipe.folds)
    began = time.process_time()
    named = to_json({name: network[name] for name in CHOICES})
    generators = [
        torch.Generator().manual_seed(int(hashlib.sha256(f"{named} {seed} {fold}".encode()).hexdigest()[:15], 16))
        for seed in seeds
        for fold in range(recipe.folds)
    ]
    learn, left = ([fold[part] for _ in seeds for fold in folds] for part in (0, 1))
    model, steps = _Batched(network, generators), min(map(len, learn)) // recipe.batch
    optimizer = torch.optim.Adam(model.parameters, foreach=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.epochs * steps)
    for _ in range(recipe.epochs):
        orders = [part[torch.randperm(len(part), generator=generator)] for part, generator in zip(learn, generators, strict=True)]
        for step in range(steps):
            batch = torch.stack([order[step * recipe.batch : (step + 1) * recipe.batch] for order in orders])
            answers = model(images[batch], learning=True)
            # Of all networks, the sum of their mean losses: the gradient of each is its own.
            loss = F.cross_entropy(answers.flatten(0, 1), labels[batch].flatten(), reduction="sum") / recipe.batch
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    with torch.no_grad():
        # Folds differ by an image; what fills the shorter ones is not counted.
        padded = torch.nn.utils.rnn.pad_sequence(left, batch_first=True, padding_value=-1)
        right = (model(images[padded]).argmax(2) == labels[padded]) & (padded >= 0)
    accuracies = 100 * right.sum(1).numpy() / np.array([len(part) for part in left])
    return Result(accuracies.reshape(len(seeds), recipe.folds), (time.process_time() - began) / len(seeds))


def tables(results: Path, recipe: Recipe) -> tuple[tuple[Table, Recipe, int], ...]:
    """Return the two tables, with the recipe and the number of seeds of each: the whole training, and one epoch of one seed."""
    cheap = replace(recipe, epochs=1)
    return tuple(
        (Table(results / name, {"recipe": asdict(used), "data_sha256": data_sha256()}), used, seeds)
        for name, used, seeds in (("digits.proxy.jsonl", cheap, 1), ("digits.jsonl", recipe, SEEDS))
    )


def measure(
    networks: Sequence[Mapping[str, Any]], results: Path, *, recipe: Recipe | None = None, seconds: float = math.inf, progress: bool = False
) -> bool:
    """Train networks on one thread and add what is not there yet to the tables in `results`.

    Networks are taken in an order drawn once, so that tables that are not complete are a random sample.

    Returns
    -------
    bool
        Whether the tables are complete; False if time was up before.
    """
    stop, done = time.monotonic() + seconds, True
    where = {"device": processor(), "torch": torch.__version__, "commit": commit(repository.ROOT)}
    order = np.random.default_rng(0).permutation(len(networks))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # The first training takes longer than the others, whatever it trains.
    train(networks[0], range(SEEDS), Recipe(epochs=1))
    try:
        for table, used, seeds in tables(results, recipe or Recipe()):
            with table.writing(), progress_bar(total=len(networks), desc=table.path.stem, disable=not progress) as bar:
                there = {_key(row, row["seed"]) for row in table.rows()}
                for network in (networks[i] for i in order):
                    # A crash may have cut off the last of a network's rows: all its seeds are trained again, side by side as before.
                    waiting = [seed for seed in range(seeds) if _key(network, seed) not in there]
                    if waiting and time.monotonic() > stop:
                        done = False
                        break
                    if waiting:
                        result = train(network, range(seeds), used)
                        table.append({**network, "seed": seed, **_scores(result, seed), **where} for seed in waiting)
                    bar.update()
    finally:
        torch.set_num_threads(threads)
    return done


def _key(row: Mapping[str, Any], seed: int) -> str:
    return to_json({"seed": seed, **{name: row[name] for name in CHOICES}})


def _scores(result: Result, seed: int) -> dict[str, Any]:
    folds = result.accuracies[seed]
    return {"accuracy": round(float(folds.mean()), 4), "folds": folds.round(2).tolist(), "seconds": round(result.seconds, 3)}
