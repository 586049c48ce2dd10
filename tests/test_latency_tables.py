"""Tables of measured latency: nothing lost or measured twice, nothing mixed, and of use to the latency predictor."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searches import Additive

from llmpp_core.jobs.files import read_rows
from llmpp_core.latency import profiler
from llmpp_core.latency import tables as latency_tables
from llmpp_core.latency.predictor import LatencyPredictor, latency_terms
from llmpp_core.latency.profiler import LatencyMeasurement, LatencySettings
from llmpp_core.latency.tables import MeasuredLatency, build_latency_table, extend_latency_table, read_latency_table
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import Limit
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
from llmpp_core.space.search_space import SMALL, TINY

SETTINGS = LatencySettings(vocab_size=50)
ARCHS = TINY.sample_balanced(12, np.random.default_rng(0))


class Killed(BaseException):
    """What ends a process between two measurements."""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the measurement by one that is exact on a machine of changing pace, counts, and can be killed."""
    state: dict[str, Any] = {"measured": Counter(), "left": None}
    pace = np.random.default_rng(1)

    def measure(arch: Architecture, space: object, settings: LatencySettings) -> LatencyMeasurement:
        if state["left"] is not None:
            if not state["left"]:
                raise Killed
            state["left"] -= 1
        state["measured"][arch] += 1
        slow = 1 + float(pace.random() > 0.8)
        encoder, decoder = true_ms(arch)
        return LatencyMeasurement(slow * encoder, slow * decoder, 0.1, 0.2, slow, 0.0, 0.5, "a processor", settings)

    monkeypatch.setattr(latency_tables, "measure", measure)
    monkeypatch.setattr(profiler, "why_busy", lambda *_: None)
    return state


def true_ms(arch: Architecture) -> tuple[float, float]:
    terms = latency_terms([arch])[0]
    return 1 + float(terms[:4].sum()), 2 + float(terms[4:].sum())


def build(path: Path, n: int = 12, **options: Any) -> Any:
    return build_latency_table(ARCHS[:n], TINY, options.pop("settings", SETTINGS), path, np.random.default_rng(2), **options)


def keys(path: Path) -> list[tuple[str, int]]:
    return [(json.dumps(row["arch"]), row["round"]) for row in read_rows(path)]


def test_a_table_killed_at_any_moment_goes_on_without_loss_or_doubles(bench: dict[str, Any], tmp_path: Path) -> None:
    build(tmp_path / "whole.jsonl")
    path = tmp_path / "killed.jsonl"
    for cut in (0, 5, 400, 1):
        bench["left"] = 7
        with pytest.raises(Killed):
            build(path)
        # The last row was under way onto the disk.
        path.write_bytes(path.read_bytes()[: -cut or None])
    bench["left"] = None
    build(path)
    assert keys(path) == keys(tmp_path / "whole.jsonl")
    assert len(set(keys(path))) == 36


def test_it_stops_when_its_time_is_over_and_goes_on(bench: dict[str, Any], tmp_path: Path) -> None:
    path, rng = tmp_path / "table.jsonl", np.random.default_rng
    assert not extend_latency_table(ARCHS, TINY, SETTINGS, path, rng(2), seconds=0)
    assert not bench["measured"]
    assert extend_latency_table(ARCHS, TINY, SETTINGS, path, rng(2), seconds=100)
    assert sum(bench["measured"].values()) == 36


def test_what_is_there_is_not_measured_again(bench: dict[str, Any], tmp_path: Path) -> None:
    build(tmp_path / "table.jsonl", 6, repeats=2)
    assert set(bench["measured"].values()) == {2}
    assert len(build(tmp_path / "table.jsonl", 12, repeats=3)) == 12
    assert set(bench["measured"].values()) == {3}


def test_the_table_is_of_the_machine_at_one_pace(bench: dict[str, Any], tmp_path: Path) -> None:
    table = build(tmp_path / "table.jsonl").set_index("architecture")
    assert any(row["calibration_ms"] == 2 for row in read_rows(tmp_path / "table.jsonl"))
    for arch in ARCHS:
        assert tuple(table.loc[arch, ["encoder_ms", "decoder_ms"]]) == pytest.approx(true_ms(arch))
    assert (table["rounds"] == 3).all()
    assert table["repeatability"].max() == pytest.approx(0, abs=1e-12)


def test_the_table_serves_as_those_of_other_devices(bench: dict[str, Any], tmp_path: Path) -> None:
    table = build(tmp_path / "table.jsonl")
    assert np.array_equal(table[list(HAT_FEATURE_NAMES)], HATFeatures().transform(list(table["architecture"])))
    assert np.allclose(table["latency_ms"], table["encoder_ms"] + table["decoder_ms"])
    for rows in (table, list(table["architecture"])):
        predictor = LatencyPredictor().fit(rows, table["latency_ms"])
        assert np.allclose(predictor.predict(rows), table["latency_ms"], rtol=0.05)


def test_rows_say_where_they_come_from(bench: dict[str, Any], tmp_path: Path) -> None:
    build(tmp_path / "table.jsonl", 1, repeats=1)
    (row,) = read_rows(tmp_path / "table.jsonl")
    assert row["settings"] == {**vars(SETTINGS)}
    assert row["space"] == "TINY"
    assert row["device_name"]
    assert row["torch"]
    assert row["commit"]


def test_a_table_measured_otherwise_is_refused_and_left_alone(
    bench: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.jsonl"
    build(path, 2)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"table.jsonl:1: measured with settings beam=5, not beam=1; use another file"):
        build(path, settings=replace(SETTINGS, beam=1))
    with pytest.raises(ValueError, match="measured with space TINY, not SMALL"):
        build_latency_table([SMALL.smallest()], SMALL, SETTINGS, path, np.random.default_rng(0))
    monkeypatch.setattr(latency_tables, "device_name", lambda _: "another processor")
    with pytest.raises(ValueError, match=r"measured with device_name .*, not another processor"):
        build(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: row.pop("decoder_ms"), "the row has no 'decoder_ms'"),
        (lambda row: row.update(encoder_ms=-1), "expected positive times"),
        (lambda row: row.update(calibration_ms="fast"), "not supported"),
        (lambda row: row["arch"].pop("decoder-layer-num-subtransformer"), "missing decoder-layer-num-subtransformer"),
        (lambda row: row["settings"].update(beam=0), "beam: expected an integer"),
    ],
)
def test_a_damaged_row_is_named(bench: dict[str, Any], tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = tmp_path / "table.jsonl"
    build(path, 2)
    rows = read_rows(path)
    damage(rows[3])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"table.jsonl:4: .*{message}"):
        read_latency_table(path)


def test_an_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.jsonl is not there or empty"):
        read_latency_table(tmp_path / "nothing.jsonl")


def measured_search(path: Path) -> EvolutionarySearch:
    predictor, measured = LatencyPredictor().fit(ARCHS, [sum(true_ms(arch)) for arch in ARCHS]), MeasuredLatency(TINY, SETTINGS, path)
    middle = float(np.median([sum(true_ms(arch)) for arch in TINY.sample(100, np.random.default_rng(0))]))
    limits = [Limit(predictor, 1.1 * middle, "predicted latency", "ms"), Limit(measured, middle, "latency", "ms")]
    return EvolutionarySearch(TINY, [(Additive(), 4)], limits, population=10, parents=4, mutants=4, crossovers=4)


def test_a_search_measures_its_candidates_once_and_goes_on(bench: dict[str, Any], tmp_path: Path) -> None:
    whole = measured_search(tmp_path / "a.jsonl").run()
    assert set(bench["measured"].values()) == {3}
    asked = len(bench["measured"])
    for record in whole.records:
        assert max(record.costs["latency"]) <= measured_search(tmp_path / "a.jsonl").limits[1].limit
    # The pace of this machine changes, the remembered latencies do not: they are proportional to the true ones.
    archs = list(bench["measured"])
    ratio = MeasuredLatency(TINY, SETTINGS, tmp_path / "a.jsonl")(archs) / [sum(true_ms(arch)) for arch in archs]
    np.testing.assert_allclose(ratio, ratio[0])
    again = measured_search(tmp_path / "a.jsonl").run()
    assert len(bench["measured"]) == asked
    assert set(bench["measured"].values()) == {3}
    assert [record.without_times() for record in again.records] == [record.without_times() for record in whole.records]


def test_latencies_of_another_kind_are_refused(bench: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    MeasuredLatency(TINY, SETTINGS, path)(ARCHS[:2])
    with pytest.raises(ValueError, match=r"a\.jsonl:1: measured with settings batch=1, not batch=2; use another file"):
        MeasuredLatency(TINY, replace(SETTINGS, batch=2), path)
    rows = [{key: value for key, value in row.items() if key != "latency_ms"} for row in read_rows(path)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"b\.jsonl:1: the row has no 'latency_ms'"):
        MeasuredLatency(TINY, SETTINGS, tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="repeats: expected a positive number, got 0"):
        MeasuredLatency(TINY, SETTINGS, path, repeats=0)
    with pytest.raises(ValueError, match=r"a\.jsonl:1: measured with qkv_dim 64, not 128; use another file"):
        MeasuredLatency(replace(TINY, qkv_dim=128), SETTINGS, path)
    for wrong in (-1.0, math.nan):
        (tmp_path / "c.jsonl").write_text("".join(json.dumps({**row, "latency_ms": wrong}) + "\n" for row in read_rows(path)))
        with pytest.raises(ValueError, match=r"c\.jsonl:1: expected positive times"):
            MeasuredLatency(TINY, SETTINGS, tmp_path / "c.jsonl")


def test_a_table_of_real_measurements(tmp_path: Path) -> None:
    quick = replace(SETTINGS, source_length=5, target_length=4, warmup=1, runs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler, "why_busy", lambda *_: None)
        table = build(tmp_path / "table.jsonl", 3, settings=quick, repeats=2)
    assert (table[["encoder_ms", "decoder_ms", "calibration_ms"]] > 0).all(axis=None)
    assert table["repeatability"].notna().all()
