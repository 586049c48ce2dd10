"""Tables of measured latency: nothing measured twice, nothing mixed, of use to the latency predictor, and read without PyTorch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
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
from llmpp_core.latency.predictor import LatencyPredictor, latency_terms
from llmpp_core.latency.profiler import MeasuredLatency, extend_latency_table
from llmpp_core.latency.tables import LatencyMeasurement, LatencySettings, read_latency_table
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import Limit
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
from llmpp_core.space.search_space import TINY

SETTINGS = LatencySettings(vocab_size=50)
ARCHS = TINY.sample_balanced(12, np.random.default_rng(0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Counter[Architecture]:
    """Replace the measurement by one that is exact on a machine of changing pace, and count."""
    count: Counter[Architecture] = Counter()
    pace = np.random.default_rng(1)

    def measure(arch: Architecture, space: object, settings: LatencySettings) -> LatencyMeasurement:
        count[arch] += 1
        # Slow at first: a later process must keep to that pace.
        slow = 2.0 if count.total() <= 3 else 1 + float(pace.random() > 0.8)
        encoder, decoder = true_ms(arch)
        return LatencyMeasurement(slow * encoder, slow * decoder, 0.1, 0.2, slow, 0.0, 0.5, "a processor", settings)

    monkeypatch.setattr(profiler, "measure_latency", measure)
    monkeypatch.setattr(profiler, "warn_if_busy", lambda *_: None)
    return count


def true_ms(arch: Architecture) -> tuple[float, float]:
    terms = latency_terms([arch])[0]
    return 1 + float(terms[:4].sum()), 2 + float(terms[4:].sum())


def extend(path: Path, n: int = 12, space: Any = TINY, settings: LatencySettings = SETTINGS, **options: Any) -> bool:
    return extend_latency_table(ARCHS[:n], space, settings, path, np.random.default_rng(2), **options)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_table_stops_grows_and_goes_on_without_loss_or_doubles(measured: Counter[Architecture], tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    assert not extend(path, seconds=0)
    assert not measured
    assert extend(path, 6, repeats=2)
    assert set(measured.values()) == {2}
    # The last row was under way onto the disk.
    path.write_bytes(path.read_bytes()[:-5])
    assert extend(path, seconds=100)
    assert sum(measured.values()) == 37
    assert len({(json.dumps(row["arch"]), row["round"]) for row in read_rows(path)}) == len(read_rows(path)) == 36
    row = read_rows(path)[0]
    assert (row["settings"], row["space"], row["qkv_dim"]) == (vars(SETTINGS), "TINY", 64)
    assert all(row[name] for name in ("device_name", "torch", "commit"))


def test_the_table_is_of_the_machine_at_one_pace_and_serves_as_those_of_other_devices(measured: Any, tmp_path: Path) -> None:
    extend(tmp_path / "table.jsonl")
    assert any(row["calibration_ms"] == 2 for row in read_rows(tmp_path / "table.jsonl"))
    table = read_latency_table(tmp_path / "table.jsonl")
    archs = list(table["architecture"])
    np.testing.assert_allclose(table[["encoder_ms", "decoder_ms"]], [true_ms(arch) for arch in archs])
    np.testing.assert_array_equal(table["latency_ms"], table["encoder_ms"] + table["decoder_ms"])
    np.testing.assert_array_equal(table[list(HAT_FEATURE_NAMES)], HATFeatures().transform(archs))
    assert (table["rounds"] == 3).all()
    assert table["repeatability"].max() == pytest.approx(0, abs=1e-12)
    predictor = LatencyPredictor().fit(table, table["latency_ms"])
    np.testing.assert_allclose(predictor.predict(archs), table["latency_ms"], rtol=0.05)


def test_a_table_is_read_without_pytorch(measured: Any, tmp_path: Path) -> None:
    extend(tmp_path / "table.jsonl", 2)
    script = "import sys; from pathlib import Path; from llmpp_core.latency.tables import read_latency_table as read; "
    script += f"print(len(read(Path({str(tmp_path / 'table.jsonl')!r}))), 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "2 False\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": replace(SETTINGS, beam=1)}, "settings.beam is 5 there and 1 here"),
        ({"space": replace(TINY, qkv_dim=128)}, "qkv_dim is 64 there and 128 here"),
        ({"device": "another processor"}, "device_name is .* there and another processor here"),
        ({"space": replace(TINY, name="OTHER")}, "space is TINY there and OTHER here"),
    ],
)
def test_a_table_measured_otherwise_is_refused_and_left_alone(
    change: dict[str, Any], message: str, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, latencies = tmp_path / "table.jsonl", tmp_path / "latencies.jsonl"
    extend(path, 2)
    MeasuredLatency(TINY, SETTINGS, latencies)(ARCHS[:2])
    before = path.read_bytes()
    if device := change.pop("device", None):
        monkeypatch.setattr(profiler, "device_name", lambda _: device)
    with pytest.raises(ValueError, match=f"table.jsonl:1: made from something else: {message}.*; move the file away$"):
        extend(path, **change)
    with pytest.raises(ValueError, match=f"latencies.jsonl:1: made from something else: {message}.*; move the file away$"):
        MeasuredLatency(**{"space": TINY, "settings": SETTINGS, **change}, path=latencies)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: row.pop("decoder_ms"), "not of a form that this version reads: KeyError: 'decoder_ms'"),
        (lambda row: row.update(encoder_ms=-1), "expected positive times"),
        (lambda row: row.update(calibration_ms="fast"), "not supported"),
        (lambda row: row["arch"].pop("decoder-layer-num-subtransformer"), "missing decoder-layer-num-subtransformer"),
        (lambda row: row["settings"].update(beam=0), "beam: expected an integer"),
    ],
)
def test_a_damaged_row_is_named(measured: Any, tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = tmp_path / "table.jsonl"
    extend(path, 2)
    rows = read_rows(path)
    damage(rows[3])
    with pytest.raises(ValueError, match=f"table.jsonl:4: .*{message}"):
        read_latency_table(write(path, rows))
    with pytest.raises(ValueError, match=r"nothing\.jsonl is not there or empty"):
        read_latency_table(tmp_path / "nothing.jsonl")


def measured_search(path: Path) -> EvolutionarySearch:
    predictor, measured = LatencyPredictor().fit(ARCHS, [sum(true_ms(arch)) for arch in ARCHS]), MeasuredLatency(TINY, SETTINGS, path)
    middle = float(np.median([sum(true_ms(arch)) for arch in TINY.sample(100, np.random.default_rng(0))]))
    limits = [Limit(predictor, 1.1 * middle, "predicted latency", "ms"), Limit(measured, 2 * middle, "latency", "ms")]
    return EvolutionarySearch(TINY, [(Additive(), 3)], limits, population=10, parents=4, mutants=4, crossovers=4)


def test_a_search_measures_its_candidates_once_and_goes_on(measured: Counter[Architecture], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    search = measured_search(path)
    whole = search.run()
    assert set(measured.values()) == {3}
    assert all(max(record.costs["latency"]) <= search.limits[1].limit for record in whole.records)
    # The pace of this machine changes, the remembered latencies do not: they are proportional to the true ones.
    archs, again = list(measured), MeasuredLatency(TINY, SETTINGS, path)
    new = next(arch for arch in ARCHS if arch not in measured)
    ratio = again([*archs, new]) / [sum(true_ms(arch)) for arch in (*archs, new)]
    np.testing.assert_allclose(ratio, ratio[0])
    assert measured_search(path).run().best == whole.best
    assert set(measured.values()) == {3}
    assert len(measured) == len(archs) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"latency_ms": None}, "not supported"), ({"pace_ms": -1.0}, "positive"), ({"latency_ms": math.inf}, "positive")],
)
def test_a_damaged_file_of_latencies_is_named(change: dict[str, Any], message: str, measured: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    MeasuredLatency(TINY, SETTINGS, path)(ARCHS[:2])
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{message}"):
        MeasuredLatency(TINY, SETTINGS, write(path, [{**row, **change} for row in read_rows(path)]))
    with pytest.raises(ValueError, match="repeats: expected a positive number, got 0"):
        MeasuredLatency(TINY, SETTINGS, path, repeats=0)
