"""Students beside their teacher: what is held out, who is taught by what, and intervals that hold what they are about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin

from llmpp_book.studies import distillation as distill_study
from llmpp_core import metrics
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import HAT_WMT


class Mean(RegressorMixin, BaseEstimator):
    """Says of every architecture the mean label, plus a bias."""

    def __init__(self, bias: float = 0.0):
        self.bias = bias

    def fit(self, archs: list[Architecture], labels: np.ndarray) -> Mean:
        self.n_, self.mean_ = len(archs), float(np.nanmean(labels))
        return self

    def predict(self, archs: list[Architecture], return_std: bool = False) -> Any:
        mean = np.full(len(archs), self.mean_ + self.bias)
        return (mean, np.arange(len(archs))) if return_std else mean


@pytest.fixture
def labels() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    archs = HAT_WMT.sample(12, rng)
    rows = [
        {"task": task, "split": 1, "architecture": arch, "decoder_layers": arch.decoder_layers, "true": np.nan, "predicted": score}
        for task, level in (("b", 20.0), ("a", 40.0))
        for arch, score in zip(archs, level + rng.normal(0, 1, 12), strict=True)
    ]
    return pd.DataFrame(rows)


def test_the_last_labels_of_every_task_are_held_out_and_become_the_truth(labels: pd.DataFrame) -> None:
    labels.loc[11, "predicted"] = np.nan
    learned, held_out = distill_study.hold_out(labels, 4)
    assert learned.index.tolist() == [*range(8), *range(12, 20)]
    assert held_out.index.tolist() == [8, 9, 10, *range(20, 24)]  # without the label that the teacher did not give
    assert (held_out["true"] == held_out["predicted"]).all()
    for wrong in (0, 12):
        with pytest.raises(ValueError, match="expected 1 to 11"):
            distill_study.hold_out(labels, wrong)


def test_each_task_has_a_student_of_its_own_labels(labels: pd.DataFrame) -> None:
    learned, held_out = distill_study.hold_out(labels, 4)
    few = learned.groupby("task", sort=False).head(3)
    students = distill_study.teach({"all": (Mean(), learned), "few": (Mean(1.0), few)}, n_jobs=1)
    assert {name: {task: s.n_ for task, s in by_task.items()} for name, by_task in students.items()} == {
        "all": {"b": 8, "a": 8},
        "few": {"b": 3, "a": 3},
    }
    said = distill_study.ask(students["few"], held_out)
    expected = few.groupby("task")["predicted"].mean() + 1
    assert said["predicted"].tolist() == pytest.approx(expected[said["task"]].tolist())
    only = distill_study.ask({"a": students["all"]["a"]}, held_out)
    assert only["task"].tolist() == 4 * ["a"]


def test_doubt_stands_beside_the_error(labels: pd.DataFrame) -> None:
    learned, held_out = distill_study.hold_out(labels, 4)
    students = distill_study.teach({"all": (Mean(), learned)}, n_jobs=1)["all"]
    doubted = distill_study.doubt(students, held_out)
    pd.testing.assert_frame_equal(doubted[held_out.columns], distill_study.ask(students, held_out))
    assert doubted["spread"].tolist() == [*range(4), *range(4)]
    assert doubted["error"].tolist() == pytest.approx((doubted["predicted"] - doubted["true"]).abs().tolist())


def test_measures_lie_within_their_intervals(labels: pd.DataFrame) -> None:
    rng = np.random.default_rng(3)
    frame = labels.assign(true=labels["predicted"] + rng.normal(0, 0.3, len(labels)))
    measured = distill_study.measure(frame, np.random.default_rng(0))
    whole = metrics.summarise(frame).loc["mean"]
    for name, (value, low, high) in measured.items():
        assert value == pytest.approx(whole[name, "mean"])
        assert low < value < high


def test_the_range_is_that_of_the_errors(labels: pd.DataFrame) -> None:
    true = labels["predicted"]
    frames = [labels.assign(true=true, predicted=true + error) for error in (0.1, -0.4, 0.2)]
    # Errors that are the same for every architecture differ as much in every resample.
    assert distill_study.mae_range(frames, np.random.default_rng(0)) == pytest.approx((0.3, 0.3, 0.3))
    assert distill_study.mae_range(frames[:1], np.random.default_rng(0)) == (0, 0, 0)
