"""The pilot of a task: which variant tells architectures apart, and its trainings as rows of the benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmpp_book.studies import pilot
from llmpp_book.studies.pilot import Variant, signal
from llmpp_core.jobs.files import append_rows, read_rows
from llmpp_core.space.search_space import TINY


def test_the_signal_of_a_variant_is_spread_over_noise(tmp_path: Path) -> None:
    rng, archs = np.random.default_rng(0), TINY.sample(400, np.random.default_rng(0))
    rows = []
    for variant, noise in ((Variant(12, 500, 0.003), 2.0), (Variant(12, 1000, 0.003), 0.5)):
        for arch in archs:
            quality = 4 * rng.normal()
            for seed in (0, 1):
                scores = {"valid_bleu": 20 + quality + noise * rng.normal(), "valid_loss": 3 - quality / 10 + noise / 100 * rng.normal()}
                rows.append({**variant._asdict(), "arch": arch.to_hat_dict(), "seed": seed, **scores, "train_seconds": 9.0})
    append_rows(tmp_path / "a-task.pilot.jsonl", rows)
    found = signal("a-task", tmp_path).set_index(["updates", "measure"])
    assert (found["architectures"] == len(set(archs))).all()
    np.testing.assert_allclose(found.loc[(500, "valid_bleu"), ["noise", "spread", "ratio", "ratio of three"]], [2, 4, 2, 3.46], rtol=0.15)
    np.testing.assert_allclose(found.loc[(1000, "valid_loss"), ["noise", "spread", "ratio"]], [0.005, 0.4, 80], rtol=0.15)


@pytest.mark.needs_data("multi30k")
def test_the_trainings_of_the_chosen_variant_are_rows_of_the_benchmark_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilot, "chosen", lambda task: [task.space.smallest()])
    variants = [Variant(5, 3, 0.003), Variant(6, 3, 0.003)]
    pilot.measure("de", variants, tmp_path / "checkpoints", results=tmp_path, seeds=2)
    assert pilot.adopt("de", variants[1], tmp_path) == 2
    assert pilot.adopt("de", variants[1], tmp_path) == 0
    rows, tried = (read_rows(tmp_path / f"multi30k-mini.en-de{name}.jsonl") for name in ("", ".pilot"))
    for row, other in zip(rows, tried[2:], strict=True):
        recipe = row.pop("recipe")
        assert (recipe["updates"], recipe["learning_rate"]) == variants[1][1:]
        assert row == {name: value for name, value in other.items() if name not in Variant._fields}
    assert {row["words"] for row in tried} == {5, 6}
    with pytest.raises(ValueError, match=r"jsonl:1: made from something else: recipe.*updates"):
        pilot.adopt("de", Variant(6, 4, 0.003), tmp_path)
