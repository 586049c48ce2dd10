"""What two processes do for tests/test_distributed.py; started by ``accelerate launch``."""

from __future__ import annotations

import atexit
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from small_nets import MICRO, VOCAB, new_supernet, reversed_pairs

from llmpp_book.__main__ import main
from llmpp_core.nets import training
from llmpp_core.nets.distributed import gathered, processes
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.training import Recipe, Sampling, sandwich, train, uniform
from llmpp_core.nets.transformer import Transformer


class Case(NamedTuple):
    """A training: what of, and whether two processes cut its batches or deal them out whole."""

    kind: str
    sampling: Sampling | None
    accumulate: int
    dropout: float
    batch_tokens: int = 120
    dtype: torch.dtype = torch.float64


#: Cut batches draw dropout of their own, so those cases have none. The features that mixtures read are single precision.
CASES = {
    "single, cut": Case("plain", None, 1, 0.0),
    "uniform, a sentence or two": Case("shared", uniform, 1, 0.0, batch_tokens=8),
    "sandwich, dropout": Case("shared", sandwich, 2, 0.1),
    "layer-wise, dropout": Case("layer-wise", uniform, 2, 0.1, dtype=torch.float32),
}
PAIRS = reversed_pairs(200, seed=0, longest=4)
UPDATES, HALF = 6, 2
#: Candidates, one of them twice, and validation pairs.
ARCHS = [*MICRO.sample(4, np.random.default_rng(0)), MICRO.largest(), MICRO.largest()]
VALID = reversed_pairs(40, seed=1)


def run(case: Case, *, seed: int = 1, **settings: Any) -> training.History:
    """Train a case, with any settings of `train`."""
    model: Transformer | SuperTransformer
    if case.kind == "plain":
        model = Transformer(MICRO.largest(), MICRO, VOCAB, case.dropout)
    else:
        model = SuperTransformer(MICRO, VOCAB, case.kind, dropout=case.dropout)
    recipe = Recipe(UPDATES, case.batch_tokens, learning_rate=0.01, dropout=case.dropout, accumulate=case.accumulate)
    with mock.patch.object(training, "_divergence", return_value=None):
        return train(model.to(case.dtype), PAIRS, recipe, seed=seed, sampling=case.sampling, **settings)


def run_half(case: Case, checkpoint: Path, **settings: Any) -> None:
    """Train the first updates of a case."""
    for _ in range(HALF):
        run(case, checkpoint=checkpoint, seconds=0, **settings)


def scores(**settings: Any) -> dict[str, list[float]]:
    """Score the candidates in every way, on as many processes as there are."""
    ways: dict[str, dict[str, Any]] = {"loss": {}, "bleu": {"bleu": lambda found: float(sum(map(len, found)))}}
    found = {name: SupernetPredictor(new_supernet(), VALID, **way, **settings).predict(ARCHS).tolist() for name, way in ways.items()}
    # Fewer candidates than processes.
    return {**found, "one": SupernetPredictor(new_supernet("layer-wise"), VALID, **settings).predict(ARCHS[:1]).tolist()}


def error(work: Callable[..., Any], **settings: Any) -> str:
    """Return the message with which `work` is refused."""
    try:
        work(**settings)
    except ValueError as refused:
        return str(refused)
    return ""


def everything(folder: Path) -> None:
    """Do all of it; the first process writes what every process found."""
    place = processes()
    mine: dict[str, Any] = {"curves": {}, "resumed": {}, "scores": scores(place=place)}
    for name, case in CASES.items():
        shown = io.StringIO()
        with redirect_stderr(shown):
            mine["curves"][name] = asdict(run(case, checkpoint=folder / f"{name}.two", place=place, progress="bar"))
        mine["bar"] = "bar: 100%" in shown.getvalue()
        run_half(case, folder / f"{name}.two-to-one", place=place)
        mine["resumed"][name] = asdict(run(case, checkpoint=folder / f"{name}.one-to-two", place=place))
    refused = partial(error, partial(run, CASES["single, cut"], place=place))
    mine["refused"] = {
        "damaged": refused(checkpoint=folder / "damaged"),
        "another": refused(checkpoint=folder / "single, cut.two", seed=2),
        "seeds": refused(seed=place.process_index),
        "seen by one": refused(checkpoint=folder / ("single, cut.two" if place.is_main_process else "nothing")),
    }
    # The first process has no time, the other all the time in the world.
    mine["updates"] = run(CASES["single, cut"], seconds=0 if place.is_main_process else 1e9, place=place).updates
    found = gathered([mine], place)
    if place.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))


def name_threads(folder: Path) -> None:
    """Write down which threads there are, one line each."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text() for task in tasks.iterdir()] if tasks.exists() else []
    (folder / f"{os.getpid()}.threads").write_text("".join(names))


if __name__ == "__main__":
    if sys.argv[1] == "train":
        # The command's first update, then the same with another seed.
        main([*sys.argv[1:], "--minutes", "0"])
        sys.exit(main([*sys.argv[1:], "--seed", "1"]))
    # What is registered first runs last.
    atexit.register(name_threads, Path(sys.argv[1]))
    everything(Path(sys.argv[1]))
