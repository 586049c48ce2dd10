"""Deciding between two ways of searching: what an interval means, what is bought, and the command in miniature."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_searches import NAME, ground  # noqa: F401  (a fixture)

from llmpp_book import __main__
from llmpp_book.studies.decide import MEASURES, State, decide, needed, purchases, state, verdict
from llmpp_book.studies.paired import Paired, paired, training_noise
from llmpp_book.studies.search_tables import OFFLINE, RESULTS, middle_limit, searches
from llmpp_core.jobs.files import append_rows, read_rows
from llmpp_core.metrics import Interval
from llmpp_core.space.search_space import TINY


@pytest.mark.parametrize(
    ("ends", "sign", "expected"),
    [
        ((-0.4, 0.3), 1, "equal"),
        ((0.1, 0.4), 1, "equal"),
        ((0.1, 0.9), 1, "better"),
        ((0.1, 0.9), -1, "worse"),
        ((-0.9, -0.1), 1, "worse"),
        ((-0.4, 0.9), 1, "not worse"),
        ((-0.9, 0.4), -1, "not worse"),
        ((-0.9, 0.4), 1, "undecided"),
        ((-math.inf, math.inf), 1, "undecided"),
    ],
)
def test_what_an_interval_means(ends: tuple[float, float], sign: int, expected: str) -> None:
    assert verdict(Interval(sum(ends) / 2, *ends), 0.5, sign) == expected


def test_noise_is_that_of_the_depth() -> None:
    archs = [arch for arch in TINY.sample(200, np.random.default_rng(0)) if arch.decoder_layers in (1, 6)]
    rng, noise = np.random.default_rng(0), {1: 4.0, 6: 1.0}
    trained = pd.DataFrame(
        [{"architecture": a, "valid_bleu": 50 + noise[a.decoder_layers] * rng.normal()} for a in archs for _ in range(4)]
    )
    found = training_noise(trained)["variance"] ** 0.5
    np.testing.assert_allclose(found.to_dict()[1], 4, rtol=0.1)
    np.testing.assert_allclose(found.to_dict()[6], 1, rtol=0.1)
    # One training of each says nothing of the noise there; it is that of the others.
    single = pd.concat([trained, trained.drop_duplicates("architecture").assign(architecture=TINY.smallest())])[:-1]
    assert np.isfinite(training_noise(single)["variance"]).all()


def test_numbers_of_trainings_may_differ() -> None:
    a, b = TINY.smallest(), TINY.largest()
    rng = np.random.default_rng(0)
    trained = pd.DataFrame([{"architecture": x, "valid_bleu": rng.normal()} for x, n in ((a, 4), (b, 16)) for _ in range(n)])
    result, noise = paired([a, a], [b, b], trained), training_noise(trained)["variance"]
    assert result.variance == pytest.approx(noise[a.decoder_layers] / 4 + noise[b.decoder_layers] / 16)


def test_what_is_not_known_is_not_taken_for_certain() -> None:
    archs, rng = TINY.sample(12, np.random.default_rng(0)), np.random.default_rng(0)
    once = pd.DataFrame([{"architecture": arch, "valid_bleu": rng.normal()} for arch in archs])
    with pytest.raises(ValueError, match="expected several trainings"):
        training_noise(once)
    thrice = pd.concat([once, once.assign(valid_bleu=once["valid_bleu"] + 0.1), once.assign(valid_bleu=once["valid_bleu"] - 0.1)])
    # One pair says nothing of other seeds, and a training that diverged nothing at all.
    assert np.isnan(paired(archs[:1], archs[1:2], thrice).interval()[1:]).all()
    diverged = pd.concat([thrice, once.assign(valid_bleu=np.nan)])
    pair = archs[:4], archs[4:8]
    assert paired(*pair, diverged).interval() == paired(*pair, thrice).interval()


def comparison(weights: list[float], numbers: list[int], seeds: float, pairs: int = 10) -> State:
    archs = pd.Index(TINY.sample(len(weights), np.random.default_rng(0)))
    frame = pd.DataFrame({"weight": weights, "variance": [1.0] * len(weights), "number": numbers}, index=archs)
    now = Paired(0.0, frame, seeds, pairs, 20.0)
    return State(now, pairs, 600.0, 60.0, 120.0, dict(zip(archs, numbers, strict=True)))


def test_what_lowers_the_variance_most_for_its_price_is_bought() -> None:
    here = comparison([1.0, -0.9, 0.1], [3, 3, 3], seeds=0.0)
    archs = list(here.counts)
    assert purchases(here, 1) == {archs[0]: 4}
    assert purchases(here, 2) == {archs[0]: 4, archs[1]: 4}
    # Three trainings and one that diverged: the next one has the fifth seed.
    assert purchases(here._replace(counts={**here.counts, archs[0]: 4}), 1) == {archs[0]: 5}
    assert purchases(comparison([1.0, -0.9, 0.1], [300, 300, 300], seeds=0.5)) == {}
    # By hand: the next training of the first lowers the variance by 1 / (3 * 4) for 60 s, the next pair by seeds / 11 for 120 s.
    edge = 11 * 120 / (3 * 4 * 60)
    assert purchases(comparison([1.0, -0.9, 0.1], [3, 3, 3], seeds=0.99 * edge)) != {}
    assert purchases(comparison([1.0, -0.9, 0.1], [3, 3, 3], seeds=1.01 * edge)) == {}


def test_what_it_would_take_is_enough_and_not_too_much() -> None:
    here = comparison([1.0, -0.5, -0.5], [3, 3, 3], seeds=0.4)
    assert here.now is not None
    count = needed(here.now, 0.5, here.training_seconds, here.pair_seconds, level=0.95)
    rng, share = np.random.default_rng(0), np.array([0.5, 0.25, 0.25]) * count.trainings
    deviation = (0.4 * 10 / count.pairs + (np.array([1, 0.25, 0.25]) / share).sum()) ** 0.5
    estimates = deviation * rng.normal(size=20_000)
    equal = np.abs(estimates) + 1.96 * deviation < 0.5
    assert 0.78 < equal.mean() < 0.86
    assert needed(here.now, 0.25, 60.0, 120.0).minutes > 3.9 * needed(here.now, 0.5, 60.0, 120.0).minutes


def test_it_buys_until_it_is_decided_and_goes_on_where_it_stopped(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("llmpp_book.studies.decide._FIRST_PAIRS", 2)
    monkeypatch.setattr("llmpp_book.studies.decide._FIRST_TRAININGS", 2)
    where: dict[str, Any] = {"results": tmp_path, "ground_truth": ground / "tfs", "threads": 1, "say": lambda _: None}
    schedules = {"ours": "switch 28", "theirs": "cheap"}
    assert decide(NAME, ground / "checkpoints", **schedules, margin=1e-9, **where, seconds=-1) == "time is up"
    assert decide(NAME, ground / "checkpoints", **schedules, margin=1e9, **where) == "equal"
    (look,) = read_rows(tmp_path / f"{NAME}.decisions.jsonl")
    assert (look["verdict"], look["pairs"], look["measure"]) == ("equal", 2, "loss")
    assert look["low"] <= look["difference"] <= look["high"]
    trained = len(read_rows(tmp_path / f"{NAME}.found.jsonl"))
    # What is decided is not looked at again, and nothing is bought.
    assert decide(NAME, ground / "checkpoints", **schedules, margin=1e9, **where) == "equal"
    assert len(read_rows(tmp_path / f"{NAME}.decisions.jsonl")) == 1
    # A margin that a few trainings cannot tell: the budget ends, and with it the purchases.
    said: list[str] = []
    budget = 1.5 * look["seconds"] / 60
    ended = decide(NAME, ground / "checkpoints", **schedules, measure="bleu", margin=1e-9, budget=budget, **{**where, "say": said.append})
    assert ended in ("undecided", "not worse", "better", "worse")
    if ended in ("undecided", "not worse"):
        assert "it would take about" in said[-1]
        assert len(read_rows(tmp_path / f"{NAME}.found.jsonl")) > trained


def test_a_pair_that_is_missing_in_the_middle_is_the_next_one(tmp_path: Path) -> None:
    rows = [row for row in read_rows(RESULTS / "synthetic.jsonl") if (row["schedule"], row["seed"]) != ("HS-NAS", 2)]
    append_rows(tmp_path / "synthetic.jsonl", rows)
    shutil.copy(RESULTS / "synthetic.found.jsonl", tmp_path)
    limit = middle_limit(searches("synthetic", tmp_path))
    here = state("synthetic", "HS-NAS", "costly", "valid_loss", tmp_path, OFFLINE, limit)
    assert (here.pairs, here.next_seed) == (9, 2)
    # The limit that most seeds were searched under, wherever it stands among those that are there.
    append_rows(tmp_path / "two.jsonl", [row for row in rows if row["limit_ms"] >= limit])
    assert middle_limit(searches("two", tmp_path)) == limit


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"--margin": "0"}, "margin: expected a positive number of nats per token, got 0"),
        ({"--measure": "wer"}, "measure: expected loss or bleu, got 'wer'"),
        ({"--budget": "0"}, "budget: 0 core-minutes are too few for one training"),
        ({"--ours": "cheap", "--theirs": "fastest"}, "schedule: expected cheap, costly"),
        ({"--ours": "stopped like HSNAS"}, "'stopped like HSNAS': the supernet alone is stopped like HS-NAS or adaptive"),
    ],
)
def test_a_question_that_makes_no_sense_is_one_line(
    wrong: dict[str, str],
    line: str,
    ground: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [part for pair in wrong.items() for part in pair]
    (tmp_path / "tfs").symlink_to(ground / "tfs")
    assert __main__.main(["decide", NAME, *given, "--results", str(tmp_path), "--checkpoints", str(ground / "checkpoints")]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "search" / f"{NAME}.jsonl").exists()


def test_the_margins_are_those_named_before_the_data() -> None:
    assert {name: measure.margin for name, measure in MEASURES.items()} == {"loss": 0.005, "bleu": 0.5}
