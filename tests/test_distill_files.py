"""Checkpoints of a distilled predictor: the same to the last bit, of any space and recipe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmpp_core.predictors.distill import OFFICIAL, DistilledPredictor
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import HAT_WMT, TINY

ARCHS = HAT_WMT.sample(60, np.random.default_rng(0))
QUICK = {"features": "averages", "space": HAT_WMT, "steps": 60}


def depths(archs: list[Architecture]) -> np.ndarray:
    return np.array([24.0 + arch.decoder_layers for arch in archs])


@pytest.fixture(scope="module")
def student() -> DistilledPredictor:
    return DistilledPredictor(**QUICK).fit(ARCHS, depths(ARCHS), teacher="a formula")


def test_a_loaded_student_predicts_the_same_to_the_last_bit(student, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "student.safetensors"
    student.save(path)
    loaded = DistilledPredictor.load(path)
    for ours, theirs in zip(student.predict(ARCHS, return_std=True), loaded.predict(ARCHS, return_std=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.get_params() == student.get_params()
    assert (loaded.teacher_, loaded.features_, loaded.n_labels_) == ("a formula", "averages", 60)
    assert loaded.held_out_rmse_ == student.held_out_rmse_
    assert list(tmp_path.iterdir()) == [path]
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def test_a_checkpoint_keeps_any_space_and_recipe(tmp_path, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    own = replace(TINY, name="own", encoder_layers=(4,), decoder_layers=(2, 3))
    archs = own.sample(20, rng)
    settings = {**OFFICIAL, "steps": np.int64(3), "hidden": np.array([9, 5]), "space": own, "random_state": None}
    student = DistilledPredictor(**settings).fit(archs, np.arange(20.0))
    student.save(tmp_path / "own")
    loaded = DistilledPredictor.load(tmp_path / "own")
    assert loaded.space == own
    np.testing.assert_array_equal(loaded.predict(archs), student.predict(archs))
