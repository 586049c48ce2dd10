"""Copies of a client: in this process they are the client itself; to other processes only those travel that nothing limits.

Looked at: copy, deepcopy and sklearn's clone; pickle and cloudpickle; joblib's processes (n_jobs) with a predictor inside; clients that are
free, free by being on this machine, paid for, capped, paced, replaying, with recordings, with an executor.
"""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from fake_llm_server import FakeLLM, answer_to, prompt
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

from llmpp_core.llm.cache import Stored
from llmpp_core.llm.client import Client, MissingAnswers, Price, Settings
from llmpp_core.llm.offline import OfflineEndpoint, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.llm.prompts import PromptTask
from llmpp_core.space.search_space import HAT_WMT

TASK = PromptTask(name="t", description="d", metric="BLEU", metric_description="m", low=0, high=100)
LIMITED: list[dict[str, Any]] = [
    {"price": Price(1, 1, "2026-01-01"), "budget": 1.0},
    {"token_cap": 10**6},
    {"requests_per_minute": 60.0},
    {"tokens_per_minute": 1e6},
    {"base_url": "https://llm.invalid/v1"},
]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda client: clone(LLMPredictor(client, TASK)).client])
def test_copies_share_the_client(duplicate: Any) -> None:
    client = Client(Settings("m", token_cap=5))
    assert duplicate(client) is client


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_free_client_travels_with_settings_recordings_and_cache(tmp_path: Path, pickler: Any) -> None:
    with FakeLLM() as server, ThreadPoolExecutor() as executor:
        settings = Settings("fake", server.url, key_variable=None)
        recorded = {settings.key(prompt(1)): Stored('{"choices": [{"message": {"content": "99.5"}}]}', None)}
        client = Client(settings, cache=tmp_path / "c", recordings=recorded, executor=executor)
        client.ask([prompt(0)])
        other = pickle.loads(pickler.dumps(client))
        assert (other.settings, other.mode, other.progress, other.executor) == (settings, "live", False, None)
        assert (other.counts.answered, client.counts.answered) == (0, 1)
        answers = other.ask([prompt(0), prompt(1), prompt(2)])
        assert [answer.values[0] for (answer,) in answers] == [float(answer_to(prompt(0).text)), 99.5, float(answer_to(prompt(2).text))]
        assert len(server.calls) == 2


@pytest.mark.parametrize("limits", LIMITED)
def test_a_client_that_something_limits_does_not_travel_and_says_why(tmp_path: Path, limits: dict[str, Any]) -> None:
    settings = Settings("m", **{"base_url": "http://127.0.0.1:1/v1", **limits})
    client = Client(settings, cache=tmp_path / "c")
    with pytest.raises(ValueError, match=r"m costs money or has limits, which only one process can keep: .* n_jobs=1"):
        pickle.dumps(LLMPredictor(client, TASK))
    # One that never asks may: it cannot exceed anything.
    other = pickle.loads(pickle.dumps(Client(settings, cache=tmp_path / "c", mode="replay")))
    with pytest.raises(MissingAnswers):
        other.ask([prompt(0)])


def test_a_predictor_is_validated_by_several_processes_as_by_one(tmp_path: Path) -> None:
    archs = HAT_WMT.sample(12, np.random.default_rng(0))
    scores = np.linspace(20.0, 30.0, 12)
    with OfflineEndpoint() as url:
        predictor = LLMPredictor(Client(offline_settings(url), cache=tmp_path / "c"), TASK).fit(archs, scores)
        one, two = (cross_val_score(predictor, archs, scores, cv=2, n_jobs=n, scoring="neg_mean_absolute_error") for n in (1, 2))
        assert np.isfinite(one).all()
        assert (one == two).all()
        assert (pickle.loads(pickle.dumps(predictor)).predict(archs[:3]) == predictor.predict(archs[:3])).all()
