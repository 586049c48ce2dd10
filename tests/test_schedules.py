"""The comparison of schedules, on the recorded searches of the synthetic task."""

from __future__ import annotations

import pytest

from llmpp_book.studies.schedules import LABELS, at_the_middle, comparison, what_it_takes
from llmpp_book.studies.search_tables import difference, found, searches


def test_every_schedule_is_compared_with_the_supernet_alone_at_one_level() -> None:
    table, grouped, trained = comparison("synthetic"), at_the_middle("synthetic"), found("synthetic")
    assert list(table.index) == [name for name in LABELS if name in grouped]
    assert set(searches("synthetic")["schedule"]) <= set(table.index)
    level = 1 - 0.05 / (2 * (len(table) - 1))
    for name in ("HS-NAS", "switch 25"):
        for measure, column in (("loss", "valid_loss"), ("bleu", "valid_bleu")):
            assert table.at[name, measure] == difference(grouped[name], grouped["costly"], trained, column, level)
        share = table.at[name, "evaluation_share"]
        assert share.value == pytest.approx(table.at[name, "evaluations"] / table.at["costly", "evaluations"])
        assert share.low < share.value < share.high
    # Two seeds decide nothing.
    assert set(table.loc[table["seeds"] < 5, "loss verdict"]) == {"undecided"}


def test_a_smaller_margin_and_a_noisier_measure_take_more() -> None:
    loss, bleu = (what_it_takes("synthetic", "HS-NAS", "costly", measure) for measure in ("loss", "bleu"))
    assert 0 < loss["minutes"] < bleu["minutes"]
