"""An experiment of our own, about a made-up task in which depth is all that matters; it needs no upstream files."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hat_costs import prompt_task

from llmpp_book.studies.questions import Experiment, Question, ask_test_sets
from llmpp_core.llm.prompts import PromptTask
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.upstream import TFSSplit

TASK = prompt_task("own", "a task of our own", "score", "a number", 0.0, 100.0)


def own_splits() -> list[TFSSplit]:
    splits = []
    for seed in (1, 2):
        archs = HAT_WMT.sample(30, np.random.default_rng(seed))
        frame = pd.DataFrame({"architecture": archs, "bleu": [20.0 + arch.decoder_layers for arch in archs]})
        splits.append(TFSSplit("own", seed, frame.iloc[:10], frame.iloc[10:].reset_index(drop=True)))
    return splits


def questions(task: PromptTask = TASK) -> list[Question]:
    return [question for form in ("single", "batched") for question in ask_test_sets(own_splits(), {"own": task}, form=form)]


OWN = Experiment("own-test", "a test", questions, samples=2)
