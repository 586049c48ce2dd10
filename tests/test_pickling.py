"""Predictors go through pickle and to other processes as they are, and cross-validation takes them with several jobs.

Looked at: all estimators of the package; the one that holds a connection is `LLMPredictor`.
"""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hat_costs import prompt_task
from sklearn.model_selection import cross_val_score
from small_nets import VOCAB, new_supernet, reversed_pairs, reversed_task

from llmpp_core.latency.hat_mlp import LatencyMLP
from llmpp_core.latency.predictor import LatencyPredictor, LatencyPrior
from llmpp_core.llm.client import Client
from llmpp_core.llm.offline import OfflineEndpoint, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.nets.proxies import ZeroCostPredictor
from llmpp_core.predictors.baselines import CalibratedPredictor, TablePredictor, baselines
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.space.search_space import TINY

ARCHS = TINY.sample(12, np.random.default_rng(0))
SCORES = np.linspace(20, 30, 12)
TABLE = TablePredictor(dict(zip(ARCHS, SCORES.tolist(), strict=True)))
TASK = prompt_task("t", "a task", "BLEU", "a number", 0.0, 100.0, space=TINY)


def by_bleu() -> SupernetPredictor:
    task = reversed_task()
    return SupernetPredictor(new_supernet(space=TINY), task.pairs["valid"], bleu=partial(task.bleu, side="valid"))


PREDICTORS = {
    "table": lambda: TABLE,
    "calibrated": lambda: CalibratedPredictor(TABLE),
    "distilled": lambda: DistilledPredictor(features="costs", space=TINY, ensemble=2, steps=2),
    "latency": lambda: LatencyPredictor(LatencyPrior.learn([(ARCHS, SCORES)])),
    "latency MLP": lambda: LatencyMLP(steps=2),
    "supernet": lambda: SupernetPredictor(new_supernet(space=TINY), reversed_pairs(6, 0)),
    "supernet by BLEU": by_bleu,
    "proxy": lambda: ZeroCostPredictor("NASWOT", reversed_pairs(8, 0), TINY, VOCAB, batch_size=4),
    **{name: partial(baselines(TINY.qkv_dim).get, name) for name in ("depth", "HAT + costs, Gaussian process")},
}


def check(predictor: Any) -> None:
    fitted = predictor.fit(ARCHS, SCORES)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(ARCHS[:4]), fitted.predict(ARCHS[:4]))
    alone, side_by_side = (cross_val_score(predictor, ARCHS, SCORES, cv=2, n_jobs=n, scoring="neg_mean_absolute_error") for n in (1, 2))
    np.testing.assert_allclose(side_by_side, alone)


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_predictor_is_pickled_and_runs_in_other_processes(name: str) -> None:
    check(PREDICTORS[name]())


@pytest.mark.skipif("__reduce__" not in vars(Client), reason="Client holds locks and says not how to pickle it")
def test_the_predictor_that_asks_a_language_model_is_as_well(tmp_path: Path) -> None:
    with OfflineEndpoint() as url:
        check(LLMPredictor(Client(offline_settings(url), cache=tmp_path / "c"), TASK, form="json"))
