"""Averages, ratios and noise of answers, on tables small enough to work out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from llmpp_book.studies import answer_scores as llm_scores
from llmpp_book.studies import questions as experiments
from llmpp_core import metrics
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.upstream import TFSSplit

ARCHS = HAT_WMT.sample_balanced(12, np.random.default_rng(0))


def predictions(errors: np.ndarray, archs: list[Architecture] = ARCHS) -> pd.DataFrame:
    true = np.arange(len(archs), dtype=float)
    layers = [arch.decoder_layers for arch in archs]
    return pd.DataFrame(
        {"task": "t", "split": 0, "architecture": archs, "decoder_layers": layers, "true": true, "predicted": true + np.asarray(errors)}
    )


def twice(noise: np.ndarray, size: int = 6) -> pd.DataFrame:
    """Return two answers to each of two requests: exact ones, and ones that are off by `noise`."""
    frames = [
        predictions(e).assign(sample=s, first=np.arange(12) // size * size, per_request=size) for s, e in enumerate((0 * noise, noise))
    ]
    return pd.concat(frames, ignore_index=True)


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_an_average_lets_opposite_errors_cancel_whatever_the_order_of_rows() -> None:
    errors = np.linspace(-1, 2, 12)
    both = llm_scores.average(predictions(errors), predictions(-errors).iloc[::-1])
    np.testing.assert_allclose(both["predicted"], both["true"])


def test_predictions_for_other_architectures_are_not_averaged() -> None:
    with pytest.raises(ValueError, match="predictions 2: expected the 12 architectures of the first, got 11"):
        llm_scores.average(predictions(np.zeros(12)), predictions(np.zeros(11), ARCHS[:11]))


def test_a_ratio_of_errors_is_paired() -> None:
    errors = np.linspace(0.1, 2, 12)
    assert llm_scores.error_ratio(predictions(2 * errors), predictions(errors), rng(), 50) == pytest.approx((2, 2, 2))


def test_the_best_rival_counts() -> None:
    ours, right, wrong = predictions(np.zeros(12)), predictions(np.ones(12)), predictions(-2 * np.arange(12.0))
    assert llm_scores.tau_behind(wrong, [wrong, right], rng(), 50) == pytest.approx((2, 2, 2))
    assert llm_scores.tau_behind(ours, [wrong, right], rng(), 50) == pytest.approx((0, 0, 0))


def test_the_deviation_of_an_answer_is_pooled() -> None:
    # Half the pairs agree and half differ by 2: variances 0 and 2, so the mean variance is 1.
    found = llm_scores.answer_deviation(twice(np.tile([0.0, 2.0], 6)), rng())
    assert found.value == pytest.approx(1)
    assert 0.5 < found.low < 1 < found.high < math.sqrt(2)


def test_errors_that_a_whole_request_shares_do_not_average_out_within_it() -> None:
    together = llm_scores.round_deviation(twice(np.repeat([1.0, -1.0], 6)), 2)
    assert together == pytest.approx(math.sqrt(1 / 2))
    assert llm_scores.round_deviation(twice(np.repeat([1.0, -1.0], 6)), 18) == pytest.approx(together / 3)


def test_rounds_need_two_samples() -> None:
    with pytest.raises(ValueError, match="expected two samples of requests of one size, got 1 samples"):
        llm_scores.round_deviation(twice(np.zeros(12)).query("sample == 0"), 2)


def test_a_shuffled_split_shows_what_the_shuffled_prompts_show() -> None:
    scores = np.linspace(20, 26, 12).round(2)
    frame = pd.DataFrame({"architecture": ARCHS, "bleu": scores})
    split = TFSSplit("wmt14ende", 123, frame.iloc[:10], frame.iloc[10:])
    shown = llm_scores.shuffle_split(split)
    assert sorted(shown.demonstrations["bleu"]) == sorted(split.demonstrations["bleu"])
    assert list(shown.demonstrations["bleu"]) != list(split.demonstrations["bleu"])
    tasks = {"wmt14ende": experiments.WMT_TASKS["wmt14ende"]}
    asked = experiments.ask_test_sets([split], tasks, form="batched", shuffled=True)
    assert asked[0].prompt == experiments.ask_test_sets([shown], tasks, form="batched")[0].prompt


def test_training_noise_is_what_depth_and_architecture_leave() -> None:
    depth = np.array([arch.decoder_layers for arch in ARCHS])
    effect, noise = rng().normal(size=12), rng().normal(size=(2, 12))
    tables = {f"t{i}": pd.DataFrame({"architecture": ARCHS, "bleu": 20 + i + (2 + i) * depth + effect}) for i in range(2)}
    assert metrics.training_noise(tables) == pytest.approx(0, abs=1e-9)
    noisy = {task: frame.assign(bleu=frame["bleu"] + noise[i]) for i, (task, frame) in enumerate(tables.items())}
    gap = noise[0] - noise[1]
    gap = gap - pd.Series(gap).groupby(depth).transform("mean")
    assert metrics.training_noise(noisy) == pytest.approx(math.sqrt((gap**2).sum() / 2 / (12 - len(set(depth)))))
