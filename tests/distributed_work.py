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

import numpy as np
import torch
from small_nets import MICRO, VOCAB, new_supernet, reversed_pairs

from llmpp_book.__main__ import main
from llmpp_core.nets import training
from llmpp_core.nets.distributed import gathered, processes
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.nets.supernet import KINDS, SuperTransformer
from llmpp_core.nets.training import Recipe, Sampling, sandwich, train, uniform
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.text.batches import Pairs


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
    "single, dropout": Case("plain", None, 4, 0.3),
    "uniform, three batches": Case("shared", uniform, 3, 0.0),
    "uniform, a sentence or two": Case("shared", uniform, 1, 0.0, batch_tokens=8),
    "sandwich, dropout": Case("shared", sandwich, 2, 0.1),
    "layer-wise, dropout": Case("layer-wise", uniform, 2, 0.1, dtype=torch.float32),
}
PAIRS = reversed_pairs(200, seed=0, longest=4)
UPDATES, HALF = 10, 4


def run(case: Case, *, seed: int = 1, **settings: Any) -> training.History:
    """Train a case, with any settings of `train`."""
    training._divergence = lambda *arguments: None
    model: Transformer | SuperTransformer
    if case.kind == "plain":
        model = Transformer(MICRO.largest(), MICRO, VOCAB, case.dropout)
    else:
        model = SuperTransformer(MICRO, VOCAB, case.kind, dropout=case.dropout)
    recipe = Recipe(UPDATES, case.batch_tokens, learning_rate=0.01, dropout=case.dropout, accumulate=case.accumulate)
    return train(model.to(case.dtype), PAIRS, recipe, seed=seed, sampling=case.sampling, **settings)


def run_half(case: Case, checkpoint: Path, **settings: Any) -> None:
    """Train the first updates of a case."""
    for _ in range(HALF):
        run(case, checkpoint=checkpoint, seconds=0, **settings)


def candidates() -> tuple[list[Architecture], Pairs]:
    """Return candidates, one of them twice, and validation pairs."""
    archs = MICRO.sample(7, np.random.default_rng(0))
    return [*archs, archs[0]], reversed_pairs(40, seed=1)


def count(hypotheses: list[list[int]]) -> float:
    """Stand in for BLEU."""
    return float(sum(map(len, hypotheses)))


def error(work: Callable[..., Any], *arguments: Any, **settings: Any) -> str:
    """Return the message with which `work` is refused."""
    try:
        work(*arguments, **settings)
    except ValueError as refused:
        return str(refused)
    return ""


def everything(folder: Path) -> None:
    """Do all that does not end the process; the first writes what every process found."""
    place = processes()
    mine: dict[str, Any] = {"curves": {}, "resumed": {}, "scores": {}, "refused": {}}
    for name, case in CASES.items():
        shown = io.StringIO()
        with redirect_stderr(shown):
            mine["curves"][name] = asdict(run(case, checkpoint=folder / f"{name}.two", place=place, progress="bar"))
        mine["bar"] = "bar: 100%" in shown.getvalue()
        run_half(case, folder / f"{name}.two-to-one", place=place)
        mine["resumed"][name] = asdict(run(case, checkpoint=folder / f"{name}.one-to-two", place=place))
    archs, pairs = candidates()
    for kind in KINDS:
        mine["scores"][kind] = SupernetPredictor(new_supernet(kind), pairs, place=place).predict(archs).tolist()
    mine["scores"]["bleu"] = SupernetPredictor(new_supernet(), pairs, bleu=count, place=place).predict(archs).tolist()
    mine["scores"]["one"] = SupernetPredictor(new_supernet(), pairs, place=place).predict(archs[:1]).tolist()

    refused = partial(error, run, CASES["single, cut"], place=place)
    mine["refused"]["damaged"] = refused(checkpoint=folder / "damaged")
    mine["refused"]["another"] = refused(checkpoint=folder / "single, cut.two", seed=2)
    mine["refused"]["seeds"] = refused(seed=place.process_index)
    mine["refused"]["seen by one"] = refused(checkpoint=folder / ("single, cut.two" if place.is_main_process else "nothing"))
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


def fail() -> None:
    """Fail in the third update of the second process; the first then waits for gradients that never come."""
    place, update = processes(), training._update
    steps = iter(range(UPDATES))

    def failing(*arguments: Any) -> torch.Tensor:
        if next(steps) == 2 and not place.is_main_process:
            raise RuntimeError("no memory left on this GPU")
        return update(*arguments)

    training._update = failing
    run(CASES["single, cut"], place=place)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        # The command's first update, then the same with another seed.
        main([*sys.argv[1:], "--minutes", "0"])
        sys.exit(main([*sys.argv[1:], "--seed", "1"]))
    if len(sys.argv) == 1:
        fail()
    # What is registered first runs last.
    atexit.register(name_threads, Path(sys.argv[1]))
    everything(Path(sys.argv[1]))
