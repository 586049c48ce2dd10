"""The benchmark of all networks of a small space on handwritten digits: trainings, tables, and regret of choices."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_rel
from test_measurements import tables

from llmpp_book.__main__ import main
from llmpp_book.studies import digits, digits_answers, digits_choices
from llmpp_book.studies.digits_training import SEEDS, Recipe, _Batched, measure, train
from llmpp_core.metrics import Interval

SHORT = Recipe(epochs=1)
TWO = [digits.networks()[i] for i in (0, -2)]


def test_networks_side_by_side_are_trained_as_one_alone():
    network = next(n for n in digits.networks() if n.blocks == 2 and n.norm == "batch" and n.kernel == (3, 5))
    together = train(network, range(SEEDS), SHORT)
    assert together.accuracies.shape == (SEEDS, SHORT.folds)
    assert together.accuracies.mean() > 15  # a guess has 10
    torch.manual_seed(1)
    torch.rand(1)
    # What rounding does in another order grows a little in an epoch.
    np.testing.assert_allclose(train(network, [2], SHORT).accuracies[0], together.accuracies[2], atol=1)
    assert np.abs(together.accuracies[0] - together.accuracies[2]).max() > 2


def test_a_table_that_was_stopped_is_as_one_that_was_not(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert measure(TWO, whole, recipe=SHORT)
    assert not measure(TWO, stopped, recipe=SHORT, seconds=0)
    # In another order; then as a crash in the middle of a row would leave it.
    assert measure(TWO[::-1], stopped, recipe=SHORT)
    table = stopped / "digits.jsonl"
    table.write_text(table.read_text()[:-700])
    assert measure(TWO, stopped, recipe=SHORT)
    assert tables(stopped) == tables(whole)
    with pytest.raises(ValueError, match=r"recipe\.batch is 32 there and 64 here"):
        measure(TWO, whole, recipe=Recipe(epochs=1, batch=64))


def test_parameters_of_the_space_are_those_of_the_networks():
    networks = digits.networks()
    assert len(set(networks)) == len(networks) == digits.space().size()
    some = networks[::101]
    counted = [sum(p.numel() for p in _Batched(network, [torch.Generator()]).parameters) for network in some]
    np.testing.assert_array_equal(digits.space().costs["parameters"](some), counted)


@cache
def _frame():
    """Scores of all networks that are made up: a sum over choices, and noise."""
    networks, rng = digits.networks(), np.random.default_rng(0)
    size = np.log(digits.space().costs["parameters"](networks))
    good = 40 + 5 * size + 10 * np.array([np.mean(network.kernel) + (network.norm == "batch") for network in networks])
    seeds = {f"seed {i}": good + rng.normal(size=len(good)) for i in range(3)}
    return pd.DataFrame({"network": networks, **seeds, "seconds": 0.4, "short": good + rng.normal(size=len(good)), "short seconds": 0.1})


@pytest.mark.parametrize("name", digits_choices.WAYS)
def test_a_way_to_choose_keeps_the_limit_and_looks_at_no_score_but_those_of_the_trained(name):
    of = digits.known(_frame())
    (ten,) = digits.splits(1, np.random.default_rng(0), of)
    chosen = digits_choices.WAYS[name](of, ten, 3)
    assert of.allowed[chosen]
    if not name.endswith("trained as long"):  # which trains more
        others = np.isin(np.arange(len(of.seen)), ten, invert=True)
        hidden = of._replace(seen=np.where(others, np.nan, of.seen), held_out=np.full_like(of.held_out, np.nan))
        assert digits_choices.WAYS[name](hidden, ten, 3) == chosen


def test_regret_is_what_is_lost_to_the_best_known_within_the_limit():
    of = digits.known(_frame())
    tens = digits.splits(40, np.random.default_rng(0), of)
    assert tens.shape == (40, 10)
    assert of.allowed[tens].any(axis=1).all()
    order = np.flatnonzero(of.allowed)[np.argsort(-of.held_out[of.allowed])]
    third, drawn = "best of the ten", np.random.default_rng(0).choice(order, 40)
    chosen = pd.DataFrame({"best": order[0], third: order[2], "any": drawn})
    found = digits_choices.regrets([(of, chosen)], np.random.default_rng(0))
    lost = of.held_out[order[0]] - of.held_out[order[2]]
    assert found.loc["best", "regret"] == Interval(0, 0, 0)
    assert found.loc["best", "better networks"] == 0
    assert found.loc[third, "better networks"] == pytest.approx(100 * 2 / of.allowed.sum())
    assert found.loc["best", "difference"] == pytest.approx((-lost,) * 3)
    value, low, high = found.loc["any", "regret"]
    assert low < value < high
    assert value == pytest.approx(np.mean(of.held_out[order[0]] - of.held_out[drawn]))


def test_choices_are_kept_and_regressions_are_better_than_chance_where_scores_are_a_sum(tmp_path, monkeypatch):
    ways = {name: digits_choices.WAYS[name] for name in ("at random", "best of the ten", "ridge regression")}
    monkeypatch.setattr(digits_choices, "WAYS", ways)
    monkeypatch.setattr(digits_choices, "TENS", {tenths / 10: 3 for tenths in range(1, 10)})
    parts = [digits.known(_frame(), share) for share in digits_choices.TENS]
    for of in parts:
        tens = digits.splits(3, np.random.default_rng(0), of)
        assert not digits_choices.record_choices(of, tens, tmp_path, seconds=-1)
        assert digits_choices.record_choices(of, tens[:2], tmp_path)
        with pytest.raises(ValueError, match="no choices from ten 2 of 3; llmpp digits makes them"):
            digits_choices.recorded_choices(of, tens, tmp_path)
        assert digits_choices.record_choices(of, tens, tmp_path)
        chosen = digits_choices.recorded_choices(of, tens, tmp_path)
        assert chosen.to_dict("list") == {name: [way(of, ten, number) for number, ten in enumerate(tens)] for name, way in ways.items()}
    with pytest.raises(ValueError, match="made from something else: scores_sha256"):
        digits_choices.recorded_choices(of._replace(seen=of.seen + 1), tens, tmp_path)
    found = digits_choices.regrets(digits_choices.kept(_frame(), digits_choices.TENS, tmp_path), np.random.default_rng(0))
    assert found.loc["ridge regression", "difference"].high < 0 < found.loc["at random", "difference"].low
    ceiling = digits.ceiling(_frame(), np.random.default_rng(0), 1)
    assert ceiling["noise"] == pytest.approx(1, rel=0.1)
    assert 0 <= ceiling["regret of one seed"] < found.loc["at random", "regret"].value


def test_answers_are_judged_beside_regressions_from_the_same_tens(monkeypatch):
    whole = digits.known(_frame())
    of = whole._replace(seen=whole.seen / 2, held_out=whole.held_out / 2)  # below 100
    tens, rng = digits.splits(3, np.random.default_rng(0), of), np.random.default_rng(1)
    rows = np.array([rng.choice(np.setdiff1d(np.flatnonzero(of.allowed), ten), 20, replace=False) for ten in tens])
    asked = {"split": np.repeat(range(3), 20), "architecture": [of.networks[row] for row in rows.ravel()]}
    said = pd.DataFrame({**asked, "predicted": of.held_out[rows.ravel()] + 2})
    # Of one ten nothing is recorded, and one answer is invalid.
    said.loc[said["split"] == 1, "predicted"] = said.loc[3, "predicted"] = np.nan
    monkeypatch.setattr(digits_answers, "answers", lambda experiment, model: said)
    frame = digits_answers.predictions(of, "a model")
    assert frame["split"].tolist() == [0] * 20 + [2] * 20
    np.testing.assert_allclose(frame["true"], of.held_out[rows[[0, 2]].ravel()])
    ridge = [digits_choices.predicted(digits_choices.ridge(), of, tens[ten])[rows[ten]] for ten in (0, 2)]
    np.testing.assert_allclose(frame["ridge regression"], np.concatenate(ridge))
    found = digits_answers.agreement(frame)
    assert found.loc["language model", ["MAE", "tau"]].tolist() == pytest.approx([2, 1])
    assert found.loc["ridge regression", "MAE difference"] == Interval(0, 0, 0)
    # On the networks of which both have a number.
    errors = [np.abs(part - of.held_out[rows[ten]]) for ten, part in zip((0, 2), ridge, strict=True)]
    gap = 2 - (np.delete(errors[0], 3).mean() + errors[1].mean()) / 2
    assert found.loc["language model", "MAE difference"].value == pytest.approx(gap)
    assert digits_answers.errors(frame.assign(**{"language model": 1000}), "language model")[0] == pytest.approx(
        (100 - frame["true"][:20]).mean()
    )
    chosen = digits_answers.choices(of, frame)
    best = [part.loc[part["language model"].idxmax(), "row"] for _, part in frame.groupby("split")]
    assert chosen["language model, of those asked about"].tolist() == best
    assert of.allowed[chosen["student of the language model, of all"]].all()


def test_an_interval_over_tens_is_that_of_students_t():
    ours, theirs = np.random.default_rng(0).normal(size=(2, 9))
    known = ttest_rel(ours, theirs).confidence_interval()
    assert digits_answers.paired(ours, theirs) == pytest.approx(((ours - theirs).mean(), *known))


def test_scores_are_read_and_what_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"digits\.jsonl is not there or empty; measure it with: llmpp digits"):
        digits.scores(tmp_path)
    measure(TWO, tmp_path, recipe=SHORT)
    frame = digits.scores(tmp_path)
    assert list(frame["network"]) == TWO
    assert list(frame) == ["network", "seed 0", "seed 1", "seed 2", "seconds", "short", "short seconds"]
    # With one epoch both trainings are the same.
    np.testing.assert_allclose(frame["seed 0"], frame["short"], atol=1)
    with pytest.raises(ValueError, match="2 of 1,032 networks are trained"):
        digits.known(frame)


def test_the_command_goes_on_and_says_so(tmp_path, capsys):
    assert main(["digits", "--minutes", "0", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "not complete; the same command goes on\n"
    (tmp_path / "file").write_text("")
    assert main(["digits", "--minutes", "0", "--results", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err
